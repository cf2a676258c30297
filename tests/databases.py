"""The databases the suite runs against: real servers, on loopback, in throwaway folders.

BACKENDS is the one table of them; each entry yields a database that did not exist before.
"""

import asyncio
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import asyncmy
import asyncmy.errors
import asyncpg
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.engine import URL, make_url

# Where Debian puts servers outside PATH; the newest first, and as text 9.6 is newer than 15.
_POSTGRESQL = sorted(
    Path("/usr/lib/postgresql").glob("[0-9]*/bin"),
    key=lambda path: float(path.parent.name),
    reverse=True,
)
_MYSQL = [Path("/usr/sbin")]


class Missing(Exception):
    """A server is not on this machine, or not to be used; says what would bring one."""


@dataclass(frozen=True)
class Database:
    """A database of the suite's own: the DATABASE_URL for the app, and what serves it.

    ``new`` yields the URL of another one, which is empty (Redis: of the same one, emptied).
    ``absent`` is a name that no database there has; None if any is made when it is written to.
    ``process`` is the server's, if it was started here; only one's own may be broken.
    """

    url: str
    version: str
    new: Callable[[], AbstractContextManager[str]]
    absent: str | None = "no_such_database"
    process: "Process | None" = None


class Served(NamedTuple):
    """A server: its administrator's URL, and its process, if it was started here."""

    admin: URL
    process: "Process | None"


@contextmanager
def sqlite() -> Iterator[Database]:
    """Yield a SQLite file's URL; the file goes with its folder."""

    @contextmanager
    def new() -> Iterator[str]:
        with TemporaryDirectory(prefix="roster-") as folder:
            yield f"sqlite:///{folder}/roster.db"

    with new() as url:
        yield Database(url, f"SQLite {sqlite3.sqlite_version}", new)


@contextmanager
def postgresql() -> Iterator[Database]:
    """Yield a new database on TEST_POSTGRESQL_URL's server, or on one started for it."""
    with _admin("TEST_POSTGRESQL_URL", _postgresql_server) as (admin, process):
        product, number = _ask_postgresql(admin, "select version()").split()[:2]

        @contextmanager
        def new() -> Iterator[str]:
            url = admin.set(drivername="postgresql", database=_new_name())
            _ask_postgresql(admin, f"create database {url.database}")
            try:
                yield url.render_as_string(hide_password=False)
            finally:
                _ask_postgresql(admin, f"drop database {url.database} with (force)")

        with new() as url:
            yield Database(url, f"{product} {number}", new, process=process)


@contextmanager
def mysql() -> Iterator[Database]:
    """Yield a new database on TEST_MYSQL_URL's server, or on one started for it.

    Its character set is latin1 so that an app that leaves the choice to the server fails.
    """
    with _admin("TEST_MYSQL_URL", _mysql_server) as (admin, process):
        number, _, rest = _ask_mysql(admin, "select version()").partition("-")
        product = "MariaDB" if "MariaDB" in rest else "MySQL"

        @contextmanager
        def new() -> Iterator[str]:
            url = admin.set(drivername="mysql", database=_new_name())
            _ask_mysql(admin, f"create database {url.database} character set latin1")
            try:
                yield url.render_as_string(hide_password=False)
            finally:
                _ask_mysql(admin, f"drop database {url.database}")

        with new() as url:
            yield Database(url, f"{product} {number}", new, process=process)


@contextmanager
def mongodb() -> Iterator[Database]:
    """Yield a new database on TEST_MONGODB_URL's server, or on one started for it."""
    with _admin("TEST_MONGODB_URL", _mongodb_server) as (admin, process):
        # A replica set tells its clients where its members are, and leads them past our relay.
        options = {"directConnection": "true"}
        if admin.username:
            options["authSource"] = admin.database or "admin"

        @contextmanager
        def new() -> Iterator[str]:
            url = admin.set(database=_new_name(), query={**options, **admin.query})
            try:
                yield url.render_as_string(hide_password=False)
            finally:
                with _mongo_client(url) as client:
                    client.drop_database(str(url.database))

        with new() as url:
            yield Database(url, _ask_mongodb(admin), new, absent=None, process=process)


@contextmanager
def redis() -> Iterator[Database]:
    """Yield TEST_REDIS_URL, if that database is empty, or one on a server started for it."""
    with _admin("TEST_REDIS_URL", redis_server) as (admin, process):
        url = admin.render_as_string(hide_password=False)
        with open_redis(url) as client:
            if client.dbsize():
                raise Missing(
                    "TEST_REDIS_URL: somebody's data is in this database; give it another"
                )
            info = client.info("server")
            valkey = info.get("valkey_version")  # redis_version is then the one that it is like
            version = f"Valkey {valkey}" if valkey else f"Redis {info['redis_version']}"

        @contextmanager
        def new() -> Iterator[str]:
            empty_redis(url)
            try:
                yield url
            finally:  # another test's app is on the same database
                empty_redis(url)

        try:
            yield Database(url, version, new, absent="99", process=process)
        finally:
            empty_redis(url)


BACKENDS: dict[str, Callable[[], AbstractContextManager[Database]]] = {
    "sqlite": sqlite,
    "postgresql": postgresql,
    "mysql": mysql,
    "mongodb": mongodb,
    "redis": redis,
}


@contextmanager
def _postgresql_server(*options: str) -> Iterator[Served]:
    """Run a new PostgreSQL server and yield its superuser's URL."""
    wanted = _POSTGRESQL, "postgresql", "TEST_POSTGRESQL_URL"
    initdb, postgres = _program("initdb", *wanted), _program("postgres", *wanted)
    admin = _new_admin("postgresql").set(database="postgres")
    with _folder("postgres", f"{admin.password}\n") as folder:
        setup = [initdb, f"--pgdata={folder}/data", "--auth=scram-sha-256"]
        setup += [f"--username={admin.username}", f"--pwfile={folder}/secret"]
        # A language's order of letters, so that an app that leaves the order to the server fails.
        setup += ["--encoding=UTF8", "--locale=C.UTF-8"]
        setup += ["--locale-provider=icu", "--icu-locale=en"]
        serve = [postgres, "-D", f"{folder}/data", f"--port={admin.port}"]
        serve += [f"--listen_addresses={admin.host}", "--unix_socket_directories="]
        serve += ["--max_connections=100", *options]
        # SIGTERM would wait until every client has left.
        # Of TLS, asyncio leaves a socket behind if the server, which is still starting, hangs up.
        ask = partial(_ask_postgresql, admin.set(query={"sslmode": "disable"}))
        with _running(folder, setup, serve, signal.SIGINT, ask) as process:
            yield Served(admin, process)


@contextmanager
def _mysql_server(*options: str) -> Iterator[Served]:
    """Run a new MariaDB server and yield the URL of an account that may do everything."""
    wanted = _MYSQL, "mariadb-server", "TEST_MYSQL_URL"
    install, mariadbd = _program("mariadb-install-db", *wanted), _program("mariadbd", *wanted)
    admin = _new_admin("mysql")
    who = f"'{admin.username}'@'{admin.host}'"
    accounts = f"create user if not exists {who} identified by '{admin.password}';\n"
    accounts += f"grant all on *.* to {who} with grant option;\n"
    with _folder("mysql", accounts) as folder:
        # With name look-ups, 127.0.0.1 becomes localhost, which the account is not for.
        shared = ["--no-defaults", f"--datadir={folder}/data", f"--tmpdir={folder}"]
        shared += ["--skip-name-resolve"]
        # The test database would bring accounts without a name or password.
        setup = [install, *shared, "--skip-test-db"]
        serve = [mariadbd, *shared, f"--bind-address={admin.host}", f"--port={admin.port}"]
        serve += [f"--socket={folder}/socket", f"--pid-file={folder}/pid"]
        serve += [f"--init-file={folder}/secret", *options]
        ask = partial(_ask_mysql, admin)
        with _running(folder, setup, serve, signal.SIGTERM, ask) as process:
            yield Served(admin, process)


@contextmanager
def _mongodb_server() -> Iterator[Served]:
    """Run a new SecantusDB and yield its administrator's URL.

    It is asked for passwords in a second start: in the first, there is nobody yet who has one.
    """
    admin = _new_admin("mongodb")
    anybody = URL.create("mongodb", host=admin.host, port=admin.port)
    with TemporaryDirectory(prefix="roster-") as folder:
        with _secantusdb(anybody, Path(folder)), _mongo_client(anybody) as client:
            user = {"createUser": admin.username, "pwd": admin.password, "roles": ["root"]}
            client["admin"].command(user)
        with _secantusdb(admin, Path(folder), "--auth") as process:
            yield Served(admin, process)


@contextmanager
def redis_server(*options: str) -> Iterator[Served]:
    """Run a new Redis server and yield the URL of an account that may do everything."""
    server = _program("redis-server", [], "redis-server", "TEST_REDIS_URL")
    admin = _new_admin("redis").set(database="1")
    # Redis 7.0 reads its log (AOF) as the user default, and leaves out what that user may not do.
    accounts = f"user default on >{secrets.token_hex(16)} ~* &* +@all\n"
    accounts += f"user {admin.username} on >{admin.password} ~* &* +@all\n"
    with _folder("redis", accounts) as folder:
        serve = [server, f"{folder}/secret", f"--dir {folder}", f"--bind {admin.host}"]
        serve += [f"--port {admin.port}", "--appendonly yes", "--save ''", *options]

        def ask() -> str:
            with open_redis(admin.render_as_string(hide_password=False)) as client:
                return str(client.ping())

        with _running(folder, [server, "--version"], serve, signal.SIGTERM, ask) as process:
            yield Served(admin, process)


@contextmanager
def open_redis(url: str) -> Iterator[Redis]:
    """Yield a client of a Redis database."""
    with Redis.from_url(url, decode_responses=True, socket_timeout=5) as client:
        yield client


def empty_redis(url: str) -> None:
    """Delete what Roster has stored."""
    with open_redis(url) as client:
        for key in client.scan_iter("roster:*", count=1000):
            client.delete(key)


@contextmanager
def standalone_mongodb() -> Iterator[str]:
    """Yield the URL of a database on a new SecantusDB that says that it is no replica set."""
    admin = _new_admin("mongodb")
    url = URL.create("mongodb", host=admin.host, port=admin.port, database="roster_test")
    with (
        TemporaryDirectory(prefix="roster-") as folder,
        _secantusdb(url, Path(folder), "--standalone"),
    ):
        yield url.render_as_string()


@contextmanager
def _secantusdb(url: URL, folder: Path, *options: str) -> Iterator["Process"]:
    """Run SecantusDB, which speaks MongoDB's protocol, at a URL's port, until the context ends."""
    # It comes with Python's packages, not Debian's, and does not refuse root.
    program = shutil.which("secantusd-py", path=Path(sys.executable).parent)
    if program is None:
        raise Missing("no secantusd-py (Python 3.14 has none yet): set TEST_MONGODB_URL")
    serve = [program, f"--host={url.host}", f"--port={url.port}", f"--storage-path={folder}/data"]
    serve += options
    ask = partial(_ask_mongodb, url)
    with _running(folder, ["true"], serve, signal.SIGTERM, ask) as process:
        yield process


def _ask_postgresql(admin: URL, statement: str = "select 1") -> str:
    """Log in, run one statement outside any transaction, return its first value as text."""

    async def ask() -> str:
        dsn = admin.set(drivername="postgresql").render_as_string(hide_password=False)
        connection = await asyncpg.connect(dsn, timeout=5)
        try:
            return str(await connection.fetchval(statement))
        finally:
            await connection.close()

    return asyncio.run(ask())


def _ask_mysql(admin: URL, statement: str = "select 1") -> str:
    """Log in, run one statement, return its first value as text."""

    async def ask() -> str:
        # Its connect_timeout leaves out the log-in.
        async with asyncio.timeout(5):
            connection = await asyncmy.connect(
                host=admin.host or "127.0.0.1",
                port=admin.port or 3306,
                user=admin.username,
                password=admin.password or "",
                # By default a transaction a test left open holds up "drop database" for a day.
                init_command="set session lock_wait_timeout = 10",
            )
        try:
            async with connection.cursor() as cursor:
                await cursor.execute(statement)
                row = await cursor.fetchone()
                return str(row[0]) if row else ""
        finally:
            await connection.ensure_closed()

    return asyncio.run(ask())


def _mongo_client(url: URL) -> MongoClient[dict[str, Any]]:
    """Return a client; nothing is connected yet."""
    return MongoClient(url.render_as_string(hide_password=False), serverSelectionTimeoutMS=2000)


def _ask_mongodb(admin: URL) -> str:
    """Log in, and return the product and its version."""
    with _mongo_client(admin) as client:
        built = client["admin"].command("buildInfo")
    if "secantusVersion" in built:
        return f"SecantusDB {built['secantusVersion']}"
    return f"MongoDB {built['version']}"


def _admin(
    variable: str, server: Callable[[], AbstractContextManager[Served]]
) -> AbstractContextManager[Served]:
    """Return the server that the environment names, or else a new one."""
    given = os.environ.get(variable)
    return nullcontext(Served(make_url(given), None)) if given else server()


def _new_name() -> str:
    """Return the name of a database that nobody has."""
    return f"roster_test_{secrets.token_hex(8)}"


def free_port() -> int:
    """Return a port that nobody listens on, and that no client is given meanwhile.

    Linux gives its clients those from 32768 on, others later ones.
    """
    while True:
        port = random.randrange(20000, 32768)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _new_admin(scheme: str) -> URL:
    """Return the URL of an administrator to be, at a free port.

    The password has what a URL must quote; "%" and hex digits show if it is unquoted twice.
    """
    password = f"p@ss/w:rd%{secrets.token_hex(16)}"
    return URL.create(scheme, "roster", password, "127.0.0.1", free_port())


def _program(name: str, folders: list[Path], package: str, variable: str) -> str:
    """Return the path of the program in the first of folders, or else PATH, that has it."""
    found = shutil.which(name, path=os.pathsep.join([*map(str, folders), *os.get_exec_path()]))
    if found is None:
        raise Missing(f"no {name} here: install Debian's {package}, or set {variable}")
    return found


@contextmanager
def _folder(account: str, secret: str) -> Iterator[Path]:
    """Yield a new folder with the text secret in the file secret.

    It is ours, or if we are root, whom the servers refuse, account's (nobody's if there is none).
    It is not pytest's tmp_path because only we may enter that.
    """
    with TemporaryDirectory(prefix="roster-") as name:
        folder = Path(name)
        (folder / "secret").write_text(secret)
        if os.getuid() == 0:
            known = {entry.pw_name for entry in pwd.getpwall()}
            owner = pwd.getpwnam(account if account in known else "nobody")
            for path in (folder / "secret", folder):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        yield folder


def send_to_family(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process and to those that it has started."""
    pids = [pid]
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                pids.append(int(status.parent.name))
    for each in pids:
        with suppress(ProcessLookupError):
            os.kill(each, number)


class Process:
    """A server's process, which a test may break and start again, on the same data.

    Start it in the main thread: the server ends when the thread does that has started it.
    """

    def __init__(
        self, folder: Path, serve: list[str], stop: signal.Signals, ask: Callable[[], str]
    ) -> None:
        self.folder = folder
        self.serve = serve
        self.stop_signal = stop
        self.ask = ask
        self.popen: subprocess.Popen[bytes] | None = None

    def options(self, out: Any) -> dict[str, Any]:
        """Return how to run a program as the folder's owner."""
        options: dict[str, Any] = {"cwd": self.folder, "stdin": subprocess.DEVNULL}
        options |= {"stdout": out, "stderr": out}
        if os.getuid() == 0:
            owner = self.folder.stat()
            options |= {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
        return options

    def failure(self, what: str) -> RuntimeError:
        """Return an error with the end of the log."""
        tail = (self.folder / "log").read_text(errors="replace").splitlines()[-20:]
        return RuntimeError("\n".join([f"{what}; the end of its log:", *tail]))

    def set_up(self, setup: list[str]) -> None:
        """Run what makes the data folder."""
        with (self.folder / "log").open("ab") as out:
            if subprocess.run(setup, check=False, **self.options(out)).returncode != 0:
                raise self.failure(f"{setup[0]} failed")

    def start(self) -> None:
        """Start the server, unless it runs; return when it answers."""
        if self.popen is None:
            # Where util-linux is, the server is told to stop if we are killed.
            guard = ["setpriv", f"--pdeathsig={self.stop_signal.name[3:]}"]
            command = [*(guard if shutil.which("setpriv") else []), *self.serve]
            with (self.folder / "log").open("ab") as out:
                # In our session, Ctrl-C would stop it before the tests clean up.
                self.popen = subprocess.Popen(command, start_new_session=True, **self.options(out))
        deadline = time.monotonic() + 30
        while True:
            try:
                self.ask()
                return
            except (
                *(OSError, asyncpg.PostgresError, asyncmy.errors.Error),
                *(PyMongoError, RedisError),
            ) as error:
                if self.popen.poll() is not None or time.monotonic() > deadline:
                    raise self.failure(f"{self.serve[0]} does not answer") from error
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server and to the processes that it has started."""
        assert self.popen
        send_to_family(self.popen.pid, number)

    def freeze(self) -> None:
        """Let it stand still."""
        assert self.popen
        self.popen.send_signal(signal.SIGSTOP)  # from here on it starts no other process
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        if self.popen:
            self.send(signal.SIGCONT)

    def kill(self) -> None:
        """Let it fall down dead."""
        if self.popen:
            self.freeze()
            self.send(signal.SIGKILL)
            self.popen.wait()
            self.popen = None

    def stop(self) -> None:
        """Tell it to stop; kill it if it does not within 60 seconds."""
        if self.popen:
            self.popen.send_signal(self.stop_signal)
            try:
                self.popen.wait(timeout=60)
                self.popen = None
            except subprocess.TimeoutExpired:
                self.kill()

    def heal(self) -> None:
        """Make it answer, whatever a test has left."""
        self.thaw()
        self.start()


@contextmanager
def _running(
    folder: Path,
    setup: list[str],
    serve: list[str],
    stop: signal.Signals,
    ask: Callable[[], str],
) -> Iterator[Process]:
    """As folder's owner run setup, then serve until the context ends; enter it once ask works."""
    process = Process(folder, serve, stop, ask)
    process.set_up(setup)
    try:
        process.start()
        yield process
    finally:
        process.thaw()
        process.stop()
