"""Roster's data: the table, and what goes in and out of the API.

It has the shape of the SQLModel tutorial. A base class declares each field once; the table and the
classes for requests and responses add what only they have. A table model does not validate
(https://sqlmodel.tiangolo.com/tutorial/fastapi/multiple-models/), so values from outside go through
``UserCreate`` or ``UserUpdate`` first. ``fields.py`` has the types of fields, their limits and how
they are folded; ``rows.py`` has what helps to make tables and classes.
"""

from datetime import datetime

from pydantic import MISSING
from sqlalchemy import Index, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from fields import EMAIL_MAX, NAME_MAX, Email, Name, UserId, fold, fold_all, fold_email
from rows import TABLE, RowId, Versioned, fields_of, key_of, partial, unvalidated


class UserBase(SQLModel):
    """The shared fields. ``Name`` and ``Email`` check values; ``max_length`` sizes columns."""

    name: Name = Field(max_length=NAME_MAX)
    email: Email = Field(max_length=EMAIL_MAX)


class User(Versioned, UserBase, table=True):
    """The table. ``Versioned`` adds ``created_at``, ``updated_at`` and ``version``.

    The keys are folded copies of fields: in lower case, for example. The database compares, sorts
    and searches by them, and clients never see them. Every write computes them again. Addresses
    that differ only in case share an ``email_key``. A search looks for its words in ``search_key``.
    """

    __tablename__ = "users"
    __table_args__ = (
        UniqueConstraint("email_key", name="uq_users_email_key"),
        Index("ix_users_name_key_id", "name_key", "id"),  # pages sorted by name
        TABLE,  # options of SQLite and MySQL
    )

    # No "| None", since every stored row has an id, which the database assigns. RowId has 64 bits.
    id: int = Field(default=None, primary_key=True, sa_type=RowId)
    name_key: str = key_of("name", by=fold)
    email_key: str = key_of("email", by=fold_email)
    # server_default: older rows have it until the migration fills the column.
    search_key: str = key_of("name", "email", by=fold_all, server_default=text("''"))


class UserCreate(UserBase):
    """What a client sends to add a user."""

    model_config = {
        "extra": "forbid",
        "json_schema_extra": {"examples": [{"name": "Grace Hopper", "email": "grace@example.com"}]},
    }


@partial  # each field may be absent, but not null
class UserUpdate(UserCreate):
    """What a client sends to change a user. A field that it omits keeps its value."""

    # Merged with UserCreate's: other fields stay forbidden.
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
    # MISSING is both a type and a value. pydantic leaves it out of the JSON.
    total: int | MISSING = Field(default=MISSING, description="How many users match, if asked for.")


class BulkResult(SQLModel):
    """The users that a bulk request stored, and the addresses that were taken."""

    items: list[UserRead]
    skipped: list[str]


# Responses use these for UserRead, UserPage and BulkResult. They have the same fields, but do not
# validate them again, because every row was validated before it was stored.
FIELDS = fields_of(UserRead)  # their names, in the order in which UserRow takes its values
UserRow = unvalidated(UserRead)
PageOfRows = unvalidated(UserPage)
BulkOfRows = unvalidated(BulkResult)
