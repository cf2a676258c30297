"""What the tests of faults share: clients who write all the time, and what they were answered."""

import asyncio
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import NO_TLS, SLACK, Server, quick_on, wait_until

HEAL = 2 + SLACK  # seconds, at most, from the database's first answer to the app's first success
LATE = 2 + SLACK  # seconds over edge.limits.TIME_MAX in which a request must have its answer
SERVERS = ("postgresql", "mysql", "mongodb", "redis")

Figures = Callable[[str, object], None]


def on(*backends: str) -> pytest.MarkDecorator:
    """Run a test on servers of its own, which it may break; make test, on the quickest of them."""
    quick = backends[0], "redis"
    return pytest.mark.parametrize("own_database", quick_on(backends, *quick), indirect=True)


class Load:
    """Clients who add users, alone and three at a time, until they are told to stop.

    Each tries again at once, whatever it is answered, and whether it is answered or not.
    """

    def __init__(self, url: str, clients: int) -> None:
        self.url = url
        self.clients = clients
        self.codes: Counter[str] = Counter()
        self.stored: dict[int, str] = {}  # those who were acknowledged: id -> email
        self.successes: list[float] = []
        self.longest_request = 0.0
        self.wrong: list[str] = []
        self.done = threading.Event()

    def note(self, response: httpx.Response, began: float) -> None:
        """Keep what was answered, and whether it may be answered at all."""
        now = time.monotonic()
        self.longest_request = max(self.longest_request, now - began)
        self.codes[str(response.status_code)] += 1
        if response.status_code == 201:
            self.successes.append(now)
            users = response.json()
            for user in users.get("items", [users]):
                self.stored[user["id"]] = user["email"]
        elif response.status_code != 503 or response.headers.get("retry-after") != "1":
            self.wrong.append(f"{response.status_code} {response.text}")

    async def write(self, number: int) -> None:
        """Be one client."""
        async with httpx.AsyncClient(
            base_url=self.url, timeout=60, trust_env=False, verify=NO_TLS
        ) as client:
            while not self.done.is_set():
                email = secrets.token_hex(8)
                three = [{"name": "three", "email": f"{i}.{email}@example.com"} for i in range(3)]
                one = {"name": "one", "email": f"{email}@example.com"}
                path, new = ("/users/bulk", three) if number % 4 == 0 else ("/users/", one)
                began = time.monotonic()
                try:
                    self.note(await client.post(path, json=new), began)
                except httpx.TransportError as error:
                    self.codes[type(error).__name__] += 1
                await asyncio.sleep(0.005)

    def run(self) -> None:
        """Be all clients."""

        async def all_at_once() -> None:
            await asyncio.gather(*(self.write(i) for i in range(self.clients)))

        asyncio.run(all_at_once())

    def goes_on(self) -> None:
        """Wait until somebody succeeds from now on."""
        before = len(self.successes)
        wait_until(lambda: len(self.successes) > before, lambda: f"{self.codes}")

    def succeeded_after(self, moment: float) -> bool:
        """Return whether somebody has succeeded since a moment of time.monotonic()."""
        return bool(self.successes) and self.successes[-1] > moment

    def outage(self) -> float:
        """Return the longest time without a success, in seconds."""
        return max((after - before for before, after in pairwise(self.successes)), default=0)


@contextmanager
def writing(url: str, clients: int = 8) -> Iterator[Load]:
    """Let clients write while the block runs."""
    load = Load(url, clients)
    thread = threading.Thread(target=load.run)
    thread.start()
    try:
        yield load
    finally:
        load.done.set()
        thread.join(90)
    assert not thread.is_alive(), "somebody still waits for an answer"


def read_emails(url: str) -> dict[int, str]:
    """Return all users, id -> email."""
    answer = httpx.get(f"{url}/users/export?format=csv", timeout=60, verify=NO_TLS)
    answer.raise_for_status()
    rows = [line.split(",") for line in answer.text.splitlines()[1:]]
    return {int(row[0]): row[2] for row in rows}


def count_lost(url: str, *loads: Load) -> int:
    """Return how many of those who were acknowledged are not there; lists must be whole."""
    found = read_emails(url)
    parts = Counter(email.partition(".")[2] for email in found.values() if email[1] == ".")
    assert set(parts.values()) <= {3}, "a part of a list was stored"
    assert len(set(found.values())) == len(found)
    return sum(len(load.stored.items() - found.items()) for load in loads)


def check_healthy(server: Server, *secret: str) -> None:
    """Check that no connection is out, and that nothing was printed that must not be."""
    wait_until(
        lambda: httpx.get(f"{server.url}/-/checked-out", verify=NO_TLS).json() == 0,
        lambda: "connections leak",
        seconds=5 + SLACK,
    )
    printed = server.printed()
    assert "Traceback" not in printed, printed[-5000:]
    assert not any(word in printed for word in secret)


def memory(server: Server) -> int:
    """Return what the app has in memory, in MiB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    fields: dict[str, Any] = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields["VmRSS"].split()[0]) // 1024


class Crowd:
    """Many clients at once: a connection for each request, and no library that would be slow."""

    def __init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self.slowest = 0.0

    async def request(self, server: Server, method: str, path: str, body: str = "") -> None:
        """Send one request, and read the whole answer."""
        began = time.monotonic()
        try:
            port = int(server.url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write((head + body).encode())
            answer = await reader.read(-1)
            writer.close()
            self.codes[answer.split()[1].decode() if answer else "nothing"] += 1
        except OSError as error:
            self.codes[type(error).__name__] += 1
        self.slowest = max(self.slowest, time.monotonic() - began)


def say(figures: Figures, load: Load, lost: int, **seconds: float) -> None:
    """Print what a load was answered, how many are lost, and how long things took."""
    figures("acknowledged", len(load.stored))
    figures("lost", lost)
    figures("longest outage", f"{load.outage():.1f} s")
    figures("longest request", f"{load.longest_request:.1f} s")
    figures("codes", dict(load.codes))
    for what, figure in seconds.items():
        figures(what, f"{figure:.2f} s")
