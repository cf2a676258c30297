"""Who may call: with and without tokens, from elsewhere, through a proxy, for another site's page.

Nothing here depends on the database: the app stands on SQLite.
"""

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import NO_TLS, Server, serve, wait_until
from databases import free_port
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from starlette.types import Receive, Scope, Send
from test_contract import add
from test_start import only_line, start_and_fail

from app import app
from db import Settings
from edge import auth
from edge.headers import DOCS_FILES, PAGE_FILES
from edge.headers import OPEN as OPEN_PATHS
from engine import SettingsError
from errors import answer
from store import Fault, Kind, logger

WRITE, READ, EVE = (f"{letter}-0123456789abcdefghijkl" for letter in "wre")

# Every route, and what it takes. One that is missing here fails a test: think who may call it.
OPEN = {
    *("GET /openapi.json", "HEAD /openapi.json", "GET /docs", "GET /docs/oauth2-redirect"),
    *("GET /livez", "GET /readyz"),
}
# What the routes of app.frontend and of /docs serve: files.
PAGE = {f"GET {path}" for path in PAGE_FILES | DOCS_FILES}
FILES = {"ANY _FrontendRouteGroup", "ANY /static-offline-docs/{path}"}
READING = {"GET /users/", "GET /users/{user_id}", "GET /users/export"}
WRITING = {"POST /users/", "POST /users/bulk", "PATCH /users/{user_id}", "DELETE /users/{user_id}"}
NO_ROUTES = [
    *("GET /web/", "GET /nowhere", "GET //livez", "GET /livez/", "GET /LIVEZ", "GET /docs/x"),
    *("GET /livez/%2e%2e/users/", "GET /livez%00", "OPTIONS /users/", "HEAD /users/"),
]
NO_ROUTES_WRITING = ["PUT /users/", "POST /livez", "DELETE /docs", "POST /nowhere", "POST /users"]


def bearer(token: str) -> dict[str, str]:
    """Return the header with a token."""
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield the app with two tokens, on every address of the machine."""
    folder = tmp_path_factory.mktemp("guarded")
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("API_TOKENS", f"ada:{WRITE}")
            environment.setenv("API_READ_TOKENS", f" bob:{READ} , eve:{EVE} ")
            serving = serve(f"sqlite:///{folder}/x.db", folder, "--host=0.0.0.0", app="app:app")
            server = stack.enter_context(serving)
        yield server


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield the app without tokens, on every address: with workers, a socket has IPv4 and IPv6."""
    folder = tmp_path_factory.mktemp("local")
    options = ("--host=::", "--workers=2") if socket.has_dualstack_ipv6() else ("--host=0.0.0.0",)
    with serve(f"sqlite:///{folder}/x.db", folder, *options, app="app:app") as server:
        yield server


def ask(server: Server, request: str, headers: Any = None, **options: Any) -> httpx.Response:
    """Send a request, like "GET /livez"."""
    method, path = request.split(" ", 1)
    url = server.url + path.replace("{user_id}", "1")
    return httpx.request(method, url, headers=headers, verify=NO_TLS, **options)


def test_every_route_is_classified() -> None:
    served = set()
    # The latter: app.frontend's.
    for route in iter_route_contexts([*app.routes, *app.router._low_priority_routes]):
        path = route.path_format or type(route.original_route).__name__
        served |= {f"{method} {path}" for method in route.methods or {"ANY"}}
    # A table of your own has other routes; as these are not in OPEN_PATHS, they need a token.
    assert {request for request in served if "/users/" in request} == READING | WRITING
    assert served >= OPEN | FILES
    assert {request.split()[1] for request in OPEN | PAGE} == OPEN_PATHS


@pytest.mark.parametrize("request_", sorted(OPEN | PAGE))
def test_open_routes_are_for_anybody(guarded: Server, request_: str) -> None:
    for headers in ({}, bearer("wrong"), bearer(READ), bearer(WRITE), {"Host": "example.com"}):
        assert ask(guarded, request_, headers).status_code == 200


@pytest.mark.parametrize("request_", [*sorted(READING | WRITING), *NO_ROUTES, *NO_ROUTES_WRITING])
def test_everything_else_needs_a_token(guarded: Server, request_: str) -> None:
    nothing = ask(guarded, request_)
    assert nothing.status_code == 401
    assert nothing.headers["www-authenticate"] == 'Bearer realm="Roster"'
    wrong = ask(guarded, request_, bearer("w" * 24))
    assert wrong.status_code == 401
    assert wrong.headers["www-authenticate"] == 'Bearer realm="Roster", error="invalid_token"'
    weak = ask(guarded, request_, bearer(READ))
    if request_ in WRITING or request_ in NO_ROUTES_WRITING:
        assert weak.status_code == 403
        assert 'error="insufficient_scope"' in weak.headers["www-authenticate"]
    else:
        assert weak.status_code not in (401, 403)
    assert ask(guarded, request_, bearer(WRITE)).status_code not in (401, 403)
    for response in (nothing, wrong, weak):
        if response.status_code in (401, 403) and not request_.startswith("HEAD"):
            assert list(response.json()) == ["detail"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (bearer(EVE), 200),
        ({"authorization": f"bearer   {READ}"}, 200),
        ({**bearer(READ), "Host": "roster.example.com", "X-Forwarded-For": "192.0.2.9"}, 200),
        ({"Authorization": READ}, 401),
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": f"Basic {READ}"}, 401),
        ({"Authorization": f"Bearer {READ} {READ}"}, 401),
        ({"Authorization": b"Bearer \xff\xfe"}, 401),
        ({"Authorization": f"Bearer {'x' * 10_000}"}, 401),
        (bearer(READ[:-1]), 401),
        (bearer(READ.upper()), 401),
        (bearer("bob"), 401),
        (bearer(f"bob:{READ}"), 401),
        ({"Cookie": f"token={READ}; Authorization=Bearer {READ}"}, 401),
        ({"X-Forwarded-For": "127.0.0.1"}, 401),
    ],
)
def test_only_a_bearer_token_counts(guarded: Server, headers: Any, status: int) -> None:
    response = ask(guarded, "GET /users/", headers)
    assert response.status_code == status
    assert READ not in response.text
    assert "set-cookie" not in response.headers


def test_token_in_a_url_does_not_count(guarded: Server) -> None:
    # It would be in the log of every proxy.
    query = {"access_token": EVE, "token": EVE}
    assert ask(guarded, "GET /users/", params=query).status_code == 401


def test_body_of_a_refused_request_is_not_waited_for(guarded: Server, local: Server) -> None:
    for server, host, status in ((guarded, "localhost", b"401"), (local, "x", b"403")):
        lines = ["POST /users/ HTTP/1.1", f"Host: {host}"]
        lines += ["Content-Length: 100", "Expect: 100-continue"]
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            assert connection.recv(12) == b"HTTP/1.1 " + status


def on(server: Server, host: str) -> Server:
    """Return the same server under another address."""
    return Server(f"http://{host}:{server.url.rpartition(':')[2]}", server.process, server.log)


def test_local_mode_serves_the_machine_itself(local: Server) -> None:
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1", "127.8.9.1:1", "[::1]", "[::1]:80"):
        assert ask(local, "GET /users/", {"Host": host}).status_code == 200
        assert ask(local, "PATCH /users/{user_id}", {"Host": host}, json={}).status_code == 404
    if socket.has_dualstack_ipv6():
        assert ask(on(local, "[::1]"), "GET /users/").status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("", "example.com", "localhost.example.com", "127.0.0.1.example.com", "xlocalhost", "x"),
        *("localhost:80@example.com", "example.com:localhost", "0", "[::]", "[::1].x", "::1"),
        *("127.0.0.1 example.com", "localhost, example.com", "127.example.com", "[::2]"),
    ],
)
def test_local_mode_refuses_a_foreign_host(local: Server, host: str) -> None:
    for request in (*OPEN, *READING, *WRITING, *NO_ROUTES):
        response = ask(local, request, {"Host": host})
        assert response.status_code == 403, request
        assert request.startswith("HEAD") or "Host" in response.json()["detail"]
    assert "API_TOKENS" in ask(local, "GET /", {"Host": host}).json()["detail"]


@pytest.mark.parametrize(
    "header",
    [
        *("X-Forwarded-For", "X-Forwarded-Host", "x-forwarded-proto", "X-Forwarded-User"),
        *("Forwarded", "Via", "X-Real-IP", "X-Original-URL", "X-Envoy-External-Address"),
        *("CF-Connecting-IP", "CF-Ray", "True-Client-IP", "X-Client-IP", "X-Cluster-Client-IP"),
        *("Fastly-Client-IP", "Fly-Client-IP", "X-Azure-ClientIP", "X-Azure-SocketIP", "CDN-Loop"),
        *("X-Remote-IP", "X-Remote-Addr", "X-Originating-IP", "X-AppEngine-User-IP", "Client-IP"),
        *("WL-Proxy-Client-IP", "Proxy-Client-IP", "X-Source-IP", "X-Forwarded", "Forwarded-For"),
    ],
)
def test_local_mode_refuses_what_came_through_a_proxy(local: Server, header: str) -> None:
    for request in (*OPEN, *READING, *WRITING):
        for value in ("127.0.0.1", "localhost", ""):
            response = ask(local, request, {header: value})
            assert response.status_code == 403
            assert request.startswith("HEAD") or "proxy" in response.json()["detail"]


def test_request_without_host_or_peer_is_foreign(local: Server) -> None:
    port = int(local.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"GET /users/ HTTP/1.0\r\n\r\n")
        assert b" 403 " in connection.recv(100)
    # A Unix socket has no peer.
    assert auth.why_foreign({"client": None}, {b"host": b"localhost"})


Ask = Callable[[Server, str, dict[str, str]], tuple[int, str]]

# Runs elsewhere: prints the status and the body of the answer.
ASK = """
import http.client, json, sys
host, port, method, path, headers = json.loads(sys.argv[1])
connection = http.client.HTTPConnection(host, port, timeout=5)
connection.request(method, path, headers=headers)
answer = connection.getresponse()
print(json.dumps([answer.status, answer.read().decode()]))
"""


def namespace(stack: ExitStack) -> tuple[str, list[str]] | None:
    """Return this machine's address towards a network namespace, and what runs a command there."""
    pid = os.getpid()
    name, here, there = f"roster-{pid}", f"r{pid}a", f"r{pid}b"
    inside = ["ip", "netns", "exec", name]
    net = f"198.18.{pid // 64 % 256}"  # for tests (RFC 2544); one of its own for each worker
    mine, theirs = f"{net}.{pid % 64 * 4 + 1}", f"{net}.{pid % 64 * 4 + 2}"

    def run(*command: str) -> bool:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    if os.geteuid() or not shutil.which("ip") or not run("ip", "netns", "add", name):
        return None
    stack.callback(run, "ip", "netns", "delete", name)  # with both ends of the wire
    wired = (
        run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        and run("ip", "address", "add", f"{mine}/30", "dev", here)
        and run("ip", "link", "set", here, "up")
        and run(*inside, "ip", "address", "add", f"{theirs}/30", "dev", there)
        and run(*inside, "ip", "link", "set", there, "up")
    )
    return (mine, inside) if wired else None


@pytest.fixture(scope="module")
def from_elsewhere() -> Iterator[Ask]:
    """Yield what asks the app from an address that is not loopback.

    From a network namespace where one can be made (Linux, as root), else from this machine's own.
    """
    with ExitStack() as stack:
        if found := namespace(stack):
            host, inside = found
        else:
            inside = []
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
                try:
                    route.connect(("192.0.2.1", 9))  # sends nothing
                except OSError:
                    pytest.skip("no network namespace can be made, and there is only loopback")
                host = route.getsockname()[0]

        def ask(server: Server, request: str, headers: dict[str, str]) -> tuple[int, str]:
            port = int(server.url.rpartition(":")[2])
            sent = json.dumps([host, port, *request.replace("{user_id}", "1").split(), headers])
            command = [*inside, sys.executable, "-c", ASK, sent]
            answer = json.loads(subprocess.check_output(command, timeout=120))
            return answer[0], answer[1]

        yield ask


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "localhost"},
        {"Host": "localhost", "X-Forwarded-For": "127.0.0.1"},
        {"Host": "localhost", **bearer(WRITE)},
    ],
)
def test_local_mode_refuses_another_address(
    local: Server, from_elsewhere: Ask, headers: dict[str, str]
) -> None:
    for request in ("GET /livez", "GET /users/", "POST /users/"):
        status, body = from_elsewhere(local, request, headers)
        assert status == 403
        assert "X-Forwarded-For" in headers or "another address" in body


def test_tokens_open_the_app_to_other_addresses(guarded: Server, from_elsewhere: Ask) -> None:
    assert from_elsewhere(guarded, "GET /livez", {})[0] == 200
    assert from_elsewhere(guarded, "GET /users/", {})[0] == 401
    assert from_elsewhere(guarded, "GET /users/", {"Host": "localhost"})[0] == 401
    assert from_elsewhere(guarded, "GET /users/", bearer(READ))[0] == 200
    assert from_elsewhere(guarded, "DELETE /users/{user_id}", bearer(READ))[0] == 403
    assert from_elsewhere(guarded, "DELETE /users/{user_id}", bearer(WRITE))[0] == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "anything else"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:8000"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://example.com"},
        {"Origin": "http://localhost"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "http://localhost:80000"},
        {"Origin": "http://localhost:8000.example.com"},
        {"Origin": "http://example.com/localhost:8000"},
    ],
)
def test_other_sites_pages_change_nothing_and_read_nothing_of_this_machines(
    guarded: Server, local: Server, headers: dict[str, str]
) -> None:
    headers = {**headers, **bearer(WRITE), "Host": "localhost:8000"}
    for server in (guarded, local):
        for request in WRITING | (READING if server is local else set()):
            response = ask(server, request, headers)
            assert response.status_code == 403
            assert "another site" in response.json()["detail"]
        for request in OPEN:  # a link to the page leads there
            assert ask(server, request, headers).status_code == 200
    # A token is not sent along with a link, an image or a form.
    assert ask(guarded, "GET /users/", headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8000"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://localhost:8000"},
        {"Origin": "https://localhost:8000"},  # behind a proxy with TLS
        {},
    ],
)
def test_own_page_and_programs_may_write(
    guarded: Server, local: Server, headers: dict[str, str]
) -> None:
    headers = {**headers, **bearer(WRITE), "Host": "localhost:8000"}
    for server in (guarded, local):
        assert ask(server, "DELETE /users/{user_id}", headers).status_code == 404


def test_path_under_which_a_proxy_serves_the_app_does_not_count() -> None:
    async def nothing(*_: object) -> None:
        raise AssertionError

    access = auth.Access(nothing, lambda: {b"": auth.LOCAL})
    scope = {"type": "http", "method": "GET", "root_path": "/roster"}
    assert access.check({**scope, "path": "/roster/livez"}, {})[1] is None
    assert access.check({**scope, "path": "/roster/users/"}, {})[1] is not None


def test_websocket_needs_a_token_that_writes_and_an_own_page() -> None:
    async def nothing(*_: object) -> None:
        raise AssertionError

    scope: dict[str, Any] = {"type": "websocket", "path": "/livez", "client": ("127.0.0.1", 1)}
    own = {b"host": b"localhost"}
    foreign = {**own, b"origin": b"http://example.com"}
    assert auth.Access(nothing, lambda: {b"": auth.LOCAL}).check(scope, own)[1]
    assert auth.Access(nothing, dict).check(scope, foreign)[1]
    assert auth.Access(nothing, dict).check(scope, own)[1] is None


# Fairness


def test_caller_with_too_many_requests_under_way_is_429_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.py").write_text(
        "import asyncio\nfrom app import app\n\n"
        "@app.get('/slow')\nasync def slow() -> None:\n    await asyncio.sleep(3)\n"
    )
    monkeypatch.setenv("API_TOKENS", f"ada:{WRITE}")
    monkeypatch.setenv("API_READ_TOKENS", f"bob:{READ}")
    monkeypatch.setenv("REQUESTS_PER_CALLER", "3")
    with (
        serve(f"sqlite:///{tmp_path}/a.db", tmp_path, app="slow:app") as server,
        ThreadPoolExecutor(4) as pool,
    ):
        slow = [pool.submit(ask, server, "GET /slow", bearer(READ), timeout=30) for _ in range(4)]
        wait_until(lambda: any(part.done() for part in slow))
        assert ask(server, "GET /users/", bearer(WRITE)).status_code == 200
        assert ask(server, "GET /readyz").status_code == 200
        statuses = [part.result() for part in slow]
        assert sorted(part.status_code for part in statuses) == [200, 200, 200, 429]
        (refused,) = (part for part in statuses if part.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert list(refused.json()) == ["detail"]
        assert ask(server, "GET /users/", bearer(READ)).status_code == 200  # they count no more


def test_wrong_tokens_are_slowed_down_counted_and_delay_no_other(guarded: Server) -> None:
    time.sleep(1.05)  # of each kind, two lines a second are printed
    before = len(guarded.printed())
    with ThreadPoolExecutor(30) as pool:
        wrong = [pool.submit(ask, guarded, "GET /users/", bearer("x" * 24)) for _ in range(60)]
        assert ask(guarded, "GET /users/", bearer(READ)).status_code == 200
        for response in (part.result() for part in wrong):
            assert response.status_code in (401, 429)
            took = response.elapsed.total_seconds()
            assert response.status_code == 429 or took >= auth.GUESS_TIME
    time.sleep(1.05)
    ask(guarded, "GET /users/", bearer("x" * 24))
    wait_until(lambda: "were left out" in guarded.printed()[before:])
    assert " 401 by unknown, " in guarded.printed()[before:]


# The log


def test_each_kind_of_line_is_limited_by_a_clock_that_is_not_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def says(text: str, at: float, status: int = 0) -> str | None:
        monkeypatch.setattr(time, "monotonic", lambda: at)
        name = "uvicorn.access" if status else "uvicorn.error"
        record = logging.LogRecord(name, logging.WARNING, "", 1, text, ("x", status), None)
        record.created = 0  # a wall clock that was set back
        return record.msg if sparing.filter(record) else None

    sparing = auth.Sparing()
    assert [says("a", 5), says("a", 5.5), says("a", 5.9), says("a", 5.9)] == ["a", "a", None, None]
    assert says("b", 5.9) == "b"
    assert says("a", 6.1) == "a (2 more were left out)"
    assert [says("x", 9, 401) for _ in range(3)] == ["x", "x", None]
    assert [says("x", 9, 200) for _ in range(3)] == ["x", "x", "x"]


def test_one_fault_is_one_kind_of_line_whatever_the_driver_calls_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = ((Kind.UNREACHABLE, "refused"), (Kind.UNREACHABLE, "timeout"), (Kind.BUSY, "1213"))
    reasons = iter([str(Fault(kind, code, "here")) for kind, code in known])
    kinds = []
    monkeypatch.setattr(logger, "log", lambda *_, extra: kinds.append(extra["kind"]))

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["reason"] = next(reasons)
        await answer(503, "")(scope, receive, send)

    client = TestClient(auth.Access(fail, dict), "http://localhost", client=("127.0.0.1", 1))
    assert [client.get("/users/").status_code for _ in known] == [503, 503, 503]
    assert kinds[0] == kinds[1] != kinds[2]


def request_id(response: httpx.Response) -> str:
    """Return an answer's request id."""
    (found,) = response.headers.get_list("x-request-id")
    assert re.fullmatch("[0-9a-f]{16}", found)
    return str(found)


def test_every_answer_has_a_request_id_of_its_own(guarded: Server, local: Server) -> None:
    given = {"X-Request-ID": "0123456789abcdef"}
    requests = [*OPEN, *READING, *WRITING, *NO_ROUTES]
    answers = [ask(guarded, request, {**given, **bearer(READ)}) for request in requests]
    answers += [ask(guarded, request, given) for request in requests]
    answers += [ask(local, request, {**given, "Host": "x"}) for request in requests]
    ids = {request_id(answer) for answer in answers}
    assert len(ids) == len(answers)
    assert given["X-Request-ID"] not in ids


def lines_of(server: Server, response: httpx.Response) -> list[str]:
    """Return the lines of the log that have an answer's request id; one comes after the answer.

    Without a line, that of a later request shows that there will be none. Of its kind, two lines a
    second are printed.
    """
    wait_until(lambda: request_id(ask(server, "DELETE /later")) in server.printed())
    return [line for line in server.printed().splitlines() if request_id(response) in line]


@pytest.mark.parametrize(
    ("token", "status", "who"), [(WRITE, 422, "ada"), (READ, 403, "bob"), ("x", 401, "unknown")]
)
def test_log_says_who_wrote_what(guarded: Server, token: str, status: int, who: str) -> None:
    time.sleep(1.05)  # of each kind, two lines a second are printed
    for method, path in (("PATCH", "/users/0"), ("DELETE", "/users/%0aINFO:%20%0d%1b%ff%00x")):
        response = ask(guarded, f"{method} {path}", bearer(token))
        assert response.status_code == status
        (line,) = lines_of(guarded, response)
        quoted = path.replace("%0a", "%0A").replace("%0d", "%0D").replace("%1b", "%1B")
        quoted = quoted.replace("INFO:", "INFO%3A").replace("%ff", "%EF%BF%BD")
        end = f"{method} {quoted} {status} by {who}, request {request_id(response)}"
        assert re.sub(r" \(\d+ more were left out\)", "", line) == f"INFO:     {end}"
    assert lines_of(guarded, ask(guarded, "GET /users/", bearer(READ))) == []


def test_log_of_the_machine_itself_says_local(local: Server) -> None:
    with httpx.Client(base_url=local.url) as client:
        user = add(client)
        response = client.delete(f"/users/{user['id']}")
    (line,) = lines_of(local, response)
    assert f"DELETE /users/{user['id']} 204 by local, " in line


def test_no_token_is_in_the_log_or_in_an_answer(guarded: Server) -> None:
    for token in (WRITE, READ, f"{WRITE}x"):
        for request in (*OPEN, *READING, *WRITING, *NO_ROUTES, *NO_ROUTES_WRITING):
            for json_ in (None, {"name": 1}):
                response = ask(guarded, request, bearer(token), json=json_)
                assert token not in f"{response.headers} {response.text}"
    printed = guarded.printed()
    assert " 401 by unknown, " in printed
    assert "Traceback" not in printed
    for token in (WRITE, READ):
        assert token not in printed
        assert sha256(token.encode()).hexdigest() not in printed


def test_every_5xx_has_one_line_with_its_request_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "buggy.py").write_text(
        "from app import app\n"
        "@app.get('/bug')\n"
        "@app.post('/bug')\n"
        "async def bug() -> None:\n"
        "    raise ZeroDivisionError\n"
    )
    monkeypatch.setenv("API_TOKENS", f"ada:{WRITE}")
    port = free_port()
    away = f"postgresql://roster:hunter2@127.0.0.1:{port}/roster"
    refused = (
        f"UNREACHABLE (ConnectionRefusedError), PostgreSQL at 127.0.0.1:{port}, database roster"
    )
    with serve(away, tmp_path, app="buggy:app") as server:
        for request, status, who, why in (
            ("GET /readyz", 503, "anyone", refused),
            ("GET /users/", 503, "ada", refused),
            ("DELETE /users/{user_id}", 503, "ada", refused),
            ("GET /bug", 500, "ada", "ZeroDivisionError"),
            ("POST /bug", 500, "ada", "ZeroDivisionError"),
        ):
            if status == 503:
                time.sleep(1.05)  # of warnings, two a second are printed
            response = ask(server, request, bearer(WRITE))
            assert response.status_code == status
            assert list(response.json()) == ["detail"]
            (line,) = lines_of(server, response)
            said = f"{request.replace('{user_id}', '1')} {status} by {who}, "
            level = "ERROR:   " if status == 500 else "WARNING: "
            assert line == f"{level} {said}request {request_id(response)}: {why}"
        printed = server.printed()
        assert printed.count("Traceback") == 2
        assert WRITE not in printed
        assert "hunter2" not in printed


# Settings and the OpenAPI document

LONG = "x" * 24


@pytest.mark.parametrize(
    ("write", "read", "words"),
    [
        (f"ada:{'hunter2' * 3}", "", "API_TOKENS: entry 1 must be name:token"),
        (f"ada:{LONG},bob:hunter2", "", "API_TOKENS: entry 2 must be name:token"),
        ("", "bob:hunter2", "API_READ_TOKENS: entry 1 must be name:token"),
        ("hunter2" * 9, "", "API_TOKENS: entry 1 must be name:token"),
        (f":{LONG}", "", "API_TOKENS: entry 1 must be name:token"),
        (f"a b:{LONG}", "", "API_TOKENS: entry 1 must be name:token"),
        (f"a\nb:{LONG}", "", "API_TOKENS: entry 1 must be name:token"),
        (f"{'a' * 65}:{LONG}", "", "API_TOKENS: entry 1 must be name:token"),
        (f"ada:{LONG} hunter2", "", "API_TOKENS: entry 1 must be name:token"),
        (f"ada:{LONG}ü", "", "API_TOKENS: entry 1 must be name:token"),
        (f"ada:{LONG}:hunter2", "", "API_TOKENS: entry 1 must be name:token"),
        (f"ada:{LONG},", "", "API_TOKENS: entry 2 must be name:token"),
        (f"local:{LONG}", "", "API_TOKENS: entry 1 has a name or a token that is taken"),
        (f"anyone:{LONG}", "", "API_TOKENS: entry 1 has a name or a token that is taken"),
        (f"unknown:{LONG}", "", "API_TOKENS: entry 1 has a name or a token that is taken"),
        (f"ada:{LONG},ada:{LONG}2", "", "API_TOKENS: entry 2 has a name or a token that is"),
        (f"ada:{LONG},bob:{LONG}", "", "API_TOKENS: entry 2 has a name or a token that is"),
        (f"ada:{LONG}", f"bob:{LONG}", "API_READ_TOKENS: entry 1 has a name or a token that"),
        (f"ada:{LONG}", f"ada:{LONG}2", "API_READ_TOKENS: entry 1 has a name or a token that"),
    ],
)
def test_wrong_tokens_end_the_app(write: str, read: str, words: str) -> None:
    settings = Settings(_env_file=None, api_tokens=write, api_read_tokens=read)  # type: ignore[call-arg, arg-type]  # pydantic-settings' own, and it makes secrets of them
    with pytest.raises(SettingsError) as end:
        auth.read_tokens(settings)
    line = str(end.value)
    assert line.startswith(words)
    assert "\n" not in line
    for secret in ("hunter2", LONG):
        assert secret not in line
        assert secret not in repr(settings)


def test_app_does_not_start_with_a_wrong_token(tmp_path: Path) -> None:
    line = only_line(start_and_fail(tmp_path, {"API_READ_TOKENS": "bob:hunter2"}))
    assert "API_READ_TOKENS: entry 1 must be name:token" in line
    assert "hunter2" not in line


def test_blank_setting_is_local_mode_and_read_tokens_alone_are_not() -> None:
    blank = Settings(_env_file=None, api_tokens=" ", api_read_tokens="")  # type: ignore[call-arg, arg-type]  # as above
    assert auth.read_tokens(blank) == {}
    reading = Settings(_env_file=None, api_read_tokens=f"bob:{LONG}")  # type: ignore[call-arg, arg-type]  # as above
    assert list(auth.read_tokens(reading).values()) == [auth.Caller("bob", writes=False)]


def test_openapi_document_is_the_same_with_and_without_tokens(
    guarded: Server, local: Server
) -> None:
    document = ask(guarded, "GET /openapi.json")
    assert document.content == ask(local, "GET /openapi.json").content
    for word in (WRITE, READ, "ada", "bob"):
        assert word not in document.text


def test_openapi_document_says_where_a_token_is_needed(guarded: Server) -> None:
    document = ask(guarded, "GET /openapi.json").json()
    assert document["security"] == [{"token": []}]
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            is_open = f"{method.upper()} {path}" in OPEN
            assert operation.get("security") == ([] if is_open else None)
            assert ("401" in operation["responses"]) != is_open
            assert "403" in operation["responses"]
