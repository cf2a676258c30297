"""Use Roster on SQLite for some minutes, and look whether anything is lost, stuck or growing.

``make soak MINUTES=30``. It needs Linux, for it reads ``/proc``. Exit status 1: something is wrong.
"""

import asyncio
import os
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import random
from typing import Any

import httpx
from conftest import Server, serve

CLIENTS = 24
STUCK = 10  # seconds without an answer
COUNT = "/users/?name=x&total=true"  # counts tens of thousands, in a thread
MAY_GROW = {"MiB": 1.2, "files": 1, "threads": 1}
answers: Counter[str] = Counter()
stored: dict[int, str] = {}  # users who were acknowledged, and not deleted since: id -> email
slowest = 0.0


def vitals(server: Server) -> dict[str, int]:
    """Return what memory, open files and threads the app has."""
    process = Path(f"/proc/{server.process.pid}")
    status = dict(line.split(":\t") for line in (process / "status").read_text().splitlines())
    memory = int(status["VmRSS"].removesuffix("kB")) // 1024
    files = len(os.listdir(process / "fd"))
    return {"MiB": memory, "files": files, "threads": int(status["Threads"])}


async def ask(client: httpx.AsyncClient, method: str, path: str, body: Any = None) -> Any:
    """Send a request; count and return its answer."""
    global slowest
    began = time.monotonic()
    response = await client.request(method, path, json=body)
    slowest = max(slowest, time.monotonic() - began)
    answers[str(response.status_code)] += 1
    assert response.is_success, response.text
    return response.json() if response.content else None


async def leave(client: httpx.AsyncClient, method: str, path: str, body: Any = None) -> None:
    """Send a request, and go away after some milliseconds."""
    try:
        async with asyncio.timeout(random() / 50), client.stream(method, path, json=body) as answer:
            async for _ in answer.aiter_raw():
                await asyncio.sleep(0.01)
    except (TimeoutError, httpx.TransportError):
        answers["left"] += 1


async def use(client: httpx.AsyncClient, until: float) -> None:
    """Be one client: write, read, and leave now and then."""
    await ask(client, "GET", COUNT)  # all do this at once, and the app opens every connection
    while time.monotonic() < until:
        email = f"{random()}@example.com"
        user = await ask(client, "POST", "/users/", {"name": "Ada", "email": email})
        path = f"/users/{user['id']}"
        stored[user["id"]] = email
        await ask(client, "PATCH", path, {"name": f"Eve {random()}"})
        await ask(client, "GET", path)
        await ask(client, "GET", "/users/?limit=100&sort=-id")
        if random() < 0.1:
            await ask(client, "GET", COUNT)
            await leave(client, "GET", "/users/export")
            await leave(client, "PATCH", path, {"name": "left"})
            two = [{"name": "left", "email": f"{random()}@example.org"} for _ in range(2)]
            await leave(client, "POST", "/users/bulk", two)
        if len(stored) > 1000:
            gone = min(stored)
            del stored[gone]
            await ask(client, "DELETE", f"/users/{gone}")


async def use_for(server: Server, seconds: float) -> dict[str, int]:
    """Be many clients, say every 10 seconds how it goes; return the app's vitals afterwards."""
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=server.url, timeout=STUCK, trust_env=False) as client:
        users = asyncio.gather(*(use(client, began + seconds) for _ in range(CLIENTS)))
        while not users.done():
            await asyncio.wait([users], timeout=10)
            print(
                f"{answers.total()} answers, slowest {slowest:.2f} s, {vitals(server)}", flush=True
            )
        users.result()
    await asyncio.sleep(1)
    return vitals(server)


def main(minutes: float) -> None:
    """Serve, use, stop; then look into the file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "roster.db"
        with serve(f"sqlite:///{file}", Path(folder), "--no-access-log", app="app:app") as server:
            for i in range(50):
                many = [{"name": f"x {j}", "email": f"{i}.{j}@example.net"} for j in range(1000)]
                httpx.post(f"{server.url}/users/bulk", json=many, timeout=60).raise_for_status()
            try:
                warm = asyncio.run(use_for(server, minutes * 15))
                end = asyncio.run(use_for(server, minutes * 45))
            finally:
                printed = server.printed()[-2000:]
                print(printed)
        with sqlite3.connect(file) as connection:
            (check,) = connection.execute("PRAGMA integrity_check").fetchone()
            found = dict(connection.execute("SELECT id, email FROM users"))
        connection.close()
    lost = stored.items() - found.items()
    print(f"{dict(answers)}\nwarm {warm}, end {end}\nintegrity_check {check}, {len(lost)} lost")
    wrong = [f"{name} grow" for name, factor in MAY_GROW.items() if end[name] > warm[name] * factor]
    wrong += [f"status {status}" for status in answers if status.startswith("5")]
    if wrong or lost or check != "ok" or "Traceback" in printed:
        sys.exit(f"wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main(float(sys.argv[1]))
