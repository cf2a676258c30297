"""The model keeps itself right, whichever of SQLModel's and SQLAlchemy's idioms writes it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from databases import Database as Backend
from sqlalchemy import delete, insert, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, SQLModel, col, create_engine, select

from engine import Database
from fields import fold
from lifespan import start
from models import User

Write = Callable[[Session], Any]


def add(session: Session) -> None:
    session.add(User(name="Bob", email="Bob@Example.com"))


def rename(session: Session) -> None:
    user = session.exec(select(User).where(col(User.name) == "Ada")).one()
    user.name, user.email = "BOB", "BOB@example.com"
    session.add(user)


def insert_by_core(session: Session) -> None:
    session.exec(insert(User).values(name="Bob", email="Bob@Example.com"))


def insert_many(session: Session) -> None:
    session.exec(insert(User), params=[{"name": "Bob", "email": "Bob@Example.com"}])


def add_all(session: Session) -> None:
    session.add_all([User(name="Bob", email="Bob@Example.com")])


def update_by_core(session: Session) -> None:
    changed = {"name": "BOB", "email": "BOB@example.com"}
    session.exec(update(User).where(col(User.name) == "Ada").values(**changed))


IDIOMS = [add, add_all, insert_by_core, insert_many, rename, update_by_core]


def check(session: Session) -> None:
    """Check that all rows have their keys, times and versions."""
    users = session.exec(select(User).execution_options(populate_existing=True)).all()
    assert "Bob@Example.com".casefold() in {user.email_key for user in users}
    for user in users:
        assert (user.name_key, user.email_key) == (fold(user.name), fold(user.email))
        assert user.created_at <= user.updated_at
        assert user.version == 1 + (user.name == "BOB")


@pytest.mark.parametrize("write", IDIOMS)
def test_keys_times_and_versions_are_right_in_a_script(write: Write, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/x.db")
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(User(name="Ada", email="ada@example.com"))
        session.commit()
        write(session)
        session.commit()
        check(session)
        session.add(User(name="Other", email="BOB@EXAMPLE.COM"))
        with pytest.raises(IntegrityError):
            session.commit()
    engine.dispose()


@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mysql"], indirect=True)
def test_keys_times_and_versions_are_right_on_every_database(database: Backend) -> None:
    async def use(url: str) -> None:
        backend = Database(url)
        await start(backend)
        try:
            for write in IDIOMS:
                async with backend.session() as session:
                    await session.exec(delete(User))
                    session.add(User(name="Ada", email="ada@example.com"))
                for step in (write, check):
                    async with backend.session() as session:
                        await session.run_sync(step)  # type: ignore[arg-type]  # it is SQLModel's
        finally:
            await backend.stop()

    with database.new() as url:
        asyncio.run(use(url))
