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
from sqlmodel import SQLModel

from db import get_engines, get_settings
from errors import Fault, classify
from models import Millis
from start import CannotStart
from store import choose_backend
from tables import REVISIONS

backend: Any = choose_backend(get_settings().database_url.get_secret_value())
if backend.__name__ != "store_sql":
    sys.exit("DATABASE_URL: only SQLite, PostgreSQL, MySQL and MariaDB have migrations.")

logging.basicConfig(format="%(message)s")
logging.getLogger("alembic.runtime.migration").setLevel(logging.INFO)
logging.getLogger("alembic.autogenerate").setLevel(logging.INFO)
logging.getLogger("alembic.util.messaging").propagate = False  # it prints the same by itself
logging.getLogger("asyncmy").setLevel(logging.ERROR)  # MySQL's notes, on Alembic's own table too

engine = get_engines().writer


@event.listens_for(engine.sync_engine, "do_connect")
def give_time(_: Any, __: Any, ___: Any, options: dict[str, Any]) -> None:
    """Lift the time limits of a request's statements: an index on millions of rows takes minutes.

    But wait for the lock of a table for three seconds only, for whoever comes then waits too.
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
    """Do not let SQLite follow foreign keys (https://www.sqlite.org/lang_altertable.html#otheralter).

    A batch makes a new table and drops the old one: rows of others that point to it would go too.
    """
    if engine.dialect.name == "sqlite":
        connection.cursor().execute("PRAGMA foreign_keys=OFF")


@event.listens_for(Table, "before_create")
def keep_autoincrement(table: Table, connection: Connection, **_: Any) -> None:
    """Let the table that a batch makes on SQLite never give an id twice, if the old one does not.

    Alembic does not see that: it would forget AUTOINCREMENT, and the last id that was given.
    """
    old = table.name.removeprefix("_alembic_tmp_")
    if old != table.name:
        find = "SELECT sql FROM sqlite_master WHERE name = ?"
        if "AUTOINCREMENT" in str(connection.exec_driver_sql(find, (old,)).scalar()):
            table.dialect_options["sqlite"]["autoincrement"] = True


@event.listens_for(Table, "after_create")
def keep_last_id(table: Table, connection: Connection, **_: Any) -> None:
    """Let it go on after the last id that the old one gave."""
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
        scripts[0].rev_id = f"{len(REVISIONS) + 1:04}"


def render(kind: str, item: Any, autogenerate: Any) -> Any:
    """Write a type of ours so that a migration means the same when models.py has changed."""
    if kind == "type" and isinstance(item, Millis):
        autogenerate.imports.add("from sqlalchemy.dialects import mysql")
        return 'sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=3), "mysql")'
    return False


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
        # Alembic expects Python's own transactions, which SQLite would end at each change of a
        # table; ours end when all is done, or nothing.
        transactional_ddl=engine.dialect.name != "mysql",
    )
    with context.begin_transaction():
        context.run_migrations()
        if connection and engine.dialect.name == "sqlite":
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
            if broken:
                raise CommandError(f"Rows of {broken[0]} would point to no row of {broken[2]}.")


async def connect_and_migrate() -> None:
    """Do so with a connection; leave with one line if the database does not let us, or is away."""
    connected = False
    try:
        async with engine.connect() as connection:
            connected = True
            await connection.run_sync(migrate)
    except Exception as error:
        if not connected:
            sys.exit(str(CannotStart(backend, error)))
        code = backend.driver_code(error)
        fault = classify(error, code)
        if fault not in (Fault.BUSY, Fault.TOO_SLOW, Fault.READ_ONLY, Fault.REFUSED, Fault.FULL):
            raise  # the author of a migration has to see what is wrong in it
        sys.exit(f"DATABASE_URL: {backend.place()}: {fault.detail} ({code})")
    finally:
        await engine.dispose()


if context.is_offline_mode():
    migrate(None)
else:
    asyncio.run(connect_and_migrate())
