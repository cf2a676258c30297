"""Roster's command line: copy, import, export, backup (``python cli.py --help``).

A store belongs to the one ``DATABASE_URL`` of its process. ``copy`` needs two, so it starts a
second process that prints the users of the source (``dump``), with a ``DATABASE_URL`` of its own.

How a copy cannot pass for whole before it is: first of all it sets the counter of ids in the
destination to its end (``store.UNFINISHED``), and to the source's only when both sides have been
read again and are the same. Until then no app starts on it, and nobody gets an id. The same command
again goes on: it takes out what differs from the source, and adds what is missing.
"""

import asyncio
import csv
import hashlib
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from itertools import chain, islice
from json import JSONDecodeError
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlmodel import SQLModel

from db import database_url, get_settings
from errors import Fault, classify
from export import Format, plain_cell, read_pages, to_pieces
from models import User, UserCreate, UserQuery, UserRow, fold
from start import CannotStart, start
from store import UNFINISHED, Backend, DamagedUser, EmailTaken, UserStore, choose_backend
from strict import read_json

SETTING = "DATABASE_URL"
GO_ON = "The copy is not finished; the same command again goes on."
BATCH = 1000  # users in one transaction
LINE_MAX = 2**16  # bytes; a user takes some 500
FIELDS = UserRow.__struct_fields__
# What an export has, and the database gives: an import leaves it out.
GIVEN = {*FIELDS} - UserCreate.model_fields.keys()
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
    str | None, typer.Option(metavar="URL", help="Instead of the DATABASE_URL of the settings.")
]


class Stop(Exception):
    """The command ends with this line on standard error, and status 1."""


def run(work: Coroutine[Any, Any, None], url: str | None = None, name: str = SETTING) -> None:
    """Do a command's work on a database; end with one line, without a secret, if it fails.

    ``name`` is what the caller knows the URL by.
    """
    if url is not None:
        os.environ[SETTING] = url
    os.environ["READ_DATABASE_URL"] = ""  # what is copied and compared is the database itself
    try:
        asyncio.run(work)
    except (Stop, SystemExit) as error:  # SystemExit: what db says of a wrong URL
        if isinstance(error, SystemExit) and not isinstance(error.code, str):
            raise
        line = " ".join([str(error), *getattr(error, "__notes__", [])])
        sys.exit(line.replace(SETTING, name))
    except KeyboardInterrupt:
        sys.exit("Stopped.")
    except Exception as error:  # noqa: BLE001 (a traceback could hold what nobody shall read)
        place = traceback.extract_tb(error.__traceback__)[-1]
        file = Path(place.filename).name
        sys.exit(f"A bug in Roster: {type(error).__name__} at {file}:{place.lineno}")


@asynccontextmanager
async def opened(unfinished: bool = False) -> AsyncIterator[Backend]:
    """Yield the started backend of ``DATABASE_URL``. Raises Stop for what its driver raises."""
    backend = choose_backend(get_settings().database_url.get_secret_value())
    database_errors: tuple[type[Exception], ...] = (OSError, *backend.DRIVER_ERRORS)
    try:
        await start(backend, unfinished)
        yield backend
    except CannotStart as error:
        raise Stop(str(error)) from None
    except DamagedUser as error:
        raise Stop(f"{SETTING}: {error}.") from None
    except database_errors as error:
        code = backend.driver_code(error)
        fault = classify(error, code)
        said = "it failed." if fault is Fault.BUG else fault.detail
        stop = Stop(f"{backend.place()}: {said} ({code or type(error).__name__})")
        for note in getattr(error, "__notes__", []):
            stop.add_note(note)
        raise stop from None
    finally:
        await backend.stop()


def url_scheme() -> str:
    """Return the kind of the database, as the URL says it: sqlite, postgresql ..."""
    return get_settings().database_url.get_secret_value().partition(":")[0].partition("+")[0]


def sqlite_file() -> Path | None:
    """Return the file of ``DATABASE_URL``, None if it is not SQLite. Raises Stop if it is missing.

    Where a name is mistyped, who only reads shall not make an empty database.
    """
    if url_scheme() != "sqlite":
        return None
    file = Path((database_url().database or "").removeprefix("file:"))
    if not file.is_file():
        raise Stop(f"{SETTING}: there is no SQLite file {file}")
    return file


@contextmanager
def bar(doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error if that is a terminal; yield what moves it on."""
    columns = TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(doing, total=total)
        yield lambda count: progress.advance(task, count)


def write(text: str) -> None:
    """Write to standard output. If nobody reads it any more (``| head``), end without a word."""
    try:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    except OSError as error:
        # What Python has not written yet, it would try to write at its end.
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

    Stop the apps on both before. If it is interrupted, the same command goes on.
    """
    if source == destination:
        sys.exit("SRC_URL and DST_URL are the same.")
    run(copy_users(source), destination, "DST_URL")


async def copy_users(url: str) -> None:
    """Copy the source's users to ``DATABASE_URL``; compare both sides at the end."""
    async with opened(unfinished=True) as backend, other_process(url) as source:
        reader = await backend.get_store()
        before = await reader.last_id()
        marked = before >= UNFINISHED
        if not marked and await reader.page(UserQuery(), 1):
            raise Stop(f"DST_URL: {backend.place()} holds users already; a copy needs it empty.")
        try:
            if marked:
                await take_out(source, backend)
            await source.begin()  # it answers, or nothing is changed
            await set_last_id(backend, UNFINISHED)
            marked = True
            await add_missing(source, backend)
            await source.begin()
            theirs = await count_and_digest(source.lines(), source.total)
            if source.last_id >= UNFINISHED:  # it has our mark
                await set_last_id(backend, before)
                marked = False
                raise Stop("SRC_URL and DST_URL are the same database.")
            if await count_and_digest(to_pieces(reader, "jsonl"), source.total) != theirs:
                raise Stop("The two differ: users were changed meanwhile. Stop the apps.")
            await set_last_id(backend, source.last_id)
        except asyncio.CancelledError:
            raise Stop(f"Stopped. {GO_ON}" if marked else "Stopped.") from None
        except Exception as error:
            if marked:
                error.add_note(GO_ON)
            raise
        write(
            f"{theirs[0]:,} users copied to {backend.place()}.\n"
            f"SHA-256 of the export of both as JSON Lines: {theirs[1]}\n"
        )
        if others := SQLModel.metadata.tables.keys() - {User.__tablename__}:
            write(f"Not copied, for only users are: {', '.join(sorted(others))}.\n")


async def take_out(source: "Source", backend: Backend) -> None:
    """Remove whoever is not in the source, or differs there."""
    await source.begin()
    async for theirs, ours in side_by_side(source, await backend.get_store()):
        if ours and ours != theirs:
            async with backend.open_store() as store:
                await store.remove(ours.id, None)


async def add_missing(source: "Source", backend: Backend) -> None:
    """Store those of the source's users whose ids are not there. Raises Stop for a conflict."""
    batch: list[UserRow] = []

    async def flush() -> None:
        async with backend.open_store() as store:
            await store.restore(batch)
        batch.clear()

    try:
        with bar("Copying", source.total) as advance:
            async for theirs, ours in side_by_side(source, await backend.get_store()):
                if theirs and not ours:
                    batch.append(theirs)
                if len(batch) == BATCH:
                    await flush()
                advance(1)
            if batch:
                await flush()
    except EmailTaken:
        raise Stop("Users were changed meanwhile. Stop the apps.") from None


async def set_last_id(backend: Backend, last_id: int) -> None:
    """Set the counter of ids."""
    async with backend.open_store() as store:
        await store.set_last_id(last_id)


class Source:
    """A process that prints the users of another database: see ``dump``."""

    total: int  # users, when it began
    last_id: int  # when it had printed them all

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin  # noqa: S101 (for mypy: all three are pipes)
        assert process.stdout  # noqa: S101 (for mypy)
        assert process.stderr  # noqa: S101 (for mypy)
        self.orders, self.printed, self.said = process.stdin, process.stdout, process.stderr

    async def begin(self) -> None:
        """Let it begin to print. Raises Stop if it does not."""
        with suppress(ConnectionError):  # it has ended; read_line says why
            self.orders.write(b"\n")
            await self.orders.drain()
        self.total = int(await self.read_line())

    async def lines(self) -> AsyncIterator[str]:
        """Yield a line of JSON for each user. Raises Stop if that is not all."""
        while (line := await self.read_line()).startswith("{"):
            yield line
        self.last_id = int(line)

    async def read_line(self) -> str:
        """Return the next line. Raises Stop, with the process's last words, if there is none."""
        line = await self.printed.readline()
        if line.endswith(b"\n"):
            return line.decode()
        words = (await self.said.read()).decode(errors="replace").splitlines()
        raise Stop(words[-1].replace(SETTING, "SRC_URL") if words else "SRC_URL: process killed.")


@asynccontextmanager
async def other_process(url: str) -> AsyncIterator[Source]:
    """Yield a source; end its process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "dump"),
        env={**os.environ, SETTING: url},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        source = Source(process)
        yield source
        source.orders.close()
        await process.wait()
    finally:
        if process.returncode is None:
            # process.kill() would ask for its status, which asyncio then misses, and says so.
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            # wait() would not end while nobody reads what was printed.
            await process.communicate()


@app.command(hidden=True)
def dump() -> None:
    """Print for each line on standard input: how many users, a line for each, and the last id.

    It is what ``copy`` reads. Who has not read a last id has not read everybody.
    """
    run(print_dumps())


async def print_dumps() -> None:
    """Print what is asked for, as often as it is."""
    sqlite_file()
    async with opened() as backend:
        store = await backend.get_store()
        for _ in sys.stdin:
            write(f"{await count_users(store)}\n")
            async for piece in to_pieces(store, "jsonl"):
                write(piece)
            write(f"{await store.last_id()}\n")


async def count_users(store: UserStore) -> int:
    """Return how many users there are, for a bar; 0 if it cannot be said in time."""
    try:
        return await store.count(UserQuery())
    except Exception:  # noqa: BLE001 (if it is more than slow, the next statement says so)
        return 0


async def side_by_side(
    source: Source, store: UserStore
) -> AsyncIterator[tuple[UserRow | None, UserRow | None]]:
    """Yield who has an id there and who has it here, id by id; None if nobody has."""
    lines = source.lines()
    here = (user async for users in read_pages(store) for user in users)

    async def next_line() -> UserRow | None:
        line = await anext(lines, None)
        return msgspec.json.decode(line, type=UserRow) if line else None

    theirs, ours = await next_line(), await anext(here, None)
    while theirs or ours:
        first = min(user.id for user in (theirs, ours) if user)
        left = theirs if theirs and theirs.id == first else None
        right = ours if ours and ours.id == first else None
        yield left, right
        if left:
            theirs = await next_line()
        if right:
            ours = await anext(here, None)


async def count_and_digest(pieces: AsyncIterator[str], total: int) -> tuple[int, str]:
    """Return how many lines there are, and the SHA-256 of all."""
    count, digest = 0, hashlib.sha256()
    with bar("Comparing", total) as advance:
        async for piece in pieces:
            digest.update(piece.encode())
            lines = piece.count("\n")
            count += lines
            advance(lines)
    return count, digest.hexdigest()


@app.command("import")
def import_file(
    file: Annotated[str, typer.Argument(metavar="FILE", help="- is standard input.")],
    dry_run: Annotated[bool, typer.Option(help="Say the same, and store nothing.")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Add the users of a CSV file (with a header: name,email), or of JSON Lines.

    Rows that are refused are listed, with their lines, on standard error. The others are stored.
    """
    run(import_users(file, dry_run), database_url)


async def import_users(name: str, dry_run: bool) -> None:
    """Store the rows of a file that are users; list the others."""
    stored = refused = line = 0
    with open_file(name) as file, closing(sqlite3.connect("")) as addresses:
        # A database without a name is a file of its own, which goes when it is closed: however
        # many addresses have been seen, they take no memory.
        addresses.execute("CREATE TABLE seen (email_key TEXT PRIMARY KEY, line INTEGER)")
        total = sum(1 for _ in read_rows(file))  # a file that cannot be read to its end: Stop
        rows = read_rows(file)
        async with opened() as backend:
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
            except (asyncio.CancelledError, Exception) as error:  # noqa: BLE001 (it goes on)
                stop = Stop("Stopped.") if isinstance(error, asyncio.CancelledError) else error
                if stored and not dry_run:
                    stop.add_note(f"{stored:,} users up to line {line} are stored.")
                raise stop from None
    print(f"{stored:,} users {'would be ' * dry_run}stored, {refused:,} lines refused.")
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
        key = fold(user.email)
        find = "SELECT line FROM seen WHERE email_key = ?"
        if earlier := addresses.execute(find, [key]).fetchone():
            problems.append((line, f"email: line {earlier[0]} has this address already"))
        else:
            addresses.execute("INSERT INTO seen VALUES (?, ?)", [key, line])
            new[user.email] = line, user
    users = [user for _, user in new.values()]
    skipped: list[str] = []
    if dry_run:
        reader = await backend.get_store()
        skipped = [u.email for u in users if await reader.page(UserQuery(email=u.email), 1)]
    elif users:
        async with backend.open_store() as store:
            skipped = (await store.add_many(users, skip_taken=True))[1]
    taken = "email: somebody has this address already"
    return problems + [(new[email][0], taken) for email in skipped]


Row = tuple[int, UserCreate | str]  # a line's number, and the user in it or why there is none


@contextmanager
def open_file(name: str) -> Iterator[IO[bytes]]:
    """Yield a file that can be read twice: standard input is kept in one that has no name."""
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


def read_rows(file: IO[bytes]) -> Iterator[Row]:
    """Yield all rows of a file. Raises Stop if it is not CSV with a header, or JSON Lines."""
    file.seek(0)
    lines = read_lines(file)
    first = next(lines, "")
    if not first:
        raise Stop("The file is empty.")
    lines = chain([first], lines)
    return read_jsonl(lines) if first.lstrip().startswith("{") else read_csv(lines)


def read_lines(file: IO[bytes]) -> Iterator[str]:
    """Yield the lines of a file. Raises Stop if one is not UTF-8, or too long to be a user."""
    number = 0
    while line := file.readline(LINE_MAX + 1):
        number += 1
        if len(line) > LINE_MAX:
            raise Stop(f"line {number}: longer than {LINE_MAX} bytes.")
        try:
            # With or without the mark that some programs put first.
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise Stop(f"line {number}: not UTF-8. Save the file as UTF-8.") from None


def read_csv(lines: Iterator[str]) -> Iterator[Row]:
    """Yield the rows of CSV (RFC 4180)."""
    reader = csv.reader(lines, strict=True)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        if not {"name", "email"} <= {*header}:
            raise Stop('line 1: no header. CSV needs one with "name" and "email" (and commas).')
        for column in header:
            if header.count(column) > 1 or column not in FIELDS:
                raise Stop(f"line 1: the column {column[:100]!r} is unknown, or there twice.")
        for row in reader:
            if len(row) == len(header):
                yield reader.line_num, check(dict(zip(header, map(plain_cell, row), strict=True)))
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
    """Return the user in a row, as the API would take it, or else why there is none."""
    if not isinstance(data, dict):
        return "not an object with a name and an email"
    try:
        new = {field: value for field, value in data.items() if field not in GIVEN}
        return UserCreate.model_validate(new)
    except ValidationError as error:
        reasons = []
        for found in error.errors(include_input=False)[:10]:
            # The name of an unknown field is the file's, and may be made to fool a terminal.
            loc = [ascii(part)[1:-1][:100] for part in found["loc"]]
            reasons.append(": ".join([*loc, found["msg"].removeprefix("Value error, ")]))
        return "; ".join(reasons)


@app.command()
def export(
    format: Annotated[Format, typer.Option()] = "jsonl",
    database_url: DatabaseUrl = None,
) -> None:
    """Print every user, by id: the same as the API's /users/export."""
    run(print_export(format), database_url)


async def print_export(format: Format) -> None:
    """Print an export."""
    sqlite_file()
    async with opened() as backend:
        store = await backend.get_store()
        # A bar among the lines would be in their way.
        total = 0 if sys.stdout.isatty() else await count_users(store)
        with bar("Exporting", total) as advance:
            async for piece in to_pieces(store, format):
                write(piece)
                advance(piece.count("\n"))


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE")], database_url: DatabaseUrl = None
) -> None:
    """Copy the SQLite database, while it is in use, to a new file."""
    run(back_up(file), database_url)


async def back_up(file: Path) -> None:
    """Copy the SQLite database to a file that is whole or not there."""
    if tool := BACKUP_TOOLS.get(url_scheme()):
        raise Stop(f"backup is for SQLite only; here, use {tool}.")
    source = sqlite_file() or Path()  # what is neither, opened refuses
    async with opened():  # with a database of somebody else's, or half a copy, it ends here
        try:
            users = write_backup(source, file)
        except FileExistsError:
            raise Stop(f"{file}: is there already. Give another name.") from None
        except OSError as error:
            raise Stop(f"{file}: {error.strerror}") from None
        except sqlite3.Error as error:
            raise Stop(
                f"{file}: no backup ({getattr(error, 'sqlite_errorname', error)})."
            ) from None
    print(f"{users:,} users backed up to {file}.")


def write_backup(source: Path, file: Path) -> int:
    """Write and check a backup, give it its name, and return how many users it has.

    https://docs.python.org/3/library/sqlite3.html#sqlite3.Connection.backup
    """
    if file.exists():
        raise FileExistsError
    handle, name = tempfile.mkstemp(".part", f".{file.name}-", file.parent)
    try:
        live = sqlite3.connect(f"{source.resolve().as_uri()}?mode=rw", uri=True)
        with closing(live), closing(sqlite3.connect(name)) as copied:
            # All in one step, which sees one moment. In several, it would begin anew whenever
            # another process has written; and nobody who writes waits for it, thanks to WAL.
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
