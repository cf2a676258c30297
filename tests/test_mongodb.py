"""What is MongoDB's alone: a standalone server, and PyMongo's errors."""

import asyncio
import gc
import time
from pathlib import Path
from typing import Any

import bson.errors
import httpx
import pytest
import uvloop
from conftest import required, serve
from databases import Database, standalone_mongodb
from pymongo import MongoClient, monitoring
from pymongo import errors as pymongo
from pymongo.asynchronous.cursor import AsyncCursor
from pymongo.collection import Collection
from pymongo.network_layer import PyMongoProtocol
from test_contract import add, read_all

from lifespan import start
from models import UserCreate
from paging import UserQuery
from store import Fault, Kind, find_fault
from store_mongo import MongoUserStore

on_mongodb = pytest.mark.parametrize("database", ["mongodb"], indirect=True)


def test_standalone_server_is_told_at_the_start_and_stores_no_list(tmp_path: Path) -> None:
    with (
        required("mongodb"),
        standalone_mongodb() as url,
        serve(url, tmp_path) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        assert server.printed().count("is a standalone server") == 1
        user = add(client)
        new = [{"name": "Eve", "email": "eve@example.com"}]
        for query in ("", "?on_conflict=skip"):
            response = client.post(f"/users/bulk{query}", json=new)
            assert response.status_code == 503
            assert "This database has no transactions" in response.json()["detail"]
        assert read_all(client) == [user]
        assert "Traceback" not in server.printed()


@on_mongodb
def test_app_is_not_ready_and_stores_nobody_without_the_counter(
    database: Database, tmp_path: Path
) -> None:
    with (
        database.new() as url,
        serve(url, tmp_path) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        direct: MongoClient[dict[str, Any]]
        with MongoClient(url) as direct:
            direct.get_default_database()["counters"].delete_many({})
        assert client.get("/readyz").status_code == 503
        new = {"name": "a", "email": "a@b.de"}
        assert client.post("/users/", json=new).status_code == 503
        assert client.get("/users/").json()["items"] == []


@on_mongodb
def test_users_restored_without_the_counter_keep_their_ids(
    database: Database, tmp_path: Path
) -> None:
    with database.new() as url:
        for name in ("a", "b"):
            with serve(url, tmp_path) as server, httpx.Client(base_url=server.url) as client:
                assert add(client, name, f"{name}@b.de")["id"] == "ab".index(name) + 1
            with MongoClient[dict[str, Any]](url) as direct:
                direct.get_default_database()["counters"].delete_many({})


@on_mongodb
def test_what_is_read_has_the_fields_that_roster_knows(database: Database, tmp_path: Path) -> None:
    direct: MongoClient[dict[str, Any]]
    with (
        database.new() as url,
        serve(url, tmp_path) as server,
        httpx.Client(base_url=server.url) as client,
        MongoClient(url) as direct,
    ):
        user = add(client)
        users: Collection[dict[str, Any]] = direct.get_default_database()["users"]
        users.update_many({}, {"$set": {"salary": 1}})
        assert read_all(client) == [user]
        assert client.get(f"/users/{user['id']}").json() == user
        users.update_many({}, {"$set": {"version": 1.0}})  # as an old shell does
        assert client.get(f"/users/{user['id']}").headers["etag"] == '"1"'
        users.update_many({}, {"$unset": {"version": ""}})
        assert read_all(client) == [{**user, "version": None}]
        users.update_many({}, {"$set": {"version": 1}, "$unset": {"name": ""}})
        assert read_all(client) == [{**user, "name": None}]
        assert client.get(f"/users/{user['id']}").json() == {**user, "name": None}


@on_mongodb
def test_list_that_waits_for_another_transaction_is_503_in_time(
    database: Database, tmp_path: Path
) -> None:
    direct: MongoClient[dict[str, Any]]
    with (
        database.new() as url,
        serve(url, tmp_path) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
        MongoClient(url) as direct,
        direct.start_session() as session,
    ):
        users: Collection[dict[str, Any]] = direct.get_default_database()["users"]
        with session.start_transaction():
            rival: dict[str, Any] = {"_id": -1, "email_key": "a@b.de"}
            users.insert_one(rival, session=session)
            began = time.monotonic()
            response = client.post("/users/bulk", json=[{"name": "a", "email": "a@b.de"}])
            assert response.status_code == 503
            assert time.monotonic() - began < 8
            session.abort_transaction()
        response = client.post("/users/bulk", json=[{"name": "a", "email": "a@b.de"}])
        assert response.status_code == 201


@on_mongodb
def test_reading_that_is_cancelled_loses_no_socket_and_may_fail_unseen(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = MongoUserStore(database.url)

    async def fail_later(_: Any) -> None:
        await asyncio.sleep(0.01)
        raise pymongo.AutoReconnect("gone")

    async def read_and_leave() -> None:
        await start(store)
        for milliseconds in range(20):
            reading = [asyncio.create_task(store.page(UserQuery(), 5)) for _ in range(5)]
            await asyncio.sleep(milliseconds / 1000)
            for task in reading:
                task.cancel()
            await asyncio.wait(reading)
        monkeypatch.setattr(AsyncCursor, "to_list", fail_later)
        failing = asyncio.create_task(store.page(UserQuery(), 5))
        await asyncio.sleep(0)
        failing.cancel()
        await asyncio.wait([failing])
        assert failing.cancelled()
        await asyncio.sleep(0.02)
        gc.collect()  # asyncio says then what nobody has looked at
        await store.ping()
        left = [task for task in asyncio.all_tasks() if "to_list" in repr(task.get_coro())]
        if left:
            await asyncio.wait(left)
        await store.stop()

    asyncio.run(read_and_leave())  # a socket that is lost warns, and warnings are errors here
    assert not caplog.messages


class Asked(monitoring.CommandListener):
    """Notes what the driver asks the server."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """Note a command."""
        self.commands.append(event.command_name)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Do nothing."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Do nothing."""


@on_mongodb
def test_get_and_a_page_take_one_round_trip_and_create_two(
    database: Database,
) -> None:
    asked = Asked()
    monitoring.register(asked)
    with database.new() as url:
        store = MongoUserStore(url)

        async def use() -> None:
            await start(store)
            asked.commands.clear()
            user = await store.add(UserCreate(name="Ada", email="ada@example.com"))
            await store.get(user.id)
            await store.page(UserQuery(sort="name"), 50)
            commands = asked.commands.copy()
            await store.stop()
            assert commands == ["findAndModify", "insert", "find", "find"]

        try:
            asyncio.run(use())
        finally:
            monitoring._LISTENERS.command_listeners.remove(asked)


def refused_insert(code: int) -> pymongo.BulkWriteError:
    """Return what PyMongo raises if the server refuses one of many documents."""
    return pymongo.BulkWriteError({"writeErrors": [{"index": 0, "code": code}]})


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (pymongo.DuplicateKeyError("", 11000), Kind.CONFLICT),
        (refused_insert(11000), Kind.CONFLICT),
        (refused_insert(14031), Kind.FULL),
        (pymongo.OperationFailure("", 14031), Kind.FULL),
        (pymongo.OperationFailure("", 112), Kind.BUSY),
        (pymongo.ServerSelectionTimeoutError(), Kind.UNREACHABLE),
        (pymongo.AutoReconnect(), Kind.UNREACHABLE),
        (pymongo.WaitQueueTimeoutError(), Kind.UNREACHABLE),
        (pymongo.NetworkTimeout(), Kind.TOO_SLOW),
        (pymongo.ExecutionTimeout("", 50), Kind.TOO_SLOW),
        (pymongo.WTimeoutError("", 64), Kind.TOO_SLOW),
        (pymongo.NotPrimaryError("", {"code": 10107}), Kind.READ_ONLY),
        (pymongo.NotPrimaryError(""), Kind.READ_ONLY),
        (pymongo.OperationFailure("", 18), Kind.REFUSED),
        (pymongo.OperationFailure("", 13), Kind.REFUSED),
        (pymongo.OperationFailure("", 20), Kind.NO_TRANSACTIONS),
        (bson.errors.InvalidStringData(), Kind.BAD_VALUE),
        (OverflowError(), Kind.BAD_VALUE),
        # MySQL's numbers are not MongoDB's.
        (pymongo.OperationFailure("", 1062), None),
        (pymongo.InvalidOperation(), None),
    ],
    ids=repr,
)
def test_errors_of_pymongo_have_their_answer(error: Exception, fault: Kind | None) -> None:
    store = MongoUserStore("mongodb://localhost")
    found = find_fault(store.codes(error), store.kinds, store.place)
    assert (found and found.kind) is fault


@on_mongodb
def test_connection_that_ends_before_the_answer_is_read_is_unreachable(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyMongo continues to read from a connection that uvloop has just closed."""
    write = PyMongoProtocol.write

    async def write_and_end(protocol: PyMongoProtocol, message: bytes) -> None:
        await write(protocol, message)
        protocol.transport.abort()

    async def use(url: str) -> None:
        store = MongoUserStore(url)
        try:
            await store.start()
            user = await store.add(UserCreate(name="Ada", email="ada@example.com"))
            with monkeypatch.context() as patched:
                patched.setattr(PyMongoProtocol, "write", write_and_end)
                with pytest.raises(Fault) as found:
                    await store.get(user.id)
            assert found.value.kind is Kind.UNREACHABLE
            assert await store.get(user.id) == user
        finally:
            await store.stop()

    with database.new() as url:
        uvloop.run(use(url))
