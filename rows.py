"""Rows: the columns that keep themselves right, whoever writes, and the models made of others."""

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import Any, TypeVar, cast

import msgspec
from pydantic import MISSING
from sqlalchemy import BigInteger, Column, Integer, String, event
from sqlalchemy.orm import declared_attr
from sqlmodel import Field, SQLModel

from engine import UTCMillis
from fields import KEY_MAX, fold, utc_now

# SQLite numbers rows only in a column that is declared as INTEGER.
RowId = BigInteger().with_variant(Integer, "sqlite")
# Without AUTOINCREMENT, SQLite would give a deleted row's id to the next one.
TABLE = {"sqlite_autoincrement": True, "mysql_engine": "InnoDB", "mysql_charset": "utf8mb4"}


def key_of(*fields: str, by: Callable[..., str] = fold, **options: Any) -> Any:
    """Return the Field of a key that always follows other fields: their texts, folded."""

    def folded(context: Any) -> str:
        values = context.get_current_parameters()
        return by(*(values[field] for field in fields))

    # Keys sort by code point on every database, not by the server's language.
    size = (KEY_MAX + 1) * len(fields) - 1
    key = (
        String(size)
        .with_variant(String(size, collation="C"), "postgresql")
        .with_variant(String(size, collation="utf8mb4_bin"), "mysql")
    )
    column = {"default": folded, "info": {"key_of": fields, "by": by}, **options}
    return Field(default=None, sa_type=key, nullable=False, sa_column_kwargs=column)


class Versioned(SQLModel):
    """The times and the version of a row.

    Every UPDATE and DELETE of an object ends in "AND version = ..." and an UPDATE adds one, so that
    of two callers that change the same version, one fails instead of undoing the other's work.
    """

    @declared_attr.directive
    def __mapper_args__(cls) -> dict[str, Any]:
        return {"version_id_col": cls.__dict__["version"]}

    created_at: datetime = Field(
        default=None, sa_type=UTCMillis, nullable=False, sa_column_kwargs={"default": utc_now}
    )
    updated_at: datetime = Field(
        default=None,
        sa_type=UTCMillis,
        nullable=False,
        sa_column_kwargs={
            "default": lambda context: context.get_current_parameters()["created_at"],
            "onupdate": utc_now,
        },
    )
    version: int = Field(default=1)


def columns_of(model: type[SQLModel]) -> list[Column[Any]]:
    """Return the columns of a table model."""
    return [*SQLModel.metadata.tables[str(model.__tablename__)].c]


@cache
def keys_of(model: type[SQLModel]) -> dict[str, str]:
    """Return the columns of ``key_of`` that follow one field, each with this field."""
    keys = {column.name: column.info.get("key_of", ()) for column in columns_of(model)}
    return {key: fields[0] for key, fields in keys.items() if len(fields) == 1}


def follow(model: type[SQLModel], fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys that follow these fields, of which not all may be known."""
    return {
        column.name: column.info["by"](*map(fields.get, column.info["key_of"]))
        for column in columns_of(model)
        if not fields.keys().isdisjoint(column.info.get("key_of", ()))
    }


@event.listens_for(SQLModel, "before_update", propagate=True)
def update_keys(_: object, __: object, row: SQLModel) -> None:
    """Let the keys of an object follow its fields when it is stored again."""
    for column in columns_of(type(row)):
        if fields := column.info.get("key_of"):
            texts = (getattr(row, field) for field in fields)
            setattr(row, column.name, column.info["by"](*texts))


class Values(dict[str, Any]):
    """The values of a row, in the form in which a column's default asks for them."""

    def get_current_parameters(self) -> dict[str, Any]:
        return self


@cache
def defaults_of(model: type[SQLModel]) -> dict[str, Callable[[Values], Any]]:
    """Return what makes the default value of each column that has one."""

    def constant(value: Any) -> Callable[[Values], Any]:
        return lambda _: value

    found: dict[str, Any] = {column.name: column.default for column in columns_of(model)}
    return {
        name: default.arg if default.is_callable else constant(default.arg)
        for name, default in found.items()
        if default is not None
    }


def new_row(model: type[SQLModel], fields: dict[str, Any]) -> dict[str, Any]:
    """Return all values of a new row: these, and the defaults of the other columns but the id."""
    row = Values(fields)
    for name, default in defaults_of(model).items():
        if name not in row:
            row[name] = default(row)
    return row


def changed_row(model: type[SQLModel], fields: dict[str, Any]) -> dict[str, Any]:
    """Return the values that change with these, the version apart: ``fields``, keys, times."""
    row = Values(fields | follow(model, fields))
    for column in columns_of(model):
        if (made := cast(Any, column.onupdate)) is not None:
            row[column.name] = made.arg(row)
    return row


Model = TypeVar("Model", bound=SQLModel)


def partial(model: type[Model]) -> type[Model]:
    """Let each field of a model be absent, but not null: the model of a PATCH."""
    for field in model.model_fields.values():
        field.annotation = cast(Any, field.annotation) | MISSING
        field.default = MISSING
    model.model_rebuild(force=True)
    return model


def fields_of(model: type[SQLModel]) -> list[str]:
    """Return the names of a model's fields, the id first."""
    return sorted(model.model_fields, key=lambda name: name != "id")


def unvalidated(model: type[Model]) -> Callable[..., Model]:
    """Return a class with a model's fields, in this order, that takes its values as they are.

    Roster validated what is in the database when it came in. msgspec makes such a row, and its
    JSON, many times as fast as pydantic.
    """
    fields: list[Any] = []
    for name in fields_of(model):
        field = model.model_fields[name]
        if field.is_required():
            fields.append((name, field.annotation))
        else:
            absent = field.default is MISSING
            fields.append((name, Any, msgspec.UNSET if absent else field.default))
    made: Any = msgspec.defstruct(model.__name__, fields, module=__name__)
    return cast(Callable[..., Model], made)


def converted(values: Any, row: Callable[..., Model], strict: bool = True) -> Model:
    """Return an ``unvalidated`` row of values in a dict or of JSON. Raises msgspec.ValidationError.

    If not ``strict``, numbers and times may be text.
    """
    found: Any = msgspec.convert(values, cast(Any, row), strict=strict)
    return cast(Model, found)


def reader_of(annotation: type) -> Callable[[str], Any] | None:
    """Return what makes a value of this type of a text, None if the text is the value."""
    usual = {str: None, int: int, datetime: datetime.fromisoformat}
    if annotation in usual:
        return usual[annotation]
    return lambda text: msgspec.convert(text, annotation, strict=False)
