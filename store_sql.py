"""SQLite, PostgreSQL, MySQL and MariaDB: SQLModel and SQLAlchemy, one session to a request.

The unique constraint on ``email_key`` and the version in every UPDATE and DELETE are the truth: the
store writes and then catches; it never looks first whether it may. ``db`` commits.
"""

from collections.abc import Collection, Iterable, Sequence
from functools import cache
from operator import ge, gt, le, lt
from typing import Any

from asyncpg import InterfaceError
from pydantic import MISSING
from sqlalchemy import BindParameter, ColumnElement, bindparam, func, insert
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError, StatementError
from sqlmodel import SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import Select, SelectOfScalar

from db import SessionDep, database_url, get_engines, read
from errors import Fault, classify
from models import (
    KEY_MAX,
    Sort,
    User,
    UserCreate,
    UserQuery,
    UserRead,
    UserUpdate,
    fold,
    index_keys,
    user_list,
    utc_now,
)
from store import Code, EmailTaken, NotFound, StaleVersion

get_engines()  # a wrong DATABASE_URL ends the app here, before it serves

# InterfaceError is asyncpg's; SQLAlchemy lets it through at a rollback.
DRIVER_ERRORS: tuple[type[Exception], ...] = (SQLAlchemyError, InterfaceError)
# Statements on the table itself, built once: they are several times as fast as objects of User,
# whose place is where something is changed.
USERS = SQLModel.metadata.tables["users"]
row_id, name_key, email_key = USERS.c.id, USERS.c.name_key, USERS.c.email_key
FIELDS = tuple(UserRead.model_fields)
# What a client sees, and nothing else, is fetched.
READ: Any = select(*(USERS.c[field] for field in FIELDS))
READ_ONE = READ.where(row_id == bindparam("id"))
FIND_IDS: Select[str, int] = select(email_key, row_id).where(
    email_key.in_(bindparam("keys", expanding=True))
)
READ_ALL: Any = select(*USERS.c).limit(1)
INSERT = insert(USERS)


class SQLUserStore:
    """Users in the table ``users``. What changes something needs a session, what reads does not."""

    def __init__(self, session: AsyncSession | None = None) -> None:
        if session:
            self.session = session

    async def add(self, new: UserCreate) -> UserRead:
        """Insert a row; the unique constraint says whether the address is free."""
        row = new_row(new)
        try:
            result = await self.session.exec(INSERT, params=row)
        except IntegrityError as error:
            raise email_taken(error) from None
        primary_key: Any = result.inserted_primary_key
        return UserRead(id=primary_key.id, **row)

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
                return stored, [new[i].email for i in sorted(taken)]

    async def find_ids(self, email_keys: Iterable[str]) -> dict[str, int]:
        """Return who has which of these keys: not every database says what ids it gave to many."""
        rows = await self.session.exec(FIND_IDS, params={"keys": [*email_keys]})
        return dict(rows.all())

    async def get(self, user_id: int) -> UserRead:
        """Select a row by its primary key."""
        rows = await read(READ_ONE, {"id": user_id})
        if not rows:
            raise NotFound
        return to_users(rows)[0]

    async def page(self, query: UserQuery, limit: int) -> list[UserRead]:
        """Select by position, not by offset: the index leads to the first row of any page."""
        statement = select_page(query.sort, query.after is not None, *filters(query))
        return to_users(await read(statement, {**parameters(query), "limit": limit}))

    async def count(self, query: UserQuery) -> int:
        """Count rows; the more fit, the longer it takes."""
        [(count,)] = await read(select_count(*filters(query)), parameters(query))
        return int(count)

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
        await read(READ_ALL, {})

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
            raise email_taken(error) from None


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


def email_taken(error: IntegrityError) -> Exception:
    """Return what the refusal of a row means: EmailTaken, or else the same error."""
    return EmailTaken([("body", "email")]) if is_conflict(error) else error


def new_row(new: UserCreate) -> dict[str, Any]:
    """Return the values of a new user's columns; the database gives the id."""
    now = utc_now()
    times = {"created_at": now, "updated_at": now}
    return {"name": new.name, "email": new.email, **times, "version": 1, **index_keys(new)}


def to_users(rows: Iterable[Sequence[Any]]) -> list[UserRead]:
    """Return rows as a client sees them."""
    return user_list.validate_python([dict(zip(FIELDS, row, strict=True)) for row in rows])


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
    return bool(query.name), query.email is not MISSING


def parameters(query: UserQuery) -> dict[str, Any]:
    """Return what stands in the statements for a query."""
    prefix = fold(query.name)
    values: dict[str, Any] = {
        "prefix": prefix,
        "prefix_end": prefix.ljust(KEY_MAX, "\U0010ffff"),
        "prefix_length": len(prefix),
        "email_key": None if query.email is MISSING else fold(query.email),
    }
    if after := query.after:
        values |= {"after_id": after.id, "after_key": fold(after.name)}
    return values


async def get_store(session: SessionDep) -> SQLUserStore:
    """Return a request's store for changes."""
    return SQLUserStore(session)


async def get_reader() -> SQLUserStore:
    """Return a store that is only read from."""
    return SQLUserStore()


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
    await SQLUserStore().ping()


async def stop() -> None:
    """Close the pools."""
    for engine in set(get_engines()):
        await engine.dispose()
