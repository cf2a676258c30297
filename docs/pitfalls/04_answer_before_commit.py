"""A dependency commits at its end, and FastAPI sends the answer before that.

The database checks this foreign key at the commit (DEFERRED), and there is no user 99.
"""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated

from fastapi import Depends, FastAPI
from pitfall import client, engine, folder, store, tutorial
from sqlalchemy import Column, ForeignKey, event
from sqlmodel import Field, Session, SQLModel

from app import app as roster
from db import SessionDep

USER = ForeignKey("users.id", deferrable=True, initially="DEFERRED")


class Note(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    owner_id: int = Field(sa_column=Column(USER, nullable=False))


def get_session() -> Iterator[Session]:
    with Session(engine) as session:
        yield session
        session.commit()


@tutorial.post("/notes/", status_code=201)
def create_note(session: Annotated[Session, Depends(get_session)]) -> str:
    session.add(Note(owner_id=99))
    return "stored"


@roster.post("/notes/", status_code=201)
async def create_note_in_roster(session: SessionDep) -> str:
    session.add(Note(owner_id=99))
    return "stored"


async def add_note(app: FastAPI, file: str) -> str:
    async with client(app) as http:
        status = (await http.post("/notes/")).status_code
    with closing(sqlite3.connect(f"{folder.name}/{file}")) as connection:
        [rows] = connection.execute("SELECT count(*) FROM note").fetchone()
    return f"{status}, stored: {rows}"


async def main() -> None:
    event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys=ON"))
    store()
    print("tutorial:", await add_note(tutorial, "tutorial.db"))
    print("Roster:  ", await add_note(roster, "roster.db"))


asyncio.run(main())
