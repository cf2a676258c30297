"""Measure more than one process, and more connections than most servers see."""

import os
import resource
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any

import psutil
from servers import (
    CORES,
    LOAD_CORES,
    PEERS,
    UVICORN,
    ask,
    measure,
    peers_on,
    pin,
    script,
)

SERVERS = ("postgresql", "mysql", "redis")
WORKERS = (1, 2)
TRIES = 4  # an even number: which one is first alternates
KEPT = (1_000, 10_000)
BUSY = 100  # one connection in so many
Cells = dict[str, dict[str, list[dict[str, Any]]]]


def measure_workers(backend: str, length: int, step: Callable[[str], None]) -> Cells:
    """Compare one worker with two, wherever the machine puts them, wrk and the database."""
    peers = {
        str(count): replace(PEERS["roster"], serve=f"{UVICORN} --workers={count} app:app")
        for count in WORKERS
    }
    cells: Cells = {operation: {name: [] for name in peers} for operation in ("get", "create")}
    with peers_on(backend, peers) as (servers, _):
        os.sched_setaffinity(0, CORES)
        pin(psutil.Process().children(recursive=True), CORES)
        try:
            for operation, each in cells.items():
                for number in range(TRIES):
                    for name in sorted(servers, reverse=number % 2 == 1):
                        step(f"{backend}, {operation}: {name} workers")
                        each[name].append(ask(servers[name], operation, f"try{number}", length))
        finally:
            os.sched_setaffinity(0, LOAD_CORES)
    return cells


def read_user(connection: HTTPConnection) -> None:
    """Read a user; the connection stays open."""
    connection.request("GET", "/users/1")
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise SystemExit(f"one of many connections gets {answer.status}")


def measure_connections(many: int, length: int) -> dict[str, float]:
    """Keep connections open, each after a request, and let one in a hundred ask all the time."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < many + 1000:
        raise SystemExit(f"{many:,} connections need more open files than {most:,}: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    busy = many // BUSY
    # uvicorn closes a connection that is idle for five seconds unless it is told otherwise.
    peer = replace(PEERS["roster"], serve=f"{UVICORN} --timeout-keep-alive=600 app:app")
    with peers_on("sqlite", {"roster": peer}) as (servers, _), ExitStack() as stack:
        server = servers["roster"]
        told = script(server, "get", "")
        alone = measure(server, told, length, busy)
        before, url = server.memory(), server.client.base_url
        idle = [HTTPConnection(url.host, url.port, timeout=30) for _ in range(many - busy)]
        for connection in idle:
            stack.callback(connection.close)
            read_user(connection)
            connection.auto_open = 0  # from here on, a closed connection is an error
        after = server.memory()
        seen = measure(server, told, length, busy)
        for connection in idle:
            read_user(connection)
    return {
        "busy": busy,
        "kb": (after - before) * 1000 / len(idle),
        "mb": after,
        **{f"{key}_alone": alone[key] for key in ("rps", "p50", "p99")},
        **{key: seen[key] for key in ("rps", "p50", "p99")},
    }
