"""What tests share: a database of each kind, the app on a real uvicorn, and a strict client."""

import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import forked
import httpx
import pytest
from databases import BACKENDS, Database, Missing, free_port
from xdist.scheduler import LoadScopeScheduling

from db import Settings

ROOT = Path(__file__).parent.parent

# For clients of the app, which speaks no TLS: else each reads the machine's certificates first.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

# What a developer has set for an app of their own, in the environment or in .env, is not what is
# tested: no test can reach that database. Keep this in a project of your own.
for setting in Settings.model_fields:
    os.environ.pop(setting.upper(), None)
Settings.model_config["env_file"] = None
throwaway = tempfile.TemporaryDirectory(prefix="roster-")
os.environ["DATABASE_URL"] = f"sqlite:///{throwaway.name}/roster.db"

# make faults sets it; make test runs only what is quick, with fewer rounds, on fewer databases.
FULL = "FAULTS" in os.environ
full = pytest.mark.full
# Bounds in seconds are the app's promises. make faults measures them; make test also runs on
# machines that are busy with something else, and so allows for some time more.
SLACK = 0 if FULL else 30


def quick_on(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Return the parameters of a test; those that are not quick, for make faults only."""
    return [pytest.param(value, marks=() if value in quick else full) for value in values]


tested: dict[str, str] = {}
missing: dict[str, str] = {}


@contextmanager
def required(what: str) -> Iterator[None]:
    """Skip what needs a server that is not on this machine; fail if all are required."""
    try:
        yield
    except Missing as error:
        missing[what] = str(error)
        if os.environ.get("REQUIRE_ALL_DATABASES"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@contextmanager
def started(name: str) -> Iterator[Database]:
    """Yield an empty database of a kind."""
    with required(name), BACKENDS[name]() as database:
        tested[name] = database.version
        yield database


@pytest.fixture(scope="session", params=BACKENDS)
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Yield an empty database of each kind."""
    with started(request.param) as database:
        yield database


@pytest.fixture(scope="session")
def own_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Yield an empty database of a kind, on a server that tests may break."""
    with pytest.MonkeyPatch.context() as environment:
        for name in BACKENDS:
            environment.delenv(f"TEST_{name.upper()}_URL", raising=False)
        with started(request.param) as database:
            yield database


@pytest.fixture
def own(own_database: Database) -> Iterator[Database]:
    """Yield an empty database on that server, which works again after the test."""
    with own_database.new() as url:
        try:
            yield replace(own_database, url=url)
        finally:
            if own_database.process:
                own_database.process.heal()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what make test leaves to make faults."""
    for item in items:
        if not FULL and item.get_closest_marker("full"):
            item.add_marker(pytest.mark.skip(reason="make faults runs it"))


class ByDatabase(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Gives each database's tests to one worker, so that its server starts once; others to any."""

    def _split_scope(self, nodeid: str) -> str:
        parameters = nodeid.partition("[")[2].removesuffix("]").split("-")
        return next((name for name in BACKENDS if name in parameters), nodeid)


# The hooks of pytest-xdist, which may be switched off.


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many tests ``-n auto`` runs at once: one is waiting for something at any time."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Distribute the tests (--dist loadgroup, made for this, does nothing on pytest 9.2)."""
    return ByDatabase(config, log)


begun: list[BaseException] = []  # what the set-ups that failed raised


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report one error for a fixture that fails, and skip the other tests that need it."""
    report = yield
    if call.when == "setup" and call.excinfo and report.failed:
        if any(call.excinfo.value is earlier for earlier in begun):
            report.outcome = "skipped"
            report.longrepr = (str(item.path), 0, "Skipped: a fixture failed in an earlier test")
        else:
            begun.append(call.excinfo.value)
    return report


collected: set[str] = set()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note which tests are to run."""
    collected.update(item.nodeid for item in session.items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(ids: list[str]) -> None:
    """Note which tests the workers are to run."""
    collected.update(ids)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker, tell what it has tested on."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["databases"] = tested, missing


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker has tested on; one that crashed says nothing."""
    if hasattr(node, "workeroutput"):
        for mine, workers in zip((tested, missing), node.workeroutput["databases"], strict=True):
            mine.update(workers)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which databases the run was really about."""
    terminalreporter.section("databases")
    for version in tested.values():
        terminalreporter.write_line(f"tested on {version}")
    for name in BACKENDS.keys() - tested.keys():
        why = missing.get(name, "no test of it was run to its end")
        terminalreporter.write_line(f"NOT tested on {name}: {why}")
    reported = {report.nodeid for each in terminalreporter.stats.values() for report in each}
    if not_run := len(collected - reported):
        terminalreporter.write_line(f"{not_run} tests not run", red=True)
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    if figures := [report for report in reports if report.user_properties]:
        terminalreporter.section("figures")
        for report in figures:
            said = ", ".join(f"{what} {figure}" for what, figure in report.user_properties)
            name = report.nodeid.rpartition("::")[2].removeprefix("test_")
            terminalreporter.write_line(f"{report.outcome} {name}: {said}")


@dataclass
class Server:
    """A running app: where it is, its process, and what it has printed so far."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def printed(self) -> str:
        """Return all that the app printed."""
        return self.log.read_text(errors="replace")


@contextmanager
def serve(
    database_url: str | None, folder: Path, *options: str, app: str = "tests.served:app"
) -> Iterator[Server]:
    """Run the app with uvicorn in a folder of its own; yield it once it serves."""
    port = free_port()
    log = folder / "uvicorn.log"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    env.pop("DATABASE_URL", None)
    if database_url:
        env["DATABASE_URL"] = database_url
    command = [sys.executable, "-W", "error", "-m", "uvicorn", app, f"--port={port}"]
    # An idle connection that is closed at the moment when it is used again would fail a test.
    command += ["--timeout-keep-alive=60", *options]
    with log.open("ab") as out:
        process = forked.Popen(
            command,
            cwd=folder,
            env=env,
            stdout=out,
            stderr=out,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        wait_until(
            lambda: process.poll() is not None or answers(f"{server.url}/livez"),
            lambda: f"no answer in 60 s; it printed: {server.printed()}",
        )
        assert process.poll() is None, f"the app ended: {server.printed()}"
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def answers(url: str) -> bool:
    """Return whether a GET succeeds."""
    try:
        return httpx.get(url, timeout=5, verify=NO_TLS).is_success
    except httpx.TransportError:
        return False


def wait_until(true: Callable[[], bool], why: Callable[[], str] = str, seconds: float = 60) -> None:
    """Wait until something is true; fail after some seconds, and say why."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, why()
        time.sleep(0.02)


@pytest.fixture(scope="session")
def server(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield the app on a database of each kind."""
    with serve(database.url, tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture(scope="session")
def openapi(server: Server) -> dict[str, Any]:
    """Return the OpenAPI document that the app serves."""
    document: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    return document


class Documented:
    """Checks that the OpenAPI document has every status that is answered."""

    def __init__(self, openapi: dict[str, Any]) -> None:
        self.paths = {
            re.compile(re.sub(r"{\w+}", "[^/]+", path)): operations
            for path, operations in sorted(
                openapi["paths"].items(), key=lambda item: "{" in item[0]
            )
        }

    def __call__(self, response: httpx.Response) -> None:
        request = response.request
        for path, operations in self.paths.items():
            if path.fullmatch(request.url.path):
                if operation := operations.get(request.method.lower()):
                    assert str(response.status_code) in operation["responses"], response.read()
                return


@pytest.fixture(scope="session")
def session_client(server: Server) -> Iterator[httpx.Client]:
    """Yield one client for all tests."""
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False, verify=NO_TLS) as client:
        yield client


@pytest.fixture
def client(
    server: Server, session_client: httpx.Client, openapi: dict[str, Any]
) -> Iterator[httpx.Client]:
    """Yield a client of an app without users; look after the test whether the app is well."""
    client = session_client
    client.post("/-/wipe").raise_for_status()
    before = len(server.printed())
    client.event_hooks = {"response": [Documented(openapi)]}
    yield client
    client.event_hooks = {}
    wait_until(lambda: client.get("/-/checked-out").json() == 0, lambda: "connections leak")
    said = server.printed()[before:]
    assert "Traceback" not in said, said
    assert '" 500' not in said, said


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a folder with the files that git has, or would take."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).splitlines():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    return tmp_path
