"""One caller with expensive requests does not keep the others waiting."""

import asyncio
import sys
import time
from itertools import count
from pathlib import Path

import httpx
import pytest
from conftest import NO_TLS, SLACK, quick_on, serve
from databases import BACKENDS, Database
from load import Figures

CLIENTS = 10
ATTACKERS = 32
ROUNDS = 15  # requests of a client
numbers = count()

# In a process of its own, so that it takes no time from those that are measured.
ATTACK = """
import asyncio, sys, httpx
async def ask(client, path):
    while True:
        try:
            await client.get(path)
        except httpx.TransportError:
            pass
async def main():
    url, clients = sys.argv[1], int(sys.argv[2])
    queries = ["q=zz&total=true", "q=user&sort=-name", "name=zz&total=true"]
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits()) as client:
        asking = (ask(client, f"/users/?{queries[i % 3]}") for i in range(clients))
        await asyncio.gather(*asking)
asyncio.run(main())
"""


async def fill(client: httpx.AsyncClient, users: int) -> None:
    for start in range(0, users, 1000):
        many = [
            {"name": f"User {i}", "email": f"{i}@fair.example.com"}
            for i in range(start, start + 1000)
        ]
        (await client.post("/users/bulk", json=many)).raise_for_status()


async def be_ordinary(client: httpx.AsyncClient, taken: list[float], failed: list[str]) -> None:
    """Read and write as a page does, and note how long each request takes."""
    for _ in range(ROUNDS):
        new = {"name": "New", "email": f"{next(numbers)}@new.example.com"}
        for method, path, body in (
            ("GET", "/users/7", None),
            ("GET", "/users/?limit=50", None),
            ("POST", "/users/", new),
        ):
            began = time.monotonic()
            response = await client.request(method, path, json=body)
            taken.append(time.monotonic() - began)
            if not response.is_success:
                failed.append(f"{method} {path} {response.status_code} {response.text}")


async def p99(url: str) -> tuple[float, list[str]]:
    """Return the 99th percentile of ordinary clients' times, in seconds, and what failed."""
    taken: list[float] = []
    failed: list[str] = []
    async with httpx.AsyncClient(base_url=url, timeout=60, verify=NO_TLS) as client:
        await asyncio.gather(*(be_ordinary(client, taken, failed) for _ in range(CLIENTS)))
    return sorted(taken)[len(taken) * 99 // 100], failed


@pytest.mark.parametrize("database", quick_on(BACKENDS, "sqlite"), indirect=True)
def test_expensive_requests_of_one_caller_leave_the_others_their_time(
    database: Database, tmp_path: Path, record_property: Figures
) -> None:
    async def measure(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120, verify=NO_TLS) as client:
            # SecantusDB, which stands in for MongoDB, is slow.
            await fill(client, 1000 if database.url.startswith("mongodb") else 10_000)
        alone, failed = await p99(url)
        assert not failed, failed[:3]
        attack = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ATTACK, url, str(ATTACKERS)
        )
        try:
            await asyncio.sleep(2)
            beside, failed = await p99(url)
            assert attack.returncode is None
        finally:
            attack.kill()
            await attack.wait()
        record_property("p99 alone", f"{alone * 1000:.0f} ms")
        record_property("p99 beside an attacker", f"{beside * 1000:.0f} ms")
        assert not failed, failed[:3]
        assert beside < 5 * alone + max(SLACK, 0.5)

    with database.new() as url, serve(url, tmp_path) as server:
        asyncio.run(measure(server.url))
