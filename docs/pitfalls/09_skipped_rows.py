"""Somebody reads six people in pages of two; somebody else deletes the first two meanwhile."""

import asyncio
from collections.abc import Sequence

from pitfall import TutorialSession, client, store, tutorial
from sqlmodel import Field, SQLModel, select

from app import app as roster

NAMES = "ABCDEF"


class Person(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    name: str


@tutorial.get("/people/")
def read_people(session: TutorialSession, offset: int = 0) -> Sequence[Person]:
    return session.exec(select(Person).offset(offset).limit(2)).all()


@tutorial.delete("/people/{person_id}")
def delete_person(person_id: int, session: TutorialSession) -> None:
    session.delete(session.get_one(Person, person_id))
    session.commit()


async def main() -> None:
    store(*(Person(name=name) for name in NAMES))
    seen = ""
    async with client(tutorial) as http:
        while people := (await http.get(f"/people/?offset={len(seen)}")).json():
            seen += "".join(person["name"] for person in people)
            if seen == "AB":
                await http.delete("/people/1")
                await http.delete("/people/2")
    print("tutorial:", seen)
    seen, cursor = "", ""
    async with client(roster) as http:
        users = [{"name": name, "email": f"{name}@example.com"} for name in NAMES]
        await http.post("/users/bulk", json=users)
        while cursor is not None:
            page = (await http.get(f"/users/?limit=2{cursor and f'&cursor={cursor}'}")).json()
            seen, cursor = seen + "".join(user["name"] for user in page["items"]), page["next"]
            if seen == "AB":
                await http.delete("/users/1")
                await http.delete("/users/2")
    print("Roster:  ", seen)


asyncio.run(main())
