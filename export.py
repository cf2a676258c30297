"""Every user as JSON Lines or as CSV, in constant memory."""

import csv
import io
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Depends
from fastapi.responses import StreamingResponse

from db import StreamSessionDep, get_store
from models import FIELDS, UserRead, UserRow
from paging import UserQuery
from rows import converted
from store import CorruptUser, UserStore, read_page

Format = Literal["jsonl", "csv"]
MEDIA_TYPES: dict[Format, str] = {"jsonl": "application/jsonl", "csv": "text/csv; charset=utf-8"}
EXPORT: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind.split(";")[0]: {} for kind in MEDIA_TYPES.values()}}
}
TO_JSON = msgspec.json.Encoder()

# A spreadsheet takes a cell that begins with one of these for a formula
# (https://owasp.org/www-community/attacks/CSV_Injection), their full-width forms included.
FORMULA = tuple("=+-@＝＋－＠")  # noqa: RUF001 (the full-width forms are meant)


async def get_stream_store(session: StreamSessionDep) -> UserStore:
    """Return a store that a response may use while it is sent."""
    return await get_store(session)


StreamStoreDep = Annotated[UserStore, Depends(get_stream_store)]


def check(user: UserRead) -> UserRead:
    """Return a user whose values have the right types. Raises CorruptUser.

    msgspec would make base64 of bytes, for example, and an import of that would not notice.
    """
    try:
        # A row would be taken as it is; its fields, in a dict, are not.
        fields = msgspec.to_builtins(user, builtin_types=(bytes, datetime))
        return converted(fields, UserRow)
    except msgspec.ValidationError as error:
        raise CorruptUser(f"user {user.id} is corrupt: {error}") from None


async def read_pages(store: UserStore) -> AsyncIterator[list[UserRead]]:
    """Yield all users by id, page by page, at least one page. Raises CorruptUser.

    Between two pages no connection is held, however slowly a client reads.
    """
    query = UserQuery(limit=200)
    while True:
        page = await read_page(store, query)
        yield [*map(check, page.items)]
        if page.next is None:
            return
        query = UserQuery(limit=200, cursor=page.next)


def to_jsonl(users: list[UserRead]) -> str:
    """Return a line of JSON for each user."""
    return TO_JSON.encode_lines(users).decode()


def safe_cell(value: Any) -> Any:
    """Return a value with an apostrophe before it if a spreadsheet would compute it."""
    formula = isinstance(value, str) and value.lstrip("'").startswith(FORMULA)
    return f"'{value}" if formula else value


def plain_cell(text: str) -> str:
    """Return a cell without the apostrophe that ``safe_cell`` put before it."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(FORMULA) else text


def to_csv(users: list[UserRead]) -> str:
    """Return a line of CSV for each user (RFC 4180), no cell of which is a formula."""
    lines = io.StringIO()
    writer = csv.writer(lines)
    for user in msgspec.to_builtins(users):
        writer.writerow(safe_cell(value) for value in user.values())
    return lines.getvalue()


async def to_pieces(store: UserStore, format: Format) -> AsyncIterator[str]:
    """Yield an export page by page, the first with the header that CSV has."""
    to_lines = to_csv if format == "csv" else to_jsonl
    header = ",".join(FIELDS) + "\r\n" if format == "csv" else ""
    async for users in read_pages(store):
        yield header + to_lines(users)
        header = ""


async def stream_users(store: UserStore, format: Format) -> StreamingResponse:
    """Return the response that streams every user.

    The first page is read before the response begins, while an unreachable database can still be
    answered with 503. If it fails later, the response ends without its last chunk, and no client
    takes it for whole (RFC 9112, section 8).
    """
    pieces = to_pieces(store, format)
    first = await anext(pieces)

    async def all_pieces() -> AsyncIterator[str]:
        yield first
        async for piece in pieces:
            yield piece

    return StreamingResponse(
        all_pieces(),
        media_type=MEDIA_TYPES[format],
        headers={"Content-Disposition": f'attachment; filename="users.{format}"'},
    )
