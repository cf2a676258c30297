"""The rules of fields.py, rows.py and paging.py, with values that Hypothesis makes up."""

import json
import re
import unicodedata
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from email_validator import validate_email
from hypothesis import given
from hypothesis import strategies as st
from pydantic import EmailStr
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlmodel import SQLModel

from engine import UTCMillis
from fields import ID_MAX, KEY_MAX, PLAIN_EMAIL, fold, normal_email
from models import FIELDS, UserRead, UserRow
from paging import CURSOR, Cursor, UserQuery
from rows import Moment, converted, unvalidated

texts = st.text(st.characters(codec="utf-8"), max_size=300)
sorts = st.sampled_from(["id", "-id", "name", "-name"])


@given(texts)
def test_key_is_the_same_for_all_variants_of_a_text(text: str) -> None:
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        if len(fold(text)) < KEY_MAX:
            assert fold(unicodedata.normalize(form, text)) == fold(text)
    assert len(fold(text)) <= KEY_MAX


@given(texts.map(str.casefold))
def test_key_of_a_key_is_the_key(text: str) -> None:
    assert fold(fold(text)) == fold(text)


@pytest.mark.parametrize(
    ("one", "other"), [("𝐀da", "ada"), ("ϒ", "υ"), ("ǰ", "J\u030c"), ("ﬁ", "FI"), ("ᴬ", "a")]
)
def test_folding_and_normal_form_undo_each_other_and_both_are_kept(one: str, other: str) -> None:
    assert fold(one) == fold(other)
    assert unicodedata.is_normalized("NFKC", fold(one))


def test_row_has_the_fields_of_a_user() -> None:
    row: Any = UserRow
    assert [*row.__struct_fields__] == FIELDS
    assert {*FIELDS} == UserRead.model_fields.keys()


@given(st.integers(1, ID_MAX), texts, st.datetimes(), st.sampled_from([0, 1000, 120_000, 999_000]))
def test_row_becomes_the_json_of_a_user(user_id: int, text: str, time: datetime, us: int) -> None:
    at = time.replace(microsecond=us, tzinfo=UTC)
    values: dict[str, Any] = {
        "id": user_id,
        "name": text,
        "email": text,
        "created_at": at,
        "updated_at": at,
    }
    row = UserRow(**values, version=1)
    encoded = msgspec.json.encode(row)
    user = UserRead.model_construct(**values, version=1)
    assert json.loads(encoded) == json.loads(user.model_dump_json())
    assert converted(msgspec.json.decode(encoded), UserRow) == row


@given(sorts, st.integers(1, ID_MAX), st.text(st.characters(codec="utf-8", categories=["L", "S"])))
def test_cursor_comes_back_as_it_was(sort: str, user_id: int, name: str) -> None:
    cursor = Cursor(sort, user_id, name[:100])  # type: ignore[arg-type]  # a text of sorts
    assert Cursor.decode(cursor.encode()) == cursor
    assert UserQuery(cursor=cursor.encode()).after == cursor
    assert UserQuery(cursor=cursor.encode()).sort == sort


@given(st.from_regex(CURSOR, fullmatch=True))
def test_every_text_that_fits_is_a_cursor(text: str) -> None:
    cursor = Cursor.decode(text.strip())
    assert 1 <= cursor.id <= ID_MAX
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\ufffd]", cursor.name)


@pytest.mark.parametrize("dialect", [sqlite, mysql, postgresql])
def test_time_that_is_not_there_is_none(dialect: Any) -> None:
    convert: Any = UTCMillis().result_processor(dialect.dialect(), None)
    assert convert(None) is None


# PLAIN_EMAIL itself has no end, and most of what Hypothesis makes of it is too long.
SHORT = PLAIN_EMAIL.pattern.replace("*@", "{0,2}@").replace("*", "{0,2}")
SHORT = SHORT.replace("]+", "]{1,6}").replace(")+", "){1,3}").replace("{2,}", "{2,6}")


@given(st.from_regex(re.compile(SHORT, re.ASCII), fullmatch=True))
def test_plain_address_is_what_email_validator_returns(text: str) -> None:
    assert PLAIN_EMAIL.fullmatch(text)
    assert normal_email(text) == validate_email(text, check_deliverability=False).normalized


@pytest.mark.parametrize("text", ["a@" + "b" * 64 + ".com", "a@b.com\n", "a@b.c0", "a@-b.com"])
def test_what_only_looks_like_a_plain_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a valid email address"):
        normal_email(text)


def test_sqlite_is_given_no_time_without_its_zone() -> None:
    convert: Any = UTCMillis().bind_processor(sqlite.dialect())
    assert convert(None) is None
    with pytest.raises(ValueError, match="timezone"):
        convert(datetime(2026, 1, 1))


class WithTimes(SQLModel):
    id: int
    seen: Moment | None = None
    points: int | None = None
    contact: EmailStr | None = None  # msgspec does not know this type


def test_values_of_an_optional_field_are_those_of_its_type() -> None:
    row = unvalidated(WithTimes)
    stored = row(1, datetime(2026, 11, 29, 8, 30, tzinfo=UTC), 7, "ada@example.com")
    exported = msgspec.to_builtins(stored, builtin_types=(bytes, datetime))
    assert converted(exported, row) == stored
    texts = {**exported, "id": "1", "seen": "2026-11-29T08:30:00Z", "points": "7"}
    assert converted(texts, row, strict=False) == stored
    with pytest.raises(msgspec.ValidationError):
        converted({**exported, "points": "7"}, row)
