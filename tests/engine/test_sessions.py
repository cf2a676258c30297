"""Sessions of requests, through HTTP: what they can, and what they say no to at once."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from databases import Database as Backend
from fastapi import BackgroundTasks, FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import InvalidRequestError, MissingGreenlet
from sqlmodel import SQLModel, select
from starlette.testclient import TestClient

import db
from db import SessionDep, open_session
from engine import Database
from models import User

on_each = pytest.mark.parametrize("database", ["sqlite", "postgresql", "mysql"], indirect=True)
USERS = SQLModel.metadata.tables["users"]
NAMES = select(User.name).order_by(USERS.c.id)

app = FastAPI()
kept: list[Any] = []  # what tasks that outlive their request came to


def user(name: str) -> User:
    return User(name=name, email=f"{name}@example.com")


@contextmanager
def serving(
    database: Backend, monkeypatch: pytest.MonkeyPatch, size: int = 2
) -> Iterator[TestClient]:
    """Yield a client of ``app`` on a database that has two users."""
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("POOL_SIZE", f"{size}")  # with 2, one that is not returned is missed at once
    for forget in (db.get_settings, db.get_backend):
        forget.cache_clear()
    kept.clear()
    backend = db.get_backend()
    assert isinstance(backend, Database)

    async def begin() -> None:
        async with backend.writer.begin() as writing:
            await writing.run_sync(USERS.drop, checkfirst=True)
            await writing.run_sync(USERS.create)
        async with open_session() as session:
            session.add_all([user("a"), user("b")])

    async def end() -> None:
        async with backend.writer.begin() as writing:  # no connection holds a lock
            await writing.run_sync(USERS.drop)
        await backend.stop()

    try:
        with TestClient(app) as client:
            portal: Any = client.portal
            portal.call(begin)
            yield client
            portal.call(end)
    finally:
        for forget in (db.get_settings, db.get_backend):
            forget.cache_clear()


@app.get("/stream-scalars")
async def stream_scalars(session: SessionDep) -> list[str]:
    return [name async for name in await session.stream_scalars(NAMES)]


@app.get("/stream-rows")
async def stream_rows(session: SessionDep) -> list[str]:
    return [name async for (name,) in await (await session.connection()).stream(NAMES)]


@app.get("/savepoint")
async def savepoint(session: SessionDep) -> list[str]:
    async with session.begin_nested():
        return [*await session.exec(NAMES)]


@app.api_route("/plain-def", methods=["GET", "POST"])
def add_in_a_plain_def(session: SessionDep) -> None:
    session.add(user("c"))


@app.get("/plain-def-reads")
def read_in_a_plain_def(session: SessionDep) -> list[str]:
    return [*session.sync_session.exec(NAMES)]


@app.api_route("/task", methods=["GET", "POST"])
async def keep_in_a_task(session: SessionDep, tasks: BackgroundTasks) -> None:
    await session.exec(NAMES)
    tasks.add_task(use_later, session)


@app.api_route("/stream", methods=["GET", "POST"])
async def keep_in_a_stream(session: SessionDep) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        await use_later(session)
        yield b"end"

    await session.exec(NAMES)
    return StreamingResponse(pieces())


@app.websocket("/websocket")
async def talk(websocket: WebSocket, session: SessionDep) -> None:
    await websocket.accept()
    session.add(user("c"))
    await session.commit()
    await websocket.send_json([*await session.exec(NAMES)])
    await websocket.close()
    kept.append(session)


@app.post("/two-writers")
async def write_twice(session: SessionDep) -> None:
    session.add(user("c"))
    await session.flush()
    async with open_session() as other:
        other.add(user("d"))


async def use_later(session: SessionDep) -> None:
    try:
        kept.append([*await session.exec(NAMES)])
    except InvalidRequestError as error:
        kept.append(str(error))


@on_each
@pytest.mark.parametrize("path", ["/stream-scalars", "/stream-rows", "/savepoint"])
def test_what_sqlalchemy_offers_works_in_a_get(
    database: Backend, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    with serving(database, monkeypatch) as client:
        for _ in range(3):  # more than there are connections
            assert client.get(path).json() == ["a", "b"]


@on_each
def test_plain_def_handler_adds_in_a_post_and_is_told_otherwise(
    database: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(database, monkeypatch) as client:
        for _ in range(3):
            with pytest.raises(InvalidRequestError, match="This session is for reading"):
                client.get("/plain-def")
            with pytest.raises(MissingGreenlet):  # it would need an await
                client.get("/plain-def-reads")
        assert client.post("/plain-def").status_code == 200
        assert client.get("/savepoint").json() == ["a", "b", "c"]


@on_each
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/task", "/stream"])
def test_session_that_outlives_its_request_says_no(
    database: Backend, monkeypatch: pytest.MonkeyPatch, path: str, method: str
) -> None:
    with serving(database, monkeypatch) as client:
        for _ in range(3):
            assert client.request(method, path).status_code == 200
        assert len(kept) == 3
        assert all("This session has ended with its request" in said for said in kept)
        assert all("open_session()" in said for said in kept)
        assert client.get("/savepoint").json() == ["a", "b"]


@on_each
def test_websocket_has_a_session(database: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(database, monkeypatch) as client:
        with client.websocket_connect("/websocket") as websocket:
            assert websocket.receive_json() == ["a", "b", "c"]
        portal: Any = client.portal
        portal.call(use_later, kept.pop())
        assert "This session has ended with its request" in kept.pop()
        assert client.get("/savepoint").json() == ["a", "b", "c"]


@on_each
def test_two_writing_sessions_in_one_request(
    database: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite = database.url.startswith("sqlite")  # it has one writer
    with serving(database, monkeypatch, size=5) as client:
        for _ in range(3 if sqlite else 0):
            with pytest.raises(InvalidRequestError, match="is writing already"):
                client.post("/two-writers")
        if not sqlite:
            assert client.post("/two-writers").status_code == 200
        names = ["a", "b"] if sqlite else ["a", "b", "c", "d"]
        assert sorted(client.get("/savepoint").json()) == names
