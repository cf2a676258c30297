"""Several servers of PostgreSQL's: a standby takes over, a replica reads, PgBouncer is between."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT

import asyncpg
import httpx
import pytest
from conftest import NO_TLS, SLACK, answers, full, required, serve, wait_until
from databases import (
    _POSTGRESQL,
    Process,
    _ask_postgresql,
    _folder,
    _new_admin,
    _postgresql_server,
    _program,
    _running,
)
from load import Figures, check_healthy, count_lost, say, writing
from sqlalchemy import URL, make_url
from test_start import only_line, start_and_fail

pytestmark = full
# Seconds, at most, from the promotion to the first user who is stored. That a server says nothing
# is an error after 6 seconds, and after 9 there are new connections only.
RESUMED = {"killed": 2 + SLACK, "frozen": 8 + SLACK, "frozen for long": 2 + SLACK}
# What Roster asks of a new connection, and PgBouncer must be told to pass over.
SETTINGS = "statement_timeout,lock_timeout,plan_cache_mode,default_transaction_read_only"


@dataclass
class Pair:
    """A primary and its standby, which has everything that was acknowledged."""

    primary: Process
    standby: Process
    primary_url: URL
    standby_url: URL

    def url(self, *hosts: URL, **options: str) -> str:
        """Return the URL of several hosts, in libpq's form."""
        places = ",".join(f"{host.host}:{host.port}" for host in hosts)
        url = self.primary_url.set(drivername="postgresql", query=options)
        one = f"{url.host}:{url.port}"
        return url.render_as_string(hide_password=False).replace(one, places)

    def commit_waits_for(self, standby: str) -> None:
        """Let the primary acknowledge nothing that the standby has not, or let it not care."""
        setting = f"synchronous_standby_names = '{standby}'"
        _ask_postgresql(self.primary_url, f"alter system set {setting}")
        _ask_postgresql(self.primary_url, "select pg_reload_conf()")

    def promote(self) -> float:
        """Make the standby the primary; return when it was."""
        _ask_postgresql(self.standby_url, "select pg_promote()")
        return time.monotonic()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Yield a new pair."""
    with required("postgresql with a standby"), start_pair() as pair:
        yield pair


@contextmanager
def start_pair() -> Iterator[Pair]:
    """Run a primary, and a standby made by pg_basebackup; each commit waits for the standby."""
    with _postgresql_server() as (primary_url, primary):
        assert primary
        standby_url = primary_url.set(port=_new_admin("postgresql").port)
        copied = primary_url.set(database=None, query={"application_name": "standby"})
        backup = [_program("pg_basebackup", _POSTGRESQL, "postgresql", ""), "--write-recovery-conf"]
        serve = [_program("postgres", _POSTGRESQL, "postgresql", ""), "--max_connections=100"]
        with _folder("postgres", "") as folder:
            backup += ["--checkpoint=fast", f"--pgdata={folder}/data"]
            backup += [f"--dbname={copied.render_as_string(hide_password=False)}"]
            serve += ["-D", f"{folder}/data", f"--port={standby_url.port}"]
            serve += [f"--listen_addresses={standby_url.host}", "--unix_socket_directories="]

            def ask() -> str:
                return _ask_postgresql(standby_url)

            with _running(folder, backup, serve, SIGINT, ask) as standby:
                pair = Pair(primary, standby, primary_url, standby_url)
                pair.commit_waits_for("standby")
                yield pair


@pytest.mark.parametrize("how", RESUMED)
def test_standby_takes_over_from_a_primary_that_is(
    pair: Pair, tmp_path: Path, record_property: Figures, how: str
) -> None:
    url = pair.url(pair.primary_url, pair.standby_url, target_session_attrs="read-write")
    with serve(url, tmp_path, "--no-access-log") as server:
        with writing(server.url) as load:
            load.goes_on()
            time.sleep(1)
            if how == "killed":
                pair.primary.kill()
            else:
                pair.primary.freeze()
            time.sleep(10 if how == "frozen for long" else 1)
            promoted = pair.promote()
            load.goes_on()
            resumed = time.monotonic() - promoted
            time.sleep(1)
        # A connection that was idle has yet to find out that its server is gone.
        wait_until(lambda: answers(f"{server.url}/readyz"))
        lost = count_lost(server.url, load)
        check_healthy(server, str(pair.primary_url.password))
    say(record_property, load, lost, resumed=resumed)
    assert lost == 0
    assert load.codes.keys() == {"201", "503"}
    assert not load.wrong, load.wrong[:3]
    assert resumed < RESUMED[how]


def test_app_without_a_primary_waits_for_one(pair: Pair, tmp_path: Path) -> None:
    pair.commit_waits_for("")
    url = pair.url(pair.standby_url, target_session_attrs="read-write")
    user = {"name": "Ada", "email": "ada@example.com"}
    with serve(url, tmp_path) as server:
        users = f"{server.url}/users/"
        assert httpx.post(users, json=user, verify=NO_TLS).status_code == 503
        assert httpx.get(users, verify=NO_TLS).status_code == 503
        pair.promote()
        wait_until(lambda: httpx.post(users, json=user, verify=NO_TLS).status_code == 201)
        check_healthy(server)


def test_replica_reads_and_writes_do_not_need_it(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Figures
) -> None:
    monkeypatch.setenv("READ_DATABASE_URL", pair.url(pair.standby_url))
    with (
        serve(pair.url(pair.primary_url), tmp_path) as server,
        httpx.Client(base_url=server.url, timeout=30, verify=NO_TLS) as client,
    ):
        wait_until(lambda: answers(f"{server.url}/readyz"))
        # Only a replica that does not follow any more can show that it was asked.
        pair.commit_waits_for("")
        _ask_postgresql(pair.standby_url, "select pg_wal_replay_pause()")
        ada = {"name": "Ada", "email": "ada@example.com"}
        created = client.post("/users/", json=ada)
        assert created.status_code == 201
        path = created.headers["location"]
        changed = client.patch(path, json={"name": "Eve"}, headers={"If-Match": '"1"'})
        assert (changed.status_code, changed.json()["name"]) == (200, "Eve")
        assert client.post("/users/", json=ada).status_code == 409
        assert client.post("/users/bulk", json=[ada]).status_code == 409
        assert client.patch(path, json={}).json()["name"] == "Eve"
        assert client.delete(path, headers={"If-Match": '"1"'}).status_code == 412
        assert client.get(path).status_code == 404
        _ask_postgresql(pair.standby_url, "select pg_wal_replay_resume()")
        wait_until(lambda: client.get(path).status_code == 200)
        assert client.get(path).json()["name"] == "Eve"
        pair.standby.kill()
        with writing(server.url) as load:
            assert client.get(path).status_code == 503
            assert client.get("/readyz").status_code == 503
            load.goes_on()
            time.sleep(1)
            pair.standby.start()
            wait_until(lambda: client.get("/readyz").status_code == 200, seconds=2 + SLACK)
        wait_until(lambda: count_lost(server.url, load) == 0)
        check_healthy(server)
        pair.primary.kill()
        assert client.get(path).status_code == 200
        assert client.get("/readyz").status_code == 503
    say(record_property, load, 0)
    assert load.codes.keys() == {"201"}


def test_prefer_standby_reads_from_the_primary_when_there_is_no_standby(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = pair.primary_url, pair.standby_url
    monkeypatch.setenv("READ_DATABASE_URL", pair.url(*both, target_session_attrs="prefer-standby"))
    pair.commit_waits_for("")
    with (
        serve(pair.url(*both), tmp_path) as server,
        httpx.Client(base_url=server.url, timeout=30, verify=NO_TLS) as client,
    ):
        assert client.get("/users/").status_code == 200
        _ask_postgresql(pair.standby_url, "select pg_wal_replay_pause()")
        path = client.post("/users/", json={"name": "A", "email": "a@a.org"}).headers["location"]
        assert client.get(path).status_code == 404
        pair.standby.freeze()
        wait_until(lambda: client.get(path).status_code == 200)
        pair.standby.kill()
        assert client.get(path).status_code == 200


def test_two_apps_share_a_server(tmp_path: Path, record_property: Figures) -> None:
    with required("postgresql"), _postgresql_server() as (admin, _):
        url = admin.set(drivername="postgresql").render_as_string(hide_password=False)
        folders = [tmp_path / name for name in ("one", "two")]
        for folder in folders:
            folder.mkdir()
        with serve(url, folders[0]) as one, serve(url, folders[1]) as two:
            with writing(one.url) as load_one, writing(two.url) as load_two:
                time.sleep(2)
            lost = count_lost(one.url, load_one, load_two)
            same = {"name": "Ada", "email": "ada@example.com"}
            with ThreadPoolExecutor(20) as threads:
                rivals = [f"{server.url}/users/" for server in (one, two)] * 10
                codes = threads.map(
                    lambda to: httpx.post(to, json=same, timeout=30, verify=NO_TLS).status_code,
                    rivals,
                )
                assert sorted(codes) == [201] + [409] * 19
            check_healthy(one)
            check_healthy(two)
    say(record_property, load_one, lost)
    assert lost == 0
    assert {*load_one.codes, *load_two.codes} == {"201"}


@contextmanager
def start_pgbouncer(admin: URL, ignore: str, size: int = 4) -> Iterator[str]:
    """Run PgBouncer in transaction mode, with fewer connections than its clients have."""
    program = _program("pgbouncer", [Path("/usr/sbin")], "pgbouncer", "")
    url = admin.set(port=_new_admin("postgresql").port, drivername="postgresql")
    with _folder("postgres", f'"{admin.username}" "{admin.password}"\n') as folder:
        settings = {
            "listen_addr": url.host,
            "listen_port": url.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": f"{folder}/secret",
            "pool_mode": "transaction",
            "default_pool_size": size,
            "ignore_startup_parameters": ignore,
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        where = f"* = host={admin.host} port={admin.port}"
        (folder / "ini").write_text("\n".join(["[databases]", where, "[pgbouncer]", *lines, ""]))
        serve = [program, f"{folder}/ini"]
        with _running(folder, ["true"], serve, SIGINT, lambda: _ask_postgresql(url)):
            yield url.render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def behind() -> Iterator[URL]:
    """Yield the URL of a PostgreSQL for PgBouncer."""
    with required("PgBouncer"), _postgresql_server() as (admin, _):
        _program("pgbouncer", [Path("/usr/sbin")], "pgbouncer", "")
        yield admin


def test_pgbouncer_in_transaction_mode(
    behind: URL, tmp_path: Path, record_property: Figures
) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    with start_pgbouncer(behind, SETTINGS) as url:
        url += "?prepared_statement_cache_size=0"
        with serve(url, folders[0]) as one, writing(one.url, clients=20) as load:
            load.goes_on()
            # It begins to count when the other one is far ahead: no name may be left of either.
            with (
                serve(url, folders[1]) as two,
                httpx.Client(base_url=two.url, timeout=30, verify=NO_TLS) as client,
            ):
                for i in range(40):
                    ada = {"name": f"Ada {i}", "email": f"ada{i}@example.com"}
                    path = client.post("/users/", json=ada).headers["location"]
                    assert client.post("/users/", json=ada).status_code == 409
                    changed = client.patch(path, json={"name": "Eve"}, headers={"If-Match": '"1"'})
                    assert changed.json()["name"] == "Eve"
                    assert client.get(path).json() == changed.json()
                    assert client.get(f"/users/?name=eve&total=true&limit={i + 1}").is_success
                    if i % 2:
                        assert client.delete(path).status_code == 204
                check_healthy(two)
            load.done.set()
            wait_until(lambda: httpx.get(f"{one.url}/-/checked-out", verify=NO_TLS).json() == 0)
            lost = count_lost(one.url, load)
            check_healthy(one)
    say(record_property, load, lost)
    assert lost == 0
    assert load.codes.keys() == {"201"}


def test_pgbouncer_that_is_not_set_up_is_one_line(behind: URL, tmp_path: Path) -> None:
    with start_pgbouncer(behind, "") as url:
        line = only_line(start_and_fail(tmp_path, {"DATABASE_URL": url}))
    assert "see PgBouncer in the documentation" in line
    with start_pgbouncer(behind, SETTINGS, size=1) as url:
        # Another client has left a statement with the first of asyncpg's names.
        with suppress(asyncpg.DuplicatePreparedStatementError):
            _ask_postgresql(make_url(url), 'prepare "__asyncpg_stmt_1__" as select 1')
        line = only_line(start_and_fail(tmp_path, {"DATABASE_URL": url}))
    assert "add ?prepared_statement_cache_size=0" in line
    assert str(behind.password) not in line
