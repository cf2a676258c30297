"""SQLite, PostgreSQL, MySQL and MariaDB: SQLModel and SQLAlchemy, one session to a request.

The unique constraint on ``email_key`` and the version in every UPDATE and DELETE are the truth: the
store writes and then catches; it never looks first whether it may. A verb commits by itself, so
that it can be done again if the database undoes it for the sake of another one.
"""

import asyncio
import random
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import cache, wraps
from itertools import starmap
from operator import ge, gt, le, lt
from ssl import SSLCertVerificationError
from typing import Any, Concatenate, ParamSpec, TypeVar

from asyncpg import (
    ClientConfigurationError,
    InterfaceError,
    InternalClientError,
    PostgresError,
    TargetServerAttributeNotMatched,
)
from sqlalchemy import BindParameter, ColumnElement, bindparam, func, insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError, StatementError
from sqlmodel import SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import Select, SelectOfScalar

from db import (
    SessionDep,
    database_url,
    get_engines,
    open_session,
    read,
    replica_url,
)
from direct import AsText
from engines import hosts, kind
from errors import Fault, classify
from models import (
    KEY_MAX,
    Millis,
    Sort,
    User,
    UserCreate,
    UserQuery,
    UserRead,
    UserRow,
    UserUpdate,
    fold,
    index_keys,
    stored_fields,
    utc_now,
)
from store import Code, EmailTaken, NotFound, StaleVersion
from tables import make_tables

get_engines()  # a wrong DATABASE_URL ends the app here, before it serves

# Of the drivers, those that direct.py lets through; InterfaceError comes from a rollback, too.
DRIVER_ERRORS: tuple[type[Exception], ...] = (
    SQLAlchemyError,
    sqlite3.Error,
    PostgresError,
    InterfaceError,
    InternalClientError,
)
SAY_MORE = (
    ClientConfigurationError,  # an option of the URL's
    SSLCertVerificationError,
    TargetServerAttributeNotMatched,  # no host is the primary, now
)
# Statements on the table itself, built once, are faster than objects of User, whose place is where
# something is changed.
USERS = SQLModel.metadata.tables["users"]
row_id, name_key, email_key = USERS.c.id, USERS.c.name_key, USERS.c.email_key
# What a client sees, and nothing else, is fetched.
SEEN = [USERS.c[field] for field in UserRow.__struct_fields__]
READ: Any = select(*(AsText(seen) if isinstance(seen.type, Millis) else seen for seen in SEEN))
READ_ONE = READ.where(row_id == bindparam("id"))
FIND_IDS: Select[str, int] = select(email_key, row_id).where(
    email_key.in_(bindparam("keys", expanding=True))
)
ANY_ROW: Any = select(*USERS.c).limit(1)
UNIQUE = ("23505", 1062, "SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY")
INSERT = insert(USERS)
# SHOW CREATE TABLE: in MySQL's information_schema the counter can be a day old.
LAST_ID = {
    "sqlite": text("SELECT seq FROM sqlite_sequence WHERE name = 'users'"),
    "postgresql": text(
        "SELECT last_value FROM pg_sequences"
        " WHERE format('%I.%I', schemaname, sequencename) = pg_get_serial_sequence('users', 'id')"
    ),
    "mysql": text("SHOW CREATE TABLE users"),
}
SET_LAST_ID = {
    "sqlite": (
        "DELETE FROM sqlite_sequence WHERE name = 'users'",
        "INSERT INTO sqlite_sequence (name, seq) VALUES ('users', {last_id})",
    ),
    # A sequence has no 0: it is at 1, but 1 was not given.
    "postgresql": (
        "SELECT setval(pg_get_serial_sequence('users', 'id'),"
        " greatest({last_id}, 1), {last_id} > 0)",
    ),
    "mysql": ("ALTER TABLE users AUTO_INCREMENT = {next_id}",),
}


P = ParamSpec("P")
T = TypeVar("T")
Verb = Callable[Concatenate["SQLUserStore", P], Coroutine[Any, Any, T]]


def tried_again(verb: Verb[P, T]) -> Verb[P, T]:
    """Let a verb try again, twice at most, if its transaction lost against another one.

    That is a deadlock (PostgreSQL 40P01, MySQL 1213), or on Galera a change on another node:
    nothing of it was done. Who has waited for a lock in vain (3 seconds) does not wait again.
    """

    @wraps(verb)
    async def trying(store: "SQLUserStore", /, *args: P.args, **kwargs: P.kwargs) -> T:
        began = time.monotonic()
        for pause in (0.02, 0.2):
            try:
                return await verb(store, *args, **kwargs)
            except (DBAPIError, sqlite3.Error, PostgresError) as error:
                lost = classify(error, driver_code(error)) is Fault.BUSY
                if not lost or time.monotonic() - began > 2.5:
                    raise
                await store.undo()
            # The other one is at it as well: not both at the same moment.
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 (no secret)
        return await verb(store, *args, **kwargs)

    return trying


class SQLUserStore:
    """Users in the table ``users``. Only verbs of several statements need the session."""

    def __init__(self, session: AsyncSession | None = None) -> None:
        if session:
            self.session = session

    async def undo(self) -> None:
        """Roll back, if there is something."""
        if hasattr(self, "session"):
            await self.session.rollback()

    @tried_again
    async def add(self, new: UserCreate) -> UserRead:
        """Insert a row; the unique constraint says whether the address is free."""
        row = new_row(new)
        try:
            user_id = await get_engines().insert(INSERT, row)
        except IntegrityError as error:
            raise email_taken(error) from None
        return UserRead(id=user_id, **row)

    @tried_again
    async def add_many(
        self, new: Sequence[UserCreate], skip_taken: bool
    ) -> tuple[list[UserRead], list[str]]:
        """Insert all rows inside a savepoint; if one is refused, ask which and start again."""
        first: dict[str, int] = {}
        taken = {i for i, user in enumerate(new) if first.setdefault(fold(user.email), i) != i}
        while True:
            if taken and not skip_taken:
                taken |= {first[key] for key in await self.find_ids(first)}
                raise EmailTaken([("body", i, "email") for i in sorted(taken)])
            rows = [new_row(user) for i, user in enumerate(new) if i not in taken]
            try:
                async with self.session.begin_nested():
                    if rows:
                        await self.session.exec(INSERT, params=rows)
            except IntegrityError as error:
                if not is_conflict(error):
                    raise
                taken |= {first[key] for key in await self.find_ids(first)}
            else:
                ids = await self.find_ids(row["email_key"] for row in rows)
                stored = [UserRead(id=ids[row["email_key"]], **row) for row in rows]
                await self.session.commit()
                return stored, [new[i].email for i in sorted(taken)]

    async def find_ids(self, email_keys: Iterable[str]) -> dict[str, int]:
        """Return who has which of these keys: not every database says what ids it gave to many."""
        rows = await self.session.exec(FIND_IDS, params={"keys": [*email_keys]})
        return dict(rows.all())

    async def get(self, user_id: int) -> UserRow:
        """Select a row by its primary key."""
        rows = await read(READ_ONE, {"id": user_id})
        if not rows:
            raise NotFound
        return UserRow(*rows[0])

    async def page(self, query: UserQuery, limit: int) -> list[UserRow]:
        """Select by position, not by offset: the index leads to the first row of any page."""
        statement = select_page(query.sort, query.after is not None, *filters(query))
        rows = await read(statement, {**parameters(query), "limit": limit})
        return [*starmap(UserRow, rows)]

    async def count(self, query: UserQuery) -> int:
        """Count rows; the more fit, the longer it takes."""
        [(count,)] = await read(select_count(*filters(query)), parameters(query))
        return int(count)

    @tried_again
    async def change(
        self, user_id: int, update: UserUpdate, if_match: Collection[int] | None
    ) -> UserRead:
        """Lock the row, compare the version, update."""
        user = await self.get_locked(user_id, if_match)
        if fields := update.model_dump():
            user.sqlmodel_update({**fields, **index_keys(update), "updated_at": utc_now()})
            await self.commit()
        return UserRead.model_validate(user)

    @tried_again
    async def remove(self, user_id: int, if_match: Collection[int] | None) -> None:
        """Lock the row, compare the version, delete."""
        await self.session.delete(await self.get_locked(user_id, if_match))
        await self.commit()

    async def ping(self) -> None:
        """Select a row, with all columns; where changes go, and where reads go."""
        await read(ANY_ROW, {}, fresh=True)
        if replica_url():
            await read(ANY_ROW, {})

    async def restore(self, users: Sequence[UserRow]) -> None:
        """Insert rows, ids and all."""
        try:
            await self.session.exec(INSERT, params=[stored_fields(user) for user in users])
        except IntegrityError as error:
            raise (EmailTaken([]) if is_conflict(error) else error) from None

    async def last_id(self) -> int:
        """Ask for the counter, which each database keeps in a place of its own."""
        rows: Any = await read(LAST_ID[kind(database_url())], {}, fresh=True)
        if kind(database_url()) == "mysql":
            found = re.search(r"AUTO_INCREMENT=(\d+)", rows[0][1])
            return int(found[1]) - 1 if found else 0
        return int(rows[0][0] or 0) if rows else 0

    async def set_last_id(self, last_id: int) -> None:
        """Set the counter."""
        connection = await self.session.connection()
        for statement in SET_LAST_ID[kind(database_url())]:
            await connection.execute(text(statement.format(last_id=last_id, next_id=last_id + 1)))

    async def get_locked(self, user_id: int, if_match: Collection[int] | None) -> User:
        """Select a row FOR UPDATE (on SQLite, the transaction has the lock already)."""
        user = await self.session.get(User, user_id, with_for_update=True)
        if user is None:
            raise NotFound
        if if_match is not None and user.version not in if_match:
            raise StaleVersion
        return user

    async def commit(self) -> None:
        """Send what is to be written, and commit: if the database refuses it, then here."""
        try:
            await self.session.commit()
        except IntegrityError as error:
            raise email_taken(error) from None


def driver_code(error: BaseException) -> Code | None:
    """Return SQLite's name for an error, MySQL's number or PostgreSQL's SQLSTATE."""
    cause: Any = error.orig if isinstance(error, StatementError) else error
    if name := getattr(cause, "sqlite_errorname", None):
        return str(name)
    # They say more than what the driver or SQLAlchemy has made of them.
    if isinstance(cause.__cause__, SAY_MORE):
        return type(cause.__cause__).__name__
    # MySQL's number says more than its SQLSTATE, which asyncmy has too.
    if not isinstance(cause, OSError) and cause.args and isinstance(cause.args[0], int):
        return cause.args[0]
    if state := getattr(cause, "sqlstate", None):
        return str(state)
    # It has none if the connection was gone before it could ask: SQLSTATE's class for that.
    gone = isinstance(error, DBAPIError) and error.connection_invalidated
    return "08" if gone or isinstance(error, (InterfaceError, InternalClientError)) else None


def is_conflict(error: IntegrityError) -> bool:
    """Return whether a unique constraint refused it, rather than a foreign key or another one."""
    return driver_code(error) in UNIQUE


def email_taken(error: IntegrityError) -> Exception:
    """Return what the refusal of a row means: EmailTaken, or else the same error."""
    return EmailTaken([("body", "email")]) if is_conflict(error) else error


def new_row(new: UserCreate) -> dict[str, Any]:
    """Return the values of a new user's columns; the database gives the id."""
    now = utc_now()
    times = {"created_at": now, "updated_at": now}
    return {"name": new.name, "email": new.email, **times, "version": 1, **index_keys(new)}


@cache
def select_page(sort: Sort, after: bool, name: bool, email: bool) -> Select[*tuple[Any, ...]]:
    """Return the statement for a page in this order, with or without a position and filters."""
    turned, by_name = sort.startswith("-"), sort.endswith("name")
    past, at_or_past = (lt, le) if turned else (gt, ge)
    rows: Select[*tuple[Any, ...]] = READ.where(*conditions(name, email))
    if after:
        position = past(row_id, bindparam("after_id"))
        if by_name:
            key: BindParameter[str] = bindparam("after_key")
            # The first says nothing new: it is the condition that an index can follow.
            position = at_or_past(name_key, key) & (past(name_key, key) | position)
        rows = rows.where(position)
    order = [name_key, row_id] if by_name else [row_id]
    rows = rows.order_by(*(column.desc() if turned else column for column in order))
    return rows.limit(bindparam("limit"))


@cache
def select_count(name: bool, email: bool) -> SelectOfScalar[int]:
    """Return the statement that counts what the filters leave."""
    return select(func.count()).select_from(USERS).where(*conditions(name, email))


def conditions(name: bool, email: bool) -> list[ColumnElement[bool]]:
    """Return the conditions of the filters."""
    found: list[ColumnElement[bool]] = []
    if name:
        # Every key that begins with the prefix is in this range, and an index can follow it; MySQL
        # finds "ada" in the range of "ada " too, for it compares as if both were padded. (Why not
        # LIKE: with an index, MariaDB's LIKE 'ada%' does not find "ada😀".)
        found.append(name_key.between(bindparam("prefix"), bindparam("prefix_end")))
        found.append(func.char_length(name_key) >= bindparam("prefix_length"))
    if email:
        found.append(email_key == bindparam("email_key"))
    return found


def filters(query: UserQuery) -> tuple[bool, bool]:
    """Return whether a query asks for a name, and for an email."""
    return bool(query.name), bool(query.email)


def parameters(query: UserQuery) -> dict[str, Any]:
    """Return what stands in the statements for a query."""
    values: dict[str, Any] = {}
    if query.name:
        prefix = fold(query.name)
        end = prefix.ljust(KEY_MAX, "\U0010ffff")
        values |= {"prefix": prefix, "prefix_end": end, "prefix_length": len(prefix)}
    if query.email:
        values["email_key"] = fold(query.email)
    if after := query.after:
        values |= {"after_id": after.id, "after_key": fold(after.name)}
    return values


async def get_store() -> SQLUserStore:
    """Return a store for verbs of one statement, which is a transaction by itself."""
    return SQLUserStore()


async def get_session_store(session: SessionDep) -> SQLUserStore:
    """Return a store for verbs of several statements, in the transaction of a session."""
    return SQLUserStore(session)


@asynccontextmanager
async def open_store() -> AsyncIterator[SQLUserStore]:
    """Yield a store for one change, outside a request."""
    async with open_session() as session:
        yield SQLUserStore(session)


def place() -> str:
    """Return the kind of the database and where it is."""
    url = database_url()
    if kind(url) == "sqlite":
        return f"the SQLite file {url.database}"
    name = "PostgreSQL" if kind(url) == "postgresql" else "MySQL"
    where = " or ".join(hosts(url))
    if replica := replica_url():
        where += f" (READ_DATABASE_URL: {' or '.join(hosts(replica))})"
    return f"{name} at {where}, database {url.database}"


# "There is one already", or one is being made: somebody else who started just now was faster.
MADE_BY_ANOTHER = ("23505", "40P01", "42710", "42P07", 1050, 1061, 1062, 1213, 1412, 1684)


async def start() -> None:
    """Make the tables if there are none, and read from them. Raises WrongTables."""
    for more_tries in reversed(range(20)):
        try:
            async with get_engines().writer.begin() as connection:
                await connection.run_sync(make_tables)
            break
        except DBAPIError as error:
            if not more_tries or driver_code(error) not in MADE_BY_ANOTHER:
                raise
        await asyncio.sleep(0.05)
    await SQLUserStore().ping()


async def stop() -> None:
    """Close the pools."""
    engines = get_engines()
    await engines.reader.dispose()
    await engines.writer.dispose()
