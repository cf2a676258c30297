"""Another client of the database holds locks, wins deadlocks, or makes it read only."""

import asyncio
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import NO_TLS, SLACK, Server, full, serve, wait_until
from databases import Database, open_redis
from load import HEAL, Figures, check_healthy, on
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from test_contract import add

SQL = ("postgresql", "mysql")
LOCK_TIMEOUT = {"sqlite": 5, "postgresql": 3, "mysql": 3}


@asynccontextmanager
async def outside(url: str) -> AsyncIterator[AsyncConnection]:
    """Yield a connection that is not the app's, with a driver's own behaviour."""
    driver = {"postgresql": "postgresql+asyncpg", "mysql": "mysql+asyncmy", "sqlite": "sqlite+loop"}
    real = make_url(url)
    engine = create_async_engine(real.set(drivername=driver[real.drivername]))
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


@contextmanager
def served(url: str, folder: Path) -> Iterator[tuple[Server, httpx.Client]]:
    """Yield the app and a client of it; look afterwards whether it is well."""
    with (
        serve(url, folder) as server,
        httpx.Client(base_url=server.url, timeout=30, trust_env=False, verify=NO_TLS) as client,
    ):
        yield server, client
        check_healthy(server)


@contextmanager
def locked(url: str, table: bool) -> Iterator[None]:
    """Hold a lock on the table, or on its first row, against those who write."""
    backend = make_url(url).drivername
    if backend == "sqlite":
        connection = sqlite3.connect(str(make_url(url).database), isolation_level=None)
        connection.execute("begin immediate")
        try:
            yield
        finally:
            connection.close()
        return
    statement = "select * from users where id = 1 for update"
    if table:
        statement = {
            "postgresql": "lock table users in exclusive mode",
            "mysql": "lock tables users read",
        }[backend]
    held, done = threading.Event(), threading.Event()

    async def hold() -> None:
        async with outside(url) as connection:
            await connection.execute(text(statement))
            held.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    try:
        wait_until(held.is_set)
        yield
    finally:
        done.set()
        thread.join()


@full
@on("sqlite", *SQL)
@pytest.mark.parametrize("what", ["row", "table"])
def test_lock_held_outside_for_10_s_keeps_only_writers_waiting(
    own: Database, tmp_path: Path, record_property: Figures, what: str
) -> None:
    backend = make_url(own.url).drivername
    waits: list[float] = []
    reads: list[float] = []
    codes: Counter[int] = Counter()
    with served(own.url, tmp_path) as (server, client), ThreadPoolExecutor(8) as pool:
        path = f"/users/{add(client)['id']}"

        def ask(i: int, until: float) -> None:
            with httpx.Client(
                base_url=server.url, timeout=30, trust_env=False, verify=NO_TLS
            ) as client:
                while (began := time.monotonic()) < until:
                    match i % 4:
                        case 0:
                            answer = client.patch(path, json={"name": f"n{began}"})
                        case 1 if what == "table" or backend == "sqlite":
                            new = {"name": "x", "email": f"{began}@example.com"}
                            answer = client.post("/users/", json=new)
                        case 2:
                            answer = client.get(path)
                        case _:
                            answer = client.get("/users/")
                    took = time.monotonic() - began
                    if i % 4 == 0 or answer.request.method == "POST":
                        waits.append(took)
                        codes[answer.status_code] += 1
                        assert answer.headers["retry-after"] == "1"
                    else:
                        answer.raise_for_status()
                        reads.append(took)
                        time.sleep(0.05)

        with locked(own.url, what == "table"):
            until = time.monotonic() + 10 - LOCK_TIMEOUT[backend] - 1
            for part in [pool.submit(ask, i, until) for i in range(8)]:
                part.result()
        freed = time.monotonic()
        wait_until(lambda: client.patch(path, json={"name": "Eve"}).is_success)
        healed = time.monotonic() - freed
    record_property("codes of writers", dict(codes))
    record_property("slowest writer", f"{max(waits):.1f} s")
    record_property("slowest reader", f"{max(reads):.2f} s")
    record_property("healed after", f"{healed:.2f} s")
    assert codes.keys() == {503}
    assert max(waits) < LOCK_TIMEOUT[backend] + 1
    assert max(reads) < 1
    assert healed < HEAL


# Who waits for a lock now: how many.
WAITING = {
    "postgresql": "select count(*) from pg_stat_activity where wait_event_type = 'Lock'",
    "mysql": "select count(*) from information_schema.innodb_trx where trx_state = 'LOCK WAIT'",
}
NEW = (
    "insert into users (name, email, created_at, updated_at, version, name_key, email_key)"
    " values ('x', '{0}', current_timestamp, current_timestamp, 1, 'x', '{0}')"
)


@on(*SQL)
@pytest.mark.parametrize("verb", ["bulk", "change"])
def test_deadlock_that_the_database_ends_is_not_the_clients_business(
    own: Database, tmp_path: Path, verb: str
) -> None:
    """Another client has X; the app has Y and waits for X; the other one asks for Y.

    The database undoes the app's transaction, so that the other one goes on. This then ends without
    having changed anything.
    """

    async def meet(request: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        async with outside(own.url) as other, outside(own.url) as observer:
            if make_url(own.url).drivername == "postgresql":
                # Who has waited so long looks for a deadlock, and is undone.
                await other.execute(text("set deadlock_timeout = '10s'"))
            else:
                # Who has changed less is undone.
                for i in range(100):
                    await other.execute(text(NEW.format(f"weight{i}@example.com")))
            await other.execute(text(NEW.format("x@example.com")))
            answering = asyncio.ensure_future(request())
            async with asyncio.timeout(2.5):
                while not await observer.scalar(text(WAITING[make_url(own.url).drivername])):
                    await observer.rollback()
                    await asyncio.sleep(0.15)  # InnoDB's answer stays the same for 0.1 seconds
            y = {"bulk": NEW.format("y@example.com"), "change": "delete from users where id = 1"}
            await other.execute(text(y[verb]))
            await other.rollback()
            return await answering

    async def run(server: Server) -> httpx.Response:
        async with httpx.AsyncClient(
            base_url=server.url, timeout=30, trust_env=False, verify=NO_TLS
        ) as client:
            new = [{"name": "x", "email": f"{who}@example.com"} for who in "yx"]
            if verb == "bulk":
                return await meet(lambda: client.post("/users/bulk", json=new))
            return await meet(lambda: client.patch("/users/1", json={"email": "x@example.com"}))

    with served(own.url, tmp_path) as (server, client):
        assert add(client, email="z@example.com")["id"] == 1
        response = asyncio.run(run(server))
        assert response.is_success, response.text
        emails = {user["email"] for user in client.get("/users/").json()["items"]}
        stored = {f"{who}@example.com" for who in ("zyx" if verb == "bulk" else "x")}
        assert emails == stored


async def turn(own: Database, folder: Path, read_only: bool) -> str:
    """Make the server take no changes, or take them again; return the URL of a plain account."""
    url = make_url(own.url)
    admin = own.url
    if url.drivername == "mysql":
        async with outside(admin) as connection:
            statements = [
                "create user if not exists 'plain'@'127.0.0.1' identified by 'plain'",
                f"grant all on {url.database}.* to 'plain'@'127.0.0.1'",
                f"set global read_only = {read_only:d}",
            ]
            for statement in statements:
                await connection.execute(text(statement))
        return url.set(username="plain", password="plain").render_as_string(False)
    if url.drivername == "postgresql":
        async with outside(admin) as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("set default_transaction_read_only = off"))
            await connection.execute(
                text(
                    f"alter database {url.database}"
                    f" set default_transaction_read_only = {'on' if read_only else 'off'}"
                )
            )
            if read_only:
                await connection.execute(
                    text(
                        "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                        " where pid <> pg_backend_pid() and backend_type = 'client backend'"
                    )
                )
        return own.url
    with open_redis(own.url) as redis:
        redis.config_set("min-replicas-to-write", int(read_only))
    return own.url


@on(*SQL, "redis")
def test_server_that_takes_no_changes_for_a_while_is_503_and_heals(
    own: Database, tmp_path: Path, record_property: Figures
) -> None:
    url = asyncio.run(turn(own, tmp_path, read_only=False))
    try:
        with served(url, tmp_path) as (_, client):
            path = f"/users/{add(client)['id']}"
            asyncio.run(turn(own, tmp_path, read_only=True))
            for _ in range(5):
                refused: list[Any] = [
                    client.patch(path, json={"name": "Eve"}),
                    client.post("/users/", json={"name": "x", "email": "new@example.com"}),
                    client.post("/users/bulk", json=[{"name": "x", "email": "new@example.com"}]),
                    client.delete(path),
                ]
                for answer in refused:
                    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                    assert "takes no changes now" in answer.json()["detail"]
                assert client.get(path).json()["version"] == 1
            asyncio.run(turn(own, tmp_path, read_only=False))
            began = time.monotonic()
            wait_until(
                lambda: client.patch(path, json={"name": "Eve"}).is_success, seconds=5 + SLACK
            )
            healed = time.monotonic() - began
            for i in range(10):
                add(client, email=f"{i}@example.com")
    finally:
        asyncio.run(turn(own, tmp_path, read_only=False))
    record_property("healed after", f"{healed:.2f} s")
    assert healed < HEAL
