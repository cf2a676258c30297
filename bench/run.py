"""Measure Roster and its peers, print the tables, draw the picture; ``README.md`` has the method.

``PEERS`` in ``servers.py`` is the one table of what is measured.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from many import KEPT, SERVERS, TRIES, measure_connections, measure_workers
from report import IDIOMS, RESULTS, console, draw, progress_bar, report, summary, to_idiom
from servers import (
    CONNECTIONS,
    DATABASES,
    LOAD_CORES,
    PEERS,
    RAW,
    ROWS,
    Missing,
    Peer,
    ask,
    peers_on,
    roster_at,
    serve,
    write_reads,
)

# Creations come last: all the others see the same number of users, of every peer.
OPERATIONS = {
    "get": "Get one",
    "list": "List 100",
    "find": "Find by words",
    "change": "Change",
    "create": "Create",
}
PARTS = ("cells", "mixed", "workers", "connections")
PACKAGES = ["fastapi", "sqlmodel", "sqlalchemy", "uvicorn", "fastcrud", "litestar"]
PACKAGES += ["advanced-alchemy", "flask", "django", "django-ninja", "gunicorn", "redis-om"]
ROUNDS = 5
QUICK_ROUNDS, QUICK_SECONDS = 4, 1
MAY_LOSE = 0.15
Results = dict[str, Any]


def machine() -> str:
    """Return what this machine is, in a line."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


Uncertain = Callable[[Results, str, str], bool]


def measure_database(
    results: Results,
    backend: str,
    peers: dict[str, Peer],
    asked: list[str],
    uncertain: Uncertain,
    step: Callable[[str], None],
) -> None:
    """Measure operations on one database, round by round, and put what was seen into ``results``.

    In a round, an operation is asked of each peer in a shuffled order, one after the other: what
    else the machine does meanwhile, it does to all of them. The next round has the opposite order,
    so that no peer is asked first more often than another. An operation that is still ``uncertain``
    after its rounds has as many again.
    """
    rounds, length = (results["settings"][key] for key in ("rounds", "seconds"))
    with peers_on(backend, peers) as (servers, database):
        results["databases"][backend] = database
        results["cells"][backend] = {}
        for operation in asked:
            finding = [name for name in servers if servers[name].finds and peers[name].stores]
            names = finding if operation == "find" else [*servers]
            cells: dict[str, list[Any]] = {name: [] for name in names}
            if operation != "mixed":
                results["cells"][backend][operation] = cells
            number, order = 0, names
            while number < rounds or (
                number < 2 * rounds and uncertain(results, backend, operation)
            ):
                number += 1
                order = random.sample(names, len(names)) if number % 2 else order[::-1]
                for name in order:
                    step(f"{DATABASES[backend]}, {operation}, round {number}: {name}")
                    took = length * 3 // 2 if operation == "mixed" else length
                    cells[name].append(ask(servers[name], operation, f"{operation}{number}", took))
            if operation == "mixed":
                results["mixed"][backend] = {name: summary(each) for name, each in cells.items()}
        for server in servers.values():
            if not server.finds:
                console.print(f"{database}: {server.peer.title} has no q: no find.")
        results["memory"][backend] = {name: server.memory() for name, server in servers.items()}


def run(
    parts: list[str],
    backends: list[str],
    peers: dict[str, Peer],
    rounds: int,
    length: int,
    uncertain: Uncertain = lambda *_: False,
) -> Results:
    """Measure everything, and return what was seen."""
    results: Results = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "settings": {"rounds": rounds, "seconds": length, "connections": CONNECTIONS, "rows": ROWS},
        "versions": {package: version(package) for package in PACKAGES},
        "titles": {name: peer.title for name, peer in peers.items()},
        "operations": OPERATIONS,
        **{part: {} for part in ("databases", "raw", "cells", "memory", "mixed")},
        **{part: {} for part in ("workers", "connections")},
    }
    asked = [*OPERATIONS] * ("cells" in parts)
    if "mixed" in parts:
        asked.insert(asked.index("create") if asked else 0, "mixed")
    here = {
        backend: {name: peer for name, peer in peers.items() if backend in peer.on}
        for backend in backends
    }
    steps = len(asked) * rounds * sum(len(names) for names in here.values())
    steps += 4 * TRIES * len({*SERVERS} & {*backends}) * ("workers" in parts)
    steps += len(KEPT) * ("connections" in parts)
    with progress_bar() as progress:
        task = progress.add_task("", total=steps)

        def step(what: str) -> None:
            progress.update(task, description=what, advance=1)

        if "cells" in parts:
            with serve(RAW) as server:
                server.wait()
                server.cursors = ["1"]  # any will do
                write_reads(server)
                for operation in ("get", "list", "create"):
                    results["raw"][operation] = ask(server, operation, "raw", 1)
        if asked:
            for backend in backends:
                progress.update(task, description=f"{DATABASES[backend]}: start, fill, check")
                measure_database(results, backend, here[backend], asked, uncertain, step)
        if "workers" in parts:
            for backend in (each for each in backends if each in SERVERS):
                results["workers"][backend] = measure_workers(backend, length, step)
        if "connections" in parts:
            for many in KEPT:
                step(f"{many:,} connections")
                results["connections"][str(many)] = measure_connections(many, length)
    return results


def guard() -> None:
    """Measure Roster and the idiom; exit with 1 if a cell lost too much of its committed ratio."""
    base = json.loads(RESULTS.read_text())

    def uncertain(results: Results, backend: str, operation: str) -> bool:
        ratios = to_idiom(results, base, backend, operation)
        return ratios is not None and ratios[0] < (1 - MAY_LOSE) * ratios[1]

    peers = {name: PEERS[name] for name in ("roster", "tutorial", "redis-om")}
    results = run(["cells"], list(IDIOMS), peers, QUICK_ROUNDS, QUICK_SECONDS, uncertain)
    report(results)
    bad = False
    for backend, operation in product(IDIOMS, OPERATIONS):
        ratios = to_idiom(results, base, backend, operation)
        what = f"{DATABASES[backend]}, {OPERATIONS[operation].lower()}"
        if ratios is None:
            console.print(f"{what}: nothing to compare with")
        elif uncertain(results, backend, operation):
            bad = True
            console.print(f"[red]{what}: {ratios[0]:.2f}x the idiom, it was {ratios[1]:.2f}x[/]")
    if bad:
        sys.exit(f"More than {MAY_LOSE:.0%} of a ratio is lost.")
    console.print(f"No cell has lost more than {MAY_LOSE:.0%} of its ratio to the idiom.")


def main() -> None:
    """Do what the command line says."""
    default = [name for name in DATABASES if name != "mongodb"]
    parser = argparse.ArgumentParser(description="Measure Roster and its peers.")
    parser.add_argument("--backend", nargs="+", choices=DATABASES, default=default)
    parser.add_argument(
        "--peers",
        nargs="+",
        default=list(PEERS),
        help=f"{', '.join(PEERS)}, or roster@PLACE: a commit, or a folder with a working tree",
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts, not all of them")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=int, default=2, help="how long a measurement takes")
    parser.add_argument("--quick", action="store_true", help="compare with the committed figures")
    parser.add_argument("--draw", action="store_true", help="only draw the last results again")
    args = parser.parse_args()
    unknown = [n for n in args.peers if n not in PEERS and not n.startswith("roster@")]
    if unknown:
        parser.error(f"no such peer: {', '.join(unknown)}")
    if args.draw:
        draw(json.loads(RESULTS.read_text()))
        return
    if shutil.which("wrk") is None:
        sys.exit("no wrk here: install Debian's wrk")
    if "mongodb" in args.backend and "TEST_MONGODB_URL" not in os.environ:
        sys.exit("MongoDB is measured only on its own server: set TEST_MONGODB_URL.")
    os.sched_setaffinity(0, LOAD_CORES)  # wrk and the databases inherit it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    # Peers beside Roster say something about cells and mixed load only.
    parts = args.only or (PARTS if args.peers == list(PEERS) else PARTS[:1])
    try:
        if args.quick:
            guard()
            return
        with ExitStack() as stack:
            peers = {
                name: PEERS.get(name) or roster_at(name.removeprefix("roster@"), stack)
                for name in args.peers
            }
            results = run([*parts], args.backend, peers, args.rounds, args.seconds)
    except Missing as error:
        sys.exit(str(error))
    report(results)
    # Half a run is nothing to publish.
    whole = args.backend == default and args.peers == list(PEERS) and [*parts] == [*PARTS]
    if whole and args.rounds >= ROUNDS:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        draw(results)
        console.print(f"Written: {RESULTS.name}, and the picture.")


if __name__ == "__main__":
    main()
