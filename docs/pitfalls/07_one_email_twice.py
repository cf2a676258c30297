"""Two people register one email at the same moment: both look first, and both find it free."""

import asyncio
from threading import Barrier

from fastapi import FastAPI, HTTPException
from pitfall import TutorialSession, client, store, tutorial
from sqlmodel import Field, SQLModel, select

from app import app as roster

ADA = {"name": "Ada", "email": "ada@example.com"}
both_have_looked = Barrier(2)


class Person(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    email: str = Field(index=True)


class PersonCreate(SQLModel):
    email: str


@tutorial.post("/users/", status_code=201)
def create_person(person: PersonCreate, session: TutorialSession) -> int | None:
    found = session.exec(select(Person).where(Person.email == person.email)).first()
    both_have_looked.wait()
    if found:
        raise HTTPException(409, "Somebody has this email address already.")
    stored = Person.model_validate(person)
    session.add(stored)
    session.commit()
    return stored.id


async def two_at_once(app: FastAPI) -> str:
    async with client(app) as http:
        answers = await asyncio.gather(*(http.post("/users/", json=ADA) for _ in range(2)))
        return " and ".join(sorted(str(answer.status_code) for answer in answers))


async def main() -> None:
    store()
    print("tutorial:", await two_at_once(tutorial))
    print("Roster:  ", await two_at_once(roster))


asyncio.run(main())
