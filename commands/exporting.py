"""``cli.py export``: all users to standard output."""

import sys

from commands.terminal import (
    DatabaseUrl,
    bar,
    count_users,
    database_url,
    opened,
    sqlite_file,
    write,
)
from export import Format, read_pages, to_pieces
from lifespan import open_store
from models import FIELDS


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
