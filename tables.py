"""A table of your own with the promises of users: functions to use one by one, and ``resource``.

They are for the SQL databases, and work on SQLAlchemy's objects. ``docs/own-table.md`` builds a
table with them.
"""

import json
import re
from collections.abc import AsyncIterator, Collection, Sequence
from operator import gt, lt
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

from fastapi import APIRouter, Body, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import MISSING, BaseModel, TypeAdapter, create_model
from sqlalchemy import ColumnElement, Select, func, literal, or_, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import Field, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from db import SessionDep, StreamSessionDep
from errors import NOT_FOUND, NOT_MODIFIED, READ, SEND, STALE, TAKEN, WRITE
from export import EXPORT, Format, WholeResponse, to_csv
from fields import BULK_MAX, NAME_MAX, UserId, fold
from limits import IfMatch, Route
from rows import keys_of
from store import Conflict, NotFound, StaleVersion

Row = TypeVar("Row", bound=SQLModel)
Item = TypeVar("Item")


class ListQuery(SQLModel):
    """Which rows of a table, in which order, and how many of them."""

    model_config = {"extra": "forbid"}

    limit: int = Field(default=50, ge=1, le=200, description="How many rows, at most.")
    cursor: str = Field(default="", description="`next` of the page before, for the same query.")
    q: str = Field(default="", max_length=NAME_MAX, description="Words that all must be found.")
    sort: str = Field(default="id", description="By this field; a minus sign is descending.")
    total: bool = Field(default=False, description="Whether to count all that fit, too.")


class Page(BaseModel, Generic[Item]):
    """A page of rows."""

    items: list[Item]
    next: str | None = Field(description="The cursor of the next page; null on the last.")
    total: int | MISSING = Field(default=MISSING, description="All that fit, if asked for.")


async def paginate(
    session: AsyncSession,
    statement: Select[Any],
    query: ListQuery,
    sort: Collection[str] = (),
    q: Collection[str] = (),
) -> dict[str, Any]:
    """Return a ``Page`` of the rows of ``select(Model)``, which may have conditions.

    ``sort`` and ``q`` name the fields by which a client may sort, besides id, and in which it may
    search. A page begins after a row, not after a number of rows. Null is the last, or the first if
    descending. Raises RequestValidationError.
    """
    model = statement.column_descriptions[0]["entity"]
    name, descending = query.sort.removeprefix("-"), query.sort.startswith("-")
    if name not in {"id", *sort}:
        raise invalid("sort", f"must be one of {', '.join(['id', *sort])}, or that after a minus")
    for word in fold(query.q).split():
        texts = [func.lower(column_of(model, field)) for field in q]
        statement = statement.where(or_(*(text.contains(word, autoescape=True) for text in texts)))
    by, rows = column_of(model, name), statement
    order = [model.id] if by is model.id else [by, model.id]
    if by.nullable:
        order.insert(0, by.is_(None))
    if query.cursor:
        value, row_id = read_cursor(query, by.type.python_type)
        position = [value is None, value, row_id][-len(order) :]
        rows = rows.where(comes_after([*zip(order, position, strict=True)], descending))
    rows = rows.order_by(*(column.desc() if descending else column for column in order))
    items = (await session.scalars(rows.limit(query.limit + 1))).unique().all()
    page: dict[str, Any] = {"items": items[: query.limit], "next": None}
    if len(items) > query.limit:
        last = items[query.limit - 1]
        value = getattr(last, by.key)
        page["next"] = TypeAdapter(Any).dump_json([query.sort, value, last.id]).hex()
    if query.total:
        count = select(func.count()).select_from(statement.order_by(None).subquery())
        page["total"] = await session.scalar(count)
    return page


def column_of(model: type[SQLModel], field: str) -> Any:
    """Return the column by which a field is compared: its ``key_of``, if it has one."""
    keys = {source: key for key, source in keys_of(model).items()}
    return getattr(model, keys.get(field, field))


def comes_after(order: list[tuple[Any, Any]], descending: bool) -> ColumnElement[bool]:
    """Return the condition for rows after these values of the columns, in this order."""
    (column, value), *others = order
    if value is None:
        return comes_after(others, descending)  # all rows that are left are null here
    past: Any = (lt if descending else gt)(column, literal(value))
    return past | ((column == value) & comes_after(others, descending)) if others else past


def read_cursor(query: ListQuery, kind: type) -> tuple[Any, int]:
    """Return the value and the id after which a page begins. Raises RequestValidationError."""
    try:
        sort, *position = json.loads(bytes.fromhex(query.cursor))
        if sort == query.sort:
            kinds: Any = tuple[kind | None, UserId]  # type: ignore[valid-type]  # of a column
            return cast(tuple[Any, int], TypeAdapter(kinds).validate_python(tuple(position)))
    except (ValueError, TypeError):
        pass
    raise invalid("cursor", "is not one of this query")


def invalid(field: str, message: str) -> RequestValidationError:
    """Return the 422 for a parameter of the query."""
    return RequestValidationError(
        [{"type": "value_error", "loc": ("query", field), "msg": message}]
    )


async def get_for_update(
    session: AsyncSession, model: type[Row], row_id: int, if_match: Collection[int] | None = None
) -> Row:
    """Return a row, locked until the session ends. Raises NotFound, StaleVersion."""
    row = await session.get(model, row_id, with_for_update=True)
    if row is None:
        raise NotFound(noun(model))
    if if_match is not None and getattr(row, "version", None) not in if_match:
        raise StaleVersion(noun(model))
    return row


async def save(session: AsyncSession, row: SQLModel) -> None:
    """Send a row that is new or has changed. Raises Conflict, which names the fields."""
    values = row.model_dump()
    session.add(row)
    try:
        await session.flush()
    except IntegrityError as error:
        await session.rollback()
        raise await find_conflict(session, type(row), values, error) or error from None


async def save_all(
    session: AsyncSession, rows: Sequence[Row]
) -> tuple[Sequence[Row], dict[int, Conflict]]:
    """Send new rows; return those that are stored, and what was wrong with which of the others."""
    conflicts: dict[int, Conflict] = {}
    try:
        async with session.begin_nested():
            session.add_all(rows)
        return rows, conflicts
    except IntegrityError:  # one by one, to see which
        for number, row in enumerate(rows):
            values = row.model_dump()
            try:
                async with session.begin_nested():
                    session.add(row)
            except IntegrityError as error:
                if not (conflict := await find_conflict(session, type(row), values, error)):
                    raise
                conflicts[number] = conflict
    return [row for number, row in enumerate(rows) if number not in conflicts], conflicts


async def find_conflict(
    session: AsyncSession, model: type[SQLModel], values: dict[str, Any], error: IntegrityError
) -> Conflict | None:
    """Return which fields a database rejected: references to nothing, or values that are taken."""
    table = SQLModel.metadata.tables[str(model.__tablename__)]
    for key in table.foreign_keys:
        if (value := values.get(key.parent.name)) is not None:
            found = await session.scalar(select(func.count()).where(key.column == value))
            if not found:
                missing = f"There is no row {value} in {key.column.table.name}."
                return Conflict([(("body", key.parent.name), missing)])
    # SQLite and PostgreSQL name the columns, MySQL the constraint.
    said = re.search(
        r"UNIQUE constraint failed: (.*)|Key \((.*?)\)=|for key '(?:.*\.)?(.*)'", str(error.orig)
    )
    if not said:
        return None
    names = (said[1] or said[2] or "").split(",")
    if said[3]:
        made = {each.name: each.columns for each in (*table.indexes, *table.constraints)}
        names = [column.name for column in made.get(said[3], [])] or [said[3]]
    columns = [name.rpartition(".")[2].strip(' "') for name in names]
    fields = [keys_of(model).get(column, column) for column in columns]
    taken = f"Another {noun(model)} has this {' and '.join(fields)}."
    return Conflict([(("body", field), taken) for field in fields])


def noun(model: type[SQLModel]) -> str:
    """Return what a message calls a row of a table."""
    return model.__name__.lower()


CREATE: dict[str, Any] = {"status_code": 201, "responses": SEND | TAKEN}
DELETE: dict[str, Any] = {"status_code": 204, "responses": WRITE | NOT_FOUND | STALE | TAKEN}


def resource(
    model: type[SQLModel],
    create: type[SQLModel],
    update: type[SQLModel],
    read: type[SQLModel],
    sort: Collection[str] = (),
    q: Collection[str] = (),
    without: Collection[str] = (),
) -> APIRouter:
    """Return a router with what users have: create, list, read, update, delete, bulk and export.

    The path is the table's name. ``sort`` and ``q`` are those of ``paginate``. ``without`` names
    handlers (``update_task``) to leave out, for handlers of your own.
    """
    one, many = noun(model), str(model.__tablename__)
    sorts: Any = Literal[*(f"{minus}{field}" for field in ("id", *sort) for minus in ("", "-"))]
    query_class: Any = create_model(
        f"{model.__name__}Query", __base__=ListQuery, sort=(sorts, "id")
    )
    many_new: Any = list[create]  # type: ignore[valid-type]  # known at run time
    many_read: Any = list[read]  # type: ignore[valid-type]  # as above
    page: Any = Page[read]  # type: ignore[valid-type]  # as above
    bulk = create_model(f"{model.__name__}Bulk", items=(many_read, ...), skipped=(list[int], ...))
    router = APIRouter(prefix=f"/{many}", tags=[many], route_class=Route)

    async def create_row(new: Any, session: SessionDep, response: Response) -> Any:
        """Add a row. `Location` is its path, `ETag` its version."""
        row: Any = model(**new.model_dump())
        await save(session, row)
        response.headers["Location"] = f"/{many}/{row.id}"
        return row

    async def read_rows(query: Any, session: SessionDep) -> Any:
        """List rows, page by page: send `next` as `cursor` until it is null."""
        return await paginate(session, select(model), query, sort, q)

    async def read_row(row_id: Any, session: SessionDep) -> Any:
        """Return a row. `ETag` is its version."""
        row = await session.get(model, row_id)
        if row is None:
            raise NotFound(one)
        return row

    async def update_row(row_id: Any, changes: Any, session: SessionDep, if_match: IfMatch) -> Any:
        """Change the fields that are sent. With `If-Match`, only if it has not changed since."""
        row = await get_for_update(session, model, row_id, if_match)
        row.sqlmodel_update(changes.model_dump())
        await save(session, row)
        return row

    async def delete_row(row_id: Any, session: SessionDep, if_match: IfMatch) -> None:
        """Delete a row. With `If-Match`, only if it has not changed since."""
        await session.delete(await get_for_update(session, model, row_id, if_match))

    async def create_rows(
        several: Any,
        session: SessionDep,
        on_conflict: Annotated[Literal["fail", "skip"], Query()] = "fail",
    ) -> Any:
        """Add rows, all or none; `on_conflict=skip` skips those that conflict."""
        rows, conflicts = await save_all(session, [model(**new.model_dump()) for new in several])
        if conflicts and on_conflict == "fail":
            raise Conflict(
                [
                    (("body", number, *loc[1:]), reason)
                    for number, conflict in conflicts.items()
                    for loc, reason in conflict.problems
                ]
            )
        return {"items": rows, "skipped": [*conflicts]}

    async def export_rows(
        request: Request,
        session: StreamSessionDep,
        words: Annotated[str, Query(alias="q", max_length=NAME_MAX)] = "",
        format: Format = "jsonl",
    ) -> WholeResponse:
        """Download every row, by id, or those that `q` finds."""
        pieces = read_pieces(session, model, read, words, q, format)
        return WholeResponse(request, pieces, many, format)

    item = f"/{{{one}_id:id}}"
    known = {
        "new": create,
        "changes": update,
        "several": Annotated[many_new, Body(min_length=1, max_length=BULK_MAX)],
        "row_id": Annotated[UserId, Path(alias=f"{one}_id")],
        "query": Annotated[query_class, Query()],
    }
    responses = {
        "read": READ | NOT_FOUND | NOT_MODIFIED,
        "change": SEND | NOT_FOUND | TAKEN | STALE,
    }
    for name, handler, method, path, options in (
        (f"create_{one}", create_row, "POST", "/", {"response_model": read, **CREATE}),
        (f"read_{many}", read_rows, "GET", "/", {"response_model": page, "responses": READ}),
        (f"read_{one}", read_row, "GET", item, {"responses": responses["read"]}),
        (f"update_{one}", update_row, "PATCH", item, {"responses": responses["change"]}),
        (f"delete_{one}", delete_row, "DELETE", item, DELETE),
        (f"create_{many}", create_rows, "POST", "/bulk", {"response_model": bulk, **CREATE}),
        (f"export_{many}", export_rows, "GET", "/export", {"responses": READ | EXPORT}),
    ):
        if name not in without:
            handler.__name__ = name
            for parameter in handler.__annotations__.keys() & known.keys():
                handler.__annotations__[parameter] = known[parameter]
            if path == item and method != "DELETE":
                options["response_model"] = read
            router.add_api_route(path, handler, methods=[method], **options)
    return router


async def read_pieces(
    session: AsyncSession,
    model: type[SQLModel],
    read: type[SQLModel],
    words: str,
    q: Collection[str],
    format: Format,
) -> AsyncIterator[str]:
    """Yield the rows of a table as JSON Lines or CSV, page by page."""
    if format == "csv":
        yield to_csv([read.model_fields])
    cursor: str | None = ""
    while cursor is not None:
        query = ListQuery(limit=200, cursor=cursor, q=words)
        page = await paginate(session, select(model), query, q=q)
        rows = [read.model_validate(row) for row in page["items"]]
        await session.rollback()  # between two pages no connection is held
        if format == "csv":
            yield to_csv(row.model_dump(mode="json").values() for row in rows)
        else:
            yield "".join(f"{row.model_dump_json()}\n" for row in rows)
        cursor = page["next"]
