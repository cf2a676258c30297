"""Roster's data: the table, and what goes in and out of the API.

It has the shape of the SQLModel tutorial: a base class declares each field once, and the table and
the classes for requests and responses add what only they have. A table model does not validate
(https://sqlmodel.tiangolo.com/tutorial/fastapi/multiple-models/), so values from outside go through
``UserCreate`` or ``UserUpdate`` first. ``fields.py`` has the rules of ``Name`` and ``Email``,
and ``rows.py`` defines the other names that are not SQLModel's.
"""

from datetime import datetime

from pydantic import MISSING
from sqlalchemy import Index, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from fields import EMAIL_MAX, NAME_MAX, Email, Name, UserId, fold_all, fold_email
from rows import TABLE, RowId, Versioned, fields_of, key_of, partial, unvalidated


class UserBase(SQLModel):
    """The fields that a client sends: ``Name`` checks the value, ``max_length`` is the column's."""

    name: Name = Field(max_length=NAME_MAX)
    email: Email = Field(max_length=EMAIL_MAX)


class User(Versioned, UserBase, table=True):
    """The table. ``Versioned`` adds ``created_at``, ``updated_at`` and ``version``.

    The database compares, sorts and searches by the keys, which clients never see. Each write
    computes them from their fields again. Two addresses that differ only in case have one
    ``email_key``. A search looks for its words in ``search_key``.
    """

    __tablename__ = "users"
    __table_args__ = (
        UniqueConstraint("email_key", name="uq_users_email_key"),
        Index("ix_users_name_key_id", "name_key", "id"),  # pages sorted by name
        TABLE,  # options of SQLite and MySQL
    )

    # No "| None", since every row that was read has an id: the database gives it.
    id: int = Field(default=None, primary_key=True, sa_type=RowId)
    name_key: str = key_of("name")
    email_key: str = key_of("email", by=fold_email)
    # server_default: older rows have it until the migration fills the column.
    search_key: str = key_of("name", "email", by=fold_all, server_default=text("''"))


class UserCreate(UserBase):
    """What a client sends to add a user."""

    model_config = {
        "extra": "forbid",
        "json_schema_extra": {"examples": [{"name": "Grace Hopper", "email": "grace@example.com"}]},
    }


@partial
class UserUpdate(UserCreate):
    """What a client sends to change a user. A field that it omits keeps its value."""

    model_config = {"json_schema_extra": {"examples": [{"name": "Rear Admiral Hopper"}]}}


class UserRead(UserBase):
    """A user as clients see it."""

    id: UserId
    created_at: datetime
    updated_at: datetime
    version: int


class UserPage(SQLModel):
    """A page of users."""

    items: list[UserRead]
    next: str | None = Field(description="The cursor of the next page; null on the last.")
    # MISSING (pydantic's) is left out of the JSON.
    total: int | MISSING = Field(default=MISSING, description="How many users match, if asked for.")


class BulkResult(SQLModel):
    """The users that a bulk request stored, and the addresses that were taken."""

    items: list[UserRead]
    skipped: list[str]


# What stores return as UserRead, UserPage and BulkResult: classes with the same fields, but not
# validated again, because every row was validated before it was stored.
FIELDS = fields_of(UserRead)  # their names, in the order in which UserRow takes its values
UserRow = unvalidated(UserRead)
PageOfRows = unvalidated(UserPage)
BulkOfRows = unvalidated(BulkResult)
