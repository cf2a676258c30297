"""Roster's data: the table, and what goes in and out of the API.

The rules of a field stand here, once, before any database is asked: five databases cannot disagree
about a value that never reaches them. ``User`` is the SQL table. Table models do not validate
(https://sqlmodel.tiangolo.com/tutorial/fastapi/multiple-models/), so what comes from outside goes
through ``UserCreate`` or ``UserUpdate`` first, and what goes out is a ``UserRead``; of what was
only read, a ``UserRow``, which is the same.
"""

import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, cast

import msgspec
from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, validate_email
from pydantic import (
    MISSING,
    AfterValidator,
    BaseModel,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from sqlalchemy import BigInteger, Column, Index, Integer, String, UniqueConstraint
from sqlalchemy.dialects.mysql import DATETIME
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine
from sqlmodel import Field, SQLModel
from sqlmodel.sql.sqltypes import UTCDateTime

ID_MAX = 2**63 - 1  # BIGINT, the widest integer that all five databases store
BULK_MAX = 1000
NAME_MAX = 100
EMAIL_MAX = 254  # RFC 3696, erratum 1690
KEY_MAX = 255  # folding can lengthen a text: "ß" becomes "ss", "ﷺ" eighteen letters

# An internal tool's people may well be at corp.local.
SPECIAL_USE_DOMAIN_NAMES.clear()

# Control characters, line separators, and U+FFFD: what is left of text that was not valid UTF-8.
REFUSED = r"\u0000-\u001f\u007f-\u009f\u2028\u2029\ufffd"


def fold(text: str) -> str:
    """Return the key by which a text is compared and sorted: NFKC and casefold, at most 255 long.

    Case, full-width and decomposed variants of one text have the same key (Unicode Standard,
    section 3.13). Folding can undo the normal form, and the normal form the folding.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded)[:KEY_MAX]


def utc_now() -> datetime:
    """Return the time in UTC, aware, cut to the milliseconds that every database keeps."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def plain_text(text: str) -> str:
    """Return the text; raise ValueError if it has control characters or was not valid UTF-8."""
    if re.search(f"[{REFUSED}]", text):
        raise ValueError("must not contain control characters or invalid text")
    return text


# Nearly every address looks like this: email-validator, which takes 50 times as long, would return
# it as it is (a test compares the two).
PLAIN_EMAIL = re.compile(
    r"[A-Za-z0-9]+([._+-][A-Za-z0-9]+)*@([a-z0-9]+(-[a-z0-9]+)*\.)+[a-z]{2,}", re.ASCII
)


def normal_email(text: str) -> str:
    """Return the address as email-validator normalises it; raise ValueError if it is not one.

    Only the syntax is checked: with a DNS look-up, the answer would depend on the network.
    """
    if len(text) <= 64 and PLAIN_EMAIL.fullmatch(text):
        return text
    # RFC 1035, section 2.3.4. email-validator knows it too, but only after it has taken the label
    # apart, which takes longer the longer it is: 1000 of 248 letters took 8 seconds.
    if any(len(label) > 63 for label in text.rpartition("@")[2].split(".")):
        raise ValueError("not a valid email address: a part of the domain is too long")
    try:
        email = validate_email(text, check_deliverability=False).normalized
    except EmailNotValidError as error:
        # What stands in parentheses can repeat the domain.
        reason = re.sub(r" \(.*\)", "", str(error), flags=re.DOTALL)
        raise ValueError(f"not a valid email address: {reason}") from None
    if len(fold(email)) > EMAIL_MAX:
        raise ValueError(f"not a valid email address: longer than {EMAIL_MAX} once folded")
    return email


UserId = Annotated[
    int,
    Field(ge=1, le=ID_MAX),
    # The last that a client which reads numbers as floats (JavaScript) does not take for 2**63.
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": ID_MAX - 1023}),
]
Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=NAME_MAX),
    AfterValidator(plain_text),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": NAME_MAX,
            "pattern": rf"^[^{REFUSED}]*[^\s{REFUSED}][^{REFUSED}]*$",
        }
    ),
]
NamePrefix = Annotated[
    str,
    StringConstraints(max_length=NAME_MAX),
    AfterValidator(plain_text),
    WithJsonSchema({"type": "string", "maxLength": NAME_MAX, "pattern": f"^[^{REFUSED}]*$"}),
]
Email = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=EMAIL_MAX),
    AfterValidator(normal_email),
    WithJsonSchema({"type": "string", "format": "email", "maxLength": EMAIL_MAX}),
]
Sort = Literal["id", "-id", "name", "-name"]


class Schema(SQLModel):
    """What comes in or goes out: a SQLModel that pydantic alone makes.

    SQLModel's own methods do the same in Python; many users took twice as long to make. A table
    needs them.
    """

    if not TYPE_CHECKING:
        __init__ = BaseModel.__init__

        def __new__(cls, *_, **__):  # noqa: D102  # object's
            return object.__new__(cls)


class UserCreate(Schema):
    """What a client sends to add a user."""

    model_config = {
        "extra": "forbid",
        "json_schema_extra": {"examples": [{"name": "Grace Hopper", "email": "grace@example.com"}]},
    }

    name: Name
    email: Email


class UserUpdate(Schema):
    """What a client sends to change a user: a field that is absent stays as it is."""

    model_config = {
        "extra": "forbid",
        "json_schema_extra": {"examples": [{"name": "Rear Admiral Hopper"}]},
    }

    name: Name | MISSING = MISSING
    email: Email | MISSING = MISSING


class UserRead(Schema):
    """A user as clients see it."""

    id: int
    name: str
    email: str
    created_at: datetime
    updated_at: datetime
    version: int


class UserRow(msgspec.Struct):
    """A user as a store reads it: the same fields as those of ``UserRead``, and the same JSON.

    msgspec makes one, and its JSON, many times as fast as pydantic: it checks nothing. Roster has
    checked what is in the database when it came in. A field of ``UserRead`` is needed here, too;
    its default, alias or serializer there is not used.
    """

    id: int
    name: str
    email: str
    created_at: datetime
    updated_at: datetime
    version: int


class Millis(UTCDateTime):
    """SQLModel's UTC datetime, with milliseconds on MySQL and MariaDB too (their default: none).

    What is read is converted in one step: SQLModel's own steps took longer than the query.
    """

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        """Return what makes SQLite's text of an aware datetime; elsewhere, SQLModel's own."""

        def to_text(aware: datetime | None) -> str | None:
            utc = self.process_bind_param(aware, dialect)  # it refuses one without a time zone
            return utc.isoformat(" ", "microseconds").removesuffix("+00:00") if utc else None

        return to_text if dialect.name == "sqlite" else super().bind_processor(dialect)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        """Return what makes an aware datetime of a text, or of a datetime: all are in UTC."""
        parse = datetime.fromisoformat

        def to_utc(time: Any) -> datetime | None:
            if isinstance(time, str):
                return parse(time + "+00:00")
            return None if time is None else time.replace(tzinfo=UTC)

        return to_utc

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return DATETIME(3) there, the usual type elsewhere."""
        if dialect.name == "mysql":
            return dialect.type_descriptor(DATETIME(fsp=3))
        return super().load_dialect_impl(dialect)


# SQLite numbers rows only in a column declared as INTEGER.
RowId = BigInteger().with_variant(Integer, "sqlite")
# Keys sort by code point on every database, not by the server's language.
Key = (
    String(KEY_MAX)
    .with_variant(String(KEY_MAX, collation="C"), "postgresql")
    .with_variant(String(KEY_MAX, collation="utf8mb4_bin"), "mysql")
)
VERSION = Column("version", Integer, nullable=False)
# AUTOINCREMENT: SQLite would give a deleted row's id to the next one.
TABLE = {"sqlite_autoincrement": True, "mysql_engine": "InnoDB", "mysql_charset": "utf8mb4"}


class User(SQLModel, table=True):
    """A user as SQL stores it: with the keys by which it is found, which no client ever sees."""

    __tablename__ = "users"
    __table_args__ = (
        UniqueConstraint("email_key", name="uq_users_email_key"),
        Index("ix_users_name_key_id", "name_key", "id"),
        TABLE,
    )
    # Every UPDATE and DELETE ends in "AND version = ..." and an UPDATE adds one, so that of two who
    # change the same version one fails instead of undoing the other's work.
    __mapper_args__ = {"version_id_col": VERSION}

    id: int = Field(default=None, primary_key=True, sa_type=cast(Any, RowId))
    name: str = Field(max_length=NAME_MAX)
    email: str = Field(max_length=EMAIL_MAX)
    created_at: datetime = Field(sa_type=Millis)
    updated_at: datetime = Field(sa_type=Millis)
    version: int = Field(default=1, sa_column=VERSION)
    name_key: str = Field(sa_type=cast(Any, Key))
    email_key: str = Field(sa_type=cast(Any, Key))


def index_keys(data: UserCreate | UserUpdate) -> dict[str, str]:
    """Return ``name_key`` and ``email_key`` of those of the two fields that are present."""
    return {f"{field}_key": fold(text) for field, text in data if text is not MISSING}


def stored_fields(user: UserRow) -> dict[str, Any]:
    """Return all that a store keeps of a user: what a client sees, and the index keys."""
    keys = {"name_key": fold(user.name), "email_key": fold(user.email)}
    return {**msgspec.structs.asdict(user), **keys}


# Whatever fits this is a position in the list, if not always that of a user.
CURSOR = r"^(-?id|-?name)\.[1-9][0-9]{0,18}\.([0-9a-f]{2}){0,400}$"


class Cursor(NamedTuple):
    """The user after whom a page begins, and the order that the pages are in."""

    sort: Sort
    id: int
    name: str

    def encode(self) -> str:
        """Return the cursor as a client gets it: opaque to it, and safe in a URL."""
        return f"{self.sort}.{self.id}.{self.name.encode().hex()}"

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return the cursor in a text that fits ``CURSOR``."""
        sort, user_id, name = text.split(".")
        readable = re.sub(f"[{REFUSED}]", "", bytes.fromhex(name).decode(errors="replace"))
        return cls(cast(Sort, sort), min(int(user_id), ID_MAX), readable)


class UserQuery(Schema):
    """Which users, in which order, and how many of them."""

    model_config = {"extra": "forbid"}

    limit: int = Field(default=50, ge=1, le=200, description="How many users, at most.")
    # A factory, here and for email, so that the schema has no default: an empty text is refused.
    cursor: Annotated[str, StringConstraints(pattern=CURSOR)] = Field(
        default_factory=str, description="`next` of the page before; it keeps that page's sort."
    )
    name: NamePrefix = Field(
        default="",
        description="The name begins with this, in any case. Fastest with `sort=name`.",
    )
    email: Email = Field(default_factory=str, description="The address, in any case.")
    sort: Sort = Field(default="id", description="By id or name; a minus sign turns it round.")
    total: bool = Field(default=False, description="Whether to count all that fit, too.")

    @cached_property
    def after(self) -> Cursor | None:
        """The position after which the page begins; None: at the beginning."""
        return Cursor.decode(self.cursor) if self.cursor else None

    @model_validator(mode="after")
    def keep_sort(self) -> Self:
        """Take the sort from the cursor: a position says nothing in another order."""
        if self.after:
            self.sort = self.after.sort
        return self


class UserPage(Schema):
    """A page of users."""

    items: list[UserRead]
    next: str | None = Field(description="The cursor of the next page; null on the last.")
    total: int | MISSING = Field(default=MISSING, description="All that fit, if asked for.")


class BulkResult(Schema):
    """The users that a bulk request stored, and the addresses that it left out because taken."""

    items: list[UserRead]
    skipped: list[str]
