"""Migrations: they agree with the models, take over older databases, and say what is to be done.

``releases/`` has a dump of each release's database with three users, as its server wrote it.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import httpx
import pytest
from conftest import ROOT, full, quick_on, serve, wait_until
from databases import Database, free_port
from sqlalchemy import Connection, Integer, String, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.util import await_
from sqlmodel import SQLModel
from sqlmodel.sql.sqltypes import UTCDateTime
from test_contract import add, read_all
from test_start import only_line, relay, start_and_fail

from engine import Database as SQLDatabase
from fields import KEY_MAX
from schema import WrongTables, make_tables, stamp
from schema import revisions as known_revisions

REVISIONS = known_revisions()
NEWEST, NEXT = REVISIONS[-1], f"{len(REVISIONS) + 1:04}"
SQL = ("sqlite", "postgresql", "mysql")
on_sql = pytest.mark.parametrize("database", SQL, indirect=True)
START = """
import asyncio
from db import get_backend
from lifespan import start
async def run():
    await start(get_backend())
    await get_backend().stop()
asyncio.run(run())
"""
USERS_OF_0_1_0 = [
    (1, "Ada Lovelace", "Ada@example.com", 1),
    (2, "Grace Brewster Hopper", "grace@example.com", 2),
    (4, "Zoë 😀 O'Straße", "zoë@example.com", 1),
]


def run(url: str, *command: str, folder: Path = ROOT, fails: bool = False) -> str:
    """Run Python on a database in a project's folder; return what it printed."""
    result = forked.run(
        [sys.executable, "-W", "error", *command],
        timeout=120,
        cwd=folder,
        env={**os.environ, "DATABASE_URL": url},
        stderr=subprocess.STDOUT,
    )
    assert (result.returncode != 0) == fails, result.stdout
    assert "Traceback" not in result.stdout, result.stdout
    return result.stdout


def alembic(url: str, *command: str, folder: Path = ROOT, fails: bool = False) -> str:
    """Run the command ``alembic``; return what it printed, without what it always says."""
    printed = run(url, "-m", "alembic", *command, folder=folder, fails=fails)
    return re.sub(r"(Context impl|Will assume) .*\n", "", printed)


def within(url: str, work: Callable[[Connection], Any]) -> Any:
    """Do something in one transaction; return what it returns."""

    async def connect_and_work() -> Any:
        engine = SQLDatabase(url, size=2).writer
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(work)
        finally:
            await engine.dispose()

    return asyncio.run(connect_and_work())


def ask(url: str, *statements: str) -> Any:
    """Run statements in one transaction; return the rows of all."""

    def work(connection: Connection) -> Any:
        results = [connection.exec_driver_sql(statement) for statement in statements]
        return [tuple(row) for result in results if result.returns_rows for row in result]

    return within(url, work)


def backend(url: str) -> str:
    """Return the name of a URL's kind of database."""
    return make_url(url).get_backend_name()


def load(url: str, release: str) -> None:
    """Fill an empty database with that of a release."""
    dump = (ROOT / "tests" / "releases" / f"{release}-{backend(url)}.sql").read_text()
    ask(url, *filter(str.strip, dump.split(";\n")))


def schema(url: str) -> list[Any]:
    """Return the table in the database's own words, down to collations and how ids are given.

    The order of the columns does not count.
    """
    match backend(url):
        case "sqlite":
            rows = ask(url, "select sql from sqlite_master where tbl_name = 'users' and sql > ''")
            return [sorted(re.split(r"[\s,()]+", sql)) for (sql,) in rows]
        case "mysql":
            rows = ask(url, "show create table users")
            return [sorted(re.sub(r" AUTO_INCREMENT=\d+", "", text).split()) for _, text in rows]
    rows = ask(
        url,
        "select attname, format_type(atttypid, atttypmod), attnotnull, collname,"
        " pg_get_expr(adbin, adrelid) from pg_attribute"
        " left join pg_attrdef on adrelid = attrelid and adnum = attnum"
        " left join pg_collation on pg_collation.oid = attcollation"
        " where attrelid = 'users'::regclass and attnum > 0 order by attname",
        "select indexdef from pg_indexes where tablename = 'users' order by indexname",
        "select conname, pg_get_constraintdef(oid) from pg_constraint"
        " where conrelid = 'users'::regclass order by conname",
    )
    return list(rows)


def revisions(url: str) -> list[str]:
    """Return the revisions in the database."""
    return [row[0] for row in ask(url, "select version_num from alembic_version")]


def copy(folder: Path, old: str, new: str) -> Path:
    """Copy the app to a folder, with something else in models.py; return the folder."""
    for file in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy2(file, folder)
    for name in ("commands", "edge", "engine", "migrations", "web"):
        shutil.copytree(ROOT / name, folder / name)
    models = folder / "models.py"
    text = models.read_text()
    assert old in text
    models.write_text(
        text.replace(old, new).replace("\nfrom fields", "\nimport engine\nfrom fields")
    )
    return folder


LAST_COLUMN = (
    '    search_key: str = key_of("name", "email", by=fold_all, server_default=text("\'\'"))\n'
)
FAX = "    fax: str | None = Field(default=None, max_length=30, index=True)\n"
SEEN = "    seen_at: datetime | None = Field(default=None, sa_type=engine.UTCMillis)\n"


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a later release, made as the README says; NEXT is its migration."""
    folder = copy(tmp_path_factory.mktemp("later"), LAST_COLUMN, LAST_COLUMN + FAX + SEEN)
    url = f"sqlite:///{folder}/roster.db"
    run(url, "-c", START)
    printed = start_and_fail(folder, {"DATABASE_URL": url, "PYTHONPATH": str(folder)})
    assert "has no column users.fax" in only_line(printed)
    assert "alembic revision --autogenerate" in printed
    printed = alembic(url, "revision", "--autogenerate", "-m", "fax", folder=folder)
    assert "Detected added column 'users.fax'" in printed
    text = (folder / "migrations" / "versions" / f"{NEXT}_fax.py").read_text()
    assert "models" not in text  # which will change again
    assert "fsp=3" in text
    return folder


@on_sql
def test_tables_are_never_there_without_their_revision(database: Database) -> None:
    """A process that starts meanwhile would take them for those of the oldest release.

    MySQL commits each statement by itself after one that made a table.
    """
    seen: list[tuple[bool, list[str]]] = []

    async def test(making: SQLDatabase, looking: SQLDatabase) -> None:
        async def look() -> None:
            async with looking.reader.connect() as reading:
                names = await reading.run_sync(lambda it: inspect(it).get_table_names())
                stamps = list[str]()
                if "alembic_version" in names:
                    stamps = [*await reading.scalars(text("SELECT * FROM alembic_version"))]
                seen.append(("users" in names, stamps))

        @event.listens_for(making.writer.sync_engine, "after_cursor_execute")
        def after_each_statement(*_: Any) -> None:
            await_(look())

        try:
            await making.start(make_tables)
            await look()
        finally:
            await making.stop()
            await looking.stop()

    with database.new() as url:
        asyncio.run(test(SQLDatabase(url), SQLDatabase(url)))
    assert seen[-1] == (True, [NEWEST])
    assert len(seen) > 5
    assert (True, []) not in seen


@on_sql
def test_migrations_make_the_tables_that_the_models_describe(database: Database) -> None:
    with database.new() as migrated, database.new() as started:
        assert "Running upgrade  -> 0001" in alembic(migrated, "upgrade", "head")
        within(started, make_tables)
        assert schema(migrated) == schema(started)
        assert revisions(migrated) == revisions(started) == [NEWEST]
        assert alembic(started, "check") == "No new upgrade operations detected.\n"


@on_sql
def test_table_of_another_program_is_not_taken_over(database: Database) -> None:
    """Not by the start, nor by the first migration, whatever migrations come after it."""
    with database.new() as url:
        foreign = "CREATE TABLE users (id INTEGER PRIMARY KEY, name VARCHAR(9), email VARCHAR(9))"
        within(url, lambda connection: connection.exec_driver_sql(foreign))
        before = schema(url)
        said = alembic(url, "upgrade", "head", fails=True)
        assert "another program's: name another database" in said
        assert schema(url) == before


@pytest.mark.parametrize(
    ("database", "change"),
    [
        ("sqlite", lambda users: (users.dialect_options["sqlite"], "autoincrement", False)),
        ("sqlite", lambda users: (users, "indexes", set())),
        ("postgresql", lambda users: (users.c.name_key, "type", String(KEY_MAX))),
        ("postgresql", lambda users: (users.c.id, "type", Integer())),
        ("mysql", lambda users: (users.c.email_key, "type", String(KEY_MAX))),
        ("mysql", lambda users: (users.c.created_at, "type", UTCDateTime())),
    ],
    ids=["autoincrement", "index", "collation", "bigint", "collation", "milliseconds"],
    indirect=["database"],
)
def test_models_that_differ_from_the_migrations_are_noticed(
    database: Database, change: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all of this is seen by ``alembic check``: by the comparison above it is."""
    with database.new() as started, database.new() as changed:
        within(started, make_tables)
        owner, name, value = change(SQLModel.metadata.tables["users"])
        set_ = monkeypatch.setattr if hasattr(owner, name) else monkeypatch.setitem
        set_(owner, name, value)
        within(changed, make_tables)
        assert schema(changed) != schema(started)


@on_sql
def test_database_of_0_1_0_is_taken_over_at_the_start(database: Database, tmp_path: Path) -> None:
    with database.new() as url, database.new() as started:
        load(url, "0.1.0")
        if NEWEST != "0001":
            alembic(url, "upgrade", "head")
        within(started, make_tables)
        with (
            serve(url, tmp_path, "--workers=2", app="app:app") as server,
            httpx.Client(base_url=server.url) as client,
        ):
            wait_until(lambda: server.printed().count("startup complete") == 2, server.printed)
            assert_users_are_those_of_0_1_0(client)
            assert "Traceback" not in server.printed()
        assert schema(url) == schema(started)
        assert revisions(url) == [NEWEST]


@on_sql
def test_database_of_1_0_0_gets_its_search_keys(database: Database) -> None:
    """Its tables are those of 0.1.0, with a stamp. A domain with ß has a key of its own since."""
    with database.new() as url:
        load(url, "0.1.0")
        within(url, lambda connection: stamp(connection, "0001"))
        ask(url, "update users set email = 'x@straße.de', email_key = 'x@strasse.de' where id = 2")
        with pytest.raises(WrongTables, match="upgrade head"):
            within(url, make_tables)
        printed = alembic(url, "upgrade", "head")
        assert "users: 3 of 3 rows have a search key" in printed
        assert ask(url, "select id, search_key, email_key from users order by id") == [
            (1, "ada lovelace\nada@example.com", "ada@example.com"),
            (2, "grace brewster hopper\nx@strasse.de", "x@straße.de"),
            (4, "zoe 😀 o'strasse\nzoe@example.com", "zoë@example.com"),
        ]


@on_sql
def test_migration_that_was_interrupted_continues(database: Database) -> None:
    """MySQL commits a new column at once, and nothing that came after it."""
    with database.new() as url:
        load(url, "0.1.0")
        alembic(url, "upgrade", "0002")
        ask(url, "update users set search_key = '' where id > 1")
        within(url, lambda connection: stamp(connection, "0001"))
        alembic(url, "upgrade", "0002")
        assert ask(url, "select count(*) from users where search_key = ''") == [(0,)]


@on_sql
def test_start_that_was_killed_is_finished_by_the_next(database: Database) -> None:
    with database.new() as url:
        within(url, make_tables)
        within(url, lambda connection: stamp(connection, f"{NEWEST} unfinished"))
        within(url, make_tables)
        assert revisions(url) == [NEWEST]


@pytest.mark.parametrize("database", ["mysql"], indirect=True)
def test_start_that_was_killed_before_the_indexes_makes_them(database: Database) -> None:
    """MySQL commits a table before its indexes."""

    def lose(connection: Connection) -> None:
        for index in SQLModel.metadata.tables["users"].indexes:
            index.drop(connection)

    def indexes(connection: Connection) -> set[str | None]:
        return {index["name"] for index in inspect(connection).get_indexes("users")}

    with database.new() as url:
        within(url, make_tables)
        made = within(url, indexes)
        within(url, lose)
        within(url, lambda connection: stamp(connection, f"{NEWEST} unfinished"))
        within(url, make_tables)
        assert within(url, indexes) == made
        assert revisions(url) == [NEWEST]
        ask(url, "delete from alembic_version", "alter table users drop column search_key")
        within(url, lose)
        alembic(url, "upgrade", "head")  # migration 0001, too
        assert within(url, indexes) == made


def assert_users_are_those_of_0_1_0(client: httpx.Client) -> None:
    """Look at the three users, and add one: no id is given twice."""
    users = read_all(client)
    assert [(u["id"], u["name"], u["email"], u["version"]) for u in users] == USERS_OF_0_1_0
    assert re.fullmatch(r"2026-11-22T23:55:\d\d\.\d{6}Z", users[0]["created_at"])
    assert client.get("/users/?email=GRACE@example.com").json()["items"] == [users[1]]
    assert read_all(client, q="zoe STRASSE") == [users[2]]
    assert read_all(client, q="ada@example lovelace", sort="name") == [users[0]]
    assert client.post("/users/", json={"name": "a", "email": "ADA@example.com"}).status_code == 409
    assert add(client)["id"] > 4


@pytest.mark.parametrize("database", quick_on(SQL, "sqlite"), indirect=True)
def test_older_tables_are_refused_until_the_command_has_run(
    database: Database, tmp_path: Path, later: Path
) -> None:
    with database.new() as url:
        load(url, "0.1.0")
        line = only_line(start_and_fail(later, {"DATABASE_URL": url, "PYTHONPATH": str(later)}))
        assert f"revision 0001, this release needs {NEXT}: run alembic upgrade head" in line
        assert str(make_url(url).password) not in line
        assert f"-> {NEXT}, fax" in alembic(url, "upgrade", "head", folder=later)
        options = ("--app-dir", str(later))
        with (
            serve(url, tmp_path, *options, app="app:app") as server,
            httpx.Client(base_url=server.url) as client,
        ):
            assert_users_are_those_of_0_1_0(client)
        with pytest.raises(WrongTables, match=f"revision {NEXT}, of a newer release"):
            within(url, make_tables)


@full
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_older_tables_of_a_database_that_comes_late(
    database: Database, tmp_path: Path, later: Path
) -> None:
    port = free_port()
    with database.new() as url:
        load(url, "0.1.0")
        real = make_url(url)
        away = real.set(port=port).render_as_string(hide_password=False)
        with (
            serve(away, tmp_path, "--app-dir", str(later), app="app:app") as server,
            relay(port, real.port or 0),
        ):
            wait_until(lambda: "upgrade head" in server.printed(), server.printed)
            assert httpx.get(f"{server.url}/readyz").status_code == 503
            alembic(url, "upgrade", "head", folder=later)
            wait_until(lambda: httpx.get(f"{server.url}/readyz").is_success, seconds=3)
            assert "Traceback" not in server.printed()


def test_batch_on_sqlite_keeps_what_points_to_users_and_gives_no_id_twice(
    tmp_path: Path, later: Path
) -> None:
    """There, a new table takes the place of the old one, whose last user has been deleted."""
    url = f"sqlite:///{tmp_path}/roster.db"
    load(url, "0.1.0")
    task = "create table task (user_id integer references users (id) on delete cascade)"
    ask(url, task, "insert into task values (2)", "delete from users where id = 4")
    alembic(url, "upgrade", "head", folder=later)
    alembic(url, "downgrade", "-1", folder=later)  # drops columns, in a batch
    assert ask(url, "select * from task", "select count(*) from users") == [(2,), (2,)]
    assert "AUTOINCREMENT" in str(schema(url))
    ask(
        url,
        "insert into users"
        " (name, email, created_at, updated_at, version, name_key, email_key, search_key)"
        " select name, email, created_at, updated_at, 1, 'a', 'a', 'a' from users where id = 1",
    )
    assert ask(url, "select max(id) from users") == [(5,)]


def test_way_back_that_fails_half_way_changes_nothing_and_deletes_nobody(
    tmp_path: Path, later: Path
) -> None:
    url = f"sqlite:///{tmp_path}/roster.db"
    alembic(url, "upgrade", "head", folder=later)
    printed = alembic(url, "downgrade", "base", folder=later, fails=True)
    assert f"Running downgrade {NEXT}" in printed
    assert "it would delete all users" in printed
    assert revisions(url) == [NEXT]
    assert "fax" in str(schema(url))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mongodb://a:hunter2@localhost/x", "only SQLite, PostgreSQL, MySQL and MariaDB"),
        ("postgresql://a:b@hunter2@localhost/x", "write an @"),
        ("postgresql://a:hunter2%25@127.0.0.1:{port}/x", "is unreachable"),
    ],
)
def test_wrong_url_is_one_line_without_a_secret(url: str, words: str) -> None:
    printed = alembic(url.format(port=free_port()), "upgrade", "head", fails=True)
    assert words in printed
    assert printed.count("\n") == 1
    assert "hunter2" not in printed


@pytest.mark.parametrize("database", ["postgresql", "mysql"], indirect=True)
def test_wrong_password_is_one_line_without_a_secret(database: Database) -> None:
    url = make_url(database.url).set(password="hunter2%").render_as_string(hide_password=False)
    printed = alembic(url, "upgrade", "head", fails=True)
    assert "this user name with this password" in printed
    assert printed.count("\n") == 1
    assert "hunter2" not in printed
