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
from pathlib import Path
from typing import Any

from many import KEPT, SERVERS, measure_connections, measure_workers
from report import RESULTS, console, draw, kept, progress_bar, report, summary
from servers import (
    CONNECTIONS,
    DATABASES,
    LOAD_CORES,
    PEERS,
    RAW,
    ROWS,
    SEARCHES,
    Missing,
    Peer,
    measure,
    peers_on,
    roster_at,
    script,
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
QUICK_ROUNDS, QUICK_SECONDS = 3, 1
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


def idiom(backend: str) -> str:
    """Return the peer that is a database's documented idiom in FastAPI."""
    return "redis-om" if backend == "redis" else "tutorial"


def lost(results: Results, backend: str, operation: str, base: Results) -> float | None:
    """Return which share of its ratio to the idiom a cell has lost; None where one is not known."""
    peer = idiom(backend)
    now, then = (kept(each, backend, operation, "roster", peer) for each in (results, base))
    return None if now is None or then is None else 1 - now / then


def run(
    parts: list[str],
    backends: list[str],
    peers: dict[str, Peer],
    rounds: int,
    length: int,
    uncertain: Callable[[Results, str, str], bool] = lambda *_: False,
) -> Results:
    """Measure everything, round by round, and return what was seen.

    In a round, each operation is asked of each peer in a shuffled order, one after the other: what
    else the machine does meanwhile, it does to all of them. The next round has the opposite order,
    so that no peer is asked first more often than another. An operation that is still ``uncertain``
    after its rounds has twice as many again.
    """
    results: Results = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "settings": {"rounds": rounds, "seconds": length, "connections": CONNECTIONS, "rows": ROWS},
        "versions": {package: version(package) for package in PACKAGES},
        "titles": {name: peer.title for name, peer in peers.items()},
        "operations": OPERATIONS,
        "databases": {},
        "raw": {},
        "cells": {},
        "memory": {},
        "mixed": {},
        "workers": {},
        "connections": {},
    }
    asked = [*OPERATIONS] * ("cells" in parts)
    if "mixed" in parts:
        asked.insert(asked.index("create") if asked else 0, "mixed")
    here = {
        backend: {name: peer for name, peer in peers.items() if backend in peer.on}
        for backend in backends
    }
    steps = len(asked) * rounds * sum(len(names) for names in here.values())
    steps += 4 * rounds * len({*SERVERS} & {*backends}) * ("workers" in parts)
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
                    seen = measure(server, script(server, operation, "raw"), 1)
                    results["raw"][operation] = seen
        for backend in backends:
            if not asked:
                break
            progress.update(task, description=f"{DATABASES[backend]}: start, fill, check")
            with peers_on(backend, here[backend]) as (servers, product):
                results["databases"][backend] = product
                results["cells"][backend] = {}
                for operation in asked:
                    names = [
                        name
                        for name, server in servers.items()
                        if server.finds or operation != "find"
                    ]
                    cells: dict[str, list[Any]] = {name: [] for name in names}
                    if operation != "mixed":
                        results["cells"][backend][operation] = cells
                    number, order = 0, names
                    while number < rounds or (
                        number < 3 * rounds and uncertain(results, backend, operation)
                    ):
                        number += 1
                        order = random.sample(names, len(names)) if number % 2 else order[::-1]
                        for name in order:
                            server = servers[name]
                            step(f"{DATABASES[backend]}, {operation}, round {number}: {name}")
                            told = script(server, operation, f"{operation}{number}")
                            took = max(length, 2) if operation == "find" else length
                            took *= 2 if operation == "mixed" else 1
                            many = SEARCHES if operation == "find" else CONNECTIONS
                            cells[name].append(measure(server, told, took, many))
                    if operation == "mixed":
                        results["mixed"][backend] = {
                            name: summary(each) for name, each in cells.items()
                        }
                for server in servers.values():
                    if not server.finds:
                        console.print(f"{product}: {server.peer.title} has no q: no find.")
                used = {name: server.memory() for name, server in servers.items()}
                results["memory"][backend] = used
        if "workers" in parts:
            for backend in (each for each in backends if each in SERVERS):
                results["workers"][backend] = measure_workers(backend, rounds, length, step)
        if "connections" in parts:
            for many in KEPT:
                step(f"{many:,} connections")
                results["connections"][str(many)] = measure_connections(many, length)
    return results


def guard() -> None:
    """Compare each cell's ratio to the idiom with the one that was committed last; exit with 1."""
    base = json.loads(RESULTS.read_text())

    def uncertain(results: Results, backend: str, operation: str) -> bool:
        share = lost(results, backend, operation, base)
        return share is not None and share > MAY_LOSE

    peers = {name: PEERS[name] for name in ("roster", "tutorial", "redis-om")}
    backends = [*DATABASES][:4]
    results = run(["cells"], backends, peers, QUICK_ROUNDS, QUICK_SECONDS, uncertain)
    report(results)
    bad = []
    for backend, operations in results["cells"].items():
        for operation in operations:
            peer = idiom(backend)
            now, then = (kept(each, backend, operation, "roster", peer) for each in (results, base))
            what = f"{DATABASES[backend]}, {OPERATIONS[operation].lower()}"
            if now is None or then is None:
                console.print(f"{what}: nothing to compare" + " with" * (now is not None))
                continue
            share = 1 - now / then
            if share > MAY_LOSE:
                bad.append(f"{what}: {now:.2f}x of {then:.2f}x, {share:.0%} lost")
    if bad:
        console.print("[red]Slower than the figures committed last, measured against the idiom:[/]")
        sys.exit("\n".join(bad))
    console.print("No cell has lost more than 15 % of its ratio to the idiom.")


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
    parser.add_argument("--rounds", type=int, default=5)
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
    if args.backend == default and args.peers == list(PEERS) and [*parts] == [*PARTS]:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        draw(results)
        console.print(f"Written: {RESULTS.name}, and the picture.")


if __name__ == "__main__":
    main()
