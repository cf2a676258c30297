"""Ten requests read a number and write it back, one higher.

With SQLite, Python begins a transaction at the first change only: what was read before may be old
by then. After a plain BEGIN, SQLite refuses such a change, and at once, whatever the timeout.
"""

import asyncio
import sqlite3
from collections import Counter
from contextlib import closing
from threading import Barrier

from fastapi import FastAPI
from pitfall import TutorialSession, client, engine, folder, store, tutorial
from sqlalchemy import event
from sqlmodel import Field, SQLModel

from app import app as roster
from db import SessionDep, open_session

all_have_read = Barrier(10)


class Page(SQLModel, table=True):
    id: int = Field(primary_key=True)
    visits: int = 0


@tutorial.post("/pages/{page_id}")
def visit(page_id: int, session: TutorialSession) -> None:
    page = session.get_one(Page, page_id)
    all_have_read.wait()
    page.visits += 1
    session.commit()


@roster.post("/pages/{page_id}")
async def visit_in_roster(page_id: int, session: SessionDep) -> None:
    page = await session.get_one(Page, page_id)
    await asyncio.sleep(0.01)  # the others may go first, if they can
    page.visits += 1


async def ten_visits(app: FastAPI, page_id: int, file: str) -> str:
    async with client(app) as http:
        if app is roster:
            async with open_session() as session:
                session.add(Page(id=page_id))
        answers = await asyncio.gather(*(http.post(f"/pages/{page_id}") for _ in range(10)))
    statuses = sorted(Counter(answer.status_code for answer in answers).items())
    with closing(sqlite3.connect(f"{folder.name}/{file}")) as connection:
        [visits] = connection.execute("SELECT visits FROM page WHERE id = ?", [page_id]).fetchone()
    return f"{', '.join(f'{count} x {status}' for status, count in statuses)}, visits: {visits}"


async def main() -> None:
    store(Page(id=1), Page(id=2))
    print("tutorial:", await ten_visits(tutorial, 1, "tutorial.db"))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    print("with BEGIN:", await ten_visits(tutorial, 2, "tutorial.db"))
    print("Roster:  ", await ten_visits(roster, 1, "roster.db"))


asyncio.run(main())
