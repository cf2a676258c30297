"""Starting: with a wrong setting, a database that is away, several workers; and stopping."""

import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import forked
import httpx
import pytest
from asyncmy.auth import sha2_rsa_encrypt
from conftest import NO_TLS, ROOT, SLACK, answers, full, quick_on, required, serve, wait_until
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from databases import (
    BACKENDS,
    Database,
    _ask_mysql,
    _ask_postgresql,
    _folder,
    _mysql_server,
    _postgresql_server,
    free_port,
    redis_server,
)
from sqlalchemy import URL
from sqlalchemy.engine import make_url
from test_contract import add, read_all

from db import open_backend
from engine import SettingsError


def start_and_fail(folder: Path, env: dict[str, str], *guard: str) -> str:
    """Start the app, by ``guard`` if there is one; it must end by itself; return what it printed.

    Alone on a machine it takes 1 or 2 seconds; here, other tests run beside it.
    """
    command = [*guard, sys.executable, "-m", "uvicorn", "app:app", f"--port={free_port()}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    result = forked.run(command, timeout=60, cwd=folder, env=environment, stderr=subprocess.PIPE)
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


@pytest.mark.parametrize(
    ("scheme", "driver"),
    [("postgresql", "asyncpg"), ("mysql", "asyncmy"), ("mongodb", "pymongo"), ("redis", "redis")],
)
def test_driver_that_is_not_installed_is_named_with_the_command(
    scheme: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NotInstalled:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == driver:
                raise ModuleNotFoundError(name=name)

    users = ("engine.postgresql", "engine.mysql", "store_mongo", "store_redis")
    for name in [name for name in sys.modules if name.startswith((driver, *users))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NotInstalled, *sys.meta_path])
    needed = f"needs the package {driver}: pip install -r requirements-servers.txt"
    with pytest.raises(SettingsError, match=f"DATABASE_URL: {scheme} {needed}$"):
        open_backend(f"{scheme}://a:hunter2@localhost/x")


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
    ("DATABASE_URL", "redis://localhost/hunter2", "a database once, by its number"),
    ("DATABASE_URL", "redis://localhost/0?socket_timeout=hunter2", "an option after its ?"),
    ("DATABASE_URL", "sqlite://a:hunter2@localhost/x.db", "SQLite needs a file"),
    ("DATABASE_URL", "sqlite:///x.db?timeout=hunter2", "DATABASE_URL: "),
    ("DATABASE_URL", "sqlite:///file:x?mode=memory&uri=true", "SQLite takes no options"),
    ("DATABASE_URL", "sqlite:///x.db?hunter2=1", "SQLite takes no options"),
    ("DATABASE_URL", "redis://localhost/0?db=4", "a database once, by its number"),
    ("DATABASE_URL", "unix://?db=4", "a database once, by its number"),
    ("DATABASE_URL", "unix:///no/such.sock?db=hunter2", "an option after its ?"),
    ("DATABASE_URL", "postgresql://a:b@h/x?channel_binding=require", "option channel_binding"),
    ("DATABASE_URL", "postgresql://a:b@h/x?pgbouncer=true", "no option pgbouncer"),
    ("DATABASE_URL", "mysql://a:b@h/x?ssl-mode=VERIFY_CA", "no option ssl-mode"),
    ("DATABASE_URL", "mysql://a:b@h/x?sslaccept=strict", "no option sslaccept"),
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
        # Databases with a table of the same name.
        ("something text", "a table users of another program"),
        ("id integer primary key, name text, email text, password text", "of another program"),
        ("id integer primary key, name text, email text", "pyproject.toml upgrade head"),
    ],
)
def test_foreign_sqlite_file_is_left_alone(
    tmp_path: Path, content: bytes | str, words: str
) -> None:
    file = tmp_path / "roster.db"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        with sqlite3.connect(file) as connection:
            connection.execute(f"create table users ({content})")
        connection.close()
    before = file.read_bytes()
    line = only_line(start_and_fail(tmp_path, {"DATABASE_URL": f"sqlite:///{file}"}))
    assert str(file) in line
    assert words in line
    if isinstance(content, bytes):
        assert file.read_bytes() == before


def test_env_file_is_read_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL")
    (tmp_path / ".env").write_text("DATABASE_URL=oracle://\nPOOL_SIZE=0\nOTHER=1\n")
    assert "POOL_SIZE" in start_and_fail(tmp_path, {})
    assert "it must begin with" in start_and_fail(tmp_path, {"POOL_SIZE": "2"})
    (tmp_path / ".env").write_bytes(b"DATABASE_URL=\xff\n")
    assert ".env" in only_line(start_and_fail(tmp_path, {}))


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
    "database",
    quick_on([name for name in BACKENDS if name != "sqlite"], "postgresql", "mysql"),
    indirect=True,
)
on_few_and_sqlite = pytest.mark.parametrize(
    "database", quick_on(BACKENDS, "sqlite", "postgresql", "redis"), indirect=True
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
        assert statuses == {200, 503}, server.printed()
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


def test_reload_changes_tokens_and_leaves_no_gap(tmp_path: Path) -> None:
    """The options of the systemd unit in ``docs/operate.md``, and its ExecReload."""
    old, new = "o" * 24, "n" * 24
    settings = tmp_path / ".env"
    settings.write_text(f"API_TOKENS=old:{old}\n")

    def status(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        ask = partial(httpx.get, f"{server.url}/users/", headers=headers, verify=NO_TLS)
        try:
            return ask().status_code
        except (httpx.ReadError, httpx.RemoteProtocolError):  # by a worker that was just ending
            return ask().status_code

    def starts() -> int:
        return server.printed().count("startup complete")

    options = ("--workers=2", "--timeout-worker-healthcheck=30")
    url = f"sqlite:///{tmp_path}/roster.db"
    with serve(url, tmp_path, *options, app="app:app") as server:
        wait_until(lambda: starts() == 2, server.printed)
        settings.write_text(f"API_TOKENS=old:{old},new:{new}\n")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: status(old) != 200 or starts() == 4, server.printed)
        assert status(old) == 200, "a gap"
        wait_until(lambda: [status(new) for _ in range(5)] == [200] * 5)
        settings.write_text(f"API_TOKENS=new:{new}\n")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: starts() == 6, server.printed)
        wait_until(lambda: [status(old) for _ in range(5)] == [401] * 5)
        assert "Database: the SQLite file" in server.printed()
        assert "Access: 2 tokens." in server.printed()


def test_sigterm_ends_the_app_at_once(database: Database, tmp_path: Path) -> None:
    with serve(database.url, tmp_path, app="app:app") as server:
        assert httpx.get(f"{server.url}/users/").is_success
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(timeout=60)
        assert time.monotonic() - began < 5
        assert "Traceback" not in server.printed()


URLS = [
    ("postgresql", "?application_name=x&connect_timeout=5&channel_binding=prefer"),
    ("mysql", "?connect_timeout=5&ssl-mode=PREFERRED"),
    ("mysql", "?unix_socket={socket}"),
    ("postgresql", "?host={folder}"),
    ("redis", "unix://{user}:{password}@{socket}?db=3"),
]


@contextmanager
def on_a_socket(name: str, folder: Path) -> Iterator[URL]:
    """Yield the URL of a server that also listens on the socket ``socket`` of a folder."""
    path = f"{folder}/socket"
    match name:
        case "postgresql":
            with _postgresql_server(f"--unix_socket_directories={folder}") as (admin, _):
                yield admin.set(drivername="postgresql")
        case "mysql":
            with _mysql_server(f"--socket={path}") as (admin, _):
                _ask_mysql(admin, "create database roster")
                _ask_mysql(admin, "set global sql_safe_updates=on")
                who = f"'{admin.username}'@localhost"
                _ask_mysql(admin, f"create user {who} identified by '{admin.password}'")
                _ask_mysql(admin, f"grant all on *.* to {who}")
                yield admin.set(drivername="mysql", database="roster")
        case "redis":
            with redis_server(f"--unixsocket {path}") as (admin, _):
                yield admin


@pytest.mark.parametrize(
    ("name", "end"), [pytest.param(*url, marks=() if n % 2 else full) for n, url in enumerate(URLS)]
)
def test_url_as_providers_give_it(name: str, end: str, tmp_path: Path) -> None:
    account = {"postgresql": "postgres"}.get(name, name)
    with _folder(account, "") as folder, required(name), on_a_socket(name, folder) as url:
        text = url.render_as_string(hide_password=False)
        whole = text + end if end[0] == "?" else end
        whole = whole.format(
            socket=f"{folder}/socket",
            folder=folder,
            user=url.username,
            password=quote(str(url.password), safe=""),
        )
        with (
            serve(f" {whole}\r\n", tmp_path) as server,
            httpx.Client(base_url=server.url, verify=NO_TLS) as client,
        ):
            add(client)
            assert client.get("/readyz").is_success


def test_postgresql_that_cannot_hold_the_tables_says_why(tmp_path: Path) -> None:
    with _postgresql_server() as (admin, _):
        for statement in (
            "create database latin encoding 'LATIN1' template template0 locale 'C' icu_locale 'en'",
            "create role guest login password 'guest-of-mine'",
            "create database theirs",
        ):
            _ask_postgresql(admin, statement)
        latin = admin.set(drivername="postgresql", database="latin")
        theirs = latin.set(username="guest", password="guest-of-mine", database="theirs")
        for url, words in ((latin, "encoding LATIN1"), (theirs, "GRANT CREATE ON SCHEMA public")):
            env = {"DATABASE_URL": url.render_as_string(hide_password=False)}
            line = only_line(start_and_fail(tmp_path, env))
            assert words in line
            assert "guest-of-mine" not in line


def test_address_of_ipv6_is_written_with_brackets() -> None:
    for url in ("postgresql://[::1]:5/x", "mysql://[::1]:5/x", "redis://[::1]:5/0"):
        assert " at [::1]:5, " in open_backend(url).place
    assert " at [::1]:5, " in open_backend("mongodb://[::1]:5/x").place


def test_process_without_descriptors_says_so(tmp_path: Path) -> None:
    with (
        serve(f"sqlite:///{tmp_path}/a.db", tmp_path, app="app:app") as server,
        ExitStack() as stack,
    ):
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (50, 1000))
        host, port = server.url.removeprefix("http://").split(":")
        for _ in range(60):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
        wait_until(lambda: "No file descriptor is left" in server.printed(), server.printed)
        stack.close()
        wait_until(lambda: answers(f"{server.url}/readyz"))
        assert "Traceback" not in server.printed()


def test_paths_are_right_under_the_prefix_of_a_proxy(tmp_path: Path) -> None:
    options = ("--root-path=/roster", "--forwarded-allow-ips=127.0.0.1")
    with (
        serve(f"sqlite:///{tmp_path}/a.db", tmp_path, *options, app="app:app") as server,
        httpx.Client(base_url=server.url, verify=NO_TLS) as client,
    ):
        created = client.post("/users/", json={"name": "a", "email": "a@b.de"})
        assert created.headers["location"] == f"/roster/users/{created.json()['id']}"
        docs = client.get("/docs").text
        assert "'/roster/openapi.json'" in docs
        assert set(re.findall(r'(?:src|href)="(/[a-z]*)', docs)) == {"/roster"}
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/roster"}]
        # Links of the page, and of the description in /docs, go from where they are.
        assert not re.search(r'(src|href)="/', client.get("/").text)
        assert "](/" not in client.get("/openapi.json").json()["info"]["description"]
        moved = client.get("/users?limit=1").headers["location"]
        assert moved == f"{server.url}/roster/users/?limit=1"


def test_redirect_has_the_scheme_that_a_trusted_proxy_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "t" * 24
    monkeypatch.setenv("API_TOKENS", f"ada:{token}")
    headers = {
        "Authorization": f"Bearer {token}",
        "Host": "roster.example.com",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "192.0.2.1",
    }
    with serve(f"sqlite:///{tmp_path}/a.db", tmp_path, app="app:app") as server:
        moved = httpx.get(f"{server.url}/users", headers=headers, verify=NO_TLS)
        assert moved.headers["location"] == "https://roster.example.com/users/"


MOUNTED = """
from contextlib import asynccontextmanager
from fastapi import FastAPI
from app import app as roster

@asynccontextmanager
async def lifespan(_):
    async with roster.router.lifespan_context(roster):
        yield

app = FastAPI({})
app.mount("/roster", roster)

@app.get("/livez")
async def live():
    return "ok"
"""


@on_few_and_sqlite
def test_app_that_is_mounted_says_how_to_start_it(database: Database, tmp_path: Path) -> None:
    (tmp_path / "without.py").write_text(MOUNTED.format(""))
    (tmp_path / "outer.py").write_text(MOUNTED.format("lifespan=lifespan"))
    with database.new() as url:
        with serve(url, tmp_path, app="without:app") as server:
            response = httpx.get(f"{server.url}/roster/users/", verify=NO_TLS)
            assert (response.status_code, list(response.json())) == (500, ["detail"])
            wait_until(lambda: "RuntimeError: Roster has not started." in server.printed())
        with (
            serve(url, tmp_path, app="outer:app") as server,
            httpx.Client(base_url=f"{server.url}/roster", verify=NO_TLS) as client,
        ):
            created = client.post("/users/", json={"name": "a", "email": "a@b.de"})
            assert created.headers["location"] == f"/roster/users/{created.json()['id']}"
            assert client.get(f"/users/{created.json()['id']}").is_success


def test_another_server_than_uvicorn_prints_the_log_of_changes(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import asyncio, httpx\n"
        "from app import app\n"
        "async def main():\n"
        "    transport = httpx.ASGITransport(app, client=('127.0.0.1', 1))\n"
        "    client = httpx.AsyncClient(transport=transport, base_url='http://localhost')\n"
        "    async with app.router.lifespan_context(app), client:\n"
        "        await client.post('/users/', json={'name': 'a', 'email': 'a@b.de'})\n"
        "asyncio.run(main())\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DATABASE_URL": f"sqlite:///{tmp_path}/a.db"}
    run = subprocess.run(
        [sys.executable, "other.py"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert "POST /users/ 201 by local, request " in run.stderr, run.stderr
