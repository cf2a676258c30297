"""search key

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-29 00:30:00

"""

import logging

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

from fields import fold_all, fold_email

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

logger = logging.getLogger("alembic.runtime.migration")
SEARCH_KEY = (
    sa.String(511)
    .with_variant(sa.String(511, collation="C"), "postgresql")
    .with_variant(sa.String(511, collation="utf8mb4_bin"), "mysql")
)
STEP = 50_000  # rows
SIZES = {  # of a text in bytes and in characters, which are the same if it is ASCII
    "sqlite": "length(CAST(name || email AS BLOB)) = length(name || email)",
    "postgresql": "octet_length(name || email) = char_length(name || email)",
    "mysql": "length(concat(name, email)) = char_length(concat(name, email))",
}
users = sa.table(
    "users",
    sa.column("id", sa.BigInteger),
    *(sa.column(name, sa.String) for name in ("name", "email", "name_key", "email_key", "search_key")),
)


def upgrade() -> None:
    """Add the key in which ``q`` looks for words, and fill it for the rows that are there.

    The database fills it for ASCII names and addresses, some 100,000 rows in a second; Python for
    the others, some 10,000. On MySQL, which commits the column alone, the same command continues.
    """
    if context.is_offline_mode():
        raise CommandError("0002 computes values of rows, and so cannot be printed as SQL.")
    connection = op.get_bind()
    columns = sa.inspect(connection).get_columns("users")
    if "search_key" not in {column["name"] for column in columns}:
        column = sa.Column("search_key", SEARCH_KEY, nullable=False, server_default="")
        op.add_column("users", column)
    total = connection.scalar(sa.select(sa.func.count()).select_from(users))
    last = done = 0
    while True:
        nth = sa.select(users.c.id).where(users.c.id > last).order_by(users.c.id).limit(STEP)
        ids = sa.select(sa.func.count(), sa.func.max(nth.subquery().c.id))
        count, end = connection.execute(ids).one()
        if not count:
            return
        fill(connection, users.c.id.between(last + 1, end) & (users.c.search_key == ""))
        last, done = end, done + count
        logger.info("users: %s of %s rows have a search key", f"{done:,}", f"{total:,}")


def fill(connection: sa.Connection, rows: sa.ColumnElement[bool]) -> None:
    """Fill the key of some rows, in which an address whose domain has ß or ς gets its new key."""
    ascii_only = rows & sa.text(SIZES[connection.dialect.name])
    texts = users.c.name_key + "\n" + users.c.email_key
    connection.execute(sa.update(users).where(ascii_only).values(search_key=texts))
    others = connection.execute(sa.select(users.c.id, users.c.name, users.c.email).where(rows))
    values = [
        {"row": row.id, "found": fold_all(row.name, row.email), "key": fold_email(row.email)}
        for row in others
    ]
    if values:
        new: dict[str, sa.BindParameter[str]] = {"search_key": sa.bindparam("found"), "email_key": sa.bindparam("key")}
        connection.execute(
            sa.update(users).where(users.c.id == sa.bindparam("row")).values(new), values
        )


def downgrade() -> None:
    """Drop it."""
    with op.batch_alter_table("users") as batch:
        batch.drop_column("search_key")
