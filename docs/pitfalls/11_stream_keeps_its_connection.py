"""Five clients watch for new people (server-sent events), and there are five connections.

(The tutorial's pool would let the next client wait for 30 seconds. Here it is half a second.)
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from pitfall import TUTORIAL_URL, client, store, tutorial
from sqlalchemy import func
from sqlmodel import Field, Session, SQLModel, create_engine, select
from starlette.requests import ClientDisconnect

from app import app as roster
from db import open_session
from models import User

engine = create_engine(TUTORIAL_URL, pool_size=5, max_overflow=0, pool_timeout=0.5)


class Person(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)


def get_session() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


TutorialSession = Annotated[Session, Depends(get_session)]


@tutorial.get("/events")
def watch_people(session: TutorialSession) -> StreamingResponse:
    def events() -> Iterator[str]:
        while True:
            yield f"data: {len(session.exec(select(Person)).all())}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@tutorial.get("/users/")
def count_people(session: TutorialSession) -> int:
    return len(session.exec(select(Person)).all())


@roster.get("/events")
async def watch_users() -> StreamingResponse:
    async def events() -> AsyncIterator[str]:
        while True:
            async with open_session(read_only=True) as session:
                count = (await session.exec(select(func.count()).select_from(User))).one()
            yield f"data: {count}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def watch(app: FastAPI, watching: asyncio.Semaphore, enough: asyncio.Event) -> None:
    """Take one event, and no more."""

    async def send(message: Any) -> None:
        if message.get("body"):
            watching.release()
            await enough.wait()
            raise OSError("the client has left")

    async def receive() -> Any:
        await enough.wait()
        return {"type": "http.disconnect"}

    asked: Any = {"type": "http", "method": "GET", "path": "/events", "query_string": b""}
    asked |= {"headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1)}
    asked["asgi"] = {"spec_version": "2.4"}
    with suppress(ClientDisconnect):
        await app(asked, receive, send)


async def five_watch(app: FastAPI) -> str:
    """Return what a list is answered with while five clients watch."""
    watching, enough = asyncio.Semaphore(0), asyncio.Event()
    async with client(app) as http, asyncio.TaskGroup() as clients:
        for _ in range(5):
            clients.create_task(watch(app, watching, enough))
        for _ in range(5):
            await watching.acquire()
        status = (await http.get("/users/")).status_code
        enough.set()
    return f"5 watch, and a list is {status}"


async def main() -> None:
    store()
    print("tutorial:", await five_watch(tutorial))
    print("Roster:  ", await five_watch(roster))


asyncio.run(main())
