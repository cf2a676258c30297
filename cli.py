"""Roster's command line: copy, import, export, backup (``python cli.py --help``).

How a copy cannot pass for whole before it is: first of all it sets the counter of ids in the
destination to its end (``store.UNFINISHED``), and to the source's only when both sides have been
read again and are the same. Until then no app starts on it, and no user gets an id. The same
command continues a copy: it removes what differs from the source, and adds what is missing.
"""

import asyncio
import csv
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from itertools import chain, islice
from json import JSONDecodeError
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Table, delete, func, insert, select, tuple_
from sqlmodel import SQLModel

import app as every_table  # noqa: F401 (it imports every module that has tables)
from db import get_settings, open_backend
from engine import Database, SettingsError, get_last_id
from engine import set_last_id as set_table_last_id
from errors import FAULTS
from export import Format, plain_cell, read_pages, to_pieces
from fields import fold_email
from lifespan import StartError, open_store, start
from limits import read_json
from models import FIELDS, UserCreate, UserRead
from paging import UserQuery
from store import UNFINISHED, Backend, CorruptUser, EmailTaken, Fault, UserStore

SETTING = "DATABASE_URL"
CONTINUE = "The copy is unfinished; the same command continues it."
BATCH = 1000  # users in one transaction
LINE_MAX = 2**16  # bytes; a user takes some 500
# An export has these, and the database gives them: an import leaves them out.
GIVEN = {*FIELDS} - UserCreate.model_fields.keys()
NEEDED = {name for name, field in UserCreate.model_fields.items() if field.is_required()}
BACKUP_TOOLS = {
    "postgresql": "pg_dump",
    "postgres": "pg_dump",
    "mysql": "mariadb-dump or mysqldump",
    "mariadb": "mariadb-dump",
    "mongodb": "mongodump",
    "redis": "redis-cli BGSAVE, which writes dump.rdb",
    "rediss": "redis-cli BGSAVE, which writes dump.rdb",
}

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


def run(work: Coroutine[Any, Any, None]) -> None:
    """Do a command's work; end with one line, without a secret, if it fails."""
    try:
        asyncio.run(work)
    except (Stop, SettingsError) as error:
        sys.exit(" ".join([str(error), *getattr(error, "__notes__", [])]))
    except KeyboardInterrupt:
        sys.exit("Stopped.")
    except Exception as error:  # noqa: BLE001 (a traceback could hold what no log may)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        file = Path(frame.filename).name
        sys.exit(f"A bug in Roster: {type(error).__name__} at {file}:{frame.lineno}")


@asynccontextmanager
async def opened(url: str, name: str = SETTING, unfinished: bool = False) -> AsyncIterator[Backend]:
    """Yield a started database, without a replica. Raises Stop if it fails.

    ``name`` is what the caller calls the URL.
    """
    try:
        backend = open_backend(url)
    except SettingsError as error:
        raise Stop(str(error).replace(SETTING, name)) from None
    try:
        await start(backend, unfinished)
        yield backend
    except (StartError, CorruptUser, Fault) as error:
        if isinstance(error, Fault):
            said = f"{error.place}: {FAULTS[error.kind][1]} ({error.code})"
        elif isinstance(error, StartError):
            said = str(error).replace(SETTING, name)
        else:
            said = f"{name}: {error}."
        stop = Stop(said)
        for note in getattr(error, "__notes__", []):
            stop.add_note(note)
        raise stop from None
    finally:
        await backend.stop()


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
    if not console.is_terminal:
        yield lambda count: None
        return
    with Progress(*columns, console=console, transient=True) as progress:
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
def copy(
    source: Annotated[str, typer.Argument(metavar="SRC_URL")],
    destination: Annotated[str, typer.Argument(metavar="DST_URL")],
) -> None:
    """Copy every user, with id, times and version, to a database that holds none.

    Stop the apps on both first. If it is interrupted, the same command continues.
    """
    if source == destination:
        sys.exit("SRC_URL and DST_URL are the same.")
    run(copy_users(source, destination))


async def copy_users(source_url: str, destination_url: str) -> None:
    """Copy the users; compare both sides at the end."""
    sqlite_file(source_url, "SRC_URL")
    async with (
        opened(destination_url, "DST_URL", unfinished=True) as destination,
        opened(source_url, "SRC_URL") as source,
        open_store(source, read_only=True) as theirs,
        open_store(destination, read_only=True) as ours,
    ):
        before = await ours.last_id()
        marked = before >= UNFINISHED
        if not marked and await ours.page(UserQuery(), 1):
            raise Stop(f"DST_URL: {destination.place} holds users already; a copy needs it empty.")
        tables = [table for table in SQLModel.metadata.sorted_tables if table.name != "users"]
        copied: list[str] = []
        try:
            total = await count_users(theirs)
            if marked:
                for table in reversed(tables):
                    await empty(table, destination)
                await remove_different(theirs, ours, destination)
            await set_last_id(destination, UNFINISHED)
            marked = True
            if await theirs.last_id() >= UNFINISHED:  # it has our mark
                await set_last_id(destination, before)
                marked = False
                raise Stop("SRC_URL and DST_URL are the same database.")
            await add_missing(theirs, ours, destination, total)
            count, digest = await count_and_digest(theirs, total)
            last_id = await theirs.last_id()
            if await count_and_digest(ours, total) != (count, digest):
                raise Stop("The two differ: users were changed meanwhile. Stop the apps.")
            for table in tables:
                if isinstance(source, Database) and isinstance(destination, Database):
                    copied.append(await copy_table(table, source, destination))
            await set_last_id(destination, last_id)
        except asyncio.CancelledError:
            raise Stop(f"Stopped. {CONTINUE}" if marked else "Stopped.") from None
        except Exception as error:
            if marked:
                error.add_note(CONTINUE)
            raise
        write(
            f"{count:,} users copied to {destination.place}.\n"
            f"SHA-256 of the export of both as JSON Lines: {digest}\n"
        )
        for line in copied:
            write(line)
        if tables and not copied:
            names = ", ".join(table.name for table in tables)
            write(f"Not copied, because both sides must be SQL databases: {names}.\n")


async def copy_table(table: Table, source: Database, destination: Database) -> str:
    """Copy a table of your own, ids and all; return a line that says how many rows it has."""
    async with source.reader.connect() as connection:
        count = int(await connection.scalar(select(func.count()).select_from(table)) or 0)
    if await anext(read_table(table, destination), None):
        raise Stop(f"DST_URL: {destination.place} holds rows in {table.name} already.")
    with bar(f"Copying {table.name}", count) as advance:
        async for rows in read_table(table, source):
            async with destination.writer.begin() as connection:
                await connection.execute(insert(table), rows)
            advance(len(rows))
    if "id" in table.c:
        async with source.session() as session:
            last_id = await get_last_id(session, table)
        async with destination.session() as session:
            await set_table_last_id(session, table, last_id)
    if await digest_table(table, source) != await digest_table(table, destination):
        raise Stop(f"The two differ: {table.name} was changed meanwhile. Stop the apps.")
    return f"{count:,} rows of {table.name} copied.\n"


async def read_table(table: Table, database: Database) -> AsyncIterator[list[dict[str, Any]]]:
    """Yield the rows of a table in the order of its primary key, batch by batch."""
    key = [*table.primary_key]
    statement = select(table).order_by(*key).limit(BATCH)
    where = statement
    while True:
        async with database.reader.connect() as connection:
            found = (await connection.execute(where)).mappings().all()
        if not found:
            return
        yield [dict(row) for row in found]
        where = statement.where(tuple_(*key) > tuple_(*(found[-1][part.name] for part in key)))


async def digest_table(table: Table, database: Database) -> str:
    """Return the SHA-256 of the rows of a table."""
    digest = hashlib.sha256()
    async for rows in read_table(table, database):
        for row in rows:
            digest.update(json.dumps(row, default=str, sort_keys=True).encode())
    return digest.hexdigest()


async def empty(table: Table, backend: Backend) -> None:
    """Delete the rows that an interrupted copy left."""
    if isinstance(backend, Database):
        async with backend.writer.begin() as connection:
            await connection.execute(delete(table))


async def remove_different(theirs: UserStore, ours: UserStore, destination: Backend) -> None:
    """Remove the users that are not in the source, or differ there."""
    async for their, our in side_by_side(theirs, ours):
        if our and our != their:
            async with open_store(destination) as store:
                await store.remove(our.id, None)


async def add_missing(theirs: UserStore, ours: UserStore, destination: Backend, total: int) -> None:
    """Store those of the source's users whose ids are missing. Raises Stop for a conflict."""
    batch: list[UserRead] = []

    async def flush() -> None:
        async with open_store(destination) as store:
            await store.restore(batch)
        batch.clear()

    try:
        with bar("Copying", total) as advance:
            async for their, our in side_by_side(theirs, ours):
                if their and not our:
                    batch.append(their)
                if len(batch) == BATCH:
                    await flush()
                advance(1)
            if batch:
                await flush()
    except EmailTaken:
        raise Stop("Users were changed meanwhile. Stop the apps.") from None


async def set_last_id(backend: Backend, last_id: int) -> None:
    async with open_store(backend) as store:
        await store.set_last_id(last_id)


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


async def count_and_digest(store: UserStore, total: int) -> tuple[int, str]:
    """Return how many users there are, and the SHA-256 of their export."""
    count, digest = 0, hashlib.sha256()
    with bar("Comparing", total) as advance:
        async for piece in to_pieces(store, "jsonl"):
            digest.update(piece.encode())
            lines = piece.count("\n")
            count += lines
            advance(lines)
    return count, digest.hexdigest()


@app.command("import")
def import_file(
    file: Annotated[str, typer.Argument(metavar="FILE", help="- is standard input.")],
    dry_run: Annotated[bool, typer.Option(help="Say the same, and store nothing.")] = False,
    name: Annotated[str, typer.Option(metavar="COLUMN[,COLUMN]", help="The name's columns.")] = "",
    address: Annotated[str, typer.Option(metavar="COLUMN", help="The address's column.")] = "",
    encoding: Annotated[str, typer.Option(help="For example, windows-1252.")] = "utf-8-sig",
    url: DatabaseUrl = None,
) -> None:
    """Add the users of a CSV file, or of JSON Lines.

    CSV needs a header. Its columns are name and email, unless --name and --address say otherwise.
    Rejected rows are listed, with their lines, on standard error. The others are stored.
    """
    try:
        "".encode(encoding)
    except LookupError:
        sys.exit(f"--encoding: Python knows no {encoding!a}.")
    columns = {"name": name.split(",") if name else [], "email": [address] if address else []}
    run(import_users(file, dry_run, lambda opened: read_rows(opened, encoding, columns), url))


async def import_users(
    name: str, dry_run: bool, read: Callable[[IO[bytes]], Iterator["Row"]], url: str | None
) -> None:
    """Store the rows of a file that are users; list the others."""
    stored = refused = line = 0
    with open_file(name) as file, closing(sqlite3.connect("")) as addresses:
        # A database without a name is a temporary file: however many addresses have been seen, they
        # take no memory.
        addresses.execute("CREATE TABLE seen (email_key TEXT PRIMARY KEY, line INTEGER)")
        total = sum(1 for _ in read(file))  # a file that cannot be read to its end: Stop
        rows = read(file)
        async with opened(database_url(url)) as backend:
            try:
                with bar("Checking" if dry_run else "Importing", total) as advance:
                    while batch := list(islice(rows, BATCH)):
                        problems = await store_batch(backend, batch, addresses, dry_run)
                        for line, reason in sorted(problems):
                            print(f"line {line}: {reason}", file=sys.stderr)
                        line = batch[-1][0]
                        refused += len(problems)
                        stored += len(batch) - len(problems)
                        advance(len(batch))
            except (asyncio.CancelledError, Exception) as error:  # noqa: BLE001 (it is raised again)
                stop = Stop("Stopped.") if isinstance(error, asyncio.CancelledError) else error
                if stored and not dry_run:
                    stop.add_note(f"{stored:,} users up to line {line} are stored.")
                raise stop from None
    print(f"{stored:,} users {'would be ' * dry_run}stored, {refused:,} lines rejected.")
    if refused:
        raise SystemExit(1)


async def store_batch(
    backend: Backend, rows: list["Row"], addresses: sqlite3.Connection, dry_run: bool
) -> list[tuple[int, str]]:
    """Store the users in some rows, each address once; return lines and reasons of the others."""
    problems: list[tuple[int, str]] = []
    new: dict[str, tuple[int, UserCreate]] = {}
    for line, user in rows:
        if isinstance(user, str):
            problems.append((line, user))
            continue
        key = fold_email(user.email)
        find = "SELECT line FROM seen WHERE email_key = ?"
        if earlier := addresses.execute(find, [key]).fetchone():
            problems.append((line, f"email: line {earlier[0]} has this address already"))
        else:
            addresses.execute("INSERT INTO seen VALUES (?, ?)", [key, line])
            new[user.email] = line, user
    users = [user for _, user in new.values()]
    skipped: list[str] = []
    async with open_store(backend, read_only=dry_run) as store:
        if dry_run:
            skipped = [u.email for u in users if await store.page(UserQuery(email=u.email), 1)]
        elif users:
            skipped = (await store.add_many(users, skip_taken=True))[1]
    taken = "email: another user has this address"
    return problems + [(new[email][0], taken) for email in skipped]


Row = tuple[int, UserCreate | str]  # a line's number, and the user in it or why there is none


@contextmanager
def open_file(name: str) -> Iterator[IO[bytes]]:
    """Yield a file that can be read twice: standard input is kept in a temporary one."""
    with ExitStack() as stack:
        try:
            if name == "-":
                file: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(sys.stdin.buffer, file)
            else:
                file = stack.enter_context(Path(name).open("rb"))
        except OSError as error:
            raise Stop(f"{name}: {error.strerror}") from None
        yield file


Columns = dict[str, list[str]]  # of a field: the titles of the columns that make it, in order


def read_rows(
    file: IO[bytes], encoding: str = "utf-8-sig", columns: Columns | None = None
) -> Iterator[Row]:
    """Yield all rows of a file. Raises Stop if it is not CSV with a header, or JSON Lines."""
    file.seek(0)
    lines = read_lines(file, encoding)
    first = next(lines, "")
    if not first:
        raise Stop("The file is empty.")
    lines = chain([first], lines)
    return read_jsonl(lines) if first.lstrip().startswith("{") else read_csv(lines, columns or {})


def read_lines(file: IO[bytes], encoding: str) -> Iterator[str]:
    """Yield the lines of a file. Raises Stop if one cannot be read, or is too long to be a user."""
    number = 0
    while line := file.readline(LINE_MAX + 1):
        number += 1
        if len(line) > LINE_MAX:
            raise Stop(f"line {number}: longer than {LINE_MAX} bytes.")
        try:
            # utf-8-sig: with or without the mark that some programs put first.
            yield line.decode(encoding if number == 1 else encoding.removesuffix("-sig"))
        except UnicodeDecodeError:
            which = "UTF-8" if encoding == "utf-8-sig" else encoding
            raise Stop(f"line {number}: not {which}. Name another with --encoding.") from None


def read_csv(lines: Iterator[str], columns: Columns) -> Iterator[Row]:
    """Yield the rows of CSV (RFC 4180), whose separator is what the header has most of."""
    first = next(lines)
    reader = csv.reader(chain([first], lines), strict=True, delimiter=max(",;\t|", key=first.count))
    try:
        titles = next(reader)
        header = [cell.strip().lower() for cell in titles]
        said = [title.strip().lower() for some in columns.values() for title in some]
        wanted = {field: [field] for field in ([*{*header} & {*FIELDS}] if not said else [])}
        wanted |= {"name": ["name"], "email": ["email"]}
        wanted |= {field: some for field, some in columns.items() if some}
        places: dict[str, list[int]] = {}
        for field, some in wanted.items():
            for title in some:
                if header.count(title.strip().lower()) != 1:
                    there = ", ".join(ascii(cell)[1:-1] for cell in titles)[:300]
                    raise Stop(
                        f"line 1: no column {title!a}, or two. There are: {there}."
                        " Name them: --name COLUMN[,COLUMN] --address COLUMN"
                    )
                places.setdefault(field, []).append(header.index(title.strip().lower()))
        if unknown := [title for title in header if not said and title not in FIELDS]:
            raise Stop(f"line 1: the column {unknown[0][:100]!r} is unknown.")
        for row in reader:
            if len(row) == len(header):
                cells = [plain_cell(cell) for cell in row]
                user = {
                    field: " ".join(filter(None, (cells[place] for place in some)))
                    for field, some in places.items()
                }
                # An empty cell is a field that is not there, if it need not be there.
                given = {field: text for field, text in user.items() if text or field in NEEDED}
                yield reader.line_num, check(given)
            elif row:  # an empty line is none
                reason = f"{len(row)} cells, but the header has {len(header)}"
                yield reader.line_num, reason
    except csv.Error as error:
        raise Stop(f"line {reader.line_num}: not CSV: {error}.") from None


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
            loc = [ascii(part)[1:-1][:100] for part in found["loc"]]
            reasons.append(": ".join([*loc, found["msg"].removeprefix("Value error, ")]))
        return "; ".join(reasons)


@app.command()
def export(
    format: Annotated[Format, typer.Option()] = "jsonl",
    url: DatabaseUrl = None,
) -> None:
    """Print every user, by id: the same as the API's /users/export."""
    run(print_export(format, url))


async def print_export(format: Format, given: str | None) -> None:
    """Print an export."""
    url = database_url(given)
    sqlite_file(url)
    async with opened(url) as backend, open_store(backend, read_only=True) as store:
        # A bar among the lines would be in their way.
        total = 0 if sys.stdout.isatty() else await count_users(store)
        with bar("Exporting", total) as advance:
            async for piece in to_pieces(store, format):
                write(piece)
                advance(piece.count("\n"))


@app.command()
def backup(file: Annotated[Path, typer.Argument(metavar="FILE")], url: DatabaseUrl = None) -> None:
    """Copy the SQLite database, while it is in use, to a new file."""
    run(back_up(file, url))


async def back_up(file: Path, given: str | None) -> None:
    """Copy the SQLite database to a file that is whole or not there."""
    url = database_url(given)
    if tool := BACKUP_TOOLS.get(url.partition(":")[0].partition("+")[0]):
        raise Stop(f"backup is for SQLite only; here, use {tool}.")
    source = sqlite_file(url) or Path()  # of any other URL, opened says what is wrong
    async with opened(url):  # with a foreign database, or half a copy, it ends here
        try:
            users = write_backup(source, file)
        except FileExistsError:
            raise Stop(f"{file}: exists already. Give another name.") from None
        except OSError as error:
            raise Stop(f"{file}: {error.strerror}") from None
        except sqlite3.Error as error:
            raise Stop(
                f"{file}: no backup ({getattr(error, 'sqlite_errorname', error)})."
            ) from None
    print(f"{users:,} users backed up to {file}.")


def write_backup(source: Path, file: Path) -> int:
    """Write and check a backup, name it, and return how many users it has.

    https://docs.python.org/3/library/sqlite3.html#sqlite3.Connection.backup
    """
    if file.exists():
        raise FileExistsError
    handle, name = tempfile.mkstemp(".part", f".{file.name}-", file.parent)
    try:
        live = sqlite3.connect(f"{source.resolve().as_uri()}?mode=rw", uri=True)
        with closing(live), closing(sqlite3.connect(name)) as copied:
            # All in one step, which sees one moment. In several, it would begin again whenever
            # another process has written. With WAL, no writer waits for it.
            live.backup(copied)
            if copied.execute("PRAGMA integrity_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("the integrity check failed")
            users: int = copied.execute("SELECT count(*) FROM users").fetchone()[0]
        os.fsync(handle)
        os.link(name, file)  # unlike a rename, it never replaces a file
        sync_folder(file.parent)
    finally:
        os.close(handle)
        os.unlink(name)
    return users


def sync_folder(folder: Path) -> None:
    """Let the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


if __name__ == "__main__":
    app(prog_name="python cli.py")
