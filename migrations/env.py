"""What every ``alembic`` command runs: it works with the app's settings, engine and models.

https://alembic.sqlalchemy.org/en/latest/tutorial.html explains the commands.
"""

import asyncio
import logging
import sys
from typing import Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, Table, event
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import SQLModel

import app  # noqa: F401 (it imports every module that has tables)
from db import get_backend
from engine import Database, SettingsError, UTCMillis
from errors import FAULTS
from faults_sql import sql_fault
from lifespan import StartError
from rows import Amount
from schema import revisions
from store import Backend, Kind


def get_database() -> Database:
    """Return the SQL database of the settings; end with one line if there is none."""
    try:
        backend: Backend = get_backend()
    except SettingsError as error:
        sys.exit(str(error))
    if not isinstance(backend, Database):
        sys.exit("DATABASE_URL: only SQLite, PostgreSQL, MySQL and MariaDB have migrations.")
    return backend


database = get_database()
logging.basicConfig(format="%(message)s")
logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
logging.getLogger("alembic.autogenerate").setLevel(logging.INFO)
logging.getLogger("alembic.util.messaging").propagate = False  # it prints the same by itself
logging.getLogger("asyncmy").setLevel(logging.ERROR)  # MySQL's notes, on Alembic's own table too

engine = database.writer


@event.listens_for(engine.sync_engine, "do_connect")
def give_time(_: Any, __: Any, ___: Any, options: dict[str, Any]) -> None:
    """Lift the time limits of a request's statements: an index on millions of rows takes minutes.

    But wait for a table's lock for three seconds only, because all later requests wait behind it.
    """
    match engine.dialect.name:
        case "postgresql":
            options["command_timeout"] = None
            options["server_settings"]["statement_timeout"] = "0"
        case "mysql":
            options["read_timeout"] = None
            options["init_command"] += " /*M!100100 , max_statement_time=0 */"


@event.listens_for(engine.sync_engine, "connect")
def leave_foreign_keys(connection: Any, _: Any) -> None:
    """Switch SQLite's foreign keys off (https://www.sqlite.org/lang_altertable.html#otheralter).

    A batch makes a new table and drops the old one, and the rows that refer to it with that.
    """
    if engine.dialect.name == "sqlite":
        connection.cursor().execute("PRAGMA foreign_keys=OFF")


@event.listens_for(Table, "before_create")
def keep_autoincrement(table: Table, connection: Connection, **_: Any) -> None:
    """Keep AUTOINCREMENT in the table that a batch makes on SQLite. Alembic would forget it."""
    old = table.name.removeprefix("_alembic_tmp_")
    if old != table.name:
        find = "SELECT sql FROM sqlite_master WHERE name = ?"
        if "AUTOINCREMENT" in str(connection.exec_driver_sql(find, (old,)).scalar()):
            table.dialect_options["sqlite"]["autoincrement"] = True


@event.listens_for(Table, "after_create")
def keep_last_id(table: Table, connection: Connection, **_: Any) -> None:
    """Continue after the last id that the old table gave."""
    if table.name.startswith("_alembic_tmp_") and table.dialect_options["sqlite"]["autoincrement"]:
        copy = "INSERT INTO sqlite_sequence SELECT ?, seq FROM sqlite_sequence WHERE name = ?"
        old = table.name.removeprefix("_alembic_tmp_")
        connection.exec_driver_sql(copy, (table.name, old))


def number(_: Any, __: Any, scripts: list[Any]) -> None:
    """Give a new revision the next number; with --autogenerate and without a change, make none."""
    options: Any = context.config.cmd_opts
    if not scripts or getattr(options, "rev_id", True):
        return
    if options.autogenerate and scripts[0].upgrade_ops.is_empty():
        scripts.clear()
        print("The models and the migrations agree: there is nothing to do.")
    else:
        scripts[0].rev_id = f"{len(revisions()) + 1:04}"


def render(kind: str, item: Any, autogenerate: Any) -> Any:
    """Write our types so that a migration keeps its meaning when models.py changes."""
    if kind == "type" and isinstance(item, UTCMillis):
        autogenerate.imports.add("from sqlalchemy.dialects import mysql")
        return 'sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=3), "mysql")'
    if kind == "type" and isinstance(item, Amount):
        return f'sa.Numeric({item.digits}, {item.places}).with_variant(sa.BigInteger(), "sqlite")'
    return False


# For the operator, not the author of a migration.
OPERATORS = (Kind.BUSY, Kind.TOO_SLOW, Kind.READ_ONLY, Kind.REFUSED, Kind.FULL)


def migrate(connection: Connection | None) -> None:
    """Run a command's migrations; without a connection, print their SQL."""
    context.configure(
        connection=connection,
        dialect_name=engine.dialect.name,
        literal_binds=connection is None,
        target_metadata=SQLModel.metadata,
        render_as_batch=engine.dialect.name == "sqlite",
        compare_server_default=True,
        process_revision_directives=number,
        render_item=render,
        # Alembic expects Python's own transactions, which end at each change of a table. Ours end
        # when all is done, or nothing.
        transactional_ddl=engine.dialect.name != "mysql",
    )
    with context.begin_transaction():
        context.run_migrations()
        if connection and engine.dialect.name == "sqlite":
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
            if broken:
                raise CommandError(f"Rows of {broken[0]} would refer to no row of {broken[2]}.")


async def connect_and_migrate() -> None:
    """Run them; end with one line if the database is unreachable or refuses."""
    connected = False
    try:
        async with engine.connect() as connection:
            connected = True
            await connection.run_sync(migrate)
    except (SQLAlchemyError, TypeError) as error:
        if not connected:
            sys.exit(str(StartError(database, error)))
        fault = sql_fault(error) if isinstance(error, SQLAlchemyError) else None
        if not fault or fault.kind not in OPERATORS:
            raise  # the author of a migration has to see what is wrong in it
        sys.exit(f"DATABASE_URL: {database.place}: {FAULTS[fault.kind][1]} ({fault.code})")
    finally:
        await database.stop()


if context.is_offline_mode():
    migrate(None)
else:
    asyncio.run(connect_and_migrate())
