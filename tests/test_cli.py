"""The command line, run as an operator runs it: in processes, on real databases."""

import asyncio
import csv
import hashlib
import io
import json
import os
import pty
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import forked
import httpx
import pytest
from conftest import NO_TLS, ROOT, full, quick_on, serve, wait_until
from databases import BACKENDS, Database, empty_redis, free_port, open_redis
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from test_contract import add
from test_start import only_line, relay, start_and_fail
from test_web_import import CASES, EXPECTED

from commands import copying
from commands.backup import backup
from commands.copying import count_and_digest
from commands.importing import open_file, read_rows
from commands.terminal import Stop
from db import open_backend
from export import plain_cell, to_csv
from lifespan import open_store
from models import UserCreate
from paging import UserQuery
from store import UNFINISHED, Fault

Row = tuple[Any, ...]
Result = subprocess.CompletedProcess[str]


def start(*arguments: object, url: str | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start cli.py, with DATABASE_URL if one is given."""
    env = {**os.environ, "DATABASE_URL": url or "sqlite:////no/such/folder/roster.db"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options = {"env": env, "encoding": "utf-8", **pipes, **options}
    command = [sys.executable, "-W", "error", str(ROOT / "cli.py"), *map(str, arguments)]
    return forked.Popen(command, **options)


def cli(*arguments: object, given: str = "", url: str | None = None, **options: Any) -> Result:
    """Run cli.py to its end."""
    with start(*arguments, url=url, **options) as process:
        out, err = process.communicate(given, timeout=60)
    assert "Traceback" not in f"{out}{err}", err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def refusal(result: Result) -> str:
    """Return the one line with which a command failed."""
    assert (result.returncode, result.stdout) == (1, ""), result
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


SELECT = (
    "SELECT id, name, email, created_at, updated_at, version, name_key, email_key"
    " FROM users ORDER BY id"
)


def rows(file: Path) -> list[Row]:
    """Return all users in a SQLite file, by id."""
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(SELECT).fetchall()


def change(file: Path, *statements: str) -> None:
    """Change a SQLite database."""
    with closing(sqlite3.connect(file)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def people(count: int) -> str:
    """Return a CSV file of users, their names beyond ASCII, or like a formula."""
    return "name,email\n" + "".join(f"={i} Zoë 😀,p{i}@example.com\n" for i in range(1, count + 1))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SQLite file with more users than a batch, in all versions; the last two gone."""
    file = tmp_path_factory.mktemp("filled") / "roster.db"
    result = cli("import", "-", given=people(1202), url=f"sqlite:///{file}")
    assert result.stdout == "1,202 users stored, 0 lines rejected.\n"
    change(
        file,
        "DELETE FROM users WHERE id IN (500, 1201, 1202)",
        "UPDATE users SET version = id, updated_at = '2030-01-02 03:04:05.006000' WHERE id > 700",
    )
    return file


@pytest.fixture
def source(filled: Path, tmp_path: Path) -> Path:
    """Return a copy of that file."""
    file = tmp_path / "source.db"
    with closing(sqlite3.connect(filled)) as old, closing(sqlite3.connect(file)) as new:
        old.backup(new)
    return file


# copy


@pytest.mark.parametrize("database", quick_on(BACKENDS, "redis"), indirect=True)
def test_copy_that_broke_off_is_no_copy_and_the_same_command_goes_on(
    database: Database, source: Path, tmp_path: Path
) -> None:
    back = tmp_path / "back.db"
    with database.new() as url:
        copy = ("copy", f"sqlite:///{source}", url)
        # The first batch comes through; then the source breaks.
        change(source, "UPDATE users SET version = 'x' WHERE id = 1150")
        assert refusal(cli(*copy)) == (
            "SRC_URL: user 1150 is corrupt: Expected `int`, got `str` - at `$.version`."
            " The copy is unfinished; the same command continues it."
        )
        unfinished = "holds an unfinished copy: run that `cli.py copy` again"
        assert unfinished in only_line(start_and_fail(tmp_path, {"DATABASE_URL": url}))
        change(
            source,  # who is changed, gone, or has somebody else's address now
            "UPDATE users SET version = 9, name = 'New', name_key = 'new' WHERE id IN (7, 1150)",
            "DELETE FROM users WHERE id = 9",
            "UPDATE users SET email_key = 'x' WHERE id = 10",
            "UPDATE users SET email_key = 'p10@example.com', email = 'p10@example.com'"
            " WHERE id = 1001",
            "UPDATE users SET email_key = 'p1001@example.com', email = 'p1001@example.com'"
            " WHERE id = 10",
        )
        result = cli(*copy)
        assert (result.returncode, result.stderr) == (0, ""), result
        assert result.stdout.startswith("1,198 users copied to ")
        assert "holds users already; a copy needs it empty." in refusal(cli(*copy))
        new = "name,email\nNew,new@example.com\n"
        assert cli("import", "-", given=new, url=url).returncode == 0
        assert cli("copy", url, f"sqlite:///{back}").returncode == 0
    assert rows(back)[:-1] == rows(source)
    # 1201 and 1202 were given, and nobody else gets them.
    assert rows(back)[-1][0] == 1203


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            "UPDATE users SET version = 1.5 WHERE id = 7",
            "Expected `int`, got `float` - at `$.version`",
        ),
        (
            "UPDATE users SET name = x'416461' WHERE id = 7",
            "Expected `str`, got `bytes` - at `$.name`",
        ),
        (
            "UPDATE users SET email = x'ff' WHERE id = 7",
            "Expected `str`, got `bytes` - at `$.email`",
        ),
    ],
)
def test_user_who_is_damaged_is_named_and_not_exported(
    source: Path, tmp_path: Path, damage: str, said: str
) -> None:
    change(source, damage)
    said = f"user 7 is corrupt: {said}."
    assert refusal(cli("export", url=f"sqlite:///{source}")) == f"DATABASE_URL: {said}"
    copy = cli("copy", f"sqlite:///{source}", f"sqlite:///{tmp_path}/new.db")
    assert refusal(copy).startswith(f"SRC_URL: {said}")


TREE = """
import asyncio, sys
from sqlalchemy import JSON, String
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel, col, select
from db import open_backend
from lifespan import open_store, start
from rows import TABLE, RowId, Versioned
from store import UNFINISHED
from commands.copying import copy
from commands.terminal import Stop

class Folder(Versioned, table=True):
    __tablename__ = "folders"
    __table_args__ = TABLE
    id: int = Field(default=None, primary_key=True, sa_type=RowId)
    parent_id: int | None = Field(default=None, foreign_key="folders.id", sa_type=RowId)

class Order(SQLModel, table=True):  # a word of SQL's own
    __table_args__ = TABLE
    id: int = Field(default=None, primary_key=True, sa_type=RowId)
    items: dict = Field(sa_type=JSON().with_variant(JSONB(), "postgresql"))
    price: float

class Plain(SQLModel, table=True):  # SQLite gives it no counter
    id: int = Field(default=None, primary_key=True)

class Code(SQLModel, table=True):
    code: str = Field(primary_key=True, sa_type=String(20))

async def fill(url):
    backend = open_backend(url)
    await start(backend)
    async with backend.session() as session:
        session.add_all(Plain(id=number) for number in (1, 2, 3))
        session.add(Order(id=5, items={"pens": 1, "ink": [2]}, price=1234567.89))
        session.add_all(Code(code=code) for code in ("a", "B", "a-c", "ab", "_d"))
        session.add_all([Folder(id=number) for number in range(1, 1202)])
        await session.flush()
        for folder in await session.exec(select(Folder).where(col(Folder.id) < 1201)):
            folder.parent_id = folder.id // 2 or 1201  # that is in the second batch
    await backend.stop()

async def break_off(url):
    backend = open_backend(url)
    async with open_store(backend) as store:
        await store.set_last_id(UNFINISHED + 7, await store.last_id())
    await backend.stop()

async def read(url):
    backend = open_backend(url)
    async with backend.session(read_only=True) as session:
        found = [*(await session.exec(select(Folder).order_by(Folder.id))).all()]
        found += [*(await session.exec(select(Order))).all()]
        found += sorted((await session.exec(select(Code))).all(), key=lambda row: row.code)
    await backend.stop()
    return [row.model_dump() for row in found]

source, destination = sys.argv[1:]
asyncio.run(fill(source))
for _ in range(2):
    asyncio.run(copy(source, destination))
    copied = asyncio.run(read(destination))
    assert copied == asyncio.run(read(source)) and copied[0]["parent_id"] == 1201, copied[:2]
    asyncio.run(break_off(destination))
asyncio.run(copy(source, destination))
for _ in range(2):
    try:
        asyncio.run(copy(source, destination))
    except Stop as error:
        assert "folders, order, plain already; a copy needs it empty." in str(error), error
assert asyncio.run(read(destination)) == copied

async def add(url):
    backend = open_backend(url)
    async with backend.session() as session:
        session.add(Plain())
        session.add(Order(items={}, price=0.5))
        await session.flush()
        ids = [*await session.exec(select(Plain.id)), *await session.exec(select(Order.id))]
    await backend.stop()
    return sorted(ids)

assert asyncio.run(add(destination)) == [1, 2, 3, 4, 5, 6]
"""


@pytest.mark.parametrize(
    "database", quick_on(("sqlite", "postgresql", "mysql"), "postgresql", "mysql"), indirect=True
)
def test_copy_of_tables_of_your_own_is_whole_or_continued(
    database: Database, tmp_path: Path
) -> None:
    source = f"sqlite:///{tmp_path}/source.db"
    with database.new() as destination:
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", TREE, source, destination],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.stdout.count("1,201 rows of folders copied.") == 3, result.stderr
    assert (result.returncode, result.stderr) == (0, "")


def test_copy_of_a_database_to_itself_leaves_it_as_it_was(tmp_path: Path) -> None:
    one, same = f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/../{tmp_path.name}/a.db"
    assert cli("import", "-", given="name,email\n", url=one).returncode == 0
    assert refusal(cli("copy", one, same)) == "SRC_URL and DST_URL are the same database."
    assert cli("import", "-", given="name,email\nA,a@example.com\n", url=one).returncode == 0


def test_what_is_copied_is_not_read_from_a_replica(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("READ_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    assert cli("export", url=f"sqlite:///{source}").stdout
    copied = cli("copy", f"sqlite:///{source}", f"sqlite:///{tmp_path}/new.db")
    assert (copied.returncode, copied.stderr) == (0, "")


def copy_until(some: Callable[[], object], *urls: str, **options: Any) -> subprocess.Popen[str]:
    """Start a copy; return it when some users are there, but not all."""
    process = start("copy", *urls, **options)
    wait_until(lambda: bool(some()) or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    return process


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SQLite file with 8000 users."""
    file = tmp_path_factory.mktemp("many") / "roster.db"
    assert cli("import", "-", given=people(1), url=f"sqlite:///{file}").returncode == 0
    change(
        file,
        "WITH RECURSIVE ids (i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM ids WHERE i < 8000)"
        " INSERT INTO users (id, created_at, updated_at, version, name, email, name_key, email_key,"
        " search_key) SELECT i, created_at, updated_at, version, replace(name, '1', i),"
        " replace(email, '1', i), replace(name_key, '1', i), replace(email_key, '1', i),"
        " replace(search_key, '1', i) FROM users, ids WHERE id = 1",
    )
    return file


@full
def test_copy_that_is_stopped_or_killed_or_changed_under_it_goes_on(
    many: Path, tmp_path: Path
) -> None:
    file, source = tmp_path / "new.db", tmp_path / "source.db"
    source.write_bytes(many.read_bytes())
    urls = f"sqlite:///{source}", f"sqlite:///{file}"

    def stored() -> int:
        with closing(sqlite3.connect(file)) as connection:
            tables = connection.execute("SELECT 1 FROM sqlite_master").fetchall()
            return len(tables) and len(rows(file))

    with copy_until(stored, *urls, start_new_session=True) as process:
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches all processes of the terminal
        assert process.communicate(timeout=10) == (
            *("", "Stopped. The copy is unfinished; the same command continues it.\n"),
        )
    before = stored()
    assert before < 8000
    with copy_until(lambda: stored() > before, *urls) as process:
        process.kill()
    before = stored()
    assert before < 8000
    assert "unfinished" in refusal(cli("export", url=urls[1]))
    with copy_until(lambda: stored() > before, *urls) as process:
        change(source, "UPDATE users SET name = 'New', name_key = 'new' WHERE id = 1")
        assert process.communicate(timeout=120) == (
            "",
            "The two differ: users have changed. Stop the apps."
            " The copy is unfinished; the same command continues it.\n",
        )
    result = cli("copy", *urls)
    assert rows(file) == rows(source)
    exported = cli("export", url=urls[1]).stdout.encode()
    assert result.stdout == (
        f"8,000 users copied to the SQLite file {file}.\n"
        f"SHA-256 of the export of both as JSON Lines: {hashlib.sha256(exported).hexdigest()}\n"
    )


@pytest.mark.parametrize("database", ["redis"], indirect=True)
def test_copy_whose_database_goes_away_says_how_to_go_on(database: Database, many: Path) -> None:
    with database.new() as url:
        real, port = make_url(url), free_port()
        through = real.set(port=port).render_as_string(hide_password=False)
        with relay(port, real.port or 0) as between, open_redis(url) as client:

            def stored() -> int:
                return client.hlen("roster:emails")

            with copy_until(stored, f"sqlite:///{many}", through) as process:
                between.kill()
                out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (1, "")
        (line,) = err.splitlines()
        assert line.startswith(f"Redis at 127.0.0.1:{port}, database 1: The database is unr")
        assert line.endswith("The copy is unfinished; the same command continues it.")
        assert str(real.password) not in line
        empty_redis(url)


def count_users(url: str) -> int:
    """Return how many users a database holds, 0 if it has no tables yet."""

    async def count() -> int:
        backend = open_backend(url)
        try:
            async with open_store(backend, read_only=True) as store:
                return await store.count(UserQuery())
        except (Fault, SQLAlchemyError):
            return 0
        finally:
            await backend.stop()

    return asyncio.run(count())


@pytest.mark.parametrize("database", quick_on(BACKENDS, "sqlite"), indirect=True)
def test_copy_that_is_held_up_while_another_one_runs_writes_nothing_more(
    database: Database, many: Path, source: Path, tmp_path: Path
) -> None:
    back = tmp_path / "back.db"
    change(source, "DELETE FROM users WHERE id > 100")  # none is in the way of the slow one's next
    with database.new() as url:
        with copy_until(lambda: count_users(url), f"sqlite:///{many}", url) as slow:
            while True:
                slow.send_signal(signal.SIGSTOP)
                quick = cli("copy", f"sqlite:///{source}", url)
                if quick.returncode == 0:
                    break
                # It stopped in a transaction, which keeps the other one out.
                refusal(quick)
                slow.send_signal(signal.SIGCONT)
                time.sleep(0.05)  # and some other time it does not
            slow.send_signal(signal.SIGCONT)
            out, err = slow.communicate(timeout=60)
        new = "name,email\nNew,new@example.com\n"
        assert cli("import", "-", given=new, url=url).returncode == 0
        assert (slow.returncode, out) == (1, "")
        # Redis' client may find that it has waited too long.
        assert re.fullmatch("Another copy, or an app, has changed .*\n|.* is unreachable.*\n", err)
        assert cli("copy", url, f"sqlite:///{back}").returncode == 0
    assert rows(back)[:-1] == rows(source)
    assert rows(back)[-1][:2] == (1203, "New")


@pytest.mark.parametrize("database", quick_on(BACKENDS, "sqlite"), indirect=True)
def test_copy_that_is_overtaken_before_the_comparison_says_so(
    database: Database, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take_over(pages: AsyncIterator[Sequence[Any]], total: int) -> tuple[int, str]:
        compared = await count_and_digest(pages, total)
        backend = open_backend(url)
        async with open_store(backend) as store:
            await store.set_last_id(UNFINISHED + 1, await store.last_id())
        await backend.stop()
        return 0, compared[1]

    ways = iter([count_and_digest, take_over])
    monkeypatch.setattr(copying, "count_and_digest", lambda *given: next(ways)(*given))
    with database.new() as url, pytest.raises(Stop, match="Another copy, or an app, has changed"):
        asyncio.run(copying.copy(f"sqlite:///{source}", url))


@full
def test_copy_from_a_database_that_is_away_changes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    away = f"postgresql://roster:hunter2@127.0.0.1:{free_port()}/x"
    line = refusal(cli("copy", away, url))
    assert line.startswith("SRC_URL: PostgreSQL at 127.0.0.1")
    assert "hunter2" not in line
    assert "unfinished" not in line
    line = refusal(cli("copy", url, away))
    assert line.startswith("DST_URL: PostgreSQL at 127.0.0.1")
    assert "hunter2" not in line
    missing = f"sqlite:///{tmp_path}/missing.db"
    assert "SRC_URL: there is no SQLite file" in refusal(cli("copy", missing, url))
    assert not (tmp_path / "missing.db").exists()
    assert cli("export", url=url).returncode == 0


# import


@pytest.mark.parametrize("database", quick_on(BACKENDS, "sqlite"), indirect=True)
def test_import_stores_the_valid_and_lists_the_others_and_all_are_exported(
    client: httpx.Client, database: Database
) -> None:
    add(client, email="taken@example.com")
    given = (
        "\ufeffEmail,name,id\r\n"
        "ada@example.com,Ada,7\r\n"
        "TAKEN@example.com,Grace,\r\n"
        "nobody,,\r\n"
        "\r\n"
        "ADA@example.com,Ada again,\r\n"
        'alan@example.com,"Turing, Alan",\r\n'
        "a,b,c,d\r\n"
    )
    listed = [
        "line 3: email: another user has this address",
        "line 4: name: String should have at least 1 character; email: not a valid email address:"
        " An email address must have an @-sign.",
        "line 6: email: line 2 has this address already",
        "line 8: 4 cells, but the header has 3",
    ]
    dry = cli("import", "-", "--dry-run", given=given, url=database.url)
    assert dry.stderr.splitlines() == listed
    assert (dry.returncode, dry.stdout) == (1, "2 users would be stored, 4 lines rejected.\n")
    assert len(client.get("/users/").json()["items"]) == 1
    wet = cli("import", "-", given=given, url=database.url)
    assert wet.stderr == dry.stderr
    assert (wet.returncode, wet.stdout) == (1, "2 users stored, 4 lines rejected.\n")
    users = client.get("/users/").json()["items"]
    assert [user["name"] for user in users[1:]] == ["Ada", "Turing, Alan"]

    # What is exported is what the API exports.
    format = "csv" if database.url.startswith("sqlite") else "jsonl"
    with start("export", "--format", format, url=database.url, encoding=None) as process:
        assert process.stdout
        exported: Any = process.stdout.read()
    assert exported == client.get("/users/export", params={"format": format}).content


def test_import_of_json_lines_takes_what_the_api_takes(tmp_path: Path) -> None:
    given = (
        '{"name": "Ada", "email": "ada@example.com", "id": 5, "version": 2}\n'
        '{"name": "Ada", "email": "a@example.com", "phone\\u001b[31m": 1}\n'
        '{"name": "Ada", "name": "Ada", "email": "b@example.com"}\n'
        '{"name": null, "email": "c@example.com"}\n'
        "\n"
        '["Ada"]\n'
        '{"name": "Ada"\n'
        '{"name": "Alan", "email": "alan@example.com"}'
    )
    file = tmp_path / "people.jsonl"
    file.write_text(given)
    result = cli("import", file, url=f"sqlite:///{tmp_path}/roster.db")
    assert result.stderr.splitlines() == [
        r"line 2: phone\x1b[31m: Extra inputs are not permitted",
        "line 3: not JSON: an object has the same key twice",
        "line 4: name: Input should be a valid string",
        "line 6: not an object with a name and an email",
        "line 7: not JSON: Expecting ',' delimiter",
    ]
    assert (result.returncode, result.stdout) == (1, "2 users stored, 5 lines rejected.\n")
    assert [(row[0], row[1]) for row in rows(tmp_path / "roster.db")] == [(1, "Ada"), (2, "Alan")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "The file is empty."),
        (b"\xef\xbb\xbf\n\n", "The file is empty."),
        (b"who,what,where\n", "not clear. There are: who, what, where. Name them, or number"),
        (b"Ada,Lovelace,ada@example.com\n", "not clear. There are: Ada, Lovelace, ada@example"),
        (b'"Name,Email"\n"Ada,ada@example.com"\n', "not clear. There are: Name,Email."),
        ("name,email\nAda,a@b.de\nZoë,z@b.de\n".encode("latin-1"), "line 3: not UTF-8."),
        ("name,email\n".encode("utf-16-le"), "This is not a text file"),
        (b"name,email\nAda,a@b.de\n" + b"x" * 10**6, "line 3: longer than 65536 bytes."),
        (b'name,email\nAda,a@b.de\n"Ada,b@b.de\n', "line 3: not CSV: unexpected end of data."),
    ],
)
def test_file_that_is_no_list_is_one_line(content: bytes, words: str) -> None:
    with pytest.raises(Stop, match=re.escape(words)):
        list(read_rows(io.BytesIO(content)))


def test_nothing_of_a_file_that_is_no_list_is_stored(tmp_path: Path) -> None:
    file, url = tmp_path / "people.csv", f"sqlite:///{tmp_path}/roster.db"
    assert "No such file or directory" in refusal(cli("import", file, url=url))
    file.write_bytes(people(1001).encode() + b"\xff")
    assert "line 1003: not UTF-8." in refusal(cli("import", file, url=url))
    assert not (tmp_path / "roster.db").exists()


def test_import_takes_the_columns_and_the_encoding_that_it_is_told(tmp_path: Path) -> None:
    file = tmp_path / "verein.csv"
    file.write_bytes(
        "Name;Vorname;E-Mail\nMüller;Zoë;zoe@example.com\n;Bo;bo@example.com\n".encode("cp1252")
    )
    url = f"sqlite:///{tmp_path}/roster.db"
    options = ("--name=Vorname,name", "--address=E-Mail", "--encoding=cp1252")
    assert "not UTF-8. Name another with --encoding" in refusal(
        cli("import", file, *options[:2], url=url)
    )
    unknown = cli("import", file, "--name=Rufname", "--encoding=cp1252", url=url)
    assert "There are: Name, Vorname, E-Mail. Name them, or number them" in refusal(unknown)
    guessed = cli("import", file, "--encoding=cp1252", "--dry-run", url=url)
    assert guessed.stderr == "The name is in Vorname + Name, the address in E-Mail.\n"
    assert cli("import", file, *options, url=url).stdout == "2 users stored, 0 lines rejected.\n"
    exported = cli("export", url=url).stdout
    assert [json.loads(line)["name"] for line in exported.splitlines()] == ["Zoë Müller", "Bo"]
    assert "knows no 'klingon'" in refusal(cli("import", file, "--encoding=klingon", url=url))


# Files of tests/cases/import that the command line does not take, and what it says of them.
NOT_TAKEN = {
    # Lists of addresses are for the page, where one can paste them.
    "addresses-only.txt": "not clear",
    "exchange-last-first.txt": "not clear",
    "gmail-to-line.txt": "not clear",
    "outlook-paste.txt": "not clear",
    # What the page asks.
    "no-header-last-first-email.csv": "There are: Beispiel, Nora, nora.beispiel.nh@example.com.",
    "unknown-language.csv": "There are: Nr, Izena, Posta elektronikoa.",
    # What no program should write.
    "french-macintosh.csv": "line 1: not CSV",
    "lines-in-quotes.csv": "There are: Name,Email,Note.",
    "messy.csv": "line 18: not CSV",
    "utf16-without-bom.csv": "This is not a text file",
}
ENCODINGS = {"macintosh": "mac_roman", "ibm850": "cp850", "euc-kr": "cp949"}


@pytest.mark.parametrize("name", EXPECTED)
def test_file_of_another_program_is_a_list_of_people(name: str) -> None:
    """As on the page, but for ``NOT_TAKEN``: nothing is guessed that a person would not."""
    expected = EXPECTED[name]
    encoding = expected.get("encoding", "utf-8-sig")
    said = NOT_TAKEN.get(name) or expected.get("said")
    with open_file(str(CASES / name)) as file:
        if said and name != "users.jsonl":
            with pytest.raises(Stop, match=re.escape(said)):
                list(read_rows(file, ENCODINGS.get(encoding, encoding)))
            return
        rows = [*read_rows(file, ENCODINGS.get(encoding, encoding))]
    people = [[user.name, user.email] for _, user in rows if not isinstance(user, str)]
    assert people == expected.get("people", [["Nora", "nora@example.com"]])


GUESSES: list[tuple[str, dict[str, list[str]], list[list[str]]]] = [
    # A person without an address is no header, though one cell of the row could be a title.
    ("Ada,a@b.de\nBo,no email\nCy,c@b.de", {}, [["Ada", "a@b.de"], ["Cy", "c@b.de"]]),
    ("1,Ada,a@b.de\n2,Bo,b@b.de", {"name": ["2"]}, [["Ada", "a@b.de"], ["Bo", "b@b.de"]]),
    # A column of addresses is no name, though its title could be one.
    ("Name,Kontakt\nAda,a@b.de", {}, [["Ada", "a@b.de"]]),
    ("Kontakt\nAda <a@b.de>", {}, [["Ada", "a@b.de"]]),
    # A title is found with what nobody sees in it.
    ("Name\u200b,E-Mail\nAda,a@b.de", {"name": ["name\u200b"]}, [["Ada", "a@b.de"]]),
    # What some names need is not taken away.
    ("氏名,メール\n渡邉\U000e0102,a@b.de", {}, [["渡邉\U000e0102", "a@b.de"]]),
    ("\ufeffsep=;\r\nName;Mail\r\n\r\nAda;mailto:a@b.de?subject=x\r\n", {}, [["Ada", "a@b.de"]]),
]


@pytest.mark.parametrize(("text", "told", "people"), GUESSES)
def test_guess_is_what_a_person_would_say(
    text: str, told: dict[str, list[str]], people: list[list[str]]
) -> None:
    rows = [user for _, user in read_rows(io.BytesIO(text.encode()), told=told)]
    assert [[user.name, user.email] for user in rows if not isinstance(user, str)] == people


@pytest.mark.parametrize("name", ["frist,2", "1,9", "0"])
def test_number_that_no_column_has_is_refused(name: str) -> None:
    with pytest.raises(Stop, match="not clear"):
        list(read_rows(io.BytesIO(b"Ada,Lovelace,a@b.de\n"), told={"name": name.split(",")}))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_mark_at_the_beginning_says_more_than_the_option(tmp_path: Path, encoding: str) -> None:
    (file := tmp_path / "people.txt").write_bytes("name\temail\nZoë\tz@b.de\n".encode(encoding))
    with open_file(str(file)) as opened:
        [(_, user)] = read_rows(opened, "cp1252")
    assert isinstance(user, UserCreate)
    assert user.name == "Zoë"


def test_cell_without_an_address_takes_no_longer_the_longer_it_is() -> None:
    """A photo in a directory's export took minutes, the square of its length; now milliseconds."""
    row, began = "Ada,a@b.de," + "abc/def+" * 8000, time.monotonic()
    users = [user for _, user in read_rows(io.BytesIO(f"Name,Mail,Photo\n{row}\n".encode()))]
    assert len(users) == 1
    assert time.monotonic() - began < 60


def test_row_without_an_address_says_so() -> None:
    rows = [*read_rows(io.BytesIO((CASES / "google-new.csv").read_bytes()))]
    assert [row for row in rows if isinstance(row[1], str)] == [(14, "no address")]


def test_columns_without_a_header_are_told_by_number(tmp_path: Path) -> None:
    file, url = CASES / "no-header-last-first-email.csv", f"sqlite:///{tmp_path}/roster.db"
    result = cli("import", file, "--name=2,1", "--address=3", url=url)
    assert result.stderr == "The name is in column 2 + column 1, the address in column 3.\n"
    assert rows(tmp_path / "roster.db")[0][1] == "Nora Beispiel"


@full
def test_list_is_imported_and_exported_in_constant_memory(tmp_path: Path) -> None:
    def peak(*arguments: object, count: int) -> int:
        url = f"sqlite:///{tmp_path}/{count}.db"
        # Measured from a small process: until it runs its own program, a child is as big as its
        # parent, and pytest is bigger than the command.
        measure = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=-3);"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        command = [sys.executable, "-c", measure, sys.executable, str(ROOT / "cli.py")]
        command += [*map(str, arguments), "--database-url", url]
        return int(subprocess.check_output(command, timeout=60))

    few, many = 10, 20_000
    for count in (few, many):
        (tmp_path / f"{count}.csv").write_text(people(count))
    for command in ("import", "export"):
        little, much = (
            peak(command, *[tmp_path / f"{n}.csv"] * (command == "import"), count=n)
            for n in (few, many)
        )
        assert much - little < 15_000  # KiB; with all rows at once, an import took 22,000 more


# export


def test_export_into_a_closed_pipe_is_quiet(many: Path) -> None:
    with start("export", url=f"sqlite:///{many}") as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""


def test_commands_ask_no_replica(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("READ_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    assert cli("export", url=f"sqlite:///{source}").returncode == 0


# What a spreadsheet takes for a formula, whether it separates by commas, semicolons or tabs.
FORMULAS = "=1", "'=1", "a;=1", 'a;"=1', "a;'=1", ";;@x", "a;+1;-1", "a;＝1"
OF_TABLES = "a\t=1", "a\n=1", "\t;'\"'-1"  # no user has them, but a table of yours may


@given(st.text(";\t\n'\"=a, ") | st.sampled_from([*FORMULAS, *OF_TABLES]))
def test_no_part_of_a_csv_cell_is_a_formula_and_an_import_gets_the_cell(cell: str) -> None:
    line = to_csv([["1", cell, cell]])
    [[_, guarded, _]] = csv.reader(io.StringIO(line, newline=""))
    assert plain_cell(guarded) == cell
    for separator in ",;\t":
        for row in csv.reader(io.StringIO(line, newline=""), delimiter=separator):
            assert not any(part.lstrip("\"'").startswith("=") for part in row if part[:1] != "'")


def test_csv_export_can_be_imported(source: Path, tmp_path: Path) -> None:
    change(source, "UPDATE users SET name = '''=x', name_key = '''=x' WHERE id = 3")
    with closing(sqlite3.connect(source)) as connection, connection:
        named = [(name, i) for i, name in enumerate(FORMULAS, 10)]
        connection.executemany("UPDATE users SET name = ? WHERE id = ?", named)
    exported = cli("export", "--format=csv", url=f"sqlite:///{source}").stdout
    result = cli("import", "-", given=exported, url=f"sqlite:///{tmp_path}/new.db")
    assert (result.returncode, result.stderr) == (0, "")
    assert [row[1:3] for row in rows(tmp_path / "new.db")] == [row[1:3] for row in rows(source)]
    names = {row["name"] for row in csv.DictReader(exported.splitlines())}
    assert "''=x" in names
    assert len(names) == len(rows(source))


# backup


def test_backup_while_somebody_writes_is_whole(source: Path, tmp_path: Path) -> None:
    url, file = f"sqlite:///{source}", tmp_path / "backup.db"
    done = threading.Event()
    written = []

    def write() -> None:
        with closing(sqlite3.connect(source, timeout=20, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            while not done.is_set():
                connection.execute("BEGIN IMMEDIATE")
                for id in (1, 1200):  # a moment in between would show one without the other
                    connection.execute("UPDATE users SET version = version + 1 WHERE id = ?", [id])
                connection.execute("COMMIT")
                written.append(1)

    change(source, "UPDATE users SET version = 1")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: len(written) > 10)
        result = cli("backup", file, url=url)
        after = len(written)
        wait_until(lambda: len(written) > after)
    finally:
        done.set()
        writer.join()
    assert result.stdout == f"1,199 users backed up to {file}.\n"
    versions = {row[0]: row[5] for row in rows(file)}
    assert 10 < versions[1] == versions[1200] <= len(written) + 1
    assert refusal(cli("backup", file, url=url)) == f"{file}: exists already. Give another name."
    assert {row[0]: row[5] for row in rows(file)} == versions
    assert "No such file" in refusal(cli("backup", tmp_path / "no" / "backup.db", url=url))
    # Nothing else is left.
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {
        *("backup.db", "source.db")
    }


def test_backup_that_fails_leaves_no_file(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    before = source.read_bytes()
    url = f"sqlite:///{source}"
    line = refusal(cli("backup", folder / "backup.db", url=url, preexec_fn=small_disk))
    assert line.startswith(f"{folder}/backup.db: no backup (SQLITE_")
    assert list(folder.iterdir()) == []
    assert source.read_bytes() == before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_backup_that_is_interrupted_leaves_no_file(
    source: Path, tmp_path: Path, how: signal.Signals
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    change(source, "CREATE TABLE big (x)", "INSERT INTO big VALUES (zeroblob(200000000))")
    with start("backup", folder / "backup.db", url=f"sqlite:///{source}") as process:
        wait_until(lambda: any(path.stat().st_size for path in folder.iterdir()))
        process.send_signal(how)
        assert process.communicate(timeout=60) == ("", "Stopped.\n")
    assert process.returncode == 1
    assert list(folder.iterdir()) == []


def test_new_database_is_its_owners_alone_and_another_one_stays_as_it_is(tmp_path: Path) -> None:
    def modes() -> set[int]:
        return {file.stat().st_mode & 0o777 for file in tmp_path.glob("*.db*")}

    file, url = tmp_path / "roster.db", f"sqlite:///{tmp_path}/roster.db"
    before = os.umask(0o022)
    try:
        with serve(url, tmp_path) as server:
            new = {"name": "x", "email": "x@example.com"}
            httpx.post(f"{server.url}/users/", json=new, verify=NO_TLS).raise_for_status()
            assert len([*tmp_path.glob("*.db*")]) == 3  # -wal and -shm, too
            assert modes() == {0o600}
        assert cli("backup", tmp_path / "backup.db", url=url).returncode == 0
        assert cli("copy", url, f"sqlite:///{tmp_path}/copy.db").returncode == 0
        assert modes() == {0o600}
        file.chmod(0o640)
        with serve(url, tmp_path):
            assert {each.stat().st_mode & 0o777 for each in tmp_path.glob("roster.db*")} == {0o640}
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("url", "tool"),
    [
        ("postgresql://a:hunter2@localhost/x", "pg_dump"),
        ("mysql://a:hunter2@localhost/x", "mariadb-dump"),
        ("mongodb://a:hunter2@localhost/x", "mongodump"),
        ("redis://a:hunter2@localhost/0", "BGSAVE"),
    ],
)
def test_backup_of_another_database_names_its_tool(url: str, tool: str) -> None:
    with pytest.raises(Stop, match=tool):
        asyncio.run(backup(Path("backup.db"), url))


# all of them


def test_each_command_fails_with_one_line_without_a_secret(tmp_path: Path) -> None:
    away = f"postgresql://roster:hunter2@127.0.0.1:{free_port()}/x"
    for arguments, words in (
        (("import", "-", "--database-url", away), "is unreachable"),
        (("export", "--database-url", f"{away}@y"), "write an @"),
        (
            ("backup", "file", "--database-url", away),
            "backup is for SQLite only; here, use",
        ),
        (("export", "--database-url", f"sqlite:///{tmp_path}/no.db"), "there is no SQLite file"),
    ):
        line = refusal(cli(*arguments, given=people(1)))
        assert words in line
        assert "hunter2" not in line
    assert not (tmp_path / "no.db").exists()


def test_bar_is_shown_on_a_terminal_only(source: Path, tmp_path: Path) -> None:
    def shown(stderr: int) -> str:
        url = f"sqlite:///{tmp_path}/{stderr}.db"
        options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": stderr}
        with start("copy", f"sqlite:///{source}", url, **options) as process:
            process.wait(60)
        assert process.returncode == 0
        return ""

    ours, theirs = pty.openpty()
    output: list[bytes] = []

    def read() -> None:
        while True:
            try:
                output.append(os.read(ours, 1000))
            except OSError:
                return

    reader = threading.Thread(target=read)
    reader.start()
    shown(theirs)
    os.close(theirs)
    reader.join()
    os.close(ours)
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", b"".join(output)).decode()
    assert "Copying" in text
    assert "1199/1199" in text
