"""A limit that is only bounded above: SQLite takes LIMIT -1 for no limit at all."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import Query
from pitfall import TutorialSession, client, store, tutorial
from sqlmodel import Field, SQLModel, select

from app import app as roster

EMAILS = [f"{i}@example.com" for i in range(1000)]


class Person(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    email: str


@tutorial.get("/people/")
def read_people(
    session: TutorialSession, limit: Annotated[int, Query(le=100)] = 100
) -> Sequence[Person]:
    return session.exec(select(Person).limit(limit)).all()


async def main() -> None:
    store(*(Person(email=email) for email in EMAILS))
    async with client(tutorial) as http:
        answer = await http.get("/people/?limit=-1")
        print("tutorial:", answer.status_code, len(answer.json()), "people")
    async with client(roster) as http:
        await http.post("/users/bulk", json=[{"name": "A", "email": email} for email in EMAILS])
        answer = await http.get("/users/?limit=-1")
        print("Roster:  ", answer.status_code, answer.json()["detail"][0]["msg"])


asyncio.run(main())
