"""What the columns of a table most likely mean, and the person in a row.

The page guesses by the same words in the same way (``web/guess.js``).
"""

import csv
import json
import re
from collections import Counter
from functools import cache
from itertools import chain
from typing import Any, cast

from commands.terminal import Stop
from edge import WEB
from export import plain_cell
from fields import searchable
from models import UserCreate

NEEDED = {name for name, field in UserCreate.model_fields.items() if field.is_required()}
# The look-behind keeps the time for a long cell without an @ from growing with its square.
ADDRESS = re.compile(
    r"(?<![^\s<>()[\]\"',;:|@])[^\s<>()[\]\"',;:|@]+@[^\s<>()[\]\"',;:|@]+\.[^\s<>()[\]\"',;:|@.]+"
)
# What stands for a sign of an address, or around one, as on a web page.
AROUND = {
    r" ?[\[({] ?(at|@) ?[\])}] ?": "@",
    r" ?[\[({] ?(dot|\.) ?[\])}] ?": ".",
    r"mailto:|\?\S*": " ",
}
# Not all that fields.py calls invisible: some of that belongs to names, which it tells apart.
INVISIBLE = re.compile(r"[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
Titles = dict[str, list[str]]  # of a field: the columns that make it, in order
Columns = dict[str, list[int]]


@cache
def rules() -> dict[str, Any]:
    """Return the words by which the page guesses, too: see web/guess.js."""
    return cast(dict[str, Any], json.loads((WEB / "guess.json").read_text("utf-8")))


def describe(titles: list[str], columns: Columns) -> str:
    """Return a sentence that says which columns are taken."""
    name, address = (
        " + ".join(
            repr(titles[number].strip())[1:-1] if titles else f"column {number + 1}"
            for number in columns[field]
        )
        for field in ("name", "email")
    )
    return f"The name is in {name[:300]}, the address in {address[:300]}."


def agreement(head: list[str], mark: str) -> int:
    """Return how many of the first lines agree that this is the separator."""
    try:
        rows = [row for row in csv.reader(head, delimiter=mark) if len(row) > 1]
    except csv.Error:
        return 0
    return max(Counter(map(len, rows)).values(), default=0) + sum(map(has_address, rows))


def has_address(row: list[str]) -> bool:
    return any(map(ADDRESS.search, row))


def plain_title(title: str) -> str:
    """Return a title without accents, case, signs, and what is in brackets."""
    return re.sub(r"[\W_]", "", searchable(re.sub(r"[\[(].*?[\])]", "", title)))


@cache
def words() -> list[tuple[str, str, bool]]:
    """Return the role of a title, the title, and whether it may be part of a longer one."""
    roles: dict[str, str] = rules()["titles"]
    titles = [(role, title) for role, those in roles.items() for title in those.split(", ")]
    return [(role, plain_title(title), title.endswith("*")) for role, title in titles]


def role(title: str) -> str | None:
    """Return what a column's title says that it holds: the whole title, or the longest word."""
    key = plain_title(title)
    exact = [role for role, word, _ in words() if word == key]
    parts = [(role, word) for role, word, part in words() if part and word in key]
    if exact or not parts:
        return exact[0] if exact else None
    found = max(parts, key=lambda part: len(part[1]))[0]
    other = re.search(f"{rules()['no_name']}|{rules()['beside']}", key)
    return None if other and found != "mail" else found


def find_columns(rows: list[list[str]], told: Titles) -> tuple[int, Columns]:
    """Return the header's row (-1: none), and the columns of the name and of the address.

    What it is not told, it guesses as web/guess.js does. Raises Stop if that is not clear.
    """
    wide = max(map(len, rows))
    wanted = {field: [*map(as_title, titles)] for field, titles in told.items()}
    flat = [*chain(*wanted.values())]

    def titles_of(header: int) -> list[str]:
        return ((rows[header] if header >= 0 else []) + [""] * wide)[:wide]

    def mail_column(header: int) -> tuple[float, int]:
        """Return how well the best column of addresses fits, and its number."""
        best = 0.0, -1
        for number, title in enumerate(titles_of(header)):
            cells = (row[number] for row in rows[header + 1 :] if number < len(row))
            found = sum(bool(ADDRESS.search(text)) for text in cells)
            named = role(title) == "mail"
            beside = re.search(rules()["beside"], plain_title(title))
            score = (found + named / 2) * (0.1 if beside else 2 if named else 1)
            best = max(best, (score, number), key=lambda one: one[0])
        return best

    def is_header(row: list[str]) -> bool:
        titles = [*map(as_title, row)]
        if told:
            return not has_address(row) and all(titles.count(title) == 1 for title in flat)
        known = len([*filter(None, titles)]) >= min(2, wide) and any(map(role, titles))
        return known and not has_address(row)

    # Below an address, a row with one known word is a person without one.
    first = next((number for number, row in enumerate(rows) if has_address(row)), len(rows))
    headers = [
        number
        for number, row in enumerate(rows[:30])
        if is_header(row) and (number < first or len([*filter(role, row)]) > 1)
    ]
    header = max(headers, key=lambda number: mail_column(number)[0], default=-1)
    titles = titles_of(header)
    columns = {"name": [], "email": [number for number in [mail_column(header)[1]] if number >= 0]}
    columns["name"] = name_columns(titles, rows[header + 1 :], columns["email"])
    for field, those in wanted.items():
        if header >= 0:
            columns[field] = [[*map(as_title, titles)].index(title) for title in those]
        else:
            numbers = [int(title) for title in those if title.isdecimal()]
            right = len(numbers) == len(those) and all(0 < number <= wide for number in numbers)
            columns[field] = [number - 1 for number in numbers] if right else []
    quoted = wide == 1 and re.search(r"[,;\t|]", rows[max(header, 0)][0])  # each line as a whole
    if quoted or not all(columns.values()):
        there = ", ".join(repr(title)[1:-1] for title in rows[max(header, 0)])[:300]
        raise Stop(
            f"The columns of the name and the address are not clear. There are: {there}. Name them,"
            " or number them if there is no header: --name COLUMN[,COLUMN] --address COLUMN"
        )
    for number, title in enumerate(map(as_title, titles)):  # fields that you have added
        if title in UserCreate.model_fields and title not in columns:
            columns[title] = [number]
    return header, columns


def name_columns(titles: list[str], rows: list[list[str]], mail: list[int]) -> list[int]:
    """Return the columns that make the name, in order."""
    found: dict[str | None, int] = {}
    for number, title in enumerate(titles):
        found.setdefault(role(title), number)
    first, last = (part if part in found else "name" for part in ("first", "last"))
    order = [first, "middle", last]
    if re.search(rules()["last_first"], plain_title(titles[found.get("last", 0)])):
        order = [last, first, "middle"]
    parts = [found[part] for part in order if part in found and first != last]
    whole = [found[part] for part in ("whole", "name") if part in found]
    whole = sorted(whole, key=lambda number: number in mail)[:1]  # one column may have both
    if not parts and not whole:
        return [number for number in range(len(titles)) if number not in mail and len(titles) == 2]

    def filled(numbers: list[int]) -> int:
        return sum(any(cell(row, number) for number in numbers) for row in rows)

    return parts if filled(parts) >= max(1, filled(whole)) or not whole else whole


def cell(row: list[str], number: int) -> str:
    """Return a cell on one line, without what programs put around a value; "" if there is none."""
    text = plain_cell(INVISIBLE.sub("", row[number])) if number < len(row) else ""
    return " ".join(re.sub(r'^="(.*)"$', r"\1", text).split())


def to_person(row: list[str], columns: Columns) -> dict[str, str]:
    """Return the fields of a user in the cells of these columns."""
    given = {
        field: " ".join(filter(None, (cell(row, number) for number in numbers)))
        for field, numbers in columns.items()
    }
    name, text = given["name"], given["email"]
    plain = text
    for pattern, sign in AROUND.items():
        plain = re.sub(pattern, sign, plain, flags=re.IGNORECASE)
    found = ADDRESS.search(plain)
    if found and (not name or ADDRESS.search(name)):
        # "Ada <ada@example.com>" has a name, too; ada.lovelace@example.com makes one.
        beside = ADDRESS.sub(" ", re.sub("<[^>]*>", " ", name or text)).strip(" \"'")
        name = beside or re.sub("[._-]+", " ", found[0].partition("@")[0].partition("+")[0]).title()
    return given | {"name": name, "email": found[0] if found else text}


def as_title(text: str) -> str:
    return text.strip().lower()
