"""How long a body holds the event loop: the app in this process, and the processor's time."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from app import app
from edge.limits import BODY_MAX


def fill(item: str, start: str = "[", end: str = "]") -> bytes:
    """Return a body of 1 MiB: as many of an item as fit."""
    count = (BODY_MAX - len(start) - len(end) + 1) // (len(item.encode()) + 1)
    return f"{start}{','.join([item] * count)}{end}".encode()


def people(name: str, email: Callable[[int], str]) -> bytes:
    """Return a list of as many users as a bulk may have."""
    rows = [{"name": name, "email": email(i)} for i in range(1000)]
    return json.dumps(rows, ensure_ascii=False).encode()[:BODY_MAX]


def keys(count: int) -> str:
    """Return an object with as many keys."""
    return "{" + ",".join(f'"{i:x}":0' for i in range(count)) + "}"


# The worst of some hundred that were tried; each held the loop the longer for one reason.
SHAPES = {
    "empty objects": fill("{}"),
    "objects in objects": fill('{"a":' * 100 + "0" + "}" * 100),
    "lists in lists": fill("[" * 100 + "]" * 100),
    "keys of one object": keys(BODY_MAX // 10).encode(),
    "keys of each object": fill(keys(1000)),
    "unknown keys": fill(keys(900)[:-1] + ',"name":"x","email":"x@example.com"}'),
    "long numbers": fill("9" * 4300),
    "hard numbers": fill("2.2250738585072011e-308"),
    "letters that NFKC makes longer": people("ﷺ" * 100, lambda i: f"{'ﷺ' * 20}{i}@example.com"),
    "long labels": people("x", lambda i: f"x@xn--{'a' * 55}-{i}.com"),
    "labels": people("x", lambda i: f"x{i}@" + ".".join(["ü" * 30] * 5) + ".com"),
    "marks": people("a" + "\u0316\u0301" * 49, lambda i: f"{i}@example.com"),
    "joiners": people("क\u200d" * 50, lambda i: f"{i}@example.com"),
    "endless name": json.dumps([{"name": "a\u0316\u0301" * 90_000}], ensure_ascii=False).encode(),
}


async def send(path: str, body: bytes) -> int:
    """Send a body to the app; return the status."""
    statuses = []
    pieces = [body[i : i + 2**16] for i in range(0, len(body), 2**16)]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def respond(message: Any) -> None:
        statuses.append(message.get("status"))

    scope = {
        **{"type": "http", "method": "POST", "scheme": "http", "http_version": "1.1"},
        **{"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": ""},
        **{"headers": [(b"host", b"localhost"), (b"content-type", b"application/json")]},
        **{"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {}},
    }
    await app(scope, receive, respond)
    return int(statuses[0])


def test_body_of_no_shape_holds_the_loop_longer_than_others(
    monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    longest = 0.0
    run: Callable[[asyncio.Handle], None] = asyncio.Handle._run  # each step of a task

    def timed(handle: asyncio.Handle) -> None:
        nonlocal longest
        began = time.process_time()
        run(handle)
        longest = max(longest, time.process_time() - began)

    async def hold(path: str, body: bytes) -> float:
        """Return for how long a body holds the loop, the best of three."""
        nonlocal longest
        held = []
        for _ in range(3):
            longest = 0.0
            await asyncio.create_task(send(path, body))  # whose last step is over then, too
            held.append(longest)
        return min(held)

    async def test() -> None:
        async with app.router.lifespan_context(app):
            monkeypatch.setattr(asyncio.Handle, "_run", timed)
            harmless = await hold("/users/bulk", fill("1"))
            for path in ("/users/bulk", "/users/"):
                for name, body in SHAPES.items():
                    ratio = await hold(path, body) / harmless
                    record_property(f"{name}, {path}", f"{ratio:.1f}")
                    assert ratio < (2 if "objects" in name else 4), (name, ratio)
            monkeypatch.undo()

    asyncio.run(test())
