"""``cli.py import``: the users of a CSV file, or of JSON Lines."""

import codecs
import csv
import re
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import chain, islice
from json import JSONDecodeError
from typing import IO, Annotated, Any

import typer
from pydantic import ValidationError

from commands.guess import (
    NEEDED,
    Titles,
    agreement,
    as_title,
    describe,
    find_columns,
    rules,
    to_person,
)
from commands.terminal import DatabaseUrl, Stop, bar, database_url, opened
from edge import read_json
from export import plain_cell
from fields import BULK_MAX, fold_email
from lifespan import open_store
from models import FIELDS, UserCreate
from paging import UserQuery
from store import Backend

LINE_MAX = 2**16  # bytes; a user takes some 500
# Returns the first line that had the address, which is this one if none was before it.
SEE = "INSERT INTO seen VALUES (?, ?) ON CONFLICT DO UPDATE SET line = line RETURNING line"
# An export has these, and the database gives them: an import leaves them out.
GIVEN = {*FIELDS} - UserCreate.model_fields.keys()


async def import_users(
    name: Annotated[str, typer.Argument(metavar="FILE", help="- is standard input.")],
    dry_run: Annotated[bool, typer.Option(help="Say the same, and store nothing.")] = False,
    names: Annotated[
        str,
        typer.Option(
            "--name", metavar="COLUMN[,COLUMN]", help="The name's columns, or their numbers."
        ),
    ] = "",
    address: Annotated[str, typer.Option(metavar="COLUMN", help="The address's column.")] = "",
    encoding: Annotated[str, typer.Option(help="For example, windows-1252.")] = "utf-8-sig",
    url: DatabaseUrl = None,
) -> None:
    """Add the users of a CSV file, or of JSON Lines.

    Unless the header is that of an export, it guesses which columns hold the name and the address,
    and prints them. Rejected rows are listed, with their lines, on standard error. The others are
    stored.
    """
    told = {"name": names.split(","), "email": [address]}
    told = {field: titles for field, titles in told.items() if titles != [""]}
    stored = refused = line = 0
    with open_file(name) as file, closing(sqlite3.connect("")) as addresses:
        # A database without a name is a temporary file: however many addresses have been seen, they
        # take no memory.
        addresses.execute("CREATE TABLE seen (email_key TEXT PRIMARY KEY, line INTEGER)")
        # Stop, if a row is unreadable.
        total = sum(1 for _ in read_rows(file, encoding, told, say=True))
        rows = read_rows(file, encoding, told)
        async with opened(database_url(url)) as backend:
            try:
                with bar("Checking" if dry_run else "Importing", total) as advance:
                    while batch := [*islice(rows, BULK_MAX)]:
                        problems = await store_batch(backend, batch, addresses, dry_run)
                        for line, reason in sorted(problems):
                            print(f"line {line}: {reason}", file=sys.stderr)
                        line = batch[-1][0]
                        refused += len(problems)
                        stored += len(batch) - len(problems)
                        advance(len(batch))
            except BaseException as error:
                if stored and not dry_run:
                    error.add_note(f"{stored:,} users up to line {line} are stored.")
                raise
    print(f"{stored:,} users {'would be ' * dry_run}stored, {refused:,} lines rejected.")
    if refused:
        raise SystemExit(1)


Row = tuple[int, UserCreate | str]  # a line's number, and the user in it or why there is none


async def store_batch(
    backend: Backend, rows: list[Row], addresses: sqlite3.Connection, dry_run: bool
) -> list[tuple[int, str]]:
    """Store the users in some rows, each address once; return lines and reasons of the others."""
    problems: list[tuple[int, str]] = []
    new: dict[str, tuple[int, UserCreate]] = {}
    for line, user in rows:
        if isinstance(user, str):
            problems.append((line, user))
            continue
        [(first,)] = addresses.execute(SEE, [fold_email(user.email), line])
        if first == line:
            new[user.email] = line, user
        else:
            problems.append((line, f"email: line {first} has this address already"))
    users = [user for _, user in new.values()]
    skipped: list[str] = []
    async with open_store(backend, read_only=dry_run) as store:
        if dry_run:
            skipped = [u.email for u in users if await store.page(UserQuery(email=u.email), 1)]
        elif users:
            skipped = (await store.add_many(users, skip_taken=True))[1]
    taken = "email: another user has this address"
    return problems + [(new[email][0], taken) for email in skipped]


@contextmanager
def open_file(name: str) -> Iterator[IO[bytes]]:
    """Yield a copy of a file, or of standard input (-), which can be read only once."""
    with tempfile.TemporaryFile() as copy:
        try:
            with open(0 if name == "-" else name, "rb") as file:
                utf16 = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                source = codecs.EncodedFile(file, "utf-8", "utf-16") if utf16 else file
                copy.write(codecs.BOM_UTF8 * utf16)
                shutil.copyfileobj(source, copy)
        except OSError as error:
            raise Stop(f"{name}: {error.strerror}") from None
        except UnicodeError:
            raise Stop(f"{name}: not UTF-16, as its first two bytes say.") from None
        yield copy


def read_rows(
    file: IO[bytes], encoding: str = "utf-8-sig", told: Titles | None = None, say: bool = False
) -> Iterator[Row]:
    """Yield all rows of a file. Raises Stop if it is neither CSV nor JSON Lines."""
    file.seek(0)
    head = file.read(4000).decode("latin-1")
    file.seek(0)
    lines = read_lines(file, encoding)
    if re.match(r"(\xef\xbb\xbf)?\s*\{", head):
        return read_jsonl(lines)
    for sign, sentence in rules()["no_list"]:
        if re.search(sign, head, re.IGNORECASE):
            raise Stop(sentence)
    if (
        encoding == "utf-8-sig"
        and len(re.findall(r"[\0-\x08\x0e-\x19\x1b-\x1f]", head)) > len(head) / 500
    ):
        raise Stop(rules()["no_text"])
    return read_csv(lines, told or {}, say)


def read_lines(file: IO[bytes], encoding: str) -> Iterator[str]:
    """Yield the lines of a file. Raises Stop if one cannot be read, or is too long to be a user."""
    for number, line in enumerate(iter(lambda: file.readline(LINE_MAX + 1), b""), 1):
        if len(line) > LINE_MAX:
            raise Stop(f"line {number}: longer than {LINE_MAX} bytes.")
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            encoding = "utf-8-sig"
        try:
            # utf-8-sig: with or without the mark that some programs put first.
            yield line.decode(encoding if number == 1 else encoding.removesuffix("-sig"))
        except LookupError:
            raise Stop(f"--encoding: Python knows no {encoding!a}.") from None
        except UnicodeDecodeError:
            which = "UTF-8" if encoding == "utf-8-sig" else encoding
            raise Stop(f"line {number}: not {which}. Name another with --encoding.") from None


def read_csv(lines: Iterator[str], told: Titles, say: bool) -> Iterator[Row]:
    """Yield the rows of CSV (RFC 4180); say which columns are taken, unless the header is exact."""
    head = [*islice(lines, 50)]
    if not head:
        raise Stop("The file is empty.")
    excel = re.fullmatch(r'"?sep=(.)"?\s*', head[0])  # the first line says which separator follows
    separator = excel[1] if excel else max(",;\t|", key=lambda mark: agreement(head, mark))
    skipped = 1 if excel else 0
    reader = csv.reader(chain(head[skipped:], lines), strict=True, delimiter=separator)
    rows = ((reader.line_num + skipped, row) for row in reader if any(map(str.strip, row)))
    try:
        first = [*islice(rows, 500)]
        if not first:
            raise Stop("The file is empty.")
        sample = [row for _, row in first]
        titles = [*map(as_title, sample[0])]
        exact = not told and NEEDED <= {*titles} <= {*FIELDS} and len({*titles}) == len(titles)
        if exact:
            header, columns = 0, {title: [number] for number, title in enumerate(titles)}
        else:
            header, columns = find_columns(sample, told)
            if say:
                print(describe(sample[header] if header >= 0 else [], columns), file=sys.stderr)
        wide = len(sample[max(header, 0)])
        for line, row in chain(first[header + 1 :], rows):
            if len(row) != wide:
                yield line, f"{len(row)} cells, but the header has {wide}"
                continue
            if exact:
                person = {field: plain_cell(row[number]) for field, [number] in columns.items()}
            elif not (person := to_person(row, columns))["email"]:
                yield line, "no address"
                continue
            # An empty cell is a field that is not there, if it need not be there.
            yield line, check({f: text for f, text in person.items() if text or f in NEEDED})
    except csv.Error as error:
        raise Stop(f"line {reader.line_num + skipped}: not CSV: {error}.") from None


def read_jsonl(lines: Iterator[str]) -> Iterator[Row]:
    """Yield the rows of JSON Lines."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, check(read_json(line))
            except JSONDecodeError as error:
                yield number, f"not JSON: {error.msg}"


def check(data: Any) -> UserCreate | str:
    """Return the user in a row, as the API would accept it, or else why there is none."""
    if not isinstance(data, dict):
        return "not an object with a name and an email"
    try:
        new = {field: value for field, value in data.items() if field not in GIVEN}
        return UserCreate.model_validate(new)
    except ValidationError as error:
        reasons = []
        for found in error.errors(include_input=False)[:10]:
            # The name of an unknown field comes from the file, and may be made to fool a terminal.
            loc = [repr(str(part))[1:-1][:100] for part in found["loc"]]
            reasons.append(": ".join([*loc, found["msg"].removeprefix("Value error, ")]))
        return "; ".join(reasons)
