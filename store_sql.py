"""SQLite, PostgreSQL, MySQL and MariaDB: SQLModel and SQLAlchemy, in the session of the request.

The unique constraint on ``email_key`` decides whether an address is free: the store writes and
then catches. ``Versioned`` puts the version into each UPDATE and DELETE. Each method that writes
commits before it returns, so ``retry_if_busy`` can repeat it after a deadlock.
"""

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from operator import ge, gt, le, lt
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, delete, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from engine import contains, fetch, insert_row
from faults_sql import is_taken, is_unique, retry_if_busy, to_conflict
from fields import KEY_MAX, fold, fold_email
from models import FIELDS, User, UserCreate, UserRead, UserRow, UserUpdate
from paging import UserQuery
from rows import Model, new_row, noun
from schema import get_last_id, set_last_id
from store import EmailTaken, NotFound, StaleVersion, new_rows

# SQLAlchemy builds these statements once, and calls only fill in their parameters. Loading objects
# of User takes longer: only change() and remove() do.
USERS = SQLModel.metadata.tables["users"]
row_id, name_key, email_key = USERS.c.id, USERS.c.name_key, USERS.c.email_key  # c: its columns
# Fetch what a client sees, and nothing else. "expanding" lets a parameter take a list.
SELECT = select(*(USERS.c[field] for field in FIELDS))
SELECT_ONE = SELECT.where(row_id == bindparam("id"))
SELECT_IDS = select(email_key, row_id).where(email_key.in_(bindparam("keys", expanding=True)))
ANY_ROW = select(USERS).limit(1)
INSERT = insert(USERS)
NEAR = 1000  # rows in which a search looks first


class SQLUserStore:
    """Users in the table ``users``."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    @retry_if_busy
    async def add(self, new: UserCreate) -> UserRead:
        """Insert a row; the unique constraint says whether the address is free."""
        row = new_row(User, new.model_dump())
        try:
            row["id"] = await insert_row(self.session, INSERT, row)  # and commit
        except IntegrityError as error:
            raise to_conflict(error) from None
        return to_user(row)

    @retry_if_busy
    async def add_many(
        self, new: Sequence[UserCreate], skip_taken: bool
    ) -> tuple[list[UserRead], list[str]]:
        """Insert all rows in a savepoint. If one is rejected, find which are taken, and retry."""
        new_users = await new_rows(new)
        keys = [row["email_key"] for row in new_users]
        first: dict[str, int] = {}  # where each key is first
        taken = {i for i, key in enumerate(keys) if first.setdefault(key, i) != i}
        while True:
            if taken and not skip_taken:
                taken |= {first[key] for key in await self.find_ids(first)}
                raise EmailTaken([("body", i, "email") for i in sorted(taken)])
            rows = [row for i, row in enumerate(new_users) if i not in taken]
            try:
                async with self.session.begin_nested():  # a savepoint: an error undoes only this
                    if rows:
                        # A test's session may be SQLAlchemy's, which has no exec().
                        await (await self.session.connection()).execute(INSERT, rows)
            except IntegrityError as error:
                found = {first[key] for key in await self.find_ids(first)}
                if not is_taken(error) or found <= taken:
                    raise
                taken |= found  # one more each time, so the loop ends
            else:
                ids = await self.find_ids(row["email_key"] for row in rows)
                await self.session.commit()
                stored = [to_user({**row, "id": ids[row["email_key"]]}) for row in rows]
                return stored, [new[i].email for i in sorted(taken)]

    async def find_ids(self, email_keys: Iterable[str]) -> dict[str, int]:
        """Return the ids of these keys. Some databases return none for a bulk INSERT."""
        rows = await fetch(self.session, SELECT_IDS, {"keys": [*email_keys]})
        return {str(key): int(user_id) for key, user_id in rows}

    @retry_if_busy
    async def get(self, user_id: int) -> UserRead:
        """Select a row by its primary key."""
        rows = await fetch(self.session, SELECT_ONE, {"id": user_id})
        if not rows:
            raise NotFound
        return UserRow(*rows[0])

    @retry_if_busy
    async def page(self, query: UserQuery, limit: int) -> list[UserRead]:
        """Select by position, not by offset: the index leads to the first row of any page.

        A search looks in the next ``NEAR`` rows, and then scans the table. Following an index
        through all of it would fetch the rows one by one.
        """
        values = parameters(query) | {"limit": limit}
        if query.words and (query.by_name or not query.name):  # by id, a prefix has no index
            rows = await fetch(self.session, select_page(*shape(query), near=True), values)
            if len(rows) == limit:
                return [UserRow(*row) for row in rows]
        statement = select_page(*shape(query))
        rows = await fetch(self.session, statement, values, expensive=query.expensive)
        return [UserRow(*row) for row in rows]

    @retry_if_busy
    async def count(self, query: UserQuery) -> int:
        """Count rows; the more match, the longer it takes."""
        statement, values = select_count(*shape(query)[2:]), parameters(query)
        [(count,)] = await fetch(self.session, statement, values, expensive=query.expensive)
        return int(count)

    @retry_if_busy
    async def change(
        self, user_id: int, update: UserUpdate, if_match: Collection[int] | None
    ) -> UserRead:
        """Lock the row, compare the version, update."""
        user = await get_for_update(self.session, User, user_id, if_match)
        user.sqlmodel_update(update.model_dump())  # without the fields that the client left out
        try:
            await self.session.flush()  # the object gets its new version and times
            changed = to_user(user.model_dump())
            await self.session.commit()
        except IntegrityError as error:
            raise to_conflict(error) from None
        return changed

    @retry_if_busy
    async def remove(self, user_id: int, if_match: Collection[int] | None) -> None:
        """Lock the row, compare the version, delete. A row that refers to it is a conflict."""
        await self.session.delete(await get_for_update(self.session, User, user_id, if_match))
        await self.session.commit()

    @retry_if_busy
    async def ping(self) -> None:
        """Select a row, with all columns, from the primary and from the replica."""
        for primary in (True, False):
            await fetch(self.session, ANY_ROW, primary=primary)

    @retry_if_busy
    async def restore(self, users: Sequence[UserRead], gone: Sequence[int], last_id: int) -> None:
        """Delete rows and insert rows, ids and all. Only the command line calls it."""
        await self.hold(last_id)
        await self.session.exec(delete(USERS).where(row_id.in_(gone)))
        rows = [new_row(User, {name: getattr(user, name) for name in FIELDS}) for user in users]
        try:
            if rows:
                await self.session.exec(INSERT, params=rows)
            await self.session.commit()
        except IntegrityError as error:
            raise (EmailTaken([]) if is_unique(error) else error) from None

    @retry_if_busy
    async def last_id(self) -> int:
        """Ask for the counter of ids, which each database keeps in its own way."""
        return await get_last_id(self.session, USERS)

    @retry_if_busy
    async def set_last_id(self, last_id: int, before: int) -> None:
        await self.hold(before)
        await set_last_id(self.session, USERS, last_id)

    async def hold(self, last_id: int) -> None:
        """Lock the counter until the transaction ends. Raises StaleVersion if it has another id."""
        if await get_last_id(self.session, USERS, lock=True) != last_id:
            raise StaleVersion("counter")


async def get_for_update(
    session: AsyncSession, model: type[Model], key: int, if_match: Collection[int] | None = None
) -> Model:
    """Return a row, locked until the transaction ends. Raises NotFound, StaleVersion."""
    row = await session.get(model, key, with_for_update=True)
    if row is None:
        raise NotFound(noun(model))
    if if_match is not None and getattr(row, "version", None) not in if_match:
        raise StaleVersion(noun(model))
    return row


def to_user(row: dict[str, Any]) -> UserRead:
    """Return what clients see of a row."""
    return UserRow(*(row[field] for field in FIELDS))


@lru_cache
def select_page(
    sort: str, after: bool, prefix: bool, email: bool, words: int, near: bool = False
) -> Select[Any]:
    """Return the statement for a page in this order, with or without a position and filters."""
    descending, by_name = sort.startswith("-"), sort.endswith("name")
    past, at_or_past = (lt, le) if descending else (gt, ge)
    found = conditions(prefix, email)
    if after:
        position = past(row_id, bindparam("after_id"))
        if by_name:
            key: ColumnElement[str] = bindparam("after_key")
            # The second part implies the first, but only the first can use an index.
            position = at_or_past(name_key, key) & (past(name_key, key) | position)
        found.append(position)

    def in_order(rows: Select[Any], name: Any, id_: Any) -> Select[Any]:
        order = [name, id_] if by_name else [id_]
        return rows.order_by(*(column.desc() if descending else column for column in order))

    if near:
        rows = in_order(select(USERS).where(*found), name_key, row_id).limit(NEAR)
        nearby = rows.subquery().c  # its columns
        rows = select(*(nearby[field] for field in FIELDS)).where(*has_words(words, nearby))
        rows = in_order(rows, nearby.name_key, nearby.id)
    else:
        # concat("") and + 0 keep the database from following an index: for a rare word, that would
        # lead through the whole table.
        by = (name_key.concat(""), row_id + 0) if words else (name_key, row_id)
        rows = in_order(SELECT.where(*found, *has_words(words)), *by)
    return rows.limit(bindparam("limit"))


@lru_cache
def select_count(prefix: bool, email: bool, words: int) -> Select[int]:
    """Return the statement that counts the users that match."""
    rows = select(func.count()).select_from(USERS)
    return rows.where(*conditions(prefix, email), *has_words(words))


def conditions(prefix: bool, email: bool) -> list[ColumnElement[bool]]:
    """Return the conditions of the filters that an index can follow."""
    found: list[ColumnElement[bool]] = []
    if prefix:
        # Every key that begins with the prefix is in this range, and an index can follow it. MySQL
        # compares as if spaces followed, so the range of "ada " has "ada", too. (LIKE would not do:
        # with an index, MariaDB's LIKE 'ada%' does not find "ada😀".)
        found.append(name_key.between(bindparam("prefix"), bindparam("prefix_end")))
        found.append(func.char_length(name_key) >= bindparam("prefix_length"))
    if email:
        found.append(email_key == bindparam("email_key"))
    return found


def has_words(count: int, columns: Any = USERS.c) -> list[ColumnElement[bool]]:
    """Return the conditions for the words of a search: parameters ``word0``, ``word1``, ..."""
    return [contains(columns.search_key, f"word{i}") for i in range(count)]


def shape(query: UserQuery) -> tuple[str, bool, bool, bool, int]:
    """Return the arguments of ``select_page``; from the third on, those of ``select_count``."""
    return (query.sort, bool(query.after), bool(query.name), bool(query.email), len(query.words))


def parameters(query: UserQuery) -> dict[str, Any]:
    """Return the values of the statements' parameters for a query."""
    values: dict[str, Any] = {}
    if query.name:
        prefix = fold(query.name)
        end = prefix.ljust(KEY_MAX, "\U0010ffff")  # filled up with the last code point
        values |= {"prefix": prefix, "prefix_end": end, "prefix_length": len(prefix)}
    if query.email:
        values["email_key"] = fold_email(query.email)
    if after := query.after:
        values |= {"after_id": after.id, "after_key": fold(after.name)}
    return values | {f"word{i}": word for i, word in enumerate(query.words)}
