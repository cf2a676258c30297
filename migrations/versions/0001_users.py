"""users

Revision ID: 0001
Revises:
Create Date: 2026-11-22 23:45:00

"""

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

COLUMNS = {"id", "name", "email", "created_at", "updated_at", "version", "name_key", "email_key"}
INDEX = "ix_users_name_key_id"
MILLIS = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=3), "mysql")
KEY = (
    sa.String(255)
    .with_variant(sa.String(255, collation="C"), "postgresql")
    .with_variant(sa.String(255, collation="utf8mb4_bin"), "mysql")
)


def upgrade() -> None:
    """Make the table, unless release 0.1.0 has made it: that did so without a revision."""
    if not context.is_offline_mode():
        database = sa.inspect(op.get_bind())
        if database.has_table("users"):
            if {column["name"] for column in database.get_columns("users")} != COLUMNS:
                raise CommandError("The table users is another program's: name another database.")
            if not database.has_index("users", INDEX):  # MySQL commits the table before it
                op.create_index(INDEX, "users", ["name_key", "id"])
            return
    op.create_table(
        "users",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True
        ),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("created_at", MILLIS, nullable=False),
        sa.Column("updated_at", MILLIS, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("name_key", KEY, nullable=False),
        sa.Column("email_key", KEY, nullable=False),
        sa.UniqueConstraint("email_key", name="uq_users_email_key"),
        sqlite_autoincrement=True,
        mysql_engine="InnoDB",
        mysql_charset="utf8mb4",
    )
    op.create_index(INDEX, "users", ["name_key", "id"])


def downgrade() -> None:
    """Refuse: nothing would be left."""
    raise CommandError("There is no way back from 0001: it would delete all users.")
