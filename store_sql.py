"""SQLite, PostgreSQL, MySQL and MariaDB: SQLModel and SQLAlchemy, one session to a request.

The unique constraint on ``email_key`` and the version in every UPDATE and DELETE are the truth: the
store writes and then catches; it never looks first whether it may. ``db`` commits.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from operator import ge, gt, le, lt
from typing import Any

from asyncpg import InterfaceError
from pydantic import MISSING
from sqlalchemy import ColumnElement
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError, StatementError
from sqlmodel import SQLModel, and_, col, func, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from db import SessionDep, database_url, get_engines, open_session
from errors import Fault, classify
from models import (
    KEY_MAX,
    User,
    UserCreate,
    UserQuery,
    UserRead,
    UserUpdate,
    fold,
    index_keys,
    utc_now,
)
from store import Code, EmailTaken, NotFound, StaleVersion

get_engines()  # a wrong DATABASE_URL ends the app here, before it serves

# InterfaceError is asyncpg's; SQLAlchemy lets it through at a rollback.
DRIVER_ERRORS: tuple[type[Exception], ...] = (SQLAlchemyError, InterfaceError)
row_id, name_key, email_key = col(User.id), col(User.name_key), col(User.email_key)
# What a client sees, and nothing else, is fetched.
READ = select(*(col(getattr(User, field)) for field in UserRead.model_fields))


class SQLUserStore:
    """Users in the table ``users``."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def add(self, new: UserCreate) -> UserRead:
        """Insert a row; the unique constraint says whether the address is free."""
        user = new_row(new)
        self.session.add(user)
        await self.flush()
        return UserRead.model_validate(user)

    async def add_many(
        self, new: Sequence[UserCreate], skip_taken: bool
    ) -> tuple[list[UserRead], list[str]]:
        """Insert all rows inside a savepoint; if one is refused, ask which and start again."""
        first: dict[str, int] = {}
        taken = {i for i, user in enumerate(new) if first.setdefault(fold(user.email), i) != i}
        while True:
            if taken and not skip_taken:
                taken |= await self.find_taken(first)
                raise EmailTaken([("body", i, "email") for i in sorted(taken)])
            users = [new_row(user) for i, user in enumerate(new) if i not in taken]
            try:
                async with self.session.begin_nested():
                    self.session.add_all(users)
            except IntegrityError as error:
                if not is_conflict(error):
                    raise
                taken |= await self.find_taken(first)
            else:
                skipped = [new[i].email for i in sorted(taken)]
                return [UserRead.model_validate(user) for user in users], skipped

    async def find_taken(self, places: dict[str, int]) -> set[int]:
        """Return the places of those keys that rows in the table have."""
        rows = await self.session.exec(select(User.email_key).where(email_key.in_(places)))
        return {places[key] for key in rows}

    async def get(self, user_id: int) -> UserRead:
        """Select a row by its primary key."""
        user = (await self.session.exec(READ.where(row_id == user_id))).one_or_none()
        if user is None:
            raise NotFound
        return UserRead.model_validate(user)

    async def page(self, query: UserQuery, limit: int) -> list[UserRead]:
        """Select by position, not by offset: the index leads to the first row of any page."""
        rows = READ.where(*fits(query))
        turned, by_name = query.sort.startswith("-"), query.sort.endswith("name")
        past, at_or_past = (lt, le) if turned else (gt, ge)
        if after := query.after:
            position = past(row_id, after.id)
            if by_name:
                key = fold(after.name)
                position = and_(
                    # This says nothing new: it is the condition that an index can follow.
                    at_or_past(name_key, key),
                    or_(past(name_key, key), position),
                )
            rows = rows.where(position)
        order = [name_key, row_id] if by_name else [row_id]
        rows = rows.order_by(*(column.desc() if turned else column for column in order))
        users = await self.session.exec(rows.limit(limit))
        return [UserRead.model_validate(user) for user in users]

    async def count(self, query: UserQuery) -> int:
        """Count rows; the more fit, the longer it takes."""
        rows = await self.session.exec(select(func.count()).select_from(User).where(*fits(query)))
        return rows.one()

    async def change(
        self, user_id: int, update: UserUpdate, if_match: Collection[int] | None
    ) -> UserRead:
        """Lock the row, compare the version, update."""
        user = await self.get_locked(user_id, if_match)
        if fields := update.model_dump():
            user.sqlmodel_update({**fields, **index_keys(update), "updated_at": utc_now()})
            await self.flush()
        return UserRead.model_validate(user)

    async def remove(self, user_id: int, if_match: Collection[int] | None) -> None:
        """Lock the row, compare the version, delete."""
        await self.session.delete(await self.get_locked(user_id, if_match))
        await self.flush()

    async def ping(self) -> None:
        """Select a row, with all columns."""
        await self.session.exec(select(User).limit(1))

    async def get_locked(self, user_id: int, if_match: Collection[int] | None) -> User:
        """Select a row FOR UPDATE (on SQLite, the transaction has the lock already)."""
        user = await self.session.get(User, user_id, with_for_update=True)
        if user is None:
            raise NotFound
        if if_match is not None and user.version not in if_match:
            raise StaleVersion
        return user

    async def flush(self) -> None:
        """Send what is to be written now, so that the database refuses it here."""
        try:
            await self.session.flush()
        except IntegrityError as error:
            if is_conflict(error):
                raise EmailTaken([("body", "email")]) from None
            raise


def driver_code(error: BaseException) -> Code | None:
    """Return SQLite's name for an error, MySQL's number or PostgreSQL's SQLSTATE."""
    cause: Any = error.orig if isinstance(error, StatementError) else error
    if name := getattr(cause, "sqlite_errorname", None):
        return str(name)
    # MySQL's number says more than its SQLSTATE, which asyncmy has too.
    if not isinstance(cause, OSError) and cause.args and isinstance(cause.args[0], int):
        return cause.args[0]
    if state := getattr(cause, "sqlstate", None):
        return str(state)
    # It has none if the connection was gone before it could ask: SQLSTATE's class for that.
    gone = isinstance(error, DBAPIError) and error.connection_invalidated
    return "08" if gone or isinstance(error, InterfaceError) else None


def is_conflict(error: IntegrityError) -> bool:
    """Return whether a unique constraint refused it, rather than another one."""
    return classify(error, driver_code(error)) is Fault.CONFLICT


def new_row(new: UserCreate) -> User:
    """Return the row of a new user."""
    now = utc_now()
    return User.model_validate(
        new, update={"created_at": now, "updated_at": now, **index_keys(new)}
    )


def fits(query: UserQuery) -> list[ColumnElement[bool]]:
    """Return the conditions of a query, its cursor apart."""
    conditions: list[ColumnElement[bool]] = []
    if query.name:
        prefix = fold(query.name)
        conditions = [
            # Every key that begins with the prefix is in this range, and an index can follow it;
            # MySQL finds "ada" in the range of "ada ", for it compares as if both were padded.
            name_key.between(prefix, prefix.ljust(KEY_MAX, "\U0010ffff")),
            name_key.startswith(prefix, autoescape=True),
        ]
    if query.email is not MISSING:
        conditions.append(email_key == fold(query.email))
    return conditions


async def get_store(session: SessionDep) -> SQLUserStore:
    """Return the store of a request."""
    return SQLUserStore(session)


@asynccontextmanager
async def open_store() -> AsyncIterator[SQLUserStore]:
    """Yield a store for reading outside a request."""
    async with open_session(reading=True) as session:
        yield SQLUserStore(session)


def place() -> str:
    """Return the kind of the database and where it is."""
    url = database_url()
    if url.get_backend_name() == "sqlite":
        return f"the SQLite file {url.database}"
    kind = "PostgreSQL" if url.get_backend_name().startswith("postgres") else "MySQL"
    where = f"{url.host or 'its usual host'}:{url.port or 'its usual port'}"
    return f"{kind} at {where}, database {url.database}"


# "There is one already": somebody else who started at the same moment was faster.
MADE_BY_ANOTHER = ("23505", "42P07", 1050, 1061)


async def start() -> None:
    """Make the tables that are not there, and read from them."""
    for more_tries in reversed(range(5)):
        try:
            async with get_engines().writer.begin() as connection:
                await connection.run_sync(SQLModel.metadata.create_all)
            break
        except DBAPIError as error:
            if not more_tries or driver_code(error) not in MADE_BY_ANOTHER:
                raise
    async with open_store() as store:
        await store.ping()


async def stop() -> None:
    """Close the pools."""
    for engine in set(get_engines()):
        await engine.dispose()
