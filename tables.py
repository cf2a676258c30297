"""The tables of an SQL database, and their revision: the newest of ``migrations/`` that they had.

An empty database gets the tables of ``models.py`` at once. From then on only ``alembic`` changes
them: the app compares the revision, which Alembic keeps in ``alembic_version``, and does not start
if it is not that of the newest file. It asks with a plain statement, and takes the revisions from
the names of the files: to import Alembic takes longer than all else that is done here.
"""

from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, String, Table, delete, insert, inspect, select
from sqlmodel import SQLModel

from store import WrongTables

# "0001_users.py" is the revision 0001.
FILES = (Path(__file__).parent / "migrations" / "versions").glob("[0-9]*.py")
REVISIONS = sorted(path.name.partition("_")[0] for path in FILES) or [""]
BASELINE, NEWEST = REVISIONS[0], REVISIONS[-1]
# MySQL and MariaDB commit each table alone. So that another process, or the next start after one
# that was killed, knows that there will be more of them, this is the revision until then.
BEING_MADE = f"{NEWEST} unfinished"
# Alembic's own table.
STAMP = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


def make_tables(connection: Connection) -> None:
    """Make the tables if there are none. Raises WrongTables if there are others than expected.

    Several processes may do so at once: then all but one get the database's error for what is there
    already, and have to begin again.
    """
    if not NEWEST:
        raise WrongTables("cannot be compared: the folder migrations/versions is not there")
    models = SQLModel.metadata.tables
    # In this order: whoever makes the tables writes a revision first.
    made = any(inspect(connection).has_table(name) for name in models)
    stamped = inspect(connection).has_table(STAMP.name)
    found = set(connection.scalars(select(STAMP.c.version_num))) if stamped else set()
    if (not made and found <= {NEWEST}) or BEING_MADE in found:
        stamp(connection, BEING_MADE)
        SQLModel.metadata.create_all(connection)
        stamp(connection, NEWEST)
        return
    revisions = found or {BASELINE}  # release 0.1.0 made its tables without a revision
    if not revisions.issubset(REVISIONS):
        raise WrongTables(
            f"has tables of revision {', '.join(sorted(revisions))}, of a newer release: start that"
        )
    if revisions != {NEWEST}:
        raise WrongTables(
            f"has tables of revision {max(revisions)}, this release needs {NEWEST}:"
            " run alembic upgrade head"
        )
    inspector = inspect(connection)
    for name, table in models.items():
        there = inspector.get_columns(name) if inspector.has_table(name) else []
        missing = set(table.columns.keys()) - {column["name"] for column in there}
        if missing and not found:
            raise WrongTables(f"has a table {name} that Roster has not made: name another database")
        if missing:
            raise WrongTables(
                f"has no column {name}.{min(missing)}, for which there is no migration: run"
                " alembic revision --autogenerate, then alembic upgrade head"
            )
    if not found:
        stamp(connection, NEWEST)


def stamp(connection: Connection, revision: str) -> None:
    """Write which revision the tables have."""
    STAMP.create(connection, checkfirst=True)
    connection.execute(delete(STAMP))
    connection.execute(insert(STAMP), {"version_num": revision})
