"""A store whose driver has a pool of its own: callers are served in the order of asking."""

import asyncio
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from databases import Database

import store as store_module
from db import open_backend
from fields import utc_now
from lifespan import start
from models import UserCreate, UserRow
from paging import UserQuery
from store import Fault, Kind, UserStore, in_slot


class Place:
    """A store with one slot."""

    place = "here"
    errors: tuple[type[Exception], ...] = ()
    kinds: Mapping[str, Kind] = {}

    def __init__(self) -> None:
        self.slots, self.expensive = asyncio.Semaphore(1), asyncio.Semaphore(1)
        self.served: list[int] = []

    def codes(self, _: Exception) -> list[str]:
        return []

    @in_slot
    async def use(self, i: int) -> None:
        """Note who does."""
        self.served.append(i)
        await asyncio.sleep(0.001)


def test_who_leaves_or_waits_too_long_takes_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "WAIT_MAX", 0.05)
    place = Place()

    async def test() -> None:
        async with place.slots:
            with pytest.raises(Fault):
                await place.use(0)
            leaving = asyncio.create_task(place.use(1))
            await asyncio.sleep(0.001)
            leaving.cancel()
            staying = asyncio.create_task(place.use(2))
        await staying
        with pytest.raises(asyncio.CancelledError):
            await leaving
        leaving = asyncio.create_task(place.use(3))
        await asyncio.sleep(0)
        leaving.cancel()  # in the middle
        await place.use(4)

    asyncio.run(test())
    assert place.served == [2, 3, 4]


on_servers = pytest.mark.parametrize("database", ["mongodb", "redis"], indirect=True)


@pytest.fixture
def backend(database: Database) -> Iterator[Any]:
    """Yield a store that has two connections to an empty database."""
    with database.new() as url:
        yield open_backend(url, size=2)


@on_servers
def test_nobody_is_overtaken_on_the_way_to_a_server(backend: Any) -> None:
    done = dict.fromkeys(range(20), 0)

    async def test() -> None:
        await start(backend)
        store = backend
        user = await store.add(UserCreate(name="Ada", email="ada@example.com"))

        async def ask(i: int) -> None:
            while max(done.values()) < 20:
                await store.get(user.id)
                done[i] += 1

        await asyncio.gather(*(ask(i) for i in done))
        await backend.stop()

    asyncio.run(asyncio.wait_for(test(), 30))
    assert min(done.values()) >= 10  # a server may be slow to answer one; overtaken, it is 1


@on_servers
def test_every_verb_waits_its_turn(backend: Any) -> None:
    verbs = {name for name, verb in vars(UserStore).items() if inspect.iscoroutinefunction(verb)}
    assert len(verbs) == 11
    others = {name for name in verbs if not hasattr(getattr(backend, name), "__wrapped__")}
    # These call another one.
    assert others == ({"add", "ping"} if type(backend).__name__ == "RedisUserStore" else set())


# PyMongo's own pool would wait.
@pytest.mark.parametrize("database", ["redis"], indirect=True)
def test_start_waits_its_turn_when_the_app_serves_already(backend: Any) -> None:
    async def test() -> None:
        await start(backend)
        store = backend

        started = asyncio.Event()

        async def ask() -> None:
            while not started.is_set():
                await store.page(UserQuery(), 5)

        serving = asyncio.gather(*(ask() for _ in range(10)))
        try:
            for _ in range(5):  # as after an outage
                await start(backend)
            now = utc_now()
            await store.restore([UserRow(1, "Ada", "ada@example.com", now, now, 1)], [], 0)
            await store.set_last_id(1, 0)
        finally:
            started.set()
            await serving
        await backend.stop()

    asyncio.run(asyncio.wait_for(test(), 30))
