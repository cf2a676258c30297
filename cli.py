"""Roster's command line: copy, import, export, backup (``python cli.py --help``).

A copy first sets the destination's counter of ids to a mark of its own (``store.UNFINISHED``), and
to the source's when both have been compared. Until then, no app starts on it. Each of its
transactions compares the mark, so a second copy takes over, and the first one ends.
"""

import asyncio
import codecs
import csv
import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from functools import cache, wraps
from itertools import chain, islice
from json import JSONDecodeError
from pathlib import Path
from secrets import randbelow
from typing import IO, Annotated, Any, ParamSpec, TypeVar, cast

import msgspec
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Table, bindparam, delete, func, insert, select, tuple_, update
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

import app as every_table  # noqa: F401 (it imports every module that has tables)
from auth import WEB
from db import get_settings, open_backend
from engine import Database, SettingsError, get_last_id
from engine import set_last_id as set_table_last_id
from errors import FAULTS
from export import TO_JSON, Format, plain_cell, read_pages, to_pieces
from fields import fold_email, searchable
from lifespan import StartError, open_store, start
from limits import read_json
from models import FIELDS, UserCreate, UserRead
from paging import UserQuery
from store import UNFINISHED, Backend, CorruptUser, EmailTaken, Fault, StaleVersion, UserStore
from store_sql import SQLUserStore

SETTING = "DATABASE_URL"
BATCH = 1000  # users in one transaction
# JSON with sorted keys, because JSONB of PostgreSQL's does not keep their order.
IN_ORDER = msgspec.json.Encoder(enc_hook=str, order="deterministic")
LINE_MAX = 2**16  # bytes; a user takes some 500
# Returns the first line that had the address, which is this one if none was before it.
SEE = "INSERT INTO seen VALUES (?, ?) ON CONFLICT DO UPDATE SET line = line RETURNING line"
# An export has these, and the database gives them: an import leaves them out.
GIVEN = {*FIELDS} - UserCreate.model_fields.keys()
NEEDED = {name for name, field in UserCreate.model_fields.items() if field.is_required()}
# The look-behind keeps the time for a long cell without an @ from growing with its square.
ADDRESS = re.compile(
    r"(?<![^\s<>()[\]\"',;:|@])[^\s<>()[\]\"',;:|@]+@[^\s<>()[\]\"',;:|@]+\.[^\s<>()[\]\"',;:|@.]+"
)
# What stands for a sign of an address, or around one, as on a web page.
AROUND = {
    r" ?[\[({] ?(at|@) ?[\])}] ?": "@",
    r" ?[\[({] ?(dot|\.) ?[\])}] ?": ".",
    r"mailto:|\?\S*": " ",
}
# Not all that fields.py calls invisible: some of that belongs to names, which it tells apart.
INVISIBLE = re.compile(r"[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
# The defaults would print variables, and so passwords, in tracebacks.
app = typer.Typer(
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    help="Copy, import, export and back up Roster's users.",
)
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url", metavar="URL", help="Instead of the DATABASE_URL of the settings."
    ),
]


class Stop(Exception):
    """The command ends with this line on standard error, and status 1."""


P = ParamSpec("P")
T = TypeVar("T")


def one_line(work: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Let a command end with one line, without a secret, if it fails."""

    def notes(error: BaseException | None) -> list[str]:
        return [*notes(error.__context__), *getattr(error, "__notes__", [])] if error else []

    @wraps(work)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            asyncio.run(work(*arguments, **options))
        except (Stop, SettingsError) as error:
            sys.exit(" ".join([str(error), *notes(error)]))
        except KeyboardInterrupt as error:
            sys.exit(" ".join(["Stopped.", *notes(error)]))
        except Exception as error:  # noqa: BLE001 (a traceback could hold what no log may)
            frame = traceback.extract_tb(error.__traceback__)[-1]
            file = Path(frame.filename).name
            sys.exit(f"A bug in Roster: {type(error).__name__} at {file}:{frame.lineno}")

    return run


@asynccontextmanager
async def opened(url: str, name: str = SETTING, unfinished: bool = False) -> AsyncIterator[Backend]:
    """Yield a started database, without a replica. Raises Stop if it fails.

    ``name`` is what the caller calls the URL.
    """
    try:
        backend = open_backend(url)
        try:
            await start(backend, unfinished)
            yield backend
        finally:
            await backend.stop()
    except (StartError, SettingsError) as error:
        raise Stop(str(error).replace(SETTING, name)) from None
    except CorruptUser as error:
        raise Stop(f"{name}: {error}.") from None
    except Fault as error:
        raise Stop(f"{error.place}: {FAULTS[error.kind][1]} ({error.code})") from None


def database_url(given: str | None) -> str:
    """Return the URL that a command works on."""
    return given if given is not None else get_settings().database_url.get_secret_value()


def sqlite_file(url: str, name: str = SETTING) -> Path | None:
    """Return the file of a URL, None if it isn't SQLite. Raises Stop if it is missing.

    A command that only reads must not make an empty database where a name is mistyped.
    """
    if url.partition(":")[0].partition("+")[0] != "sqlite":
        return None
    file = Path((Database(url).url.database or "").removeprefix("file:"))
    if not file.is_file():
        raise Stop(f"{name}: there is no SQLite file {file}")
    return file


@contextmanager
def bar(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error if that is a terminal; yield a function that advances it."""
    columns = TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(doing, total=total)
        yield lambda count: progress.advance(task, count)


def write(text: str) -> None:
    """Write to standard output; end silently if nothing reads it any more (``| head``)."""
    try:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    except OSError as error:
        # Python would try again at its end to write what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(1) from None
        raise Stop(f"Standard output: {error.strerror}") from None


@app.command()
@one_line
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
        marked = before >= UNFINISHED
        others = [table for table in SQLModel.metadata.sorted_tables if table.name != "users"]
        both_sql = isinstance(source, Database) and isinstance(destination, Database)
        tables = others if both_sql else []
        if not marked:
            found = ["users"] if await ours.page(UserQuery(), 1) else []
            for table in tables:
                if await anext(read_table(table, cast(Database, destination)), None):
                    found.append(table.name)
            if found:
                raise Stop(
                    f"DST_URL: {destination.place} holds {', '.join(found)} already; a copy needs"
                    " it empty."
                )
        copied: list[str] = []
        mark = UNFINISHED + randbelow(2**31)
        try:
            total = await count_users(theirs)
            await set_last_id(destination, mark, before)
            if await theirs.last_id() == mark:
                await set_last_id(destination, before, mark)
                raise Stop("SRC_URL and DST_URL are the same database.")
            marked = True
            if before >= UNFINISHED:
                await remove_different(theirs, ours, destination, tables, mark)
            await add_missing(theirs, ours, destination, total, mark)
            count, digest = await count_and_digest(read_pages(theirs), total)
            last_id = await theirs.last_id()
            if await count_and_digest(read_pages(ours), total) != (count, digest):
                raise Stop("The two differ: users have changed. Stop the apps.")
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
        raise Stop(f"The two differ: {table.name} has changed. Stop the apps.")
    return f"{count:,} rows of {table.name} copied.\n"


def self_references(table: Table) -> list[str]:
    """Return the columns that refer to rows of the same table, and may be null."""
    keys = [key.parent for key in table.foreign_keys if key.column.table is table]
    return [column.name for column in keys if column.nullable]


async def read_table(table: Table, database: Database) -> AsyncIterator[list[dict[str, Any]]]:
    """Yield the rows of a table in the order of its primary key, batch by batch."""
    key = [*table.primary_key]
    first = statement = select(table).order_by(*key).limit(BATCH)
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
    """Yield the items in lists of ``BATCH``, of which the last may be shorter."""
    batch: list[T] = []
    async for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


async def set_last_id(backend: Backend, last_id: int, before: int) -> None:
    async with open_store(backend) as store:
        await store.set_last_id(last_id, before)


async def count_users(store: UserStore) -> int:
    """Return how many users there are, for a bar; 0 if it takes too long to count them."""
    try:
        return await store.count(UserQuery())
    except Fault:  # if it is more than slow, the next statement says so
        return 0


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


@app.command("import")
@one_line
async def import_users(
    name: Annotated[str, typer.Argument(metavar="FILE", help="- is standard input.")],
    dry_run: Annotated[bool, typer.Option(help="Say the same, and store nothing.")] = False,
    names: Annotated[
        str,
        typer.Option(
            "--name", metavar="COLUMN[,COLUMN]", help="The name's columns, or their numbers."
        ),
    ] = "",
    address: Annotated[str, typer.Option(metavar="COLUMN", help="The address's column.")] = "",
    encoding: Annotated[str, typer.Option(help="For example, windows-1252.")] = "utf-8-sig",
    url: DatabaseUrl = None,
) -> None:
    """Add the users of a CSV file, or of JSON Lines.

    Unless the header is that of an export, it guesses which columns hold the name and the address,
    and prints them. Rejected rows are listed, with their lines, on standard error. The others are
    stored.
    """
    told = {"name": names.split(","), "email": [address]}
    told = {field: titles for field, titles in told.items() if titles != [""]}
    stored = refused = line = 0
    with open_file(name) as file, closing(sqlite3.connect("")) as addresses:
        # A database without a name is a temporary file: however many addresses have been seen, they
        # take no memory.
        addresses.execute("CREATE TABLE seen (email_key TEXT PRIMARY KEY, line INTEGER)")
        # Stop, if a row is unreadable.
        total = sum(1 for _ in read_rows(file, encoding, told, say=True))
        rows = read_rows(file, encoding, told)
        async with opened(database_url(url)) as backend:
            try:
                with bar("Checking" if dry_run else "Importing", total) as advance:
                    while batch := [*islice(rows, BATCH)]:
                        problems = await store_batch(backend, batch, addresses, dry_run)
                        for line, reason in sorted(problems):
                            print(f"line {line}: {reason}", file=sys.stderr)
                        line = batch[-1][0]
                        refused += len(problems)
                        stored += len(batch) - len(problems)
                        advance(len(batch))
            except BaseException as error:
                if stored and not dry_run:
                    error.add_note(f"{stored:,} users up to line {line} are stored.")
                raise
    print(f"{stored:,} users {'would be ' * dry_run}stored, {refused:,} lines rejected.")
    if refused:
        raise SystemExit(1)


Row = tuple[int, UserCreate | str]  # a line's number, and the user in it or why there is none


async def store_batch(
    backend: Backend, rows: list[Row], addresses: sqlite3.Connection, dry_run: bool
) -> list[tuple[int, str]]:
    """Store the users in some rows, each address once; return lines and reasons of the others."""
    problems: list[tuple[int, str]] = []
    new: dict[str, tuple[int, UserCreate]] = {}
    for line, user in rows:
        if isinstance(user, str):
            problems.append((line, user))
            continue
        [(first,)] = addresses.execute(SEE, [fold_email(user.email), line])
        if first == line:
            new[user.email] = line, user
        else:
            problems.append((line, f"email: line {first} has this address already"))
    users = [user for _, user in new.values()]
    skipped: list[str] = []
    async with open_store(backend, read_only=dry_run) as store:
        if dry_run:
            skipped = [u.email for u in users if await store.page(UserQuery(email=u.email), 1)]
        elif users:
            skipped = (await store.add_many(users, skip_taken=True))[1]
    taken = "email: another user has this address"
    return problems + [(new[email][0], taken) for email in skipped]


@contextmanager
def open_file(name: str) -> Iterator[IO[bytes]]:
    """Yield a copy of a file, or of standard input (-), which can be read only once."""
    with tempfile.TemporaryFile() as copy:
        try:
            with open(0 if name == "-" else name, "rb") as file:
                utf16 = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                source = codecs.EncodedFile(file, "utf-8", "utf-16") if utf16 else file
                copy.write(codecs.BOM_UTF8 * utf16)
                shutil.copyfileobj(source, copy)
        except OSError as error:
            raise Stop(f"{name}: {error.strerror}") from None
        except UnicodeError:
            raise Stop(f"{name}: not UTF-16, as its first two bytes say.") from None
        yield copy


Titles = dict[str, list[str]]  # of a field: the columns that make it, in order
Columns = dict[str, list[int]]


@cache
def rules() -> dict[str, Any]:
    """Return the words by which the page guesses, too: see web/guess.js."""
    return cast(dict[str, Any], json.loads((WEB / "guess.json").read_text("utf-8")))


def read_rows(
    file: IO[bytes], encoding: str = "utf-8-sig", told: Titles | None = None, say: bool = False
) -> Iterator[Row]:
    """Yield all rows of a file. Raises Stop if it is neither CSV nor JSON Lines."""
    file.seek(0)
    head = file.read(4000).decode("latin-1")
    file.seek(0)
    lines = read_lines(file, encoding)
    if re.match(r"(\xef\xbb\xbf)?\s*\{", head):
        return read_jsonl(lines)
    for sign, sentence in rules()["no_list"]:
        if re.search(sign, head, re.IGNORECASE):
            raise Stop(sentence)
    if (
        encoding == "utf-8-sig"
        and len(re.findall(r"[\0-\x08\x0e-\x19\x1b-\x1f]", head)) > len(head) / 500
    ):
        raise Stop(rules()["no_text"])
    return read_csv(lines, told or {}, say)


def read_lines(file: IO[bytes], encoding: str) -> Iterator[str]:
    """Yield the lines of a file. Raises Stop if one cannot be read, or is too long to be a user."""
    for number, line in enumerate(iter(lambda: file.readline(LINE_MAX + 1), b""), 1):
        if len(line) > LINE_MAX:
            raise Stop(f"line {number}: longer than {LINE_MAX} bytes.")
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            encoding = "utf-8-sig"
        try:
            # utf-8-sig: with or without the mark that some programs put first.
            yield line.decode(encoding if number == 1 else encoding.removesuffix("-sig"))
        except LookupError:
            raise Stop(f"--encoding: Python knows no {encoding!a}.") from None
        except UnicodeDecodeError:
            which = "UTF-8" if encoding == "utf-8-sig" else encoding
            raise Stop(f"line {number}: not {which}. Name another with --encoding.") from None


def read_csv(lines: Iterator[str], told: Titles, say: bool) -> Iterator[Row]:
    """Yield the rows of CSV (RFC 4180); say which columns are taken, unless the header is exact."""
    head = [*islice(lines, 50)]
    if not head:
        raise Stop("The file is empty.")
    excel = re.fullmatch(r'"?sep=(.)"?\s*', head[0])  # the first line says which separator follows
    separator = excel[1] if excel else max(",;\t|", key=lambda mark: agreement(head, mark))
    skipped = 1 if excel else 0
    reader = csv.reader(chain(head[skipped:], lines), strict=True, delimiter=separator)
    rows = ((reader.line_num + skipped, row) for row in reader if any(map(str.strip, row)))
    try:
        first = [*islice(rows, 500)]
        if not first:
            raise Stop("The file is empty.")
        sample = [row for _, row in first]
        titles = [*map(as_title, sample[0])]
        exact = not told and NEEDED <= {*titles} <= {*FIELDS} and len({*titles}) == len(titles)
        if exact:
            header, columns = 0, {title: [number] for number, title in enumerate(titles)}
        else:
            header, columns = find_columns(sample, told)
            if say:
                print(describe(sample[header] if header >= 0 else [], columns), file=sys.stderr)
        wide = len(sample[max(header, 0)])
        for line, row in chain(first[header + 1 :], rows):
            if len(row) != wide:
                yield line, f"{len(row)} cells, but the header has {wide}"
                continue
            if exact:
                person = {field: plain_cell(row[number]) for field, [number] in columns.items()}
            elif not (person := to_person(row, columns))["email"]:
                yield line, "no address"
                continue
            # An empty cell is a field that is not there, if it need not be there.
            yield line, check({f: text for f, text in person.items() if text or f in NEEDED})
    except csv.Error as error:
        raise Stop(f"line {reader.line_num + skipped}: not CSV: {error}.") from None


def describe(titles: list[str], columns: Columns) -> str:
    """Return a sentence that says which columns are taken."""
    name, address = (
        " + ".join(
            repr(titles[number].strip())[1:-1] if titles else f"column {number + 1}"
            for number in columns[field]
        )
        for field in ("name", "email")
    )
    return f"The name is in {name[:300]}, the address in {address[:300]}."


def agreement(head: list[str], mark: str) -> int:
    """Return how many of the first lines agree that this is the separator."""
    try:
        rows = [row for row in csv.reader(head, delimiter=mark) if len(row) > 1]
    except csv.Error:
        return 0
    return max(Counter(map(len, rows)).values(), default=0) + sum(map(has_address, rows))


def has_address(row: list[str]) -> bool:
    return any(map(ADDRESS.search, row))


def plain_title(title: str) -> str:
    """Return a title without accents, case, signs, and what is in brackets."""
    return re.sub(r"[\W_]", "", searchable(re.sub(r"[\[(].*?[\])]", "", title)))


@cache
def words() -> list[tuple[str, str, bool]]:
    """Return the role of a title, the title, and whether it may be part of a longer one."""
    roles: dict[str, str] = rules()["titles"]
    titles = [(role, title) for role, those in roles.items() for title in those.split(", ")]
    return [(role, plain_title(title), title.endswith("*")) for role, title in titles]


def role(title: str) -> str | None:
    """Return what a column's title says that it holds: the whole title, or the longest word."""
    key = plain_title(title)
    exact = [role for role, word, _ in words() if word == key]
    parts = [(role, word) for role, word, part in words() if part and word in key]
    if exact or not parts:
        return exact[0] if exact else None
    found = max(parts, key=lambda part: len(part[1]))[0]
    other = re.search(f"{rules()['no_name']}|{rules()['beside']}", key)
    return None if other and found != "mail" else found


def find_columns(rows: list[list[str]], told: Titles) -> tuple[int, Columns]:
    """Return the header's row (-1: none), and the columns of the name and of the address.

    What it is not told, it guesses as web/guess.js does. Raises Stop if that is not clear.
    """
    wide = max(map(len, rows))
    wanted = {field: [*map(as_title, titles)] for field, titles in told.items()}
    flat = [*chain(*wanted.values())]

    def titles_of(header: int) -> list[str]:
        return ((rows[header] if header >= 0 else []) + [""] * wide)[:wide]

    def mail_column(header: int) -> tuple[float, int]:
        """Return how well the best column of addresses fits, and its number."""
        best = 0.0, -1
        for number, title in enumerate(titles_of(header)):
            cells = (row[number] for row in rows[header + 1 :] if number < len(row))
            found = sum(bool(ADDRESS.search(text)) for text in cells)
            named = role(title) == "mail"
            beside = re.search(rules()["beside"], plain_title(title))
            score = (found + named / 2) * (0.1 if beside else 2 if named else 1)
            best = max(best, (score, number), key=lambda one: one[0])
        return best

    def is_header(row: list[str]) -> bool:
        titles = [*map(as_title, row)]
        if told:
            return not has_address(row) and all(titles.count(title) == 1 for title in flat)
        known = len([*filter(None, titles)]) >= min(2, wide) and any(map(role, titles))
        return known and not has_address(row)

    # Below an address, a row with one known word is a person without one.
    first = next((number for number, row in enumerate(rows) if has_address(row)), len(rows))
    headers = [
        number
        for number, row in enumerate(rows[:30])
        if is_header(row) and (number < first or len([*filter(role, row)]) > 1)
    ]
    header = max(headers, key=lambda number: mail_column(number)[0], default=-1)
    titles = titles_of(header)
    columns = {"name": [], "email": [number for number in [mail_column(header)[1]] if number >= 0]}
    columns["name"] = name_columns(titles, rows[header + 1 :], columns["email"])
    for field, those in wanted.items():
        if header >= 0:
            columns[field] = [[*map(as_title, titles)].index(title) for title in those]
        else:
            numbers = [int(title) for title in those if title.isdecimal()]
            right = len(numbers) == len(those) and all(0 < number <= wide for number in numbers)
            columns[field] = [number - 1 for number in numbers] if right else []
    quoted = wide == 1 and re.search(r"[,;\t|]", rows[max(header, 0)][0])  # each line as a whole
    if quoted or not all(columns.values()):
        there = ", ".join(repr(title)[1:-1] for title in rows[max(header, 0)])[:300]
        raise Stop(
            f"The columns of the name and the address are not clear. There are: {there}. Name them,"
            " or number them if there is no header: --name COLUMN[,COLUMN] --address COLUMN"
        )
    for number, title in enumerate(map(as_title, titles)):  # fields that you have added
        if title in UserCreate.model_fields and title not in columns:
            columns[title] = [number]
    return header, columns


def name_columns(titles: list[str], rows: list[list[str]], mail: list[int]) -> list[int]:
    """Return the columns that make the name, in order."""
    found: dict[str | None, int] = {}
    for number, title in enumerate(titles):
        found.setdefault(role(title), number)
    first, last = (part if part in found else "name" for part in ("first", "last"))
    order = [first, "middle", last]
    if re.search(rules()["last_first"], plain_title(titles[found.get("last", 0)])):
        order = [last, first, "middle"]
    parts = [found[part] for part in order if part in found and first != last]
    whole = [found[part] for part in ("whole", "name") if part in found]
    whole = sorted(whole, key=lambda number: number in mail)[:1]  # one column may have both
    if not parts and not whole:
        return [number for number in range(len(titles)) if number not in mail and len(titles) == 2]

    def filled(numbers: list[int]) -> int:
        return sum(any(cell(row, number) for number in numbers) for row in rows)

    return parts if filled(parts) >= max(1, filled(whole)) or not whole else whole


def cell(row: list[str], number: int) -> str:
    """Return a cell on one line, without what programs put around a value; "" if there is none."""
    text = plain_cell(INVISIBLE.sub("", row[number])) if number < len(row) else ""
    return " ".join(re.sub(r'^="(.*)"$', r"\1", text).split())


def to_person(row: list[str], columns: Columns) -> dict[str, str]:
    """Return the fields of a user in the cells of these columns."""
    given = {
        field: " ".join(filter(None, (cell(row, number) for number in numbers)))
        for field, numbers in columns.items()
    }
    name, text = given["name"], given["email"]
    plain = text
    for pattern, sign in AROUND.items():
        plain = re.sub(pattern, sign, plain, flags=re.IGNORECASE)
    found = ADDRESS.search(plain)
    if found and (not name or ADDRESS.search(name)):
        # "Ada <ada@example.com>" has a name, too; ada.lovelace@example.com makes one.
        beside = ADDRESS.sub(" ", re.sub("<[^>]*>", " ", name or text)).strip(" \"'")
        name = beside or re.sub("[._-]+", " ", found[0].partition("@")[0].partition("+")[0]).title()
    return given | {"name": name, "email": found[0] if found else text}


def as_title(text: str) -> str:
    return text.strip().lower()


def read_jsonl(lines: Iterator[str]) -> Iterator[Row]:
    """Yield the rows of JSON Lines."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, check(read_json(line))
            except JSONDecodeError as error:
                yield number, f"not JSON: {error.msg}"


def check(data: Any) -> UserCreate | str:
    """Return the user in a row, as the API would accept it, or else why there is none."""
    if not isinstance(data, dict):
        return "not an object with a name and an email"
    try:
        new = {field: value for field, value in data.items() if field not in GIVEN}
        return UserCreate.model_validate(new)
    except ValidationError as error:
        reasons = []
        for found in error.errors(include_input=False)[:10]:
            # The name of an unknown field comes from the file, and may be made to fool a terminal.
            loc = [repr(str(part))[1:-1][:100] for part in found["loc"]]
            reasons.append(": ".join([*loc, found["msg"].removeprefix("Value error, ")]))
        return "; ".join(reasons)


@app.command()
@one_line
async def export(format: Format = "jsonl", url: DatabaseUrl = None) -> None:
    """Print every user, by id: the same as the API's /users/export."""
    url = database_url(url)
    sqlite_file(url)
    async with opened(url) as backend, open_store(backend, read_only=True) as store:
        # A bar among the lines would be in their way.
        total = 0 if sys.stdout.isatty() else await count_users(store)
        with bar("Exporting", total) as advance:
            async for piece in to_pieces(read_pages(store), FIELDS, format):
                write(piece)
                advance(piece.count("\n"))


@app.command()
@one_line
async def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE")], url: DatabaseUrl = None
) -> None:
    """Copy the SQLite database, while it is in use, to a new file."""
    url = database_url(url)
    source = sqlite_file(url)
    if source is None:
        others = "pg_dump, mariadb-dump, mongodump, redis-cli BGSAVE"
        raise Stop(f"backup is for SQLite only; here, use the database's own ({others}).")
    async with opened(url):  # with a foreign database, or half a copy, it ends here
        try:
            users = write_backup(source, file)
        except FileExistsError:
            raise Stop(f"{file}: exists already. Give another name.") from None
        except OSError as error:
            raise Stop(f"{file}: {error.strerror}") from None
        except sqlite3.Error as error:
            reason = getattr(error, "sqlite_errorname", error)
            raise Stop(f"{file}: no backup ({reason}).") from None
    print(f"{users:,} users backed up to {file}.")


def write_backup(source: Path, file: Path) -> int:
    """Write and check a backup, name it, and return how many users it has.

    https://docs.python.org/3/library/sqlite3.html#sqlite3.Connection.backup
    """
    if file.exists():
        raise FileExistsError
    with tempfile.NamedTemporaryFile(
        suffix=".part", prefix=f".{file.name}-", dir=file.parent
    ) as new:
        live = sqlite3.connect(f"{source.resolve().as_uri()}?mode=rw", uri=True)
        # Between two pieces, Ctrl-C raises; asyncio's own handler would wait for the end.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with closing(live), closing(sqlite3.connect(new.name)) as copied:
            # One transaction, which sees one moment. With WAL, no writer waits for it.
            live.executescript("BEGIN; SELECT 1 FROM users LIMIT 1")
            live.backup(copied, pages=1000, progress=lambda *_: None)
            if copied.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("the integrity check failed")
            users: int = copied.execute("SELECT count(*) FROM users").fetchone()[0]
        os.fsync(new.fileno())
        os.link(new.name, file)  # unlike a rename, it never replaces a file
    folder = os.open(file.parent, os.O_RDONLY)
    os.fsync(folder)  # its new name survives a power cut, too
    os.close(folder)
    return users


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # as Ctrl-C
    app(prog_name="python cli.py")
