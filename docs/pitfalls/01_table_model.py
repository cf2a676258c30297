"""A handler takes the table's own class as its body: nothing is checked."""

import asyncio

from pitfall import TutorialSession, client, store, tutorial
from sqlmodel import Field, SQLModel

from app import app as roster

WRONG = {"id": 77, "name": "", "email": 5}


class Person(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(min_length=1)
    email: str


@tutorial.post("/people/", status_code=201)
def create_person(person: Person, session: TutorialSession) -> str:
    session.add(person)
    session.commit()
    session.refresh(person)
    return f"stored: id {person.id}, name {person.name!r}, email {person.email!r}"


async def main() -> None:
    store()
    async with client(tutorial) as http:
        answer = await http.post("/people/", json=WRONG)
        print("tutorial:", answer.status_code, answer.json())
    async with client(roster) as http:
        answer = await http.post("/users/", json=WRONG)
        problems = [
            f"{problem['loc'][-1]}: {problem['msg']}" for problem in answer.json()["detail"]
        ]
        print("Roster:  ", answer.status_code, "; ".join(problems))


asyncio.run(main())
