"""Forty clients take their answers slowly, and there are five connections.

(The tutorial's pool would let them wait for 30 seconds each. Here it is half a second.)
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from pitfall import TUTORIAL_URL, client, store, tutorial
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlmodel import Field, Session, SQLModel, create_engine, select

from app import app as roster

engine = create_engine(TUTORIAL_URL, pool_size=5, max_overflow=0, pool_timeout=0.5)


class Person(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)


def get_session() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


@tutorial.get("/users/")
def count_people(session: Annotated[Session, Depends(get_session)]) -> int:
    return len(session.exec(select(Person)).all())


async def forty_at_once(app: FastAPI) -> str:
    """Return how many got which status; nobody takes more before all have got that."""
    statuses: list[int] = []
    all_have_one = asyncio.Event()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
            if len(statuses) == 40:
                all_have_one.set()
        await all_have_one.wait()

    async def receive() -> Any:
        return {"type": "http.request"}

    async def get_users() -> None:
        asked = {"type": "http", "method": "GET", "path": "/users/", "query_string": b""}
        by = {"headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1)}
        with suppress(NoConnection):  # which was answered with 500 already
            await app(asked | by, receive, send)

    await asyncio.gather(*(get_users() for _ in range(40)))
    return ", ".join(f"{count} x {status}" for status, count in Counter(statuses).items())


async def main() -> None:
    store()
    print("tutorial:", await forty_at_once(tutorial))
    async with client(roster):
        print("Roster:  ", await forty_at_once(roster))


asyncio.run(main())
