"""In a model for PATCH, ``None`` is to mean "not sent". But null can be sent."""

import asyncio

from pitfall import TutorialSession, client, store, tutorial
from sqlmodel import Field, SQLModel

from app import app as roster


class Person(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str


class PersonUpdate(SQLModel):
    name: str | None = None


@tutorial.patch("/people/{person_id}")
def update_person(person_id: int, update: PersonUpdate, session: TutorialSession) -> str:
    person = session.get_one(Person, person_id)
    person.sqlmodel_update(update.model_dump(exclude_unset=True))
    session.commit()
    return "changed"


async def main() -> None:
    store(Person(name="Ada"))
    async with client(tutorial) as http:
        answer = await http.patch("/people/1", json={"name": None})
        print("tutorial:", answer.status_code, answer.text)
    async with client(roster) as http:
        await http.post("/users/", json={"name": "Ada", "email": "ada@example.com"})
        answer = await http.patch("/users/1", json={"name": None})
        print("Roster:  ", answer.status_code, answer.json()["detail"][0]["msg"])


asyncio.run(main())
