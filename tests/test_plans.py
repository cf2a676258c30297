"""Each statement follows an index to its rows, so that it costs the same however many others are.

One is left out, as the README says: a name's prefix sorted by id sorts all that fit.
MongoDB's plans are not tested: SecantusDB, which stands in for it, has a planner of its own.
"""

import asyncio
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from databases import Database
from plans import QUESTIONS, complaints, explain
from sqlalchemy import make_url
from sqlmodel import SQLModel

from engine import Database as SQLDatabase
from models import User
from rows import new_row
from store_sql import INSERT

ROWS = 30_000  # few rows are read and sorted faster without an index
ANALYZE = {"sqlite": "ANALYZE", "postgresql": "ANALYZE users", "mysql": "ANALYZE TABLE users"}
SQL = pytest.mark.parametrize("database", ANALYZE, indirect=True)
Plans = dict[str, list[str]]


@pytest.fixture(scope="module")
def backend(database: Database) -> str:
    """Return the kind of the database."""
    return make_url(database.url).get_backend_name()


@pytest.fixture(scope="module")
def plans(database: Database, backend: str) -> Plans:
    """Return the plans on a table with many rows."""
    with database.new() as url:
        return asyncio.run(plans_with(url, ANALYZE[backend]))


@cache
def rows() -> list[dict[str, Any]]:
    """Return the rows; a quarter of the names has the same prefix."""
    return [
        new_row(User, {"name": f"{'ABCD'[i % 4]} {i:05}", "email": f"{i}@example.com"})
        for i in range(ROWS)
    ]


async def plans_with(url: str, *statements: str) -> Plans:
    """Return the plans after these statements, on a new table with many rows."""
    database = SQLDatabase(url, size=2)
    try:
        async with database.writer.begin() as connection:
            await connection.run_sync(SQLModel.metadata.create_all)
            await connection.execute(INSERT, rows())
        async with database.writer.begin() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)
        return await explain(database.writer, ROWS // 2 + 2)
    finally:
        await database.stop()


@SQL
@pytest.mark.parametrize("name", QUESTIONS)
def test_index_leads_to_the_rows(backend: str, plans: Plans, name: str) -> None:
    assert plans[name]
    for plan in plans[name]:
        assert complaints(backend, QUESTIONS[name], plan) == [], plan


def test_sqlite_needs_no_statistics(tmp_path: Path) -> None:
    plans = asyncio.run(plans_with(f"sqlite:///{tmp_path}/roster.db"))
    for name, question in QUESTIONS.items():
        for plan in plans[name]:
            assert complaints("sqlite", question, plan) == [], plan


@SQL
def test_an_index_that_is_gone_is_missed(database: Database, backend: str) -> None:
    gone = "DROP INDEX ix_users_name_key_id" + " ON users" * (backend == "mysql")
    with database.new() as url:
        plans = asyncio.run(plans_with(url, gone, ANALYZE[backend]))
    missed = {
        name
        for name, question in QUESTIONS.items()
        if any(complaints(backend, question, plan) for plan in plans[name])
    }
    assert missed == {name for name in QUESTIONS if name.startswith("page by name")}
