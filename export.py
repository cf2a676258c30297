"""Every user, or every row of a table, as JSON Lines or as CSV, in constant memory."""

import csv
import io
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from tempfile import SpooledTemporaryFile
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Depends, Request, Response
from starlette.types import Receive, Scope, Send

from db import StreamSessionDep, get_store
from models import UserRead, UserRow
from paging import UserQuery
from rows import converted
from store import CorruptUser, UserStore, read_page

Format = Literal["jsonl", "csv"]
MEDIA_TYPES: dict[Format, str] = {"jsonl": "application/jsonl", "csv": "text/csv; charset=utf-8"}
EXPORT: dict[int | str, dict[str, Any]] = {
    200: {"content": {kind.split(";")[0]: {} for kind in MEDIA_TYPES.values()}}
}
TO_JSON = msgspec.json.Encoder(enc_hook=str)
IN_MEMORY = 2**20  # bytes of an export; what is more waits in a temporary file
CHUNK = 2**16

# A spreadsheet takes a cell that begins with one of these for a formula
# (https://owasp.org/www-community/attacks/CSV_Injection), their full-width forms included. One that
# separates by semicolons or tabs finds further cells in a cell, and quotes that mean nothing there.
FORMULA = r"(?=['\"]*[=+\-@＝＋－＠])"  # noqa: RUF001 (the full-width forms are meant)
CELL, GUARDED = re.compile(rf"([;\t\r\n]){FORMULA}"), re.compile(rf"([;\t\r\n])'{FORMULA}")


async def get_stream_store(session: StreamSessionDep) -> UserStore:
    """Return a store that a response may use while it is sent."""
    return await get_store(session)


StreamStoreDep = Annotated[UserStore, Depends(get_stream_store)]


class WholeResponse(Response):
    """A download that states its length, so that the client knows whether it got all of it.

    It is written to a temporary file before its first byte is sent. So if the database fails, the
    client gets an error and no part of a file.
    """

    def __init__(
        self,
        request: Request,
        pages: AsyncIterator[Sequence[Any]],
        fields: Iterable[str],
        name: str,
        format: Format,
        status_code: int = 200,  # FastAPI reads it for the OpenAPI document
    ) -> None:
        super().__init__(None, status_code, media_type=MEDIA_TYPES[format])
        self.headers["Content-Disposition"] = f'attachment; filename="{name}.{format}"'
        self.request = request
        self.pieces = to_pieces(pages, fields, format)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with SpooledTemporaryFile(IN_MEMORY) as file:
            async for piece in self.pieces:
                file.write(piece.encode())
                if await self.request.is_disconnected():
                    return
            self.headers["Content-Length"] = str(file.tell())
            start = {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
            await send(start)
            file.seek(0)
            while chunk := file.read(CHUNK):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


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


async def read_pages(store: UserStore, q: str = "") -> AsyncIterator[list[UserRead]]:
    """Yield the users that ``q`` finds by id, page by page, at least one page. Raises CorruptUser.

    Between two pages no connection is held, however slowly a client reads.
    """
    query = UserQuery(limit=200, q=q)
    while True:
        page = await read_page(store, query)
        yield [*map(check, page.items)]
        if page.next is None:
            return
        query = UserQuery(limit=200, q=q, cursor=page.next)


def safe_cell(value: Any) -> Any:
    """Return a value with an apostrophe before each part that a spreadsheet would compute."""
    return CELL.sub(r"\1'", f";{value}")[1:] if isinstance(value, str) else value


def plain_cell(text: str) -> str:
    """Return a cell without the apostrophes of ``safe_cell``."""
    return GUARDED.sub(r"\1", f";{text}")[1:]


def to_csv(rows: Iterable[Iterable[Any]]) -> str:
    """Return lines of CSV (RFC 4180), no cell of which is a formula."""
    lines = io.StringIO()
    csv.writer(lines).writerows([*map(safe_cell, row)] for row in rows)
    return lines.getvalue()


async def to_pieces(
    pages: AsyncIterator[Sequence[Any]], fields: Iterable[str], format: Format
) -> AsyncIterator[str]:
    """Yield the rows page by page, before the first page the header that CSV has."""
    if format == "csv":
        yield to_csv([fields])
    async for rows in pages:
        if format == "csv":
            yield to_csv(row.values() for row in msgspec.to_builtins(rows))
        else:
            yield TO_JSON.encode_lines(rows).decode()
