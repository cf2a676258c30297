"""What no friendly client sends: a 4xx with a short detail, the same on every database."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import NO_TLS, Server, serve
from fastapi import FastAPI
from test_contract import add

import edge

JSON = {"Content-Type": "application/json"}
MIB = 2**20


def chunks(size: int) -> Iterator[bytes]:
    """Yield a body in pieces, so that it is sent without a Content-Length."""
    for _ in range(size // 2**16):
        yield b" " * 2**16


def check(response: httpx.Response, status: int) -> None:
    """Check a refusal: its status, its shape, and that it is short."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["detail"]
    assert len(response.content) < 1000


BODIES = {
    "empty": b"",
    "not JSON": b"{",
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "NUL in the text": b'{"name": "a\\u0000b", "email": "a@example.com"}',
    "NUL as a byte": b'{"name": "a\x00b", "email": "a@example.com"}',
    "lone surrogate": b'{"name": "\\ud800", "email": "a@example.com"}',
    "lone surrogate as bytes": b'{"name": "\xed\xa0\x80", "email": "a@example.com"}',
    "lone surrogate in the email": b'{"name": "a", "email": "\\udfff@example.com"}',
    "lone surrogate in a key": b'{"\\ud800": 1, "name": "a", "email": "a@example.com"}',
    "invalid UTF-8": b'{"name": "\xff", "email": "a@example.com"}',
    "UTF-16 cut short": b'\xff\xfe{\x00"',
    "U+FFFD": '{"name": "\ufffd", "email": "a@example.com"}'.encode(),
    "NaN": b'{"name": NaN, "email": "a@example.com"}',
    "Infinity": b'{"name": -Infinity, "email": "a@example.com"}',
    "1e400": b'{"name": 1e400, "email": "a@example.com"}',
    "2^63": b'{"name": 9223372036854775808, "email": "a@example.com"}',
    "5000 digits": b'{"name": %s, "email": "a@example.com"}' % (b"9" * 5000),
    "a key twice": b'{"name": "a", "name": "b", "email": "a@example.com"}',
    "a key twice, deep": b'{"name": {"x": 1, "x": 2}, "email": "a@example.com"}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "an operator": b'{"name": {"$ne": null}, "email": "a@example.com"}',
    "an operator for the email": b'{"name": "a", "email": {"$gt": ""}}',
    "a list for a name": b'{"name": ["a"], "email": "a@example.com"}',
    "a number for a name": b'{"name": 1, "email": "a@example.com"}',
    "true for a name": b'{"name": true, "email": "a@example.com"}',
    "a long name": json.dumps({"name": "a" * 900_000, "email": "a@example.com"}).encode(),
    "a long email": json.dumps({"name": "a", "email": "a" * 900_000 + "@example.com"}).encode(),
    "a long unknown key": json.dumps({"x" * 900_000: 1}).encode(),
    "a password": b'{"name": "a", "email": "hunter2@", "password": "hunter2"}',
}


@pytest.mark.parametrize("kind", BODIES)
def test_hostile_bodies_are_refused(client: httpx.Client, kind: str) -> None:
    user = add(client)
    check(client.post("/users/", content=BODIES[kind], headers=JSON), 422)
    check(client.post("/users/bulk", content=b"[%s]" % BODIES[kind], headers=JSON), 422)
    check(client.patch(f"/users/{user['id']}", content=BODIES[kind], headers=JSON), 422)
    assert client.get("/users/").json()["items"] == [user]


def test_what_was_sent_is_not_echoed(client: httpx.Client) -> None:
    response = client.post("/users/", content=BODIES["a password"], headers=JSON)
    assert "hunter2" not in response.text
    response = client.get("/users/", params={"email": "hunter2", "limit": "hunter2"})
    assert "hunter2" not in response.text


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_json_without_its_content_type_is_refused(
    client: httpx.Client, content_type: str | None
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    body = b'{"name": "a", "email": "a@example.com"}'
    check(client.post("/users/", content=body, headers=headers), 422)


@pytest.mark.parametrize(
    "user_id",
    [
        "0",
        "-1",
        "x",
        "1.5",
        "1e3",
        str(2**63),
        "9" * 30,
        "9" * 5000,
        "%00",
        "%FF",
        "1;drop",
        "null",
    ],
)
def test_hostile_ids_are_refused(client: httpx.Client, user_id: str) -> None:
    check(client.get(f"/users/{user_id}"), 422)
    check(client.patch(f"/users/{user_id}", json={"name": "a"}), 422)
    check(client.delete(f"/users/{user_id}"), 422)


@pytest.mark.parametrize("sql", ["' OR '1'='1", "1; DROP TABLE users", '" --', "%27 OR 1=1", "\\'"])
def test_sql_is_only_text(client: httpx.Client, sql: str) -> None:
    user = add(client, sql)
    assert client.get("/users/", params={"name": sql}).json()["items"] == [user]
    for parameter in ("email", "sort", "cursor", "limit", "total"):
        check(client.get("/users/", params={parameter: sql}), 422)
    check(client.get("/users/export", params={"format": sql}), 422)
    check(client.post("/users/bulk", params={"on_conflict": sql}, json=[]), 422)
    check(client.delete(f"/users/{user['id']}", headers={"If-Match": sql}), 412)
    assert client.get("/users/").json()["items"] == [user]


@pytest.mark.parametrize("path", ["/users/", "/users/bulk"])
def test_body_over_1_mib_is_refused(client: httpx.Client, path: str) -> None:
    check(client.post(path, content=b" " * (MIB + 1), headers=JSON), 413)
    check(client.post(path, content=chunks(2 * MIB), headers=JSON), 413)
    check(client.post(path, content=b" " * MIB, headers=JSON), 422)


def test_endless_body_is_refused_before_its_end(client: httpx.Client) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for piece in chunks(100 * MIB):
            sent += len(piece)
            yield piece

    check(client.post("/users/", content=endless(), headers=JSON), 413)
    assert sent < 50 * MIB


@pytest.mark.parametrize("domain", ["hunter2’.com", "xn--hunter2.com", "hunter2_.com"])
def test_what_is_wrong_in_an_email_is_not_echoed(client: httpx.Client, domain: str) -> None:
    response = client.post("/users/", json={"name": "a", "email": f"a@{domain}"})
    assert response.status_code == 422
    assert "hunter2" not in response.text


def test_a_thousand_slow_emails_do_not_stop_the_app(client: httpx.Client) -> None:
    # 248 letters of Chinese take email-validator 8 ms each, and all other requests wait.
    new = [{"name": "a", "email": f"a@{'漢' * 248}.com"} for _ in range(1000)]
    began = time.monotonic()
    response = client.post(
        "/users/bulk", content=json.dumps(new, ensure_ascii=False).encode(), headers=JSON
    )
    assert response.status_code == 422
    assert time.monotonic() - began < 2


def test_many_errors_are_cut_short(client: httpx.Client) -> None:
    unknown = ",".join(f'"x{i}": 1' for i in range(80_000))
    body = f'{{"name": "a", "email": "a@example.com", {unknown}}}'.encode()
    response = client.post("/users/", content=body, headers=JSON)
    assert response.status_code == 422
    assert len(response.json()["detail"]) <= 1000


def test_body_that_does_not_come_is_408_and_no_outage(tmp_path: Path) -> None:
    (tmp_path / "quick.py").write_text(
        "from edge import limits\nlimits.TIME_MAX = 1\nfrom app import app\n"
    )
    with serve(f"sqlite:///{tmp_path}/a.db", tmp_path, app="quick:app") as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(
                b"POST /users/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            answer = connection.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert "UNREACHABLE" not in server.printed()


def send_all(server: Server, request: str, headers: dict[str, str], size: int) -> bytes:
    """Send a request with a body of this size to its end, then read the response to its end."""
    host, port = server.url.removeprefix("http://").split(":")
    lines = [f"{request} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall("\r\n".join([*lines, f"Content-Length: {size}", "", ""]).encode())
        for _ in range(size // 2**14):
            connection.sendall(b" " * 2**14)
        received = b""
        while piece := connection.recv(2**16):
            received += piece
    return received


OWN = {"Host": "localhost", "Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("headers", "status"), [(OWN, 413), ({**OWN, "Host": "x"}, 403), ({**OWN, "Via": "x"}, 403)]
)
def test_40_clients_that_send_2_mb_at_once_read_why_not(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    with (
        serve(f"sqlite:///{tmp_path}/a.db", tmp_path, app="app:app") as server,
        ThreadPoolExecutor(40) as pool,
    ):
        work = [
            pool.submit(send_all, server, f"POST {path}", headers, 2 * MIB)
            for path in ("/users/", "/users/bulk") * 20
        ]
        for part in work:
            head, _, body = part.result().partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert b"connection: close" in head
            assert list(json.loads(body)) == ["detail"]
        assert "Traceback" not in server.printed()


def test_rest_of_a_body_is_read_within_bounds(tmp_path: Path) -> None:
    (tmp_path / "bounded.py").write_text(
        "from edge import limits\nlimits.REST_MAX, limits.REST_TIME = 2**18, 0.5\n"
        "from app import app\n"
    )
    with serve(f"sqlite:///{tmp_path}/a.db", tmp_path, app="bounded:app") as server:
        with pytest.raises(ConnectionError):  # more bytes than that
            send_all(server, "POST /users/", OWN, 50 * MIB)
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(b"POST /users/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            received = b""
            while piece := connection.recv(2**16):  # until the server closes
                received += piece
        assert received.startswith(b"HTTP/1.1 403 ")


def test_clients_that_reset_print_no_traceback_and_few_lines(tmp_path: Path) -> None:
    with serve(f"sqlite:///{tmp_path}/a.db", tmp_path, app="app:app") as server:
        host, port = server.url.removeprefix("http://").split(":")
        before = len(server.printed())
        for part in (b"", b"{", b" " * 2**17) * 30:
            connection = socket.create_connection((host, int(port)), timeout=5)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            head = b"POST /users/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: 1000000\r\n\r\n" + part)
            time.sleep(0.01)
            connection.close()
        time.sleep(0.5)
        assert httpx.get(f"{server.url}/readyz").is_success
        printed = server.printed()[before:]
        assert "Traceback" not in printed
        assert len(printed) < 5000, printed


def memory(server: Server) -> int:
    """Return the most memory that the app has used, in kilobytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def send_without_end(server: Server, start: bytes, more: bytes) -> bytes:
    """Send up to 100 MB, and return what the server answers, if it does."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        with suppress(ConnectionError):
            connection.sendall(start)
            for _ in range(100 * MIB // len(more)):
                connection.sendall(more)
        with suppress(ConnectionError):
            return connection.recv(1000)
    return b""


def receive_json(connection: socket.socket) -> bytes:
    """Return a response whose body is an object."""
    received = b""
    while not received.endswith(b"}"):
        piece = connection.recv(1000)
        assert piece, received
        received += piece
    return received


ENDLESS = {
    "URL": (b"GET /", b"x" * MIB),
    "headers": (b"GET / HTTP/1.1\r\n", b"x: y\r\n" * 2**16),
    "name": (b"GET / HTTP/1.1\r\n", b"x" * MIB),
    "value": (b"GET / HTTP/1.1\r\nx: ", b"y" * MIB),
    "trailers": (
        b"POST /users/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"x: y\r\n" * 2**16,
    ),
    "blank lines": (b"", b"\r\n" * 2**16),
    "pipeline": (b"", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2**14),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield the app on SQLite."""
    folder = tmp_path_factory.mktemp("plain")
    with serve(f"sqlite:///{folder}/a.db", folder, app="app:app") as server:
        yield server


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_request_takes_no_memory(plain: Server, kind: str) -> None:
    before = memory(plain)
    with ThreadPoolExecutor(30) as pool:
        work = [pool.submit(send_without_end, plain, *ENDLESS[kind]) for _ in range(30)]
        while not all(part.done() for part in work):
            assert httpx.get(f"{plain.url}/livez", verify=NO_TLS, timeout=20).is_success
    assert memory(plain) - before < 100_000
    assert "Traceback" not in plain.printed()


@pytest.mark.parametrize(
    ("kind", "status"), [("URL", 414), ("headers", 431), ("name", 431), ("value", 431)]
)
def test_request_that_is_too_large_is_answered(plain: Server, kind: str, status: int) -> None:
    start, more = ENDLESS[kind]
    host, port = plain.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(start)
        for _ in range(20):
            connection.sendall(more[: 2**14])
            time.sleep(0.01)
        head, _, body = receive_json(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert list(json.loads(body)) == ["detail"]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: x\r\n\r\n", 400),
        (b"GET http://x/livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET http://localhost/livez HTTP/1.1\r\n\r\n", 400),
        (b"GET http://localhost/livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET http://localhost:80/livez HTTP/1.1\r\nHost: localhost:80\r\n\r\n", 200),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ],
)
def test_request_names_one_host(plain: Server, request_: bytes, status: int) -> None:
    host, port = plain.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request_)
        head, _, body = receive_json(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert status == 200 or list(json.loads(body)) == ["detail"]


@pytest.mark.parametrize("stubborn", [False, True])
def test_request_that_takes_too_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch, stubborn: bool
) -> None:
    monkeypatch.setattr(edge.limits, "TIME_MAX", 0.1)
    app = FastAPI()
    app.router.route_class = edge.Route

    @app.get("/{seconds}")
    async def wait(seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            if not stubborn:
                raise
        return "done"

    async def test() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/0")).json() == "done"
            await asyncio.sleep(0.2)  # it is not given up afterwards
            if stubborn:
                assert (await client.get("/5")).json() == "done"
            else:
                assert (await client.get("/5")).status_code == 503
            this: Any = asyncio.current_task()
            assert this.cancelling() == 0
            asyncio.get_running_loop().call_later(0.05, this.cancel)
            with suppress(asyncio.CancelledError):  # not a 503: the server cancels it
                await client.get("/5")
            assert this.cancelling() == 1

    asyncio.run(test())
