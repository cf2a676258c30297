"""What the API needs of a database: the verbs, the errors that they raise, the choice by URL.

A backend is one flat module (``Backend``). Its store has the verbs of ``UserStore`` in the same
order as every other store, so that two of them can be read side by side.
"""

import sys
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NotRequired, Protocol, TypedDict

from models import ID_MAX, Cursor, UserCreate, UserQuery, UserRead, UserRow, UserUpdate

# What a database calls an error: PostgreSQL's SQLSTATE, MySQL's number, a word of Redis's ...
Code = str | int


class NotFound(Exception):
    """No user has this id."""


class StaleVersion(Exception):
    """The user has another version than the client believes."""


class EmailTaken(Exception):
    """Somebody has an email address already.

    ``locations`` are the places of the refused addresses in the request's body.
    """

    def __init__(self, locations: Sequence[tuple[str | int, ...]]) -> None:
        super().__init__("email taken")
        self.locations = locations


class WrongTables(Exception):
    """A database has other tables than this release; the text, after its name, says what to do."""


class DamagedUser(Exception):
    """A user's value in the database has a wrong type; the text says whose, and which."""


class UnfinishedCopy(Exception):
    """The database holds the beginning of a copy (``cli.py copy``), or a copy not compared yet."""


# What ``last_id`` is while users are copied into a database. An app that somebody forgot to stop
# can then add one more, but nobody between those who come with their ids. (Why not none: MySQL
# counts the next one, and this + 1 must be an id.)
UNFINISHED = ID_MAX - 1


class UserStore(Protocol):
    """The verbs of a store; each is one transaction.

    ``if_match`` holds the versions that the client would change, None if it does not care. What the
    driver raises (database away, full, busy ...) passes through: ``errors.classify`` knows it.
    """

    async def add(self, new: UserCreate) -> UserRead:
        """Store a user. Raises EmailTaken."""
        ...

    async def add_many(
        self, new: Sequence[UserCreate], skip_taken: bool
    ) -> tuple[list[UserRead], list[str]]:
        """Store all users or none; with ``skip_taken``, all whose address nobody has.

        Returns the stored users in the order given, and the addresses skipped. Raises EmailTaken
        with every place of a taken address, if they are not to be skipped.
        """
        ...

    async def get(self, user_id: int) -> UserRow:
        """Return a user. Raises NotFound."""
        ...

    async def page(self, query: UserQuery, limit: int) -> list[UserRow]:
        """Return as rows the first ``limit`` users that fit the query, after its cursor."""
        ...

    async def count(self, query: UserQuery) -> int:
        """Return how many users fit the query, on all its pages."""
        ...

    async def change(
        self, user_id: int, update: UserUpdate, if_match: Collection[int] | None
    ) -> UserRead:
        """Change a user and return it as it is now. Raises NotFound, StaleVersion, EmailTaken."""
        ...

    async def remove(self, user_id: int, if_match: Collection[int] | None) -> None:
        """Delete a user; its id is never given again. Raises NotFound, StaleVersion."""
        ...

    async def ping(self) -> None:
        """Ask the database for users; it raises if it cannot answer."""
        ...

    async def restore(self, users: Sequence[UserRow]) -> None:
        """Store users as they are, with their ids, times and versions; ``last_id`` comes after.

        Raises EmailTaken, which names none, if somebody has one of the addresses or ids. If it
        raises, none or the first few of the list are stored.
        """
        ...

    async def last_id(self) -> int:
        """Return the newest id that was given, to whoever is gone too; 0 if none was."""
        ...

    async def set_last_id(self, last_id: int) -> None:
        """Let the next id be greater than this, which is at least that of every user."""
        ...


class Backend(Protocol):
    """A module that keeps users in one kind of database."""

    # What its driver raises, OSError apart.
    DRIVER_ERRORS: tuple[type[Exception], ...]

    def driver_code(self, error: BaseException) -> Code | None:
        """Return the database's own code for an error, as in ``errors.CODES``; None if none."""
        ...

    async def get_store(self) -> UserStore:
        """Return a store for verbs of one statement: a dependency of FastAPI's."""
        ...

    def get_session_store(self, *args: Any, **kwargs: Any) -> Any:
        """Return a store for the others, ``add_many``, ``change`` and ``remove``: another one."""
        ...

    def open_store(self) -> AbstractAsyncContextManager[UserStore]:
        """Return a context that yields a store for one change, outside a request."""
        ...

    def place(self) -> str:
        """Return the database's kind and place in words, without user and password."""
        ...

    async def start(self) -> None:
        """Make what the store needs in the database, if it is not there."""
        ...

    async def stop(self) -> None:
        """Give back all connections."""
        ...


def choose_backend(url: str) -> Backend:
    """Return the backend for a ``DATABASE_URL``; leave with one line if there is none."""
    scheme = url.partition(":")[0].partition("+")[0]
    match scheme:
        case "sqlite" | "postgresql" | "postgres" | "mysql" | "mariadb":
            import store_sql  # only the drivers of the chosen database are loaded

            return store_sql
        case "mongodb":  # and mongodb+srv
            import store_mongo

            return store_mongo
        case "redis" | "rediss":
            import store_redis

            return store_redis
    sys.exit(
        "DATABASE_URL: it must begin with sqlite:///, postgresql://, mysql://, mariadb://,"
        " mongodb://, mongodb+srv://, redis:// or rediss:// (an example: sqlite:///roster.db)."
    )


class RowPage(TypedDict):
    """A ``UserPage`` whose items are rows."""

    items: list[UserRow]
    next: str | None
    total: NotRequired[int]


async def read_page(store: UserStore, query: UserQuery) -> RowPage:
    """Return the page that a query asks for, with the cursor of the one after it.

    One user more than the page holds is read, to know whether there is another page.
    """
    rows = await store.page(query, query.limit + 1)
    page: RowPage = {"items": rows[: query.limit], "next": None}
    if len(rows) > query.limit:
        last = rows[query.limit - 1]
        page["next"] = Cursor(query.sort, last.id, last.name).encode()
    if query.total:
        page["total"] = await store.count(query)
    return page
