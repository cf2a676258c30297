"""A table of your own with the promises of users: functions to use one by one, and ``resource``.

They are for the SQL databases. ``docs/own-table.md`` builds tables with them.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import MISSING, BaseModel, TypeAdapter, create_model
from sqlalchemy import UniqueConstraint, func, literal, or_, tuple_
from sqlalchemy.exc import IntegrityError
from sqlmodel import Field, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from db import SessionDep, StreamSessionDep
from edge import IfMatch, Route, each
from errors import NOT_FOUND, NOT_MODIFIED, READ, SEND, STALE, TAKEN, WRITE
from export import EXPORT, Format, WholeResponse
from fields import NAME_MAX, UserId, fold
from rows import follow, keys_of, noun, table_of
from store import Conflict, NotFound
from store_sql import get_for_update

__all__ = ["get_for_update", "paginate", "resource", "save"]
Item = TypeVar("Item")
Schema = Any  # a class that is an argument, and a type for mypy: it would reject type[SQLModel]


class ListQuery(SQLModel):
    """Which rows of a table, in which order, and how many of them."""

    model_config = {"extra": "forbid"}

    limit: int = Field(default=50, ge=1, le=200, description="How many rows, at most.")
    cursor: str = Field(default="", description="`next` of the page before, for the same query.")
    q: str = Field(
        default="",
        max_length=NAME_MAX,
        description="Words, each of which is part of one of the searched fields.",
    )
    sort: str = Field(default="id", description="By this field; a minus sign is descending.")
    total: bool = Field(default=False, description="Whether to count all matches, too.")


class Page(BaseModel, Generic[Item]):
    """A page of rows."""

    items: list[Item]
    next: str | None = Field(description="The cursor of the next page; null on the last.")
    total: int | MISSING = Field(default=MISSING, description="How many rows match, if asked for.")


async def paginate(
    session: AsyncSession,
    statement: SelectOfScalar[Any],
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
        value, row_id = read_cursor(query, model.model_fields[by.key].annotation)
        position = zip(order, [value is None, value, row_id][-len(order) :], strict=True)
        # Where the value is null, it is null in all rows that are left.
        places = [(column, literal(at, column.type)) for column, at in position if at is not None]
        columns, values = (tuple_(*those) for those in zip(*places, strict=True))
        rows = rows.where(columns < values if descending else columns > values)
        if not by.nullable:  # MySQL's index follows no comparison of rows, but this
            rows = rows.where(by <= value if descending else by >= value)
    rows = rows.order_by(*(column.desc() if descending else column for column in order))
    items = (await session.exec(rows.limit(query.limit + 1))).unique().all()
    page: dict[str, Any] = {"items": items[: query.limit], "next": None}
    if len(items) > query.limit:
        last = items[query.limit - 1]
        value = getattr(last, by.key)
        page["next"] = TypeAdapter(Any).dump_json([query.sort, value, last.id]).hex()
    if query.total:
        count = select(func.count()).select_from(statement.order_by(None).subquery())
        page["total"] = (await session.exec(count)).one()
    return page


def column_of(model: type[SQLModel], field: str) -> Any:
    """Return the column by which a field is compared: its ``key_of``, if it has one."""
    keys = {source: key for key, source in keys_of(model).items()}
    return getattr(model, keys.get(field, field))


def read_cursor(query: ListQuery, kind: Any) -> tuple[Any, int]:
    """Return the value and the id after which a page begins. Raises RequestValidationError."""
    position = TypeAdapter(tuple[str, kind, UserId])
    try:
        sort, value, row_id = position.validate_json(bytes.fromhex(query.cursor))
        if sort == query.sort:
            return value, row_id
    except ValueError:
        pass
    raise invalid("cursor", "is not one of this query")


def invalid(field: str, message: str) -> RequestValidationError:
    """Return the 422 for a parameter of the query."""
    return RequestValidationError(
        [{"type": "value_error", "loc": ("query", field), "msg": message}]
    )


async def save(session: AsyncSession, rows: SQLModel | Sequence[SQLModel]) -> None:
    """Send a row, or several of one table, new or changed.

    Raises Conflict, which names the fields; the session has been rolled back then.
    """
    several = [rows] if isinstance(rows, SQLModel) else rows
    model = type(several[0])
    values = [row.model_dump() for row in several]
    session.add_all(several)
    try:
        await session.flush()
    except IntegrityError as error:
        await session.rollback()
        values = [row | follow(model, row) for row in values]
        if problems := await find_problems(session, model, values):
            start = 0 if several is rows else 1  # one row is the body, not a list in it
            raise Conflict([(("body", *at[start:]), msg) for at, msg in problems]) from error
        raise


async def find_problems(
    session: AsyncSession, model: type[SQLModel], rows: list[dict[str, Any]]
) -> list[tuple[tuple[int, str], str]]:
    """Return which constraints reject rows: the number of the row, the field, the reason."""
    problems = []
    table, keys = table_of(model), keys_of(model)
    for key in table.foreign_keys:
        field, column = key.parent.name, key.column
        found = await session.exec(select(column).where(column.in_(row[field] for row in rows)))
        there = {None, *found}
        reason = f"There is no row with this id in {column.table.name}."
        problems += [((n, field), reason) for n, row in enumerate(rows) if row[field] not in there]
    mysql = session.get_bind().dialect.name == "mysql"  # its text is equal in any case

    def same(value: Any) -> Any:
        return fold(value) if mysql and isinstance(value, str) else value

    unique: list[Any] = [one for one in table.constraints if isinstance(one, UniqueConstraint)]
    unique += [index for index in table.indexes if index.unique]
    for columns in [[*constraint.columns] for constraint in unique]:
        fields = [keys.get(column.name, column.name) for column in columns]
        reason = f"Another {noun(model)} has this {' and '.join(fields)}."
        wanted = [[row[column.name] for column in columns] for row in rows]
        taken: Any = select(table.c.id, *columns).where(tuple_(*columns).in_(wanted))
        owners = {tuple(map(same, v)): row_id for row_id, *v in await session.exec(taken)}
        for n, values in enumerate(wanted):
            own = rows[n]["id"] or -n
            if None not in values and owners.setdefault(tuple(map(same, values)), own) != own:
                problems += [((n, field), reason) for field in fields]
    return problems


def resource(
    model: type[SQLModel],
    create: Schema,
    update: Schema,
    read: Schema,
    sort: Collection[str] = (),
    q: Collection[str] = (),
    without: Collection[str] = (),
) -> APIRouter:
    """Return a router with what users have: create, list, read, update, delete, bulk and export.

    The path is the table's name. ``sort`` and ``q`` are those of ``paginate``. ``without`` names
    operations (``update_task``) to leave out, for handlers of your own.
    """
    one, many = noun(model), str(model.__tablename__)
    for key in table_of(model).foreign_keys:  # so that the page offers a search for the other row
        for schema in (create, update, read):
            if field := schema.model_fields.get(key.parent.name):
                field.json_schema_extra = {"x-references": key.target_fullname.rpartition(".")[0]}
                schema.model_rebuild(force=True)
    sorts: Any = Literal[*(f"{minus}{field}" for field in ("id", *sort) for minus in ("", "-"))]
    asked: Any = create_model(f"{model.__name__}Query", __base__=ListQuery, sort=(sorts, "id"))
    made: Any = create_model(
        f"{model.__name__}Bulk", items=(list[read], ...), skipped=(list[int], ...)
    )
    path_id = Annotated[UserId, Path(alias=f"{one}_id")]
    item = f"/{{{one}_id}}"
    router = APIRouter(prefix=f"/{many}", tags=[many], route_class=Route)
    created: Any = {"status_code": 201, "responses": SEND | TAKEN}
    found = READ | NOT_FOUND | NOT_MODIFIED
    changed = SEND | NOT_FOUND | TAKEN | STALE
    deleted = WRITE | NOT_FOUND | TAKEN | STALE

    @router.post("/", name=f"create_{one}", **created)
    async def create_row(new: create, session: SessionDep, response: Response) -> read:
        """Add a row. `Location` is its path, `ETag` its version."""
        row: Any = model(**new.model_dump())
        await save(session, row)
        response.headers["Location"] = f"/{many}/{row.id}"
        return row

    @router.get("/", name=f"read_{many}", response_model=Page[read], responses=READ)
    async def read_rows(query: Annotated[asked, Query()], session: SessionDep) -> Any:
        """List rows, page by page: send `next` as `cursor` until it is null."""
        return await paginate(session, select(model), query, sort, q)

    @router.get(item, name=f"read_{one}", responses=found)
    async def read_row(row_id: path_id, session: SessionDep) -> read:
        """Return a row. `ETag` is its version."""
        if row := await session.get(model, row_id):
            return row
        raise NotFound(one)

    @router.patch(item, name=f"update_{one}", responses=changed)
    async def update_row(
        row_id: path_id, changes: update, session: SessionDep, if_match: IfMatch
    ) -> read:
        """Change the fields that are sent. With `If-Match`, only if it still has that version."""
        row = await get_for_update(session, model, row_id, if_match)
        row.sqlmodel_update(changes.model_dump())
        await save(session, row)
        return row

    @router.delete(item, name=f"delete_{one}", status_code=204, responses=deleted)
    async def delete_row(row_id: path_id, session: SessionDep, if_match: IfMatch) -> None:
        """Delete a row. With `If-Match`, only if it still has that version."""
        await session.delete(await get_for_update(session, model, row_id, if_match))

    @router.post("/bulk", name=f"create_{many}", **created)
    async def create_rows(
        new: Annotated[list[create], each(create)],
        session: SessionDep,
        on_conflict: Annotated[Literal["fail", "skip"], Query()] = "fail",
    ) -> made:
        """Add rows, all or none; `on_conflict=skip` skips those that conflict."""
        skipped: set[int] = set()
        while True:
            places = [n for n in range(len(new)) if n not in skipped]
            rows = [model(**new[n].model_dump()) for n in places]
            try:
                if rows:
                    await save(session, rows)
                return {"items": rows, "skipped": sorted(skipped)}
            except Conflict as conflict:
                if on_conflict == "fail":
                    raise
                skipped |= {places[int(loc[1])] for loc, _ in conflict.problems}

    @router.get(
        "/export", name=f"export_{many}", response_class=WholeResponse, responses=READ | EXPORT
    )
    async def export_rows(
        request: Request,
        session: StreamSessionDep,
        words: Annotated[str, Query(alias="q", max_length=NAME_MAX)] = "",
        format: Format = "jsonl",
    ) -> WholeResponse:
        """Download every row, by id, or those that `q` finds."""
        pages = read_pages(session, select(model), read, words, q)
        return WholeResponse(request, pages, read.model_fields, many, format)

    router.routes[:] = [
        route for route in router.routes if getattr(route, "name", "") not in without
    ]
    return router


async def read_pages(
    session: AsyncSession,
    statement: SelectOfScalar[Any],
    read: type[SQLModel],
    words: str = "",
    q: Collection[str] = (),
) -> AsyncIterator[list[dict[str, Any]]]:
    """Yield the rows of ``select(Model)`` as ``read`` shows them, page by page."""
    cursor: str | None = ""
    while cursor is not None:
        query = ListQuery(limit=200, cursor=cursor, q=words)
        page = await paginate(session, statement, query, q=q)
        rows = [read.model_validate(row).model_dump(mode="json") for row in page["items"]]
        cursor = page["next"]
        await session.rollback()  # between two pages no connection is held
        yield rows
