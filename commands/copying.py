"""``cli.py copy``: all users to another database; between SQL databases, all tables.

A copy first sets the destination's counter of ids to a mark of its own (``store.UNFINISHED``), and
to the source's when both have been compared. Until then, no app starts on it. Each of its
transactions compares the mark, so a second copy takes over, and the first one ends.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from secrets import randbelow
from typing import Annotated, Any, NoReturn, TypeVar, cast

import msgspec
import typer
from sqlalchemy import Table, bindparam, delete, func, insert, select, tuple_, update
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from commands.terminal import Stop, bar, count_users, opened, sqlite_file, write
from engine import Database
from export import TO_JSON, read_pages
from fields import BULK_MAX
from lifespan import open_store
from models import UserRead
from paging import UserQuery
from schema import get_last_id
from schema import set_last_id as set_table_last_id
from store import UNFINISHED, Backend, EmailTaken, StaleVersion, UserStore
from store_sql import SQLUserStore

# JSON with sorted keys, because JSONB of PostgreSQL's does not keep their order.
IN_ORDER = msgspec.json.Encoder(enc_hook=str, order="deterministic")
T = TypeVar("T")


async def copy(
    source_url: Annotated[str, typer.Argument(metavar="SRC_URL")],
    destination_url: Annotated[str, typer.Argument(metavar="DST_URL")],
) -> None:
    """Copy all users to a database that holds nothing; between SQL databases, all tables.

    Ids, times and versions stay as they are.

    Stop the apps on both first. If it is interrupted, the same command continues.
    """
    if source_url == destination_url:
        raise Stop("SRC_URL and DST_URL are the same.")
    sqlite_file(source_url, "SRC_URL")
    async with (
        opened(destination_url, "DST_URL", unfinished=True) as destination,
        opened(source_url, "SRC_URL") as source,
        open_store(source, read_only=True) as theirs,
        open_store(destination, read_only=True) as ours,
    ):
        before = await ours.last_id()
        continues = marked = before >= UNFINISHED
        others = [table for table in SQLModel.metadata.sorted_tables if table.name != "users"]
        both_sql = isinstance(source, Database) and isinstance(destination, Database)
        tables = others if both_sql else []
        if not continues and (found := await filled(ours, destination, tables)):
            already = f"{destination.place} holds {', '.join(found)} already"
            raise Stop(f"DST_URL: {already}; a copy needs it empty.")
        copied: list[str] = []
        mark = UNFINISHED + randbelow(2**31)
        try:
            total = await count_users(theirs)
            await set_last_id(destination, mark, before)
            if await theirs.last_id() == mark:
                await set_last_id(destination, before, mark)
                raise Stop("SRC_URL and DST_URL are the same database.")
            marked = True
            if continues:
                await remove_different(theirs, ours, destination, tables, mark)
            await add_missing(theirs, ours, destination, total, mark)
            count, digest = await count_and_digest(read_pages(theirs), total)
            last_id = await theirs.last_id()
            if await count_and_digest(read_pages(ours), total) != (count, digest):
                await say_why(destination, mark, "users have changed")
            if isinstance(source, Database) and isinstance(destination, Database):
                copied = [await copy_table(table, source, destination, mark) for table in tables]
            await set_last_id(destination, last_id, mark)
        except (StaleVersion, EmailTaken):
            changed = "Another copy, or an app, has changed one of the two"
            raise Stop(f"{changed}. Stop it, and run this command again.") from None
        except BaseException as error:
            if marked:
                error.add_note("The copy is unfinished; the same command continues it.")
            raise
        write(
            f"{count:,} users copied to {destination.place}.\n"
            f"SHA-256 of the export of both as JSON Lines: {digest}\n"
        )
        if others and not tables:
            names = ", ".join(table.name for table in others)
            copied = [f"Not copied, because both sides must be SQL databases: {names}.\n"]
        write("".join(copied))


async def filled(ours: UserStore, destination: Backend, tables: list[Table]) -> list[str]:
    """Return the names of the tables that have rows."""
    found = ["users"] if await ours.page(UserQuery(), 1) else []
    for table in tables:
        if await anext(read_table(table, cast(Database, destination)), None):
            found.append(table.name)
    return found


async def say_why(destination: Backend, mark: int, what: str) -> NoReturn:
    """Raise StaleVersion if another copy has taken over, or else Stop."""
    await set_last_id(destination, mark, mark)  # which changes nothing if the mark is still there
    raise Stop(f"The two differ: {what}. Stop the apps.")


@asynccontextmanager
async def marked_session(database: Database, mark: int) -> AsyncIterator[AsyncSession]:
    """Yield a session that commits only if the mark is still there. Raises StaleVersion."""
    async with open_store(database) as store:
        users = cast(SQLUserStore, store)
        await users.hold(mark)
        yield users.session


async def copy_table(table: Table, source: Database, destination: Database, mark: int) -> str:
    """Copy a table of your own, ids and all; return a line that says how many rows it has."""
    count, summed = await count_and_sum(read_table(table, source))
    own = self_references(table)
    with bar(f"Copying {table.name}", count) as advance:
        async for rows in read_table(table, source):
            async with marked_session(destination, mark) as session:
                # The row that one refers to may come later: update it then.
                nulls = [row | dict.fromkeys(own) for row in rows]
                await (await session.connection()).execute(insert(table), nulls)
            advance(len(rows))
    if own:
        keys = {f"key_{column.name}": column for column in table.primary_key}
        changed = update(table).where(*(column == bindparam(key) for key, column in keys.items()))
        async for rows in read_table(table, source):
            values = [row | {key: row[it.name] for key, it in keys.items()} for row in rows]
            async with marked_session(destination, mark) as session:
                await (await session.connection()).execute(changed, values)
    if (column := table.autoincrement_column) is not None:
        async with source.session() as theirs, marked_session(destination, mark) as ours:
            # Without AUTOINCREMENT, SQLite has no counter.
            newest = await (await theirs.connection()).scalar(select(func.max(column)))
            last_id = max(newest or 0, await get_last_id(theirs, table))
            await set_table_last_id(ours, table, last_id)
    if await count_and_sum(read_table(table, destination), count) != (count, summed):
        await say_why(destination, mark, f"{table.name} has changed")
    return f"{count:,} rows of {table.name} copied.\n"


def self_references(table: Table) -> list[str]:
    """Return the columns that refer to rows of the same table, and may be null."""
    keys = [key.parent for key in table.foreign_keys if key.column.table is table]
    return [column.name for column in keys if column.nullable]


async def read_table(table: Table, database: Database) -> AsyncIterator[list[dict[str, Any]]]:
    """Yield the rows of a table in the order of its primary key, batch by batch."""
    key = [*table.primary_key]
    first = statement = select(table).order_by(*key).limit(BULK_MAX)
    while True:
        async with database.reader.connect() as connection:
            found = (await connection.execute(statement)).mappings().all()
        if not found:
            return
        yield [dict(row) for row in found]
        last = tuple_(*(found[-1][column.name] for column in key))
        statement = first.where(tuple_(*key) > last)


async def remove_different(
    theirs: UserStore, ours: UserStore, destination: Backend, tables: list[Table], mark: int
) -> None:
    """Remove what an interrupted copy left: all rows, and the users that differ from the source."""
    if isinstance(destination, Database):
        for table in reversed(tables):
            key, own = [*table.primary_key], self_references(table)
            # MySQL checks references row by row. In batches, because a statement has a time limit.
            steps: list[Any] = [update(table).values(dict.fromkeys(own))] if own else []
            for step in [*steps, delete(table)]:
                async for rows in read_table(table, destination):
                    keys = [tuple(row[column.name] for column in key) for row in rows]
                    async with marked_session(destination, mark) as session:
                        connection = await session.connection()
                        await connection.execute(step.where(tuple_(*key).in_(keys)))
    found = (our.id async for their, our in side_by_side(theirs, ours) if our and our != their)
    async for gone in batches(found):
        async with open_store(destination) as store:
            await store.restore([], gone, mark)


async def add_missing(
    theirs: UserStore, ours: UserStore, destination: Backend, total: int, mark: int
) -> None:
    """Store those of the source's users whose ids are missing."""
    missing = (their async for their, our in side_by_side(theirs, ours) if their and not our)
    with bar("Copying", total) as advance:
        async for users in batches(missing):
            async with open_store(destination) as store:
                await store.restore(users, [], mark)
            advance(len(users))


async def batches(items: AsyncIterator[T]) -> AsyncIterator[list[T]]:
    """Yield the items in lists of ``BULK_MAX``, of which the last may be shorter."""
    batch: list[T] = []
    async for item in items:
        batch.append(item)
        if len(batch) == BULK_MAX:
            yield batch
            batch = []
    if batch:
        yield batch


async def set_last_id(backend: Backend, last_id: int, before: int) -> None:
    async with open_store(backend) as store:
        await store.set_last_id(last_id, before)


async def side_by_side(
    theirs: UserStore, ours: UserStore
) -> AsyncIterator[tuple[UserRead | None, UserRead | None]]:
    """Yield the user with an id there and the one with it here, id by id; None if there is none."""
    there = (user async for users in read_pages(theirs) for user in users)
    here = (user async for users in read_pages(ours) for user in users)
    their, our = await anext(there, None), await anext(here, None)
    while their or our:
        first = min(user.id for user in (their, our) if user)
        left = their if their and their.id == first else None
        right = our if our and our.id == first else None
        yield left, right
        if left:
            their = await anext(there, None)
        if right:
            our = await anext(here, None)


async def count_and_digest(pages: AsyncIterator[Sequence[Any]], total: int = 0) -> tuple[int, str]:
    """Return how many rows there are, and the SHA-256 of their export as JSON Lines."""
    count, digest = 0, hashlib.sha256()
    with bar("Comparing", total) as advance:
        async for rows in pages:
            digest.update(TO_JSON.encode_lines(rows))
            count += len(rows)
            advance(len(rows))
    return count, digest.hexdigest()


async def count_and_sum(pages: AsyncIterator[Sequence[Any]], total: int = 0) -> tuple[int, int]:
    """Return how many rows of a table there are, and a sum of their hashes.

    The order of the rows does not matter, because each database sorts texts in its own way.
    """
    count = summed = 0
    with bar("Comparing", total) as advance:
        async for rows in pages:
            for row in rows:
                digest = hashlib.sha256(IN_ORDER.encode(row)).digest()
                summed += int.from_bytes(digest, "big")
            count += len(rows)
            advance(len(rows))
    return count, summed
