"""What the API needs of a database: the verbs of a store, and the errors that they raise.

Each store has the verbs of ``UserStore`` in the same order, so that two of them can be read side by
side. It knows its own driver's codes: whatever the driver raises leaves it as a ``Fault``.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import nullcontext
from enum import Enum, auto
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from engine import WAIT_MAX
from fields import ID_MAX
from models import PageOfRows, User, UserCreate, UserPage, UserRead, UserUpdate
from paging import Cursor, UserQuery
from rows import new_row

T = TypeVar("T")
logger = logging.getLogger("uvicorn.error")  # uvicorn prints what is logged here

# The newest id is at least this while a copy fills a database (``cli.py copy``). Each copy takes
# another one as its mark. An app that was not stopped adds users after those that come with their
# ids, and the copy notices.
UNFINISHED = ID_MAX - 2**32


class NotFound(Exception):
    """No row of a table has this id."""

    def __init__(self, noun: str = "user") -> None:
        super().__init__(f"There is no {noun} with this id.")


class StaleVersion(Exception):
    """A row has another version than the client believes."""

    def __init__(self, noun: str = "user") -> None:
        super().__init__(f"The {noun} has changed since you read it. Fetch it again and retry.")


Location = tuple[str | int, ...]  # of a field in a request, from ``body`` on


class Conflict(Exception):
    """The database rejects fields of a request: their locations, each with the reason."""

    def __init__(self, problems: Sequence[tuple[Location, str]]) -> None:
        super().__init__("conflict")
        self.problems = problems


class EmailTaken(Conflict):
    """Another user has an email address. ``locations`` are its places in the request."""

    def __init__(self, locations: Sequence[Location]) -> None:
        super().__init__([(loc, "Another user has this email address.") for loc in locations])


class CorruptUser(Exception):
    """A stored value of a user has a wrong type. The text names the user and the field."""


class Kind(Enum):
    """The kinds of a database's failure."""

    CONFLICT = auto()
    BAD_VALUE = auto()
    BUSY = auto()
    UNREACHABLE = auto()
    TOO_SLOW = auto()
    READ_ONLY = auto()
    NO_TRANSACTIONS = auto()
    REFUSED = auto()
    CORRUPT = auto()
    FULL = auto()


class Fault(Exception):
    """The database at this place failed. ``code`` is the database's, or its driver's."""

    def __init__(self, kind: Kind, code: str, place: str) -> None:
        super().__init__(f"{kind.name} ({code}), {place}")
        self.kind = kind
        self.code = code
        self.place = place


def find_fault(codes: Sequence[str], kinds: Mapping[str, Kind], place: str) -> Fault | None:
    """Return the fault that the first known of these codes stands for. None: a bug."""
    return next((Fault(kinds[code], codes[0], place) for code in codes if code in kinds), None)


def by_code(codes: Mapping[T, str]) -> dict[str, T]:
    """Return what each code stands for; they are separated by spaces."""
    return {code: meaning for meaning, those in codes.items() for code in those.split()}


class UserStore(Protocol):
    """The verbs of a store; each is one transaction, and raises Fault if the database fails.

    ``if_match`` holds the versions that the client would change, None if any.
    """

    async def add(self, new: UserCreate) -> UserRead:
        """Store a user. Raises EmailTaken."""

    async def add_many(
        self, new: Sequence[UserCreate], skip_taken: bool
    ) -> tuple[list[UserRead], list[str]]:
        """Store all users or none; with ``skip_taken``, all whose address is free.

        Returns the stored users in the order given, and the addresses skipped. Raises EmailTaken
        with every place of a taken address, if they are not to be skipped.
        """

    async def get(self, user_id: int) -> UserRead:
        """Return a user. Raises NotFound."""

    async def page(self, query: UserQuery, limit: int) -> list[UserRead]:
        """Return the first ``limit`` users that match the query, after its cursor."""

    async def count(self, query: UserQuery) -> int:
        """Return how many users match the query, on all its pages."""

    async def change(
        self, user_id: int, update: UserUpdate, if_match: Collection[int] | None
    ) -> UserRead:
        """Change a user and return it as it is now. Raises NotFound, StaleVersion, EmailTaken."""

    async def remove(self, user_id: int, if_match: Collection[int] | None) -> None:
        """Delete a user; its id is never given again. Raises NotFound, StaleVersion."""

    async def ping(self) -> None:
        """Ask the database for users."""

    async def restore(self, users: Sequence[UserRead], gone: Sequence[int], last_id: int) -> None:
        """Delete users, and store others as they are, with their ids, times and versions.

        Raises StaleVersion if another id is the newest, or EmailTaken, which names none, if an
        address or an id is taken. Then nothing is done.
        """

    async def last_id(self) -> int:
        """Return the newest id that was given, to deleted users too; 0 if none was."""

    async def set_last_id(self, last_id: int, before: int) -> None:
        """Let the next id be greater than this, which is at least that of every user.

        Raises StaleVersion if ``before`` is not the newest id.
        """


P = ParamSpec("P")


def in_slot(
    work: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Let a verb wait for one of its store's ``slots``, ``WAIT_MAX`` at most. Raises Fault.

    A store has as many slots as connections. In the pools of PyMongo and redis-py, a caller that
    asks at the right moment overtakes those that wait, but asyncio hands out slots in order.
    Expensive queries take few slots, so that they cannot keep others waiting. No verb may call
    another one, because it might wait for itself.
    """

    @wraps(work)
    async def run(store: Any, /, *args: P.args, **options: P.kwargs) -> T:
        expensive = args and getattr(args[0], "expensive", False)
        gate: Any = store.expensive if expensive else nullcontext()
        async with gate:
            try:
                # None: at once, without a timer.
                async with asyncio.timeout(WAIT_MAX if store.slots.locked() else None):
                    await store.slots.acquire()
            except TimeoutError:
                raise Fault(Kind.UNREACHABLE, "no free connection", store.place) from None
            try:
                return await work(store, *args, **options)
            except store.errors as error:
                if fault := find_fault(store.codes(error), store.kinds, store.place):
                    raise fault from error
                raise
            finally:
                store.slots.release()

    return run


async def new_rows(new: Sequence[UserCreate]) -> list[dict[str, Any]]:
    """Return the values of new users. The keys of a thousand can take a second: leave room."""
    rows = []
    for user in new:
        rows.append(new_row(User, user.model_dump()))
        if len(rows) % 50 == 0:
            await asyncio.sleep(0)
    return rows


class Backend(Protocol):
    """A database that was opened from its URL: an ``engine.Database``, or a store of users."""

    @property
    def place(self) -> str:
        """Its kind and where it is, without user and password."""

    async def stop(self) -> None:
        """Close all connections."""


async def read_page(store: UserStore, query: UserQuery) -> UserPage:
    """Return the page that a query asks for, with the cursor of the one after it.

    It reads one user more than the page holds, to know whether there is another page.
    """
    users = await store.page(query, query.limit + 1)
    items = users[: query.limit]
    more = len(users) > query.limit
    last = Cursor(query.sort, items[-1].id, items[-1].name).encode() if more else None
    page = PageOfRows(items, last)
    if query.total:
        page.total = await store.count(query)
    return page
