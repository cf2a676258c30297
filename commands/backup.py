"""``cli.py backup``: a copy of the SQLite database while it is in use."""

import os
import signal
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from commands.terminal import DatabaseUrl, Stop, database_url, opened, sqlite_file


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
