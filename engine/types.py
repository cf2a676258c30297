"""``UTCMillis``: a time, as SQL stores it; ``contains``: a part of a text, as SQL finds it."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Dialect, String, bindparam
from sqlalchemy.dialects.mysql import DATETIME
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeDecorator, TypeEngine
from sqlmodel.sql.sqltypes import UTCDateTime

TEXT = {
    # A cast would follow PostgreSQL's DateStyle, which is set for a database or a role.
    "postgresql": "to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')",
    "mysql": "concat({})",
}


class Part(TypeDecorator[str]):
    """A part of a text, as ``contains`` sends it."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        mysql = dialect.name == "mysql"
        return value if mysql else "%" + re.sub("[/%_]", r"/\g<0>", value) + "%"


class Contains(GenericFunction[bool]):
    inherit_cache = True


@compiles(Contains)
def as_condition(element: Contains, compiler: SQLCompiler, **options: Any) -> str:
    text, part = (compiler.process(each, **options) for each in element.clauses)
    if compiler.dialect.name == "mysql":  # LIKE takes twice as long there
        return f"length(replace({text}, {part}, '')) < length({text})"
    return f"{text} LIKE {part} ESCAPE '/'"


def contains(column: ColumnElement[str], part: str) -> ColumnElement[bool]:
    """Return the condition that a text contains a parameter's value. SQLite ignores A-Z's case."""
    return Contains(column, bindparam(part, type_=Part()))


class AsText(GenericFunction[Any]):
    inherit_cache = True


@compiles(AsText)
def as_text(element: AsText, compiler: SQLCompiler, **options: Any) -> str:
    column = compiler.process(element.clauses, **options)
    return TEXT.get(compiler.dialect.name, "{}").format(column)


class UTCMillis(UTCDateTime):
    """SQLModel's aware UTC datetime, with milliseconds on MySQL and MariaDB too (default: none)."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        mysql = dialect.name == "mysql"
        return DATETIME(fsp=3) if mysql else super().load_dialect_impl(dialect)

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return AsText(column, type_=self)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        def to_datetime(value: Any) -> Any:
            if type(value) is str:
                return datetime.fromisoformat(value + "+00:00")
            # Not every expression goes through column_expression: text().columns() doesn't.
            return value and value.replace(tzinfo=UTC)

        return to_datetime
