"""Pages: which rows, in which order, and where the next page begins."""

import re
from functools import cached_property
from typing import Annotated, Literal, NamedTuple, Self, cast

from pydantic import StringConstraints, model_validator
from sqlmodel import Field, SQLModel

from fields import ID_MAX, REFUSED, Email, NamePrefix, Words, words_of

Sort = Literal["id", "-id", "name", "-name"]
# A text that matches is a position in the list, though not always that of a user.
CURSOR = r"^(-?id|-?name)\.[1-9][0-9]{0,18}\.([0-9a-f]{2}){0,400}$"


class Cursor(NamedTuple):
    """The row after which a page begins, and the order of the pages."""

    sort: Sort
    id: int
    name: str

    def encode(self) -> str:
        """Return the cursor as clients get it: opaque to them, and safe in a URL."""
        return f"{self.sort}.{self.id}.{self.name.encode().hex()}"

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return the cursor in a text that matches ``CURSOR``."""
        sort, row_id, name = text.split(".")
        readable = re.sub(f"[{REFUSED}]", "", bytes.fromhex(name).decode(errors="replace"))
        return cls(cast(Sort, sort), min(int(row_id), ID_MAX), readable)


class UserQuery(SQLModel):
    """Which users, in which order, and how many of them."""

    model_config = {"extra": "forbid"}

    limit: int = Field(default=50, ge=1, le=200, description="How many users, at most.")
    # A factory, here and for email, leaves the schema without a default: "" would be rejected.
    cursor: Annotated[str, StringConstraints(pattern=CURSOR)] = Field(
        default_factory=str, description="`next` of the page before; it keeps that page's sort."
    )
    q: Words = Field(
        default="",
        description="Words, each of which is part of the name or of the address, in any case, with"
        " or without accents.",
    )
    name: NamePrefix = Field(
        default="",
        description="The name begins with this, in any case. Fastest with `sort=name`.",
    )
    email: Email = Field(default_factory=str, description="The address, in any case.")
    sort: Sort = Field(default="id", description="By id or name; a minus sign is descending.")
    total: bool = Field(default=False, description="Whether to count all matches, too.")

    @cached_property
    def after(self) -> Cursor | None:
        """The position after which the page begins; None is the beginning."""
        return Cursor.decode(self.cursor) if self.cursor else None

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The words of ``q`` as they are looked for in a ``search_key``."""
        return words_of(self.q)

    @property
    def expensive(self) -> bool:
        """Whether the cost of a page grows with the number of users."""
        return bool(self.words or self.total or (self.name and not self.by_name))

    @property
    def descending(self) -> bool:
        return self.sort.startswith("-")

    @property
    def by_name(self) -> bool:
        return self.sort.endswith("name")

    @model_validator(mode="after")
    def keep_sort(self) -> Self:
        """Take the sort from the cursor: a position means nothing in another order."""
        if self.after:
            self.sort = self.after.sort
        return self
