"""Two people open the same user, and each corrects the name."""

import asyncio

from fastapi import FastAPI
from pitfall import TutorialSession, client, store, tutorial
from sqlmodel import Field, SQLModel

from app import app as roster


class Person(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str


class PersonUpdate(SQLModel):
    name: str | None = None


@tutorial.get("/users/{person_id}")
def read_person(person_id: int, session: TutorialSession) -> Person:
    return session.get_one(Person, person_id)


@tutorial.patch("/users/{person_id}")
def update_person(person_id: int, update: PersonUpdate, session: TutorialSession) -> None:
    person = session.get_one(Person, person_id)
    person.sqlmodel_update(update.model_dump(exclude_unset=True))
    session.commit()


async def edit_both(app: FastAPI) -> str:
    async with client(app) as http:
        await http.post("/users/", json={"name": "ada", "email": "ada@example.com"})
        opened = [await http.get("/users/1") for _ in range(2)]
        statuses = []
        for seen, name in zip(opened, ("Ada King", "Ada Byron"), strict=True):
            etag = {"If-Match": seen.headers["ETag"]} if "ETag" in seen.headers else None
            answer = await http.patch("/users/1", json={"name": name}, headers=etag)
            statuses.append(str(answer.status_code))
        return (
            f"{' and '.join(statuses)}, the name is {(await http.get('/users/1')).json()['name']}"
        )


async def main() -> None:
    store(Person(name="ada"))
    print("tutorial:", await edit_both(tutorial))
    print("Roster:  ", await edit_both(roster))


asyncio.run(main())
