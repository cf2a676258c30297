"""Starting: with a wrong setting, a database that is away, several workers; and stopping."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from asyncmy.auth import sha2_rsa_encrypt
from conftest import NO_TLS, ROOT, SLACK, full, quick_on, serve, wait_until
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from databases import BACKENDS, Database, free_port
from sqlalchemy.engine import make_url
from test_contract import add, read_all


def start_and_fail(folder: Path, env: dict[str, str], *guard: str) -> str:
    """Start the app, by ``guard`` if there is one; it must end by itself; return what it printed.

    Alone on a machine it takes 1 or 2 seconds; here, other tests run beside it.
    """
    command = [*guard, sys.executable, "-m", "uvicorn", "app:app", f"--port={free_port()}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    result = subprocess.run(
        command,
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=60,
        text=True,
    )
    assert result.returncode != 0
    printed = result.stdout + result.stderr
    assert "Traceback" not in printed, printed
    return printed


def only_line(printed: str) -> str:
    """Return the one line that says something about a setting."""
    uvicorns = re.compile("INFO:|.*Application startup failed. Exiting.")
    lines = [line for line in printed.splitlines() if line and not uvicorns.match(line)]
    assert len(lines) == 1, printed
    return lines[0]


# A setting, a value, and what is said of it.
WRONG = [
    ("DATABASE_URL", "", "DATABASE_URL: it must begin with"),
    ("DATABASE_URL", "hunter2", "DATABASE_URL: it must begin with"),
    ("DATABASE_URL", "oracle://a:hunter2@localhost/x", "DATABASE_URL: it must begin with"),
    ("DATABASE_URL", "postgresql:/a:hunter2@localhost/x", "DATABASE_URL: not a URL"),
    ("DATABASE_URL", "postgresql://a:b@localhost:hunter2/x", "DATABASE_URL: not a URL"),
    ("DATABASE_URL", "postgresql://a:b@hunter2@localhost/x", "write an @"),
    ("DATABASE_URL", "mysql://a:b@hunter2@localhost/x", "write an @"),
    ("DATABASE_URL", "postgresql://a:b@hunter2/x@localhost/y", "write an @"),
    ("DATABASE_URL", "postgresql://a:b@localhost", "must name a database"),
    ("DATABASE_URL", "postgresql://a:hunter2@h1,h2/x", "each needs its port"),
    ("DATABASE_URL", "postgresql://a:b@h1:1,h2:hunter2/x", "each needs its port"),
    ("DATABASE_URL", "postgresql://a:b@hunter2@h1:1,h2:2/x", "write an @"),
    ("DATABASE_URL", "mysql://a:hunter2@h1:1,h2:2/x", "several hosts: only of"),
    ("DATABASE_URL", "redis://a:hunter2@h1:1,h2:2/0", "several hosts: only of"),
    ("DATABASE_URL", "redis+sentinel://a:hunter2@h1:1,h2:2/0", "must name a service"),
    ("READ_DATABASE_URL", "sqlite:///hunter2.db", "READ_DATABASE_URL: only for PostgreSQL"),
    ("DATABASE_URL", "redis://a:b@hunter2@localhost/0", "write an @"),
    ("DATABASE_URL", "redis:///0", "must name a host"),
    ("DATABASE_URL", "redis://localhost/hunter2", "a database only by its number"),
    ("DATABASE_URL", "redis://localhost/0?socket_timeout=hunter2", "an option after its ?"),
    ("DATABASE_URL", "sqlite://a:hunter2@localhost/x.db", "SQLite needs a file"),
    ("DATABASE_URL", "sqlite:///x.db?timeout=hunter2", "DATABASE_URL: "),
    ("DATABASE_URL", "sqlite:///file:x?mode=memory&uri=true", "SQLite needs a file"),
    ("DATABASE_URL", "sqlite://", "SQLite needs a file"),
    ("DATABASE_URL", "sqlite:///:memory:", "SQLite needs a file"),
    ("DATABASE_URL", "sqlite:////no/such/folder/roster.db", "cannot be opened"),
    ("DATABASE_URL", "mongodb:///x", "not a URL of MongoDB's"),
    ("DATABASE_URL", "mongodb://a:b@localhost:hunter2/x", "not a URL of MongoDB's"),
    ("DATABASE_URL", "mongodb://a:b@hunter2@localhost/x", "write an @"),
    ("DATABASE_URL", "mongodb://a:b@hunter2/x@localhost/y", "write an @"),
    ("DATABASE_URL", "mongodb://localhost/x?timeoutMS=hunter2", "an option after its ?"),
    ("DATABASE_URL", "mongodb+srv://a:hunter2@localhost:1/x", "not a URL of MongoDB's"),
    ("DATABASE_URL", "mongodb+srv://a:hunter2@x.invalid/x", "x.invalid, database x has a name"),
    ("POOL_SIZE", "hunter2", "POOL_SIZE: Input should be a valid integer"),
    ("POOL_SIZE", "1", "POOL_SIZE: Input should be greater than or equal to 2"),
]


@pytest.mark.parametrize("wrong", quick_on(WRONG, *WRONG[::3]))
def test_wrong_setting_is_one_line_without_a_secret(
    tmp_path: Path, wrong: tuple[str, str, str]
) -> None:
    setting, value, words = wrong
    line = only_line(start_and_fail(tmp_path, {setting: value}))
    assert words in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"this is no database" * 1000, "is not a SQLite database"),
        (None, "a table users of another program"),  # a database with a table of the same name
    ],
)
def test_foreign_sqlite_file_is_left_alone(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "roster.db"
    if content:
        file.write_bytes(content)
    else:
        with sqlite3.connect(file) as connection:
            connection.execute("create table users (something text)")
        connection.close()
    before = file.read_bytes()
    line = only_line(start_and_fail(tmp_path, {"DATABASE_URL": f"sqlite:///{file}"}))
    assert str(file) in line
    assert words in line
    if content:
        assert file.read_bytes() == before


def test_env_file_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DATABASE_URL=oracle://\nPOOL_SIZE=0\nOTHER=1\n")
    env = {key: value for key, value in os.environ.items() if key != "DATABASE_URL"}
    assert "POOL_SIZE" in start_and_fail(tmp_path, env)
    assert "it must begin with" in start_and_fail(tmp_path, {"POOL_SIZE": "2"})
    (tmp_path / ".env").write_bytes(b"DATABASE_URL=\xff\n")
    assert ".env" in only_line(start_and_fail(tmp_path, env))


@pytest.mark.parametrize("options", [(), ("--reload",)])
def test_no_setting_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with (
        serve(None, tmp_path, *options, app="app:app") as server,
        httpx.Client(base_url=server.url) as client,
    ):
        assert add(client)["version"] == 1
    assert (tmp_path / "roster.db").exists()


# SQLite has no server, user or host.
on_servers = pytest.mark.parametrize(
    "database", [name for name in BACKENDS if name != "sqlite"], indirect=True
)
on_few = pytest.mark.parametrize(
    "database",
    quick_on([name for name in BACKENDS if name != "sqlite"], "postgresql", "redis"),
    indirect=True,
)


@on_servers
@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"username": "nobody"}, "user name"),
        ({"password": "hunter2"}, "password"),
    ],
)
def test_server_that_says_no_is_one_line_without_a_secret(
    database: Database, tmp_path: Path, part: dict[str, Any], words: str
) -> None:
    real = make_url(database.url)
    url = real.set(**part).render_as_string(hide_password=False)
    line = only_line(start_and_fail(tmp_path, {"DATABASE_URL": url}))
    assert words in line
    assert f"127.0.0.1:{real.port}" in line
    for secret in ("hunter2", str(real.password)):
        assert secret not in line


def test_driver_can_encrypt_a_password_as_mysqls_own_server_wants_it() -> None:
    # MariaDB, which the suite starts, never asks for that.
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    sent = sha2_rsa_encrypt(b"password", bytes(20), pem)  # type: ignore[no-untyped-call]  # asyncmy's
    assert len(sent) == key.key_size // 8


@on_servers
def test_name_that_no_database_has(database: Database, tmp_path: Path) -> None:
    if database.absent is None:
        with database.new() as url, serve(url, tmp_path) as server:
            assert httpx.get(f"{server.url}/readyz").is_success
    else:
        absent = make_url(database.url).set(database=database.absent)
        env = {"DATABASE_URL": absent.render_as_string(hide_password=False)}
        assert "has no database of this name" in only_line(start_and_fail(tmp_path, env))


@contextmanager
def relay(port: int, to: int) -> Iterator[subprocess.Popen[bytes]]:
    """Listen on a port and pass on everything to another, both ways."""
    process = subprocess.Popen([sys.executable, ROOT / "tests" / "relay.py", str(port), str(to)])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@on_few
def test_database_that_is_away_at_the_start_is_waited_for(
    database: Database, tmp_path: Path
) -> None:
    real, port = make_url(database.url), free_port()
    url = real.set(port=port).render_as_string(hide_password=False)
    with serve(url, tmp_path) as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/livez").status_code == 200
        new = {"name": "a", "email": "a@b.de"}
        with ThreadPoolExecutor() as pool:  # each may take as long as the driver's patience
            work = [
                *(pool.submit(client.get, f"/{path}") for path in ("readyz", "users/", "users/1")),
                pool.submit(client.get, "/users/export"),
                pool.submit(client.post, "/users/", json=new),
            ]
        for response in (part.result() for part in work):
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        with relay(port, real.port or 0):
            wait_until(lambda: client.get("/readyz").is_success, seconds=3 + SLACK)
            assert isinstance(read_all(client), list)
        printed = server.printed()
        assert f"127.0.0.1:{port}" in printed
        assert "is unreachable" in printed
        assert "Traceback" not in printed
        assert str(real.password) not in printed


@on_servers
def test_option_that_the_driver_does_not_know_is_one_line(
    database: Database, tmp_path: Path
) -> None:
    url = make_url(database.url).update_query_dict({"hunter2": "hunter2"})
    env = {"DATABASE_URL": url.render_as_string(hide_password=False)}
    line = only_line(start_and_fail(tmp_path, env))
    assert "does not know an option" in line
    assert "hunter2" not in line


@full
@pytest.mark.parametrize("database", ["mongodb", "redis"], indirect=True)
def test_database_that_is_frozen_is_503_in_time(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOL_SIZE", "2")  # most have to wait for a connection
    real, port = make_url(database.url), free_port()
    url = real.set(port=port).render_as_string(hide_password=False)
    new = {"name": "a", "email": "a@b.de"}

    def timed(*request: Any, **options: Any) -> tuple[int, float]:
        began = time.monotonic()
        return client.request(*request, **options).status_code, time.monotonic() - began

    with (
        serve(url, tmp_path) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
        relay(port, real.port or 0) as between,
        ThreadPoolExecutor(20) as pool,
    ):
        wait_until(lambda: client.get("/readyz").is_success)
        between.send_signal(signal.SIGSTOP)
        work = [pool.submit(timed, "GET", f"/{path}") for path in ("readyz", "users/") * 8]
        work += [pool.submit(timed, "POST", "/users/", json=new)]
        work += [pool.submit(timed, "POST", "/users/bulk", json=[new])]
        assert timed("GET", "/livez")[1] < 1 + SLACK
        for status, seconds in (part.result() for part in work):
            assert status == 503
            assert seconds < 10 + SLACK
        between.send_signal(signal.SIGCONT)
        wait_until(lambda: client.get("/readyz").is_success, seconds=3 + SLACK)
        assert "Traceback" not in server.printed()


def test_table_that_cannot_be_made_ends_the_app(tmp_path: Path) -> None:
    file = tmp_path / "roster.db"
    with sqlite3.connect(file) as connection:
        connection.execute("create table other (x)")
        connection.execute("create index ix_users_name_key_id on other (x)")
    connection.close()
    line = only_line(start_and_fail(tmp_path, {"DATABASE_URL": f"sqlite:///{file}"}))
    assert "cannot be used" in line


@on_few
def test_late_refusal_does_not_end_the_app(database: Database, tmp_path: Path) -> None:
    real, port = make_url(database.url), free_port()
    url = real.set(port=port, password="hunter2").render_as_string(hide_password=False)
    with serve(url, tmp_path) as server, relay(port, real.port or 0):
        wait_until(lambda: "user name with this password" in server.printed(), server.printed)
        time.sleep(2.5)
        assert httpx.get(f"{server.url}/livez").status_code == 200
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        printed = server.printed()
        assert printed.count("user name with this password") == 1
        assert "hunter2" not in printed
        assert "Traceback" not in printed


@on_few
def test_connections_that_die_under_load_are_503_and_never_500(
    database: Database, tmp_path: Path
) -> None:
    real, port = make_url(database.url), free_port()
    url = real.set(port=port).render_as_string(hide_password=False)
    statuses: set[int] = set()
    done = threading.Event()

    with (
        serve(url, tmp_path) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        with relay(port, real.port or 0):
            wait_until(lambda: client.get("/readyz").is_success)
            path = f"/users/{add(client)['id']}"

        def use(i: int) -> None:
            while not done.is_set():
                if i % 2:
                    statuses.add(client.patch(path, json={"name": f"n{i}"}).status_code)
                else:
                    statuses.add(client.get("/users/?limit=5").status_code)

        with ThreadPoolExecutor(8) as pool:
            work = [pool.submit(use, i) for i in range(8)]
            for _ in range(5):
                with relay(port, real.port or 0):
                    statuses.discard(200)
                    wait_until(lambda: 200 in statuses)
            done.set()
            for part in work:
                part.result()
        assert statuses == {200, 503}
        with relay(port, real.port or 0):
            wait_until(lambda: client.get("/readyz").is_success, seconds=2 + SLACK)
            # Starting, too, may have taken one at this moment.
            wait_until(lambda: client.get("/-/checked-out").json() == 0, seconds=5 + SLACK)
        assert "Traceback" not in server.printed()


@pytest.mark.parametrize("database", quick_on(BACKENDS, "postgresql"), indirect=True)
def test_four_workers_start_together_on_an_empty_database(
    database: Database, tmp_path: Path
) -> None:
    with (
        database.new() as url,
        serve(url, tmp_path, "--workers=4", app="app:app") as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        wait_until(lambda: server.printed().count("startup complete") == 4, server.printed)
        for _ in range(10):
            assert httpx.get(f"{server.url}/readyz", verify=NO_TLS).is_success
        add(client)
        printed = server.printed()
        assert "ERROR" not in printed, printed
        assert "Traceback" not in printed, printed


def test_sigterm_ends_the_app_at_once(database: Database, tmp_path: Path) -> None:
    with serve(database.url, tmp_path, app="app:app") as server:
        assert httpx.get(f"{server.url}/users/").is_success
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(timeout=60)
        assert time.monotonic() - began < 5
        assert "Traceback" not in server.printed()
