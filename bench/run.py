"""Measure Roster and its peers, print the tables, draw the picture; ``README.md`` has the method.

``PEERS`` is the one table of what is measured; a new peer is one file in ``peers/`` and one line.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode

import httpx
import psutil
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Grid
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
)

BENCH = Path(__file__).resolve().parent
ROSTER = BENCH.parent
sys.path.append(str(ROSTER / "tests"))

from databases import BACKENDS, Missing  # noqa: E402  # the line above leads to it


@dataclass(frozen=True)
class Peer:
    """What is measured: how Python serves it, and how many times as fast Roster is meant to be.

    It finds its database in DATABASE_URL, as Roster does; ``stores`` is whether it needs one. Its
    modules are in ``home``. ``goal`` is None for Roster itself, now or at another commit.
    """

    title: str
    serve: str
    goal: float | None = None
    stores: bool = True
    home: Path = BENCH / "peers"


# Each is one process with one worker, and writes no access log.
UVICORN = "-m uvicorn --port={port} --no-access-log --log-level=warning"
GUNICORN = "-m gunicorn --bind=127.0.0.1:{port} --workers=1 --log-level=warning"
PEERS = {
    "roster": Peer("Roster", f"{UVICORN} app:app", home=ROSTER),
    "tutorial": Peer("FastAPI, the tutorial's idiom", f"{UVICORN} tutorial:app", goal=4),
    "litestar": Peer("Litestar + advanced-alchemy", f"{UVICORN} litestar_app:app", goal=1.5),
    "flask": Peer("Flask + SQLAlchemy", f"{GUNICORN} flask_app:app", goal=1.5),
    "ninja": Peer("Django Ninja", f"{GUNICORN} ninja_app:app", goal=1.5),
    "nodb": Peer("FastAPI without a database", f"{UVICORN} nodb:app", goal=0.5, stores=False),
}
RAW = Peer("fixed bytes, no framework", "-m raw {port}", stores=False)

DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
OPERATIONS = {"get": "Get one", "list": "List 100", "create": "Create"}
FIELDS = {"id", "name", "email", "created_at", "updated_at", "version"}
ROWS = 10_000
PAGE = 100
CONNECTIONS = 32
PACKAGES = ["fastapi", "sqlmodel", "sqlalchemy", "uvicorn", "litestar", "advanced-alchemy", "flask"]
PACKAGES += ["django", "django-ninja", "gunicorn"]
RESULTS, PICTURE = BENCH / "results.json", BENCH / "results.svg"

# The server that is measured has a core to itself; wrk and PostgreSQL have the others.
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORES = CORES[0], CORES[1:] or CORES

# The table of the peers; Roster makes its own.
USERS = Table(
    "users",
    MetaData(),
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("email", String(254), nullable=False, unique=True),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
    Column("version", Integer, nullable=False),
    sqlite_autoincrement=True,
)

console = Console(width=max(Console().width, 136))  # as wide as the tables, in a file too


def new_user(number: int) -> dict[str, str]:
    """Return what a client sends to add the user who gets this id."""
    return {"name": f"User {number}", "email": f"user{number}@example.com"}


def seed(url: str) -> None:
    """Make the table in a peer's database, with all rows."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    if engine.name == "sqlite":
        with engine.connect() as connection:
            # WAL stays with the file. FULL is what a connection has unless it asks for less, and no
            # peer does: a commit that was answered is on the disk.
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            if connection.exec_driver_sql("PRAGMA synchronous").scalar() != 2:
                sys.exit("This SQLite was built without synchronous=FULL as its default.")
    then = datetime(2026, 1, 1, tzinfo=UTC)
    stamps = {"created_at": then, "updated_at": then, "version": 1}
    with engine.begin() as connection:
        USERS.metadata.create_all(connection)
        connection.execute(USERS.insert(), [{**new_user(i + 1), **stamps} for i in range(ROWS)])
    engine.dispose()


class Server:
    """A peer that serves."""

    def __init__(self, peer: Peer, url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.peer = peer
        self.client = httpx.Client(base_url=url, trust_env=False, timeout=30)
        self.process = process
        self.log = log

    def wait(self) -> None:
        """Return once it answers, and keep it to its core from now on; end the run if it cannot."""
        deadline = time.monotonic() + 60
        while True:
            try:
                self.client.get("/users/1")
                break
            except httpx.TransportError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{self.peer.title} does not serve:\n{self.log.read_text()}")
                time.sleep(0.1)
        for thread in (thread for process in self.family() for thread in process.threads()):
            os.sched_setaffinity(thread.id, {SERVER_CORE})

    def family(self) -> list[Any]:
        """Return its process and its workers."""
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]

    def memory(self) -> float:
        """Return the MB that its largest process has in memory."""
        return max(float(process.memory_info().rss) for process in self.family()) / 1e6


def seconds(processes: list[Any]) -> float:
    """Return for how long processes have computed, with those that they started and that ended."""
    computed = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # PostgreSQL's autovacuum comes and goes
            computed += sum(process.cpu_times()[:4])
    return computed


def roster_at(place: str, stack: ExitStack) -> Peer:
    """Return Roster in a folder, or at a commit, which is unpacked until the stack ends."""
    home = Path(place).resolve()
    if (home / "app.py").is_file():
        return replace(PEERS["roster"], title=f"Roster in {place}", home=home)
    git = ["git", "-C", str(ROSTER)]
    named = [*git, "rev-parse", "--short", "--verify", "--quiet", f"{place}^{{commit}}"]
    commit = subprocess.run(named, check=False, capture_output=True, text=True).stdout.strip()
    if not commit:
        sys.exit(f"roster@{place}: neither a commit of {ROSTER} nor a folder with an app.py")
    home = Path(stack.enter_context(TemporaryDirectory(prefix="roster-bench-")))
    packed = subprocess.run([*git, "archive", commit], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(home, filter="data")
    title = f"Roster at {place}" + f" ({commit})" * (not commit.startswith(place[:7]))
    return replace(PEERS["roster"], title=title, home=home)


@contextmanager
def serve(peer: Peer, database_url: str = "") -> Iterator[Server]:
    """Run a peer in a folder of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {**os.environ, "PYTHONPATH": str(peer.home), "DATABASE_URL": database_url}
    with TemporaryDirectory(prefix="roster-bench-") as folder:
        log = Path(folder, "log")
        with log.open("wb") as out:
            command = [sys.executable, *peer.serve.format(port=port).split()]
            process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out)
        try:
            os.sched_setaffinity(process.pid, CORES)  # until it serves, it may be quick
            yield Server(peer, f"http://127.0.0.1:{port}", process, log)
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def check(server: Server) -> list[str]:
    """See that a peer is right, so that none is fast because it is wrong; return its cursors."""
    client, title = server.client, server.peer.title

    def expect(true: object, what: str) -> None:
        if not true:
            sys.exit(f"{title}: {what}\n{server.log.read_text()}")

    def same(user: dict[str, Any], number: int) -> bool:
        return (
            user.keys() == FIELDS
            and all(
                datetime.fromisoformat(user[f"{what}_at"]).tzinfo for what in ("created", "updated")
            )
            and user == {**user, **new_user(number), "id": number, "version": 1}
        )

    for number in (1, ROWS // 2, ROWS):
        expect(same(client.get(f"/users/{number}").json(), number), f"user {number} is wrong")
    cursors: list[str] = []
    for first in range(1, ROWS, PAGE):
        page = client.get("/users/", params={"limit": PAGE, "cursor": cursors[-1:]}).json()
        right = list(page) == ["items", "next"] and len(page["items"]) == PAGE
        right = right and all(same(user, first + i) for i, user in enumerate(page["items"]))
        expect(right, f"the page from user {first} on is wrong")
        cursors.append(page["next"])
    expect(cursors.pop() is None, "the last page is not the last")
    answer = client.post("/users/", json=new_user(ROWS + 1))
    expect(answer.status_code == 201, f"a new user gets {answer.status_code}")
    expect(same(answer.json(), ROWS + 1), "a new user is wrong")
    answer = client.post("/users/", json=new_user(ROWS + 1))
    expect(answer.status_code == 409 or not server.peer.stores, "an email can be taken twice")
    for wrong in ({"email": "ada"}, {"name": ""}, {"name": "a" * 101}):
        answer = client.post("/users/", json={**new_user(ROWS + 2), **wrong})
        expect(answer.status_code in (400, 422), f"{wrong} gets {answer.status_code}")
    return cursors


def measure(server: Server, script: list[str], length: int) -> dict[str, float]:
    """Let wrk ask for some seconds; return what it saw, and the share of a core that each took.

    An answer that is no success ends the run: it is not known what else would be wrong.
    """
    wrk = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{length}s", "--timeout=10s"]
    wrk += [f"--script={BENCH}/load.lua", str(server.client.base_url), "--", *script]
    before, began = times(server), time.monotonic()
    printed = subprocess.run(wrk, check=True, capture_output=True, text=True).stdout
    took = time.monotonic() - began
    after = times(server)
    seen: dict[str, float] = json.loads(printed.splitlines()[-1])
    if seen.pop("failed"):
        sys.exit(f"{server.peer.title}: not every answer is a success:\n{printed}")
    for who, used in after.items():
        seen[who] = (used - before[who]) / took
    return seen


def times(server: Server) -> dict[str, float]:
    """Return for how many seconds each has computed so far: server, wrk, database, and others."""
    every = psutil.cpu_times()
    every = float(sum(every) - every.idle - every.iowait - every.guest - every.guest_nice)
    used = getrusage(RUSAGE_CHILDREN)  # of those that have ended: wrk
    wrk, own = used.ru_utime + used.ru_stime, seconds(server.family())
    running = seconds(psutil.Process().children(recursive=True))
    return {"server": own, "wrk": wrk, "database": running - own, "others": every - running - wrk}


def scripts(cursors: list[str], folder: Path) -> dict[str, list[str]]:
    """Return what load.lua is told for each operation; the same users and pages for every peer."""
    chance = random.Random(1)
    ids = [chance.randint(1, ROWS) for _ in range(ROWS)]
    pages = ["", *("&" + urlencode({"cursor": cursor}) for cursor in cursors)]
    chance.shuffle(pages)
    one, many = folder / "get", folder / "list"
    one.write_text("\n".join(f"/users/{number}" for number in ids))
    many.write_text("\n".join(f"/users/?limit={PAGE}{page}" for page in pages))
    return {"get": ["read", str(one)], "list": ["read", str(many)], "create": ["create"]}


@contextmanager
def peers_on(backend: str, peers: dict[str, Peer]) -> Iterator[tuple[dict[str, Server], str]]:
    """Start peers, each on a new database with all rows; yield them, and the database's version."""
    with ExitStack() as stack:
        database = stack.enter_context(BACKENDS[backend]())
        servers = {}
        for name, peer in peers.items():
            url = stack.enter_context(database.new())
            if peer.goal is not None and peer.stores:
                seed(url)
            servers[name] = stack.enter_context(serve(peer, url))
        for server in servers.values():
            server.wait()
            if server.peer.goal is None:
                for first in range(1, ROWS, 1000):
                    users = [new_user(first + i) for i in range(1000)]
                    server.client.post("/users/bulk", json=users).raise_for_status()
        yield servers, database.version


def progress_bar() -> Progress:
    """Return a bar that says what is being measured."""
    shown = [TextColumn("{task.description:<56}"), BarColumn(), MofNCompleteColumn()]
    return Progress(*shown, TimeRemainingColumn(), console=console, transient=True)


Results = dict[str, Any]


def run(backends: list[str], peers: dict[str, Peer], rounds: int, length: int) -> Results:
    """Measure everything, round by round, and return what was seen.

    In a round, each operation is asked of each peer in a shuffled order, one after the other: what
    else the machine does meanwhile, it does to all of them. The next round has the opposite order,
    so that no peer is asked first more often than another.
    """
    names = list(peers)
    results: Results = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "settings": {"rounds": rounds, "seconds": length, "connections": CONNECTIONS, "rows": ROWS},
        "versions": {package: version(package) for package in PACKAGES},
        "titles": {name: peer.title for name, peer in peers.items()},
        "databases": {},
        "raw": {},
        "cells": {},
        "memory": {},
    }
    steps = len(OPERATIONS) * (1 + len(backends) * len(names) * rounds)
    with progress_bar() as progress:
        task = progress.add_task("", total=steps)

        def step(server: Server, operation: str, what: str, script: list[str], length: int) -> Any:
            name = f"{server.peer.title}: {OPERATIONS[operation].lower()}{what}"
            progress.update(task, description=name)
            seen = measure(server, script, length)
            progress.advance(task)
            return seen

        with TemporaryDirectory(prefix="roster-bench-") as name, serve(RAW) as server:
            server.wait()
            # Any cursor will do.
            for operation, script in scripts(["1"], Path(name)).items():
                script = [*script, "raw"] if operation == "create" else script
                results["raw"][operation] = step(server, operation, "", script, 1)
        for backend in backends:
            progress.update(task, description=f"{DATABASES[backend]}: start, fill, check")
            with peers_on(backend, peers) as (servers, product), ExitStack() as stack:
                results["databases"][backend] = product
                told = {}
                for name, server in servers.items():
                    folder = stack.enter_context(TemporaryDirectory(prefix="roster-bench-"))
                    told[name] = scripts(check(server), Path(folder))
                cells: dict[str, dict[str, list[Any]]]
                cells = {operation: {name: [] for name in names} for operation in OPERATIONS}
                results["cells"][backend] = cells
                order = dict.fromkeys(OPERATIONS, names)
                for number in range(1, rounds + 1):
                    for operation in OPERATIONS:
                        again = random.sample(names, len(names))
                        order[operation] = again if number % 2 else order[operation][::-1]
                        for name in order[operation]:
                            script = told[name][operation]
                            if operation == "create":
                                script = [*script, f"round{number}"]
                            what = f", {DATABASES[backend]}, round {number}"
                            seen = step(servers[name], operation, what, script, length)
                            cells[operation][name].append(seen)
                used = {name: server.memory() for name, server in servers.items()}
                results["memory"][backend] = used
    return results


def machine() -> str:
    """Return what this machine is, in a line."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def median(cells: list[dict[str, float]], key: str) -> float:
    """Return the median of a figure over the rounds."""
    return statistics.median(cell[key] for cell in cells)


def work(cell: dict[str, float]) -> float:
    """Return the server's processor time for a request, in microseconds."""
    return cell["server"] / cell["rps"] * 1e6


def ratios(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> list[float]:
    """Return how many times as fast we are in each round.

    The two of a round were measured shortly after each other.
    """
    return [one["rps"] / other["rps"] for one, other in zip(ours, theirs, strict=True)]


def ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    """Return how many times as fast we are: the median of the rounds' ratios."""
    return statistics.median(ratios(ours, theirs))


def compared(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> list[str]:
    """Return three columns: how many times as fast we are, its spread, and theirs / our work."""
    least, most = (f(ratios(ours, theirs)) for f in (min, max))
    pairs = zip(ours, theirs, strict=True)
    saved = statistics.median(work(other) / work(one) for one, other in pairs)
    return [f"{ratio(ours, theirs):.2f}x", f"{least:.2f}-{most:.2f}", f"{saved:.2f}x"]


def report(results: Results) -> None:
    """Print the tables. Ratios are Roster's to the others, or else those of the first peer."""
    titles, settings = results["titles"], results["settings"]
    ours = "roster" if "roster" in titles else next(iter(titles))
    for backend, operations in results["cells"].items():
        grid = Grid(
            title=f"{results['databases'][backend]}, {CONNECTIONS} connections, median of"
            f" {settings['rounds']} x {settings['seconds']} s;"
            f" ratios: {titles[ours]} to the others",
            title_justify="left",
        )
        grid.add_column("", no_wrap=True)
        grid.add_column("", no_wrap=True)
        for heading in (
            *("req/s", "p50 ms", "p99 ms", "ratio", "rounds", "work", "goal"),
            *("core", "us/req", "DB", "wrk"),
        ):
            grid.add_column(heading, justify="right", no_wrap=True)
        for operation, peers in operations.items():
            for name, cells in peers.items():
                row = [f"{median(cells, 'rps'):,.0f}"]
                row += [f"{median(cells, key):.1f}" for key in ("p50", "p99")]
                row += compared(peers[ours], cells) if name != ours else [""] * 3
                goal = PEERS[name].goal if name in PEERS and ours == "roster" else None
                if goal is None:
                    row += [""]
                else:
                    good = ratio(peers[ours], cells) >= goal
                    colour, word = ("green", "pass") if good else ("red", "FAIL")
                    row += [f"[{colour}]{goal:g}x {word}[/]"]
                row += [f"{median(cells, 'server'):.0%}"]
                row += [f"{statistics.median(work(cell) for cell in cells):,.0f}"]
                row += [f"{median(cells, key):.0%}" for key in ("database", "wrk")]
                first = OPERATIONS[operation] if name == next(iter(peers)) else ""
                grid.add_row(first, titles[name], *row)
            grid.add_section()
        console.print(grid)
        memory = results["memory"][backend].items()
        console.print("MB:", ", ".join(f"{titles[name]} {mb:.0f}" for name, mb in memory))
    every = [
        (operation, median(cells, "rps"), median(cells, "wrk"), median(cells, "others"))
        for operations in results["cells"].values()
        for operation, peers in operations.items()
        for cells in peers.values()
    ]
    console.print(f"wrk took at most {max(wrk for _, _, wrk, _ in every):.0%} of a core;", end=" ")
    console.print("from fixed bytes, without any framework, it gets:")
    for operation, raw in results["raw"].items():
        best = max(rps for name, rps, *_ in every if name == operation)
        title = OPERATIONS[operation].lower()
        console.print(f"  {title}: {raw['rps']:,.0f} req/s, {raw['rps'] / best:.1f}x the fastest")
    others = statistics.median(share for *_, share in every)
    console.print(f"{results['machine']}, {results['date']};", end=" ")
    console.print(f"other programs took {others:.0%} of a core meanwhile")
    if others > 0.1:
        console.print("[red]The machine was busy: these are no numbers to publish.[/]")


def draw(results: Results) -> None:
    """Draw the medians, with the least and the most of the rounds, into ``PICTURE``."""
    colours = {"roster": "#0f766e", "nodb": "#cbd5e1"}
    style = {
        "svg.fonttype": "none",  # text stays text: small, sharp, and it can be searched
        "svg.hashsalt": "roster",  # the same results make the same file
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
        "font.size": 9,
        "axes.edgecolor": "#94a3b8",
        "text.color": "#0f172a",
    }
    with rc_context(style):
        figure = Figure(figsize=(10, 7.2), layout="constrained", facecolor="white")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
        grid = figure.subplots(
            len(OPERATIONS), len(results["cells"]), sharex="row", sharey=True, squeeze=False
        )
        for column, (backend, operations) in enumerate(results["cells"].items()):
            for row, (operation, peers) in enumerate(operations.items()):
                axes = grid[row][column]
                for place, (name, cells) in enumerate(peers.items()):
                    middle = median(cells, "rps")
                    least, most = (f(cell["rps"] for cell in cells) for f in (min, max))
                    axes.barh(place, middle, height=0.72, color=colours.get(name, "#64748b"))
                    axes.hlines(place, least, most, color="#0f172a", linewidth=1)
                    label = f"{middle:,.0f}"
                    if name != "roster":
                        label += f"   (Roster {ratio(peers['roster'], cells):.1f}x)"
                    weight = "bold" if name == "roster" else "normal"
                    axes.annotate(
                        label,
                        (most, place),
                        (5, 0),
                        textcoords="offset points",
                        va="center",
                        fontsize=8,
                        weight=weight,
                    )
                axes.set_yticks(range(len(peers)), [results["titles"][name] for name in peers])
                axes.spines[["top", "right", "bottom"]].set_visible(False)
                axes.tick_params(length=0)
                axes.set_xticks([])
                title = f"{OPERATIONS[operation]}, {results['databases'][backend]}"
                axes.set_title(title, loc="left", weight="bold", fontsize=10)
                axes.margins(x=0.25)
        grid[0][0].invert_yaxis()  # all have the same axis
        settings = results["settings"]
        figure.suptitle(
            f"Requests a second: one process, {settings['connections']} connections,"
            f" {settings['rows']:,} rows",
            x=0.01,
            ha="left",
            weight="bold",
            fontsize=12,
        )
        figure.supxlabel(
            f"Medians of {settings['rounds']} rounds of {settings['seconds']} s; the line is from"
            f" the slowest to the fastest round. {results['machine']}. {results['date']}.",
            x=0.01,
            ha="left",
            fontsize=8,
        )
        figure.savefig(PICTURE, metadata={"Date": None, "Creator": None})


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Measure Roster and its peers.")
    parser.add_argument("--backend", nargs="+", choices=DATABASES, default=list(DATABASES))
    parser.add_argument(
        "--peers",
        nargs="+",
        default=list(PEERS),
        help=f"{', '.join(PEERS)}, or roster@PLACE: a commit, or a folder with a working tree",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="how long a measurement takes")
    parser.add_argument("--quick", action="store_true", help="one round of 2 seconds")
    parser.add_argument("--draw", action="store_true", help="only draw the last results again")
    args = parser.parse_args()
    unknown = [n for n in args.peers if n not in PEERS and not n.startswith("roster@")]
    if unknown:
        parser.error(f"no such peer: {', '.join(unknown)}")
    if args.draw:
        draw(json.loads(RESULTS.read_text()))
        return
    if args.quick:
        args.rounds, args.seconds = 1, 2
    if shutil.which("wrk") is None:
        sys.exit("no wrk here: install Debian's wrk")
    os.sched_setaffinity(0, LOAD_CORES)  # wrk and PostgreSQL inherit it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    try:
        with ExitStack() as stack:
            peers = {
                name: PEERS.get(name) or roster_at(name.removeprefix("roster@"), stack)
                for name in args.peers
            }
            results = run(args.backend, peers, args.rounds, args.seconds)
    except Missing as error:
        sys.exit(str(error))
    report(results)
    # Half a run is nothing to publish.
    if not args.quick and args.backend == list(DATABASES) and args.peers == list(PEERS):
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        draw(results)
        console.print(f"Written: {RESULTS.name}, {PICTURE.name}")


if __name__ == "__main__":
    main()
