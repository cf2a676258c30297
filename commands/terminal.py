"""What the commands have in common: a started database, a bar, and one line if it fails."""

import asyncio
import os
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import app as every_table  # noqa: F401 (it imports every module that has tables)
from db import get_settings, open_backend
from engine import Database, SettingsError
from errors import FAULTS
from lifespan import StartError, start
from paging import UserQuery
from store import Backend, CorruptUser, Fault, UserStore

SETTING = "DATABASE_URL"
P = ParamSpec("P")
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url", metavar="URL", help="Instead of the DATABASE_URL of the settings."
    ),
]


class Stop(Exception):
    """The command ends with this line on standard error, and status 1."""


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
    file = Path(Database(url).url.database or "")
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
        # At exit, Python would retry the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(1) from None
        raise Stop(f"Standard output: {error.strerror}") from None


async def count_users(store: UserStore) -> int:
    """Return how many users there are, for a bar; 0 if it takes too long to count them."""
    try:
        return await store.count(UserQuery())
    except Fault:  # if it is more than slow, the next statement says so
        return 0
