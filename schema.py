"""The tables of an SQL database: how they are made, and the newest id that each of them gave.

From then on, only Alembic changes them (``migrations/``): they must have its newest revision.
"""

import re
from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, String, Table, insert, inspect, select, update
from sqlalchemy import text as sql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlmodel import SQLModel

from engine import codes

MIGRATIONS = Path(__file__).parent / "migrations"
METADATA = SQLModel.metadata
STAMP = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))
# {0} is the table, {1} its column, {2} the id, {3} the next one. PostgreSQL's sequences have no 0.
# In MySQL's information_schema, the counter can be a day old.
LAST_ID = {
    "sqlite": "SELECT seq FROM sqlite_sequence WHERE name = '{0}'",
    "postgresql": "SELECT last_value FROM pg_sequences"
    " WHERE format('%I.%I', schemaname, sequencename) = pg_get_serial_sequence('{0}', '{1}')",
    "mysql": "SHOW CREATE TABLE {0}",
}
SET_LAST_ID = {
    "sqlite": "DELETE FROM sqlite_sequence WHERE name = '{0}';"
    "INSERT INTO sqlite_sequence (name, seq) VALUES ('{0}', {2})",
    "postgresql": "SELECT setval(pg_get_serial_sequence('{0}', '{1}'), greatest({2}, 1), {2} > 0)",
    "mysql": "ALTER TABLE {0} AUTO_INCREMENT = {3}",
}


class WrongTables(Exception):
    """A database has other tables than expected. The text, after its name, says what to do."""


def revisions() -> list[str]:
    """Return the revisions in Alembic's folder, the oldest first.

    They are read from the names of its files, because importing Alembic takes longer than all else
    at start.
    """
    return sorted(path.name.partition("_")[0] for path in MIGRATIONS.glob("versions/[0-9]*.py"))


def make_tables(connection: Connection) -> None:
    """Make the tables if there are none. Raises WrongTables if there are others than expected."""
    if connection.dialect.name == "postgresql":
        encoding = connection.scalar(sql("SHOW server_encoding"))
        if encoding != "UTF8":
            raise WrongTables(f"has the encoding {encoding}: create it with ENCODING 'UTF8'")
    known = revisions()
    if not known:
        raise WrongTables("cannot be compared: migrations/versions has no migration")
    newest = known[-1]
    # MySQL and MariaDB commit each table alone.
    unfinished = f"{newest} unfinished"
    # The process that makes the tables stamps first, so ask for the tables before the stamp.
    made = any(map(inspect(connection).has_table, METADATA.tables))
    inspector = inspect(connection)
    stamped = inspector.has_table(STAMP.name)
    found = set(connection.scalars(select(STAMP.c.version_num))) if stamped else set()
    if (not made and found <= {newest}) or unfinished in found:
        stamp(connection, unfinished)
        METADATA.create_all(connection)
        if unfinished in found and connection.dialect.name == "mysql":
            make_indexes(connection)
        stamp(connection, newest)
        return
    there = found or {known[0]}  # release 0.1.0 made its tables without a stamp
    wanted = {(name, one.name) for name, table in METADATA.tables.items() for one in table.columns}
    columns = inspector.get_multi_columns(filter_names=[*METADATA.tables])
    present = {(name, column["name"]) for (_, name), each in columns.items() for column in each}
    missing = wanted - present if there == {newest} else set()
    other = present - wanted or missing
    if other and not found:
        raise WrongTables(f"has a table {min(other)[0]} of another program: name another database")
    if there != {newest}:
        where = "" if MIGRATIONS.parent == Path.cwd() else f"-c {MIGRATIONS.parent}/pyproject.toml "
        advice = f"this release needs {newest}: run alembic {where}upgrade head"
        if not there.issubset(known):
            advice = "of a newer release: start that one"
        raise WrongTables(f"has tables of revision {', '.join(sorted(there))}, {advice}")
    if missing:
        which = ".".join(min(missing))
        commands = "alembic revision --autogenerate, then alembic upgrade head"
        raise WrongTables(f"has no column {which}, and no migration adds it: run {commands}")
    if not found:
        stamp(connection, newest)


def make_indexes(connection: Connection) -> None:
    """Make those that are missing: MySQL commits a table before them."""
    for index in [index for table in METADATA.tables.values() for index in table.indexes]:
        try:
            index.create(connection)
        except DBAPIError as error:
            if "1061" not in codes(error):  # it exists
                raise


def stamp(connection: Connection, revision: str) -> None:
    STAMP.create(connection, checkfirst=True)
    # After that, MySQL commits each statement alone, so there has to be a revision after each.
    values = {"version_num": revision}
    if not connection.execute(update(STAMP), values).rowcount:
        connection.execute(insert(STAMP), values)


def names(connection: AsyncConnection, table: Table) -> tuple[str, str]:
    """Return the name of a table, quoted if it has to be, and that of its column of ids."""
    column = table.autoincrement_column
    if column is None:
        raise ValueError(f"{table.name} has no column that numbers its rows")
    quote = connection.dialect.identifier_preparer.format_table
    sqlite = connection.dialect.name == "sqlite"  # there, the name is a text
    return table.name if sqlite else quote(table), column.name


async def get_last_id(session: AsyncSession, table: Table, lock: bool = False) -> int:
    """Return the newest id that a table gave, to deleted rows too; 0 if none.

    ``lock`` makes others that would lock it wait until the transaction, which ends here otherwise.
    """
    connection = await session.connection()
    if lock:  # a row, because PostgreSQL's counters, and MySQL's, are in no transaction
        await connection.execute(select(STAMP.c.version_num).with_for_update())
    statement = sql(LAST_ID[connection.dialect.name].format(*names(connection, table)))
    row = (await connection.execute(statement)).first()
    if not lock:
        await session.commit()
    if row and connection.dialect.name == "mysql":
        found = re.search(r"AUTO_INCREMENT=(\d+)", row[1])
        return int(found[1]) - 1 if found else 0
    return int(row[0] or 0) if row else 0


async def set_last_id(session: AsyncSession, table: Table, last_id: int) -> None:
    """Let the next id of a table be greater than this, and commit."""
    connection = await session.connection()
    values = *names(connection, table), last_id, last_id + 1
    for statement in SET_LAST_ID[connection.dialect.name].format(*values).split(";"):
        await connection.execute(sql(statement))
    await session.commit()
