"""What is measured: Roster and its peers, started, filled, checked, and asked by wrk."""

import json
import os
import random
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode

import httpx
import psutil
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
from sqlalchemy.dialects.mysql import DATETIME

BENCH = Path(__file__).resolve().parent
ROSTER = BENCH.parent
sys.path.append(str(ROSTER / "tests"))

from databases import BACKENDS as BACKENDS  # noqa: E402  # the line above leads to it
from databases import Missing as Missing  # noqa: E402  # as above

DATABASES = {
    "sqlite": "SQLite",
    "postgresql": "PostgreSQL",
    "mysql": "MariaDB",
    "redis": "Redis",
    "mongodb": "MongoDB",
}
SQL = ("sqlite", "postgresql", "mysql")


@dataclass(frozen=True)
class Peer:
    """What is measured: how Python serves it, and how many times as fast Roster is meant to be.

    It finds its database, one of ``on``, in DATABASE_URL, as Roster does; ``stores`` is whether it
    needs one. Its modules are in ``home``. ``goal`` is None for Roster, now or at another commit.
    """

    title: str
    serve: str
    goal: float | None = None
    on: tuple[str, ...] = tuple(DATABASES)
    stores: bool = True
    finds: bool = True
    home: Path = BENCH / "peers"


# Each is one process with one worker, and writes no access log.
UVICORN = "-m uvicorn --port={port} --no-access-log --log-level=warning"
GUNICORN = "-m gunicorn --bind=127.0.0.1:{port} --workers=1 --log-level=warning"
PEERS = {
    "roster": Peer("Roster", f"{UVICORN} app:app", home=ROSTER),
    "tutorial": Peer("FastAPI, the tutorial's idiom", f"{UVICORN} tutorial:app", 3, SQL),
    "fastcrud": Peer("FastAPI + FastCRUD", f"{UVICORN} fastcrud_app:app", 2, SQL),
    "litestar": Peer("Litestar + advanced-alchemy", f"{UVICORN} litestar_app:app", 2, SQL[:2]),
    "flask": Peer("Flask + SQLAlchemy", f"{GUNICORN} flask_app:app", 2, SQL[:2]),
    "ninja": Peer("Django Ninja", f"{GUNICORN} ninja_app:app", 2, SQL),
    "redis-om": Peer(
        "FastAPI + redis-om", f"{UVICORN} redis_om_app:app", 2, ("redis",), finds=False
    ),
    "nodb": Peer("FastAPI without a database", f"{UVICORN} nodb:app", 0.4, stores=False),
}
RAW = Peer("fixed bytes, no framework", "-m raw {port}", stores=False)

FIELDS = {"id", "name", "email", "created_at", "updated_at", "version"}
ROWS = 10_000
PAGE = 100
CONNECTIONS = 32
SEARCHES = 8  # connections that search: the slowest peer would answer 32 of them after seconds

# The server that is measured has a core to itself; wrk and the database have the others.
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORES = CORES[0], CORES[1:] or CORES

# The table of the SQL peers; Roster makes its own.
TIME = DateTime(timezone=True).with_variant(DATETIME(fsp=6), "mysql")
USERS = Table(
    "users",
    MetaData(),
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("email", String(254), nullable=False, unique=True),
    Column("created_at", TIME, nullable=False),
    Column("updated_at", TIME, nullable=False),
    Column("version", Integer, nullable=False),
    sqlite_autoincrement=True,
    mysql_charset="utf8mb4",
)


def new_user(number: int) -> dict[str, str]:
    """Return what a client sends to add the user with this id."""
    return {"name": f"User {number}", "email": f"user{number}@example.com"}


def seed(url: str) -> None:
    """Make the table in a peer's SQL database, with all rows."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    if engine.name == "sqlite":
        with engine.connect() as connection:
            # WAL stays with the file. FULL is what a connection has unless it asks for less, and no
            # peer does: an acknowledged commit is on the disk.
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            if connection.exec_driver_sql("PRAGMA synchronous").scalar() != 2:
                sys.exit("This SQLite was built without synchronous=FULL as its default.")
    then = datetime(2026, 1, 1, tzinfo=UTC)
    stamps = {"created_at": then, "updated_at": then, "version": 1}
    with engine.begin() as connection:
        USERS.metadata.create_all(connection)
        connection.execute(USERS.insert(), [{**new_user(i + 1), **stamps} for i in range(ROWS)])
    engine.dispose()


@dataclass
class Server:
    """A peer that serves."""

    peer: Peer
    client: httpx.Client
    process: "subprocess.Popen[bytes]"
    folder: Path
    finds: bool = True
    cursors: list[str] = field(default_factory=list)
    changed: int = 0  # users that were changed so far

    @property
    def log(self) -> str:
        """What it printed."""
        return (self.folder / "log").read_text()

    def wait(self) -> None:
        """Return once it answers, and keep it to its core from now on; end the run if it cannot."""
        deadline = time.monotonic() + 60
        while True:
            try:
                self.client.get("/users/1")
                break
            except httpx.TransportError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{self.peer.title} does not serve:\n{self.log}")
                time.sleep(0.1)
        pin(self.family(), [SERVER_CORE])

    def family(self) -> list[Any]:
        """Return its process and its workers."""
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]

    def memory(self) -> float:
        """Return the MB that its largest process has in memory."""
        return max(float(process.memory_info().rss) for process in self.family()) / 1e6


def pin(processes: list[Any], cores: list[int]) -> None:
    """Keep processes and all their threads to these cores."""
    for thread in (thread for process in processes for thread in process.threads()):
        os.sched_setaffinity(thread.id, cores)


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
    with (
        TemporaryDirectory(prefix="roster-bench-") as folder,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client,
    ):
        with Path(folder, "log").open("wb") as out:
            command = [sys.executable, *peer.serve.format(port=port).split()]
            process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out)
        try:
            os.sched_setaffinity(process.pid, CORES)  # until it serves, it may be quick
            yield Server(peer, client, process, Path(folder), peer.finds)
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def check(server: Server) -> None:
    """See that a peer is right, so that none is fast because it is wrong; end the run if not."""
    client, title = server.client, server.peer.title

    def expect(true: object, what: str) -> None:
        if not true:
            sys.exit(f"{title}: {what}\n{server.log}")

    def aware(user: dict[str, Any]) -> bool:
        times = (datetime.fromisoformat(user[f"{what}_at"]) for what in ("created", "updated"))
        return user.keys() == FIELDS and all(time.tzinfo for time in times)

    def same(user: dict[str, Any], number: int) -> bool:
        return aware(user) and user == {**user, **new_user(number), "id": number, "version": 1}

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
    server.cursors = cursors
    if server.finds:
        answer = client.get("/users/", params={"q": "uSER 427"})
        if server.peer.goal is None and answer.status_code == 422:
            server.finds = False  # Roster before it had q
        else:
            found = [user["id"] for user in answer.json()["items"]]
            wanted = [number for number in range(1, ROWS + 1) if "427" in str(number)]
            expect(found == wanted, "a search finds other users")
    answer = client.post("/users/", json=new_user(ROWS + 1))
    expect(answer.status_code == 201, f"a new user gets {answer.status_code}")
    expect(same(answer.json(), ROWS + 1), "a new user is wrong")
    answer = client.post("/users/", json=new_user(ROWS + 1))
    expect(answer.status_code == 409 or not server.peer.stores, "an email can be taken twice")
    for wrong in ({"email": "ada"}, {"name": ""}, {"name": "a" * 101}):
        answer = client.post("/users/", json={**new_user(ROWS + 2), **wrong})
        expect(answer.status_code in (400, 422), f"{wrong} gets {answer.status_code}")
    path, seen = f"/users/{ROWS}", {"If-Match": '"1"'}
    before = client.get(path).json()
    answer = client.patch(path, json={"name": "Changed"}, headers=seen)
    expect(answer.status_code == 200, f"a change gets {answer.status_code}")
    user = client.get(path).json()
    expect(user == answer.json() and aware(user), "a changed user is wrong")
    expect(user["updated_at"] > before["updated_at"], "a change has no time")
    changed = {**before, "name": "Changed", "version": 2, "updated_at": user["updated_at"]}
    expect(user == changed, "a change changes something else")
    answer = client.patch(path, json={"name": "Lost"}, headers=seen)
    expect(answer.status_code == 412, f"a stale change gets {answer.status_code}")
    answer = client.patch(path, json={"name": f"User {ROWS}"}, headers={"If-Match": '"2"'})
    expect(answer.status_code == 200, "a second change fails")


def write_reads(server: Server) -> None:
    """Write what load.lua reads: the same users, pages and searches for every peer."""
    chance = random.Random(1)
    pages = ["", *("&" + urlencode({"cursor": cursor}) for cursor in server.cursors)]
    chance.shuffle(pages)
    paths = {
        "get": [f"/users/{chance.randint(1, ROWS)}" for _ in range(ROWS)],
        "list": [f"/users/?limit={PAGE}{page}" for page in pages],
        "find": [f"/users/?q=user+{digits}" for digits in chance.sample(range(100, 1000), 900)],
    }
    for name, asked in paths.items():
        (server.folder / name).write_text("\n".join(asked))


def write_versions(server: Server) -> None:
    """Write the versions of all users, those first that were changed the longest time ago.

    A change whose response wrk did not wait for may still be under way, so its user comes last.
    """
    lines: list[str] = []
    for cursor in (None, *server.cursors):
        page = f"/users/?limit={PAGE}" + (f"&cursor={cursor}" if cursor else "")
        users = server.client.get(page).json()["items"]
        lines += [f"{user['id']} {user['version']}" for user in users]
    start = server.changed % ROWS
    (server.folder / "change").write_text("\n".join(lines[start:] + lines[:start]))


def script(server: Server, operation: str, tag: str) -> list[str]:
    """Return what load.lua is told for an operation."""
    if operation == "create":
        return ["create", tag]
    if operation in ("change", "mixed"):
        write_versions(server)
    if operation == "mixed":
        kinds = ["change", "get", "list", *(["find"] if server.finds else [])]
        for old in server.folder.glob("took*"):
            old.unlink()
        return [
            "mixed",
            str(server.folder / "took"),
            tag,
            *(str(server.folder / kind) for kind in kinds),
        ]
    return ["change" if operation == "change" else "read", str(server.folder / operation)]


def measure(
    server: Server, script: list[str], length: int, connections: int = CONNECTIONS
) -> dict[str, Any]:
    """Let wrk ask for some seconds; return what it saw, and the share of a core that each took.

    A response that is no success ends the run: it is not known what else would be wrong.
    """
    threads = connections if script[0] == "mixed" else 1
    wrk = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{length}s", "--timeout=10s"]
    wrk += [f"--script={BENCH}/load.lua", str(server.client.base_url), "--", *script]
    before, began = times(server), time.monotonic()
    printed = subprocess.run(wrk, check=True, capture_output=True, text=True).stdout
    took = time.monotonic() - began
    after = times(server)
    seen: dict[str, Any] = json.loads(printed.splitlines()[-1])
    if seen.pop("failed"):
        sys.exit(f"{server.peer.title}: not every answer is a success:\n{printed}{server.log}")
    server.changed += seen.pop("changed") * threads + PAGE
    if script[0] == "mixed":
        seen["took"] = {}
        for file in server.folder.glob("took*"):
            for kind, microseconds in map(str.split, file.read_text().splitlines()):
                seen["took"].setdefault(kind, []).append(int(microseconds))
    for program, used in after.items():
        seen[program] = (used - before[program]) / took
    return seen


def ask(server: Server, operation: str, tag: str, length: int) -> dict[str, Any]:
    """Measure an operation; for longer, if no response came in this time."""
    many = SEARCHES if operation == "find" else CONNECTIONS
    seen = measure(server, script(server, operation, tag), length, many)
    return seen if seen["rps"] else ask(server, operation, f"{tag}-again", 2 * length)


def times(server: Server) -> dict[str, float]:
    """Return for how many seconds each has computed so far: server, wrk, database, and others."""
    every = psutil.cpu_times()
    every = float(sum(every) - every.idle - every.iowait - every.guest - every.guest_nice)
    used = getrusage(RUSAGE_CHILDREN)  # of those that have ended: wrk
    wrk, own = used.ru_utime + used.ru_stime, seconds(server.family())
    running = seconds(psutil.Process().children(recursive=True))
    return {"server": own, "wrk": wrk, "database": running - own, "others": every - running - wrk}


@contextmanager
def peers_on(backend: str, peers: dict[str, Peer]) -> Iterator[tuple[dict[str, Server], str]]:
    """Start peers, each on a new database with all rows; yield them, and the database's version."""
    with ExitStack() as stack:
        database = stack.enter_context(BACKENDS[backend]())
        first, servers = True, {}
        for name, peer in peers.items():
            url = ""
            if peer.stores:
                if backend == "redis" and not first:  # a Redis has no second database of ours
                    url = stack.enter_context(BACKENDS[backend]()).url
                else:
                    url = stack.enter_context(database.new())
                first = False
            if peer.goal is not None and peer.stores and backend != "redis":
                seed(url)
            servers[name] = stack.enter_context(serve(peer, url))
        for server in servers.values():
            server.wait()
            if server.peer.goal is None:
                for start in range(1, ROWS, 1000):
                    users = [new_user(start + i) for i in range(1000)]
                    server.client.post("/users/bulk", json=users).raise_for_status()
            check(server)
            write_reads(server)
        yield servers, database.version
