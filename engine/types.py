"""``UTCMillis``: a time, as SQL stores it; ``contains``: a part of a text, as SQL finds it."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Dialect, Float, String, bindparam
from sqlalchemy.dialects.mysql import DATETIME
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import Function
from sqlalchemy.types import TypeDecorator, TypeEngine
from sqlmodel.sql.sqltypes import UTCDateTime

# What a function is in SQL, and what it is for one product.
FORMS = {
    "contains": "{0} LIKE {1} ESCAPE '/'",
    "contains mysql": "length(replace({0}, {1}, '')) < length({0})",  # LIKE takes twice as long
    "as_text": "{0}",
    # A cast would follow PostgreSQL's DateStyle, which is set for a database or a role.
    "as_text postgresql": "to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')",
    "as_text mysql": "concat({0})",
}


class Part(TypeDecorator[str]):
    """A part of a text, as ``contains`` sends it."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        mysql = dialect.name == "mysql"
        return value if mysql else "%" + re.sub("[/%_]", r"/\g<0>", value) + "%"


class Form(Function[Any]):
    """A function of ``FORMS``."""

    inherit_cache = True


@compiles(Form)
def as_sql(element: Form, compiler: SQLCompiler, **options: Any) -> str:
    form = FORMS.get(f"{element.name} {compiler.dialect.name}", FORMS[element.name])
    return form.format(*(compiler.process(each, **options) for each in element.clauses))


def contains(column: ColumnElement[str], part: str) -> ColumnElement[bool]:
    """Return the condition that a text contains a parameter's value. SQLite ignores A-Z's case."""
    return Form("contains", column, bindparam(part, type_=Part()))


@compiles(Float, "mysql")
def as_double(*_: Any, **__: Any) -> str:
    return "DOUBLE"  # its FLOAT has four bytes, and would round what the client sent


class UTCMillis(UTCDateTime):
    """SQLModel's aware UTC datetime, with milliseconds on MySQL and MariaDB too (default: none)."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return DATETIME(fsp=3) if dialect.name == "mysql" else super().load_dialect_impl(dialect)

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return Form("as_text", column, type_=self)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        def to_datetime(value: Any) -> Any:
            if type(value) is str:
                return datetime.fromisoformat(value + "+00:00")
            # Not every expression goes through column_expression: text().columns() doesn't.
            return value and value.replace(tzinfo=UTC)

        return to_datetime
