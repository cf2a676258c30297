"""How an SQL database finds what Roster asks it for: the plans of the very statements it is sent.

The benchmark prints them too, so this knows nothing of pytest.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from unittest.mock import patch

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlmodel.ext.asyncio.session import AsyncSession

from fields import fold
from models import UserRead, UserUpdate
from paging import Cursor, Sort, UserQuery
from store_sql import SQLUserStore

Ask = Callable[[SQLUserStore, UserRead], Awaitable[Any]]


class Question(NamedTuple):
    """What is asked, for or after some user, and how it is to be found.

    ``by`` names the index that leads there: of the id, the name or the email. ``seeks``: it is to
    be followed to a position, not read from an end. Unless ``sorts``, rows come in its order.
    """

    ask: Ask
    by: str
    seeks: bool = True
    sorts: bool = False


def page(sort: Sort, after: bool = False, prefix: bool = False) -> Question:
    """Return the question for a page: the first one or the one after a user, of all or by name."""

    async def ask(store: SQLUserStore, user: UserRead) -> None:
        query = {"sort": sort, "name": user.name[:1] if prefix else ""}
        if after:
            query["cursor"] = Cursor(sort, user.id, user.name).encode()
        await store.page(UserQuery.model_validate(query), 101)

    return Question(ask, sort.removeprefix("-"), seeks=after or prefix)


CHANGE = UserUpdate.model_validate({"name": "A"})
QUESTIONS = {
    "get": Question(lambda store, user: store.get(user.id), "id"),
    "change": Question(
        lambda store, user: store.change(user.id, UserUpdate.model_validate({"name": "A"}), None),
        "id",
    ),
    "remove": Question(lambda store, user: store.remove(user.id, None), "id"),
    "page by id": page("id"),
    "page by id, turned": page("-id"),
    "page by id, after": page("id", after=True),
    "page by id, turned, after": page("-id", after=True),
    "page by name": page("name"),
    "page by name, turned": page("-name"),
    "page by name, after": page("name", after=True),
    "page by name, turned, after": page("-name", after=True),
    "page by name, prefix": page("name", prefix=True),
    "page by name, prefix, turned": page("-name", prefix=True),
    "page by name, prefix, after": page("name", after=True, prefix=True),
    # Not every database sees that this is one row, which has no order.
    "look up email": Question(
        lambda store, user: store.page(UserQuery(email=user.email), 101), "email", sorts=True
    ),
    "find taken emails": Question(lambda store, user: store.find_ids([fold(user.email)]), "email"),
}


class Words(NamedTuple):
    """What a database calls things in its plans, as regular expressions."""

    explain: str
    seeks: str
    sorts: str
    indexes: dict[str, str]


WORDS = {
    "sqlite": Words(
        "EXPLAIN QUERY PLAN",
        "^SEARCH users",
        "TEMP B-TREE",
        {
            # The table itself is in the order of its ids.
            "id": "INTEGER PRIMARY KEY|^SCAN users$",
            "name": "INDEX ix_users_name_key_id",
            "email": "INDEX sqlite_autoindex_users_1",
        },
    ),
    "postgresql": Words(
        "EXPLAIN (COSTS OFF)",
        "Index Cond:",
        "Sort",
        {
            "id": r"Index Scan (Backward )?using users_pkey",
            "name": r"Index Scan (Backward )?using ix_users_name_key_id",
            "email": r"Index Scan (Backward )?using uq_users_email_key",
        },
    ),
    "mysql": Words(
        "EXPLAIN FORMAT=TRADITIONAL",
        "^(const|eq_ref|ref|range) ",
        "filesort|temporary",
        {
            "id": " PRIMARY ",
            "name": " ix_users_name_key_id ",
            "email": " uq_users_email_key ",
        },
    ),
}


def complaints(backend: str, question: Question, plan: str) -> list[str]:
    """Return what is wrong with the plan of a statement that a question sends."""
    words = WORDS[backend]
    found = []
    if not re.search(words.indexes[question.by], plan, re.MULTILINE):
        found.append(f"the index of the {question.by} is not used")
    if question.seeks and not re.search(words.seeks, plan, re.MULTILINE):
        found.append("it is read from an end")
    if not question.sorts and re.search(words.sorts, plan):
        found.append("it is sorted")
    return found


async def explain(engine: AsyncEngine, user_id: int) -> dict[str, list[str]]:
    """Ask all questions about a user; return the plans of the statements that each has sent."""
    sent: list[tuple[str, Any]] = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def listen(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if statement != "BEGIN":
            sent.append((statement, parameters))

    plans: dict[str, list[str]] = {}
    session = AsyncSession(engine, expire_on_commit=False)
    with patch.object(session, "commit", session.flush):  # what is committed can't be rolled back
        user = await SQLUserStore(session).get(user_id)
        for name, question in QUESTIONS.items():
            await session.connection()
            sent.clear()
            await question.ask(SQLUserStore(session), user)
            await session.rollback()  # of a row that is deleted there is no plan
            connection = await session.connection()
            plans[name] = [await plan(connection, *each) for each in sent.copy()]
            await session.rollback()
    await session.close()
    event.remove(engine.sync_engine, "before_cursor_execute", listen)
    return plans


async def plan(connection: AsyncConnection, statement: str, parameters: Any) -> str:
    """Return the plan of a statement with these parameters."""
    backend = connection.dialect.name
    rows = await connection.exec_driver_sql(f"{WORDS[backend].explain} {statement}", parameters)
    match backend:
        case "sqlite":
            lines = [row.detail for row in rows]
        case "mysql":
            lines = [f"{row.type} {row.key} {row.Extra}" for row in rows]
        case _:
            lines = [row[0] for row in rows]
    return "\n".join(lines).replace("\U0010ffff", "")  # 254 of them end a prefix
