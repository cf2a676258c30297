"""The app is told to stop while it has work; and what it prints while its database is away."""

import asyncio
import json
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from conftest import NO_TLS, SLACK, Server, answers, full, serve, wait_until
from databases import Database
from load import LATE, SERVERS, Crowd, Figures, check_healthy, count_lost, on, writing
from sqlalchemy.engine import make_url

from edge.limits import TIME_MAX

END = 10 + SLACK  # seconds, at most, from SIGTERM to the end
GRACE = "--timeout-graceful-shutdown=10"  # as in make run


def end(server: Server) -> float:
    """Tell the app to stop; return how long it takes, in seconds."""
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(timeout=60)
    return time.monotonic() - began


@on("sqlite", *SERVERS)
def test_what_was_accepted_is_answered_before_the_app_ends(
    own: Database, tmp_path: Path, record_property: Figures
) -> None:
    with serve(own.url, tmp_path, GRACE) as server:
        wait_until(lambda: answers(f"{server.url}/readyz"))
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        connections = [socket.create_connection(address, timeout=30) for _ in range(20)]
        for i, connection in enumerate(connections):
            new = [{"name": "x", "email": f"{i}.{j}@example.com"} for j in range(300)]
            body = json.dumps(new)
            head = "POST /users/bulk HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
            request = f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            connection.sendall(request[:-1].encode())
        time.sleep(0.5)
        # The app has them all; what it does with them begins now.
        for connection in connections:
            connection.sendall(b"]")
        seconds = end(server)
        codes: Counter[str] = Counter()
        for connection in connections:
            with connection, connection.makefile() as answer:
                codes[answer.readline().split()[1]] += 1
        printed = server.printed()
    with (
        serve(own.url, tmp_path) as server,
        httpx.Client(base_url=server.url, trust_env=False, verify=NO_TLS) as client,
    ):
        total = client.get("/users/?total=true&limit=1").json()["total"]
    record_property("codes", dict(codes))
    record_property("ended after", f"{seconds:.1f} s")
    assert codes.keys() <= {"201", "503"}
    assert codes["201"] * 300 == total
    assert seconds < END
    assert "Traceback" not in printed, printed


@full
@on("sqlite", *SERVERS)
def test_stopped_under_load_loses_nothing(
    own: Database, tmp_path: Path, record_property: Figures
) -> None:
    with serve(own.url, tmp_path, GRACE, "--no-access-log") as server:
        with writing(server.url, 30) as load:
            load.goes_on()
            time.sleep(1)
            seconds = end(server)
            load.done.set()
        assert "Traceback" not in server.printed(), server.printed()
    with serve(own.url, tmp_path) as server:
        lost = count_lost(server.url, load)
    record_property("acknowledged", len(load.stored))
    record_property("lost", lost)
    record_property("ended after", f"{seconds:.1f} s")
    record_property("codes", dict(load.codes))
    assert lost == 0
    assert not load.wrong
    assert seconds < END


@full
@on(*SERVERS)
@pytest.mark.parametrize("fault", ["frozen", "gone"])
def test_app_ends_while_its_database_does_not_answer(
    own: Database, tmp_path: Path, record_property: Figures, fault: str
) -> None:
    assert own.process
    try:
        with serve(own.url, tmp_path, GRACE, "--no-access-log") as server:
            with writing(server.url, 20) as load:
                load.goes_on()
                if fault == "frozen":
                    own.process.freeze()
                else:
                    own.process.kill()
                time.sleep(0.5)
                seconds = end(server)
                load.done.set()
            printed = server.printed()
    finally:
        own.process.heal()
    record_property("ended after", f"{seconds:.1f} s")
    record_property("longest request", f"{load.longest_request:.1f} s")
    record_property("codes", dict(load.codes))
    assert not load.wrong
    assert seconds < TIME_MAX + LATE
    assert "Traceback" not in printed, printed


@full
@on(*SERVERS)
def test_outage_prints_two_lines_a_second_and_no_secret(
    own: Database, tmp_path: Path, record_property: Figures
) -> None:
    assert own.process
    length = 30
    crowd = Crowd()

    async def ask(server: Server) -> None:
        async with asyncio.TaskGroup() as group:
            for i in range(length * 100):
                body = '{"name": "x", "email": "secret.person@example.com"}'
                group.create_task(crowd.request(server, "POST", "/users/", body))
                group.create_task(crowd.request(server, "GET", f"/users/{i + 1}"))
                await asyncio.sleep(0.01)

    with serve(own.url, tmp_path, "--no-access-log") as server:
        wait_until(lambda: answers(f"{server.url}/readyz"))
        own.process.kill()
        before = server.printed()
        began = time.monotonic()
        asyncio.run(ask(server))
        seconds = time.monotonic() - began
        lines = server.printed().removeprefix(before).splitlines()
        own.process.start()
        wait_until(lambda: answers(f"{server.url}/readyz"))
        check_healthy(server, str(make_url(own.url).password), "secret.person")
    record_property("codes", dict(crowd.codes))
    record_property("seconds", round(seconds))
    record_property("lines", len(lines))
    assert crowd.codes.keys() == {"503"}
    assert crowd.slowest < TIME_MAX + LATE
    assert 1 <= len(lines) <= 2 * (seconds + 1), lines
