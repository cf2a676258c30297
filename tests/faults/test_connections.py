"""Connections that the server closes, and more clients than there are connections."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from conftest import NO_TLS, Server, full, quick_on, serve, wait_until
from databases import Database, free_port
from load import LATE, SERVERS, Crowd, Figures, check_healthy, memory, on
from sqlalchemy.engine import make_url
from test_concurrency import at_once, statuses
from test_contract import add
from test_start import relay

from db import Settings
from edge.limits import TIME_MAX

POOL_SIZE = Settings.model_fields["pool_size"].default
ALSO = {"mongodb": 2}  # with which PyMongo looks whether the server is there


@pytest.mark.parametrize("database", quick_on(SERVERS, "postgresql", "redis"), indirect=True)
def test_idle_connections_that_the_server_closed_fail_no_request(
    database: Database, tmp_path: Path, record_property: Figures
) -> None:
    real, port = make_url(database.url), free_port()
    url = real.set(port=port).render_as_string(hide_password=False)
    with (
        serve(url, tmp_path) as server,
        httpx.Client(base_url=server.url, trust_env=False, verify=NO_TLS) as client,
    ):
        with relay(port, real.port or 0):
            wait_until(lambda: client.get("/readyz").is_success)
            path = f"/users/{add(client, email='idle@example.com')['id']}"
            # So many at once that all connections are there.
            at_once(server, *[lambda client: client.get("/users/")] * 20)
            at_once(server, *[lambda client: client.patch(path, json={"name": "n"})] * 10)
        with relay(port, real.port or 0):
            wait_until(lambda: accepts(port))
            new = [{"name": "x", "email": f"idle{i}@example.com"} for i in range(17)]
            responses = at_once(
                server,
                *[lambda client: client.patch(path, json={"name": "n"})] * 17,
                *[lambda client: client.get(path)] * 16,
                *(lambda client, user=user: client.post("/users/", json=user) for user in new),
            )
            check_healthy(server)
    found = statuses(responses)
    record_property("codes", found)
    assert found == {200: 33, 201: 17}


def accepts(port: int) -> bool:
    """Return whether somebody listens."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@contextmanager
def hanging_up(to: int) -> Iterator[tuple[int, threading.Event]]:
    """Yield a port that passes all on, and the event that makes it hang up on a statement."""
    armed = threading.Event()

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ours: bool = False
    ) -> None:
        while data := await reader.read(65536):
            if ours and armed.is_set() and not is_ping(data):
                armed.clear()
                break
            writer.write(data)
            await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", to)
        await asyncio.wait(
            [
                asyncio.create_task(pump(reader, other_writer, ours=True)),
                asyncio.create_task(pump(other_reader, writer)),
            ],
            return_when=asyncio.FIRST_COMPLETED,
        )
        writer.close()
        other_writer.close()

    def is_ping(data: bytes) -> bool:
        return data[4:] == b"\x0e"  # MySQL's, with which SQLAlchemy asks before each use

    async def run() -> None:
        server = await asyncio.start_server(connect, "127.0.0.1", port)
        await asyncio.to_thread(done.wait)
        server.close()

    port, done = free_port(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        wait_until(lambda: accepts(port))
        yield port, armed
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("database", ["postgresql", "mysql"], indirect=True)
def test_reading_survives_a_connection_that_dies_and_a_change_is_not_done_twice(
    database: Database, tmp_path: Path
) -> None:
    real = make_url(database.url)
    with hanging_up(real.port or 0) as (port, armed):
        url = real.set(port=port).render_as_string(hide_password=False)
        with (
            serve(url, tmp_path) as server,
            httpx.Client(base_url=server.url, trust_env=False, verify=NO_TLS) as client,
        ):
            user = add(client, email="twice@example.com")
            path = f"/users/{user['id']}"
            client.get(path).raise_for_status()
            armed.set()
            assert client.get(path).json() == user
            assert not armed.is_set(), "no connection died"
            armed.set()
            assert client.patch(path, json={"name": "Eve"}).status_code == 503
            assert client.get(path).json() == user
            assert client.patch(path, json={"name": "Eve"}).json()["version"] == 2
            new = {"name": "Eve", "email": "once@example.com"}
            armed.set()
            assert client.post("/users/", json=new).status_code == 503
            assert client.get("/users/", params={"email": new["email"]}).json()["items"] == []
            check_healthy(server)


@contextmanager
def slamming() -> Iterator[int]:
    """Yield a port that hangs up on everybody at once, as a server that is dying may do."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:

        def slam() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    # Without a good-bye: what the other side does next fails.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1" + b"\0" * 7)
                    connection.close()

        thread = threading.Thread(target=slam)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("backend", quick_on(SERVERS, "mysql"))
def test_server_that_hangs_up_at_once_is_503(backend: str, tmp_path: Path) -> None:
    with (
        slamming() as port,
        serve(f"{backend}://a:b@127.0.0.1:{port}/0", tmp_path) as server,
    ):
        for _ in range(2):
            answers = at_once(server, *[lambda client: client.get("/users/1")] * 20)
            assert statuses(answers) == {503: 20}
        check_healthy(server)


def connections(port: int | None) -> int:
    """Return how many connections a server has."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # A set: while thousands come and go, the kernel may list one twice.
    established = {(local, peer) for _, local, peer, state, *_ in lines if state == "01"}
    return sum(int(local.partition(":")[2], 16) == port for local, _ in established)


def come(crowd: Crowd, server: Server, clients: int, path: str) -> None:
    """Be many clients, each of whom does three requests."""

    async def use(i: int) -> None:
        body = f'{{"name": "x", "email": "{i}.{time.monotonic()}@example.com"}}'
        await crowd.request(server, "POST", "/users/", body)
        await crowd.request(server, "GET", "/users/?limit=10")
        await crowd.request(server, "GET", path)

    async def all_at_once() -> None:
        await asyncio.gather(*(use(i) for i in range(clients)))

    asyncio.run(all_at_once())


@full
@on("sqlite", *SERVERS)
def test_1000_clients_at_once_on_the_default_pool(
    own: Database, tmp_path: Path, record_property: Figures
) -> None:
    most, done = 0, threading.Event()
    url = make_url(own.url)

    def count() -> None:
        nonlocal most
        while not done.wait(0.2):
            most = max(most, connections(url.port))

    with (
        serve(own.url, tmp_path, "--no-access-log", "--backlog=4096") as server,
        httpx.Client(base_url=server.url, trust_env=False, verify=NO_TLS) as client,
    ):
        path = f"/users/{add(client)['id']}"
        warm_up, crowd = Crowd(), Crowd()
        come(warm_up, server, 1000, path)
        before = memory(server)
        counting = threading.Thread(target=count)
        counting.start()
        try:
            come(crowd, server, 1000, path)
        finally:
            done.set()
            counting.join()
        check_healthy(server)
        after = memory(server)
    record_property("codes", dict(crowd.codes))
    record_property("slowest answer", f"{crowd.slowest:.1f} s")
    record_property("connections", most)
    record_property("memory", f"{before} then {after} MiB")
    assert crowd.codes.keys() <= {"200", "201", "503"}
    assert crowd.slowest < TIME_MAX + LATE
    assert most <= POOL_SIZE + ALSO.get(url.drivername, 0)
    assert after < before * 1.2
