"""The server stands still: it accepts what is sent, and says nothing."""

import asyncio
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from conftest import NO_TLS, SLACK, answers, full, serve, wait_until
from databases import Database
from load import HEAL, LATE, SERVERS, Figures, check_healthy, on
from sqlalchemy import text
from test_contract import add

from edge.limits import TIME_MAX
from engine import Database as SQLDatabase
from engine.direct import execute

CLIENTS = 50
FROZEN = (
    TIME_MAX + 4
)  # 10 seconds, and more than a request may take: it is not the thaw that ends it
ALIVE = 0.1 + SLACK  # seconds in which 99 of 100 times /livez answers


@full
@on(*SERVERS)
def test_server_frozen_for_14_s_leaves_nobody_without_an_answer(
    own: Database, tmp_path: Path, record_property: Figures
) -> None:
    assert own.process
    codes: Counter[int] = Counter()
    seconds: list[float] = []
    alive: list[float] = []
    overslept: list[float] = []  # how much the machine disturbs this test
    done = threading.Event()

    def look_alive(url: str) -> None:
        with httpx.Client(base_url=url, trust_env=False, verify=NO_TLS) as client:
            while not done.is_set():
                began = time.monotonic()
                time.sleep(0.05)
                overslept.append(time.monotonic() - began - 0.05)
                began = time.monotonic()
                client.get("/livez").raise_for_status()
                alive.append(time.monotonic() - began)

    async def use(url: str, i: int, path: str) -> None:
        async with httpx.AsyncClient(
            base_url=url, timeout=60, trust_env=False, verify=NO_TLS
        ) as client:
            while not done.is_set():
                began = time.monotonic()
                match i % 5:
                    case 0:
                        new = {"name": "x", "email": f"{i}.{began}@example.com"}
                        answer = await client.post("/users/", json=new)
                    case 1:
                        answer = await client.patch(path, json={"name": f"{began}"})
                    case 2:
                        answer = await client.get("/users/?limit=5")
                    case 3:
                        new = {"name": "x", "email": f"{i}.{began}@example.com"}
                        answer = await client.post("/users/bulk", json=[new])
                    case _:
                        answer = await client.get(path)
                seconds.append(time.monotonic() - began)
                codes[answer.status_code] += 1
                if answer.status_code == 503:
                    assert answer.headers["retry-after"] == "1"
                await asyncio.sleep(0.1)

    async def use_all(url: str, path: str) -> None:
        await asyncio.gather(*(use(url, i, path) for i in range(CLIENTS)))

    with (
        serve(own.url, tmp_path, "--no-access-log") as server,
        httpx.Client(base_url=server.url, trust_env=False, verify=NO_TLS) as client,
    ):
        path = f"/users/{add(client)['id']}"
        threads = [
            threading.Thread(target=lambda: asyncio.run(use_all(server.url, path))),
            threading.Thread(target=look_alive, args=(server.url,)),
        ]
        try:
            threads[0].start()
            wait_until(lambda: len(seconds) > CLIENTS)
            threads[1].start()
            own.process.freeze()
            time.sleep(FROZEN)
            looks = len(alive)
            own.process.thaw()
            thawed = time.monotonic()
            wait_until(lambda: answers(f"{server.url}/users/1"))
            healed = time.monotonic() - thawed
            time.sleep(1)
        finally:
            own.process.thaw()
            done.set()
            for thread in threads:
                if thread.ident:
                    thread.join(60)
        check_healthy(server)
    slow, disturbed = (sorted(times[:looks])[looks * 99 // 100] for times in (alive, overslept))
    record_property("codes", dict(codes))
    record_property("slowest answer", f"{max(seconds):.1f} s")
    record_property("healed after", f"{healed:.2f} s")
    record_property("livez p99", f"{slow * 1000:.0f} ms")
    record_property("the machine's own p99", f"{disturbed * 1000:.0f} ms")
    assert codes.keys() <= {200, 201, 503}
    assert codes[503]
    assert max(seconds) < TIME_MAX + LATE
    assert healed < HEAL
    assert slow < ALIVE + disturbed


@on("postgresql")
def test_old_connection_to_a_frozen_server_is_given_up_soon(own: Database) -> None:
    async def borrow() -> float:
        reader = SQLDatabase(own.url, size=2).reader.sync_engine
        await execute(reader, None, text("SELECT 1"), {})
        pool: Any = reader.pool
        entry = await pool.borrow()
        entry.starttime = 0
        pool._do_return_conn(entry)
        assert own.process
        own.process.freeze()
        began = time.monotonic()
        assert await pool.borrow() is None
        took = time.monotonic() - began
        entry.driver_connection.terminate()
        await asyncio.sleep(0)
        return took

    # Others wait for it, 5 seconds at most.
    assert asyncio.run(borrow()) < 4
