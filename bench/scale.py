"""Measure what must not grow with the number of users; ``README.md`` says how.

Whatever has a goal is a line of one table. Servers, wrk and its script are those of ``servers.py``.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import statistics
import sys
import time
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode

import httpx
from fill import connect, fill
from report import console, median, progress_bar, ratio
from rich.table import Table as Grid
from run import machine
from servers import (
    CONNECTIONS,
    DATABASES,
    LOAD_CORES,
    PAGE,
    PEERS,
    ROSTER,
    SQL,
    Server,
    measure,
    new_user,
    seconds,
    serve,
)
from sqlalchemy import make_url

sys.path.append(str(ROSTER))

from databases import BACKENDS, Missing  # servers.py leads there
from plans import QUESTIONS, complaints, explain

from engine import Database  # as above
from paging import Cursor

SMALL = 10_000
EXPORTED = 1_000_000
STARTS = 5
BULKS = 100
OPERATIONS = {
    "get": "Get one",
    "list": "List 100 by id",
    "names": "List 100 by name",
    "email": "Look up an email",
    "create": "Create",
}
JSON = {"Content-Type": "application/json"}
SHOWN = ("get", "page by id, after", "page by name, after", "look up email")


def scripts(url: str, rows: int, folder: Path) -> dict[str, list[str]]:
    """Return what load.lua is told for each operation: users and pages at random places."""
    ids = random.Random(1).choices(range(1, rows + 1), k=10_000)
    with connect(url) as connection:
        listed = ",".join(map(str, ids))
        found = connection.exec_driver_sql(
            f"SELECT id, name, email FROM users WHERE id IN ({listed})"  # noqa: S608  # numbers
        )
        users = {user.id: user for user in found}
    asked: dict[str, list[str]] = {
        operation: [] for operation in OPERATIONS if operation != "create"
    }
    for user in (users[i] for i in ids):
        by_id = {"limit": PAGE, "cursor": Cursor("id", user.id, user.name).encode()}
        by_name = {"limit": PAGE, "cursor": Cursor("name", user.id, user.name).encode()}
        asked["get"].append(f"/users/{user.id}")
        asked["list"].append(f"/users/?{urlencode(by_id)}")
        asked["names"].append(f"/users/?{urlencode(by_name)}")
        asked["email"].append(f"/users/?{urlencode({'email': user.email})}")
    told = {"create": ["create"]}
    for operation, paths in asked.items():
        (folder / operation).write_text("\n".join(paths))
        told[operation] = ["read", str(folder / operation)]
    return told


class Report:
    """What was measured, each with its goal."""

    def __init__(self) -> None:
        self.grid = Grid("", "measured", "goal", "", title_justify="left")
        self.others: list[float] = []  # the share of a core that other programs took

    def add(self, what: str, measured: str, goal: str = "", good: bool | None = None) -> None:
        """Add a line; without a verdict if it has no goal."""
        verdict = {None: "", True: "[green]pass[/]", False: "[red]FAIL[/]"}[good]
        self.grid.add_row(what, measured, goal, verdict)


def computed(cells: list[dict[str, float]]) -> float:
    """Return how long server and database compute for a request: others disturb this less."""
    return statistics.median((cell["server"] + cell["database"]) / cell["rps"] for cell in cells)


def compare(
    urls: dict[int, str], backend: str, rounds: int, length: int, bar: Any, report: Report
) -> None:
    """Ask a small and a large database for the same, in turn, in a shuffled order."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="roster-bench-")))
        servers, told = {}, {}
        for rows, url in urls.items():
            servers[rows] = stack.enter_context(serve(PEERS["roster"], url))
            (folder / str(rows)).mkdir()
            told[rows] = scripts(url, rows, folder / str(rows))
            servers[rows].wait()
        cells: dict[str, dict[int, Any]] = {
            operation: {rows: [] for rows in urls} for operation in OPERATIONS
        }
        for number in range(rounds):
            for operation in OPERATIONS:
                for rows in random.sample([*urls], len(urls)):
                    bar(f"{DATABASES[backend]}, {rows:,} rows: {OPERATIONS[operation].lower()}")
                    script = told[rows][operation] + [f"r{number}"] * (operation == "create")
                    seen = measure(servers[rows], script, length)
                    cells[operation][rows].append(seen)
                    report.others.append(seen["others"])
    for operation, (small, large) in ((name, each.values()) for name, each in cells.items()):
        times, work = ratio(small, large), computed(large) / computed(small)
        report.add(
            f"{OPERATIONS[operation]}: large to small",
            f"{times:.2f}x ({median(small, 'rps'):,.0f}, {median(large, 'rps'):,.0f} req/s);"
            f" processor {work:.2f}x",
            "0.8x to 1.2x",
            0.8 <= times <= 1.2,
        )
    for operation in ("get", "list", "create"):
        p50, p99 = (median(cells[operation][SMALL], key) for key in ("p50", "p99"))
        report.add(
            f"{OPERATIONS[operation]}: p99 / p50",
            f"{p99 / p50:.1f} ({p99:.1f} / {p50:.1f} ms)",
            "at most 2",
            p99 <= 2 * p50,
        )


async def show_plans(url: str, user_id: int, report: Report) -> None:
    """Print how the database finds what it is asked for; all plans are judged."""
    database = Database(url, size=2)
    try:
        plans = await explain(database.writer, user_id)
    finally:
        await database.stop()
    backend = make_url(url).get_backend_name()
    for name in SHOWN:
        console.print(f"{DATABASES[backend]}, {name}:", *plans[name], sep="\n", highlight=False)
    wrong = [
        name
        for name, question in QUESTIONS.items()
        if any(complaints(backend, question, plan) for plan in plans[name])
    ]
    report.add("Plans that follow no index", ", ".join(wrong) or "none", "none", not wrong)


def start(url: str, bar: Any, report: Report) -> None:
    """Measure how long a new process takes to answer, and its memory then."""
    took, memory = [], 0.0
    for _ in range(STARTS):
        bar("start")
        began = time.monotonic()
        with serve(PEERS["roster"], url) as server:
            while time.monotonic() < began + 30:
                try:
                    server.client.get("/users/1").raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(0.005)
            took.append(time.monotonic() - began)
            memory = max(memory, server.memory())
    middle = statistics.median(took)
    report.add(f"Start to first answer, median of {STARTS}", f"{middle:.2f} s", "1 s", middle <= 1)
    report.add("Memory after the first answer", f"{memory:.0f} MB", "90 MB", memory <= 90)


def export(server: Server, rows: int, report: Report) -> None:
    """Download all users, and look at the server's memory meanwhile."""
    before = server.memory()
    lines, samples, began = 0, [], time.monotonic()
    with server.client.stream("GET", "/users/export") as answer:
        for number, chunk in enumerate(answer.iter_raw()):
            lines += chunk.count(b"\n")
            if number % 100 == 0:
                samples.append((lines, server.memory()))
    took = time.monotonic() - began
    if lines != rows:
        sys.exit(f"The export has {lines} lines, not {rows}.")
    first = max(memory for lines, memory in samples if lines <= rows / 10)
    most = max(memory for _, memory in samples)
    report.add(f"Export of {rows:,} users", f"{rows / took:,.0f} rows/s")
    report.add(
        "Export: memory before, first tenth, most",
        f"{before:.0f}, {first:.0f}, {most:.0f} MB",
        "5 MB more",
        most <= first + 5,
    )


def bulk(server: Server, report: Report) -> None:
    """Add many users, 1000 in a request."""
    bodies = [
        json.dumps([new_user(10**9 + 1000 * number + i) for i in range(1000)]).encode()
        for number in range(BULKS)
    ]
    used, began = seconds(server.family()), time.monotonic()
    for body in bodies:
        server.client.post("/users/bulk", content=body, headers=JSON).raise_for_status()
    rate = 1000 * BULKS / (time.monotonic() - began)
    used = seconds(server.family()) - used
    measured = f"{rate:,.0f} rows/s ({1000 * BULKS / used:,.0f} in a second of its processor)"
    report.add("Bulk, 1000 in a request", measured, "20,000 rows/s", rate >= 20_000)


def run(args: argparse.Namespace) -> None:
    """Measure everything, and print it."""
    reports = []
    steps = len(OPERATIONS) * 2 * args.rounds + 3 + STARTS
    with progress_bar() as progress:
        task = progress.add_task("", total=steps * len(args.backend) + 1)

        def bar(what: str) -> None:
            progress.update(task, description=what, advance=1)

        for backend in args.backend:
            report = Report()
            with ExitStack() as stack:
                database = stack.enter_context(BACKENDS[backend]())
                urls = {}
                for rows in (SMALL, args.rows):
                    bar(f"{DATABASES[backend]}: fill with {rows:,} rows")
                    urls[rows] = stack.enter_context(database.new())
                    fill(urls[rows], rows)
                report.grid.title = (
                    f"{database.version}, {SMALL:,} and {args.rows:,} rows,"
                    f" {CONNECTIONS} connections"
                )
                asyncio.run(show_plans(urls[args.rows], args.rows // 2, report))
                compare(urls, backend, args.rounds, args.seconds, bar, report)
                start(urls[SMALL], bar, report)
                if backend == "sqlite":
                    rows = min(EXPORTED, args.rows)
                    bar(f"SQLite: export {rows:,} rows, and add {1000 * BULKS:,}")
                    url = stack.enter_context(database.new())
                    fill(url, rows)
                    with serve(PEERS["roster"], url) as server:
                        server.wait()
                        export(server, rows, report)
                        bulk(server, report)
            reports.append(report)
    console.print(*(report.grid for report in reports))
    others = statistics.median(share for report in reports for share in report.others)
    console.print(f"{machine()}, {date.today()}; other programs took {others:.0%} of a core")
    if others > 0.1:
        console.print("[red]The machine was busy: these are no numbers to publish.[/]")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Measure Roster with many users.")
    parser.add_argument("--rows", type=int, default=10_000_000, help="more than 10,000")
    parser.add_argument("--backend", nargs="+", choices=SQL[:2], default=SQL[:2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="how long a measurement takes")
    args = parser.parse_args()
    if args.rows <= SMALL:
        parser.error(f"--rows must be more than {SMALL}")
    if shutil.which("wrk") is None:
        sys.exit("no wrk here: install Debian's wrk")
    os.sched_setaffinity(0, LOAD_CORES)  # wrk and PostgreSQL inherit it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    try:
        run(args)
    except Missing as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
