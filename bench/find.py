"""Measure a search (``q``) on every database, and what others wait meanwhile.

Each line is the median of five pages of 50, asked in this process: common and rare words, by id and
by name. The last column is the longest that the event loop was held. ``--trigram`` says what an
index for parts of words gives a search, and what it takes from a create.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from fill import FIRST, SYLLABLES
from report import console
from rich.table import Table
from servers import BENCH, DATABASES, ROSTER
from sqlalchemy import func, select, table, text

sys.path.append(str(ROSTER))

from databases import BACKENDS, Missing  # servers.py leads there

from db import open_backend  # as above
from engine import Database
from lifespan import open_store, start
from models import UserCreate, UserRow
from paging import UserQuery

BATCH = 1000
FOUND = BENCH / "find.json"
SIZE = {  # bytes that the users take, with their indexes
    "sqlite": "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
    "postgresql": "SELECT pg_database_size(current_database())",
    "mysql": "SELECT sum(data_length + index_length) FROM information_schema.tables"
    " WHERE table_schema = database()",
}
TRIGRAM = {  # where to look for a word, and the statements that make it
    "postgresql": (
        "users",
        "CREATE EXTENSION pg_trgm",
        "CREATE INDEX ON users USING gin (search_key gin_trgm_ops)",
    ),
    "sqlite": (
        "found",
        "CREATE VIRTUAL TABLE found USING"
        " fts5 (search_key, content='users', content_rowid='id', tokenize='trigram')",
        "INSERT INTO found (found) VALUES ('rebuild')",
        "CREATE TRIGGER find AFTER INSERT ON users BEGIN"
        " INSERT INTO found (rowid, search_key) VALUES (new.id, new.search_key); END",
    ),
}
GOALS = {100_000: 50, 1_000_000: 1000}  # milliseconds
AT = datetime(2026, 1, 1, tzinfo=UTC)


def users(first: int, chance: random.Random) -> list[Any]:
    """Return users whose ids begin with this one."""
    found = []
    for i in range(first, first + BATCH):
        name = chance.choice(FIRST.split())
        last = "".join(chance.choices(SYLLABLES.split(), k=3)).capitalize()
        email = f"{name}.{last}{i}@example.com"
        found.append(UserRow(i, f"{name} {last}", email, AT, AT, 1))
    return found


async def hold(longest: list[float]) -> None:
    """Note the longest time between two turns of this task."""
    while True:
        began = time.monotonic()
        await asyncio.sleep(0.001)
        longest[0] = max(longest[0], time.monotonic() - began)


async def size(backend: Any) -> float:
    """Return the megabytes that a database takes."""
    if not isinstance(backend, Database):
        return float((await backend.redis.info("memory"))["used_memory_dataset"]) / 1e6
    async with backend.session(read_only=True) as session:
        statement = text(SIZE[backend.url.get_backend_name()])
        return float((await (await session.connection()).execute(statement)).scalar_one()) / 1e6


async def measure(url: str, rows: int, grid: Table, label: str, trigram: bool) -> dict[str, float]:
    """Fill a database, and ask it; return how many milliseconds pages take, and its size."""
    backend: Any = open_backend(url)
    found = {}
    await start(backend)
    chance = random.Random(1)
    for first in range(1, rows + 1, BATCH):
        async with open_store(backend) as store:
            await store.restore(users(first, chance), [], await store.last_id())
    async with open_store(backend) as store:
        await store.set_last_id(rows, await store.last_id())
    if backend.place.startswith("PostgreSQL"):  # which does this by itself within a minute
        async with backend.session() as session:
            await (await session.connection()).execute(text("ANALYZE"))
    for what, q in (("common", "ada"), ("rare", f"{rows - 7}@"), ("none", "zzz")):
        for sort in ("id", "name"):
            query = UserQuery.model_validate({"q": q, "sort": sort})
            took, longest = [], [0.0]
            for _ in range(5):
                ticking = asyncio.create_task(hold(longest))
                began = time.monotonic()
                async with open_store(backend, read_only=True) as store:
                    await store.page(query, 51)
                took.append(1000 * (time.monotonic() - began))
                ticking.cancel()
            middle, goal = statistics.median(took), GOALS.get(rows)
            good = "" if goal is None else "[green]pass[/]" if middle <= goal else "[red]FAIL[/]"
            held = f"{1000 * longest[0]:.0f} ms"
            found[f"{what} by {sort}"] = round(middle, 1)
            grid.add_row(label, f"{rows:,}", what, sort, f"{middle:.1f} ms", good, held)
    found["mb"] = round(await size(backend), 1)
    if index := TRIGRAM.get(backend.url.get_backend_name()) if trigram else None:
        grid.add_row(label, f"{rows:,}", *await compare(backend, *index))
    await backend.stop()
    return found


async def compare(backend: Database, indexed: str, *statements: str) -> list[str]:
    """Return what an index for parts of words gives a rare word, and takes from new users."""
    took = list[list[float]]()
    for source in ("users", indexed):
        ask = select(func.count()).select_from(table(source)).where(text("search_key LIKE '%zzz%'"))
        new = [
            UserCreate(name="Ada Lovelace", email=f"ada.{number}@{len(took)}.org")
            for number in range(6 * BATCH)
        ]
        times = [time.monotonic()]
        for user in new[:BATCH]:
            async with open_store(backend) as store:
                await store.add(user)
        times.append(time.monotonic())
        for first in range(BATCH, len(new), BATCH):
            async with open_store(backend) as store:
                await store.add_many(new[first : first + BATCH], skip_taken=False)
        times.append(time.monotonic())
        for _ in range(5):
            async with backend.session(read_only=True) as session:
                (await (await session.connection()).execute(ask)).all()
        times.append(time.monotonic())
        took.append([later - earlier for earlier, later in pairwise(times)])
        if len(took) == 1:
            async with backend.session() as session:
                for statement in statements:
                    await (await session.connection()).execute(text(statement))
    create, bulk, search = (after / before for before, after in zip(*took, strict=True))
    page = f"{1000 * took[1][2] / 5:.1f} ms"
    return ["trigram", "", page, f"{search:.2f}x", f"create {create:.2f}x, bulk {bulk:.2f}x"]


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Measure searches.")
    parser.add_argument("--rows", type=int, nargs="+", default=[*GOALS])
    # SecantusDB, written in Python, would take an hour: name MongoDB with a server of its own.
    usual = [name for name in BACKENDS if name != "mongodb"]
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=usual)
    parser.add_argument("--trigram", action="store_true", help="with an index for parts of words")
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {name: {} for name in args.backend}
    grid = Table("", "users", "word", "by", "a page", "", "loop held")
    for name in args.backend:
        try:
            with BACKENDS[name]() as database:
                for rows in args.rows:
                    with database.new() as url:
                        label = DATABASES.get(name, name)
                        done = measure(url, rows, grid, label, args.trigram)
                        found[name][str(rows)] = asyncio.run(done)
        except Missing as error:
            console.print(f"{name}: {error}")
    console.print(grid)
    if args.backend == usual and args.rows == [*GOALS] and all(found.values()):
        FOUND.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
