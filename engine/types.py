"""``UTCMillis``: a time, as SQL stores it."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Dialect
from sqlalchemy.dialects.mysql import DATETIME
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeEngine
from sqlmodel.sql.sqltypes import UTCDateTime


class UTCMillis(UTCDateTime):
    """SQLModel's aware UTC datetime, with milliseconds on MySQL and MariaDB too (default: none).

    A SELECT reads it as text with its time zone, of which Python makes a datetime several times as
    fast as the drivers do of their own formats. (https://docs.sqlalchemy.org/en/21/core/compiler.html)
    """

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        mysql = dialect.name == "mysql"
        return DATETIME(fsp=3) if mysql else super().load_dialect_impl(dialect)

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return AsText(column, type_=self)

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        def to_text(aware: datetime | None) -> str | None:
            utc = self.process_bind_param(aware, dialect)  # it raises for a naive datetime
            return utc.isoformat(" ", "microseconds").removesuffix("+00:00") if utc else None

        return to_text if dialect.name == "sqlite" else super().bind_processor(dialect)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        parse = datetime.fromisoformat

        def to_datetime(value: Any) -> Any:
            if type(value) is str:
                return parse(value if value[-6:] == "+00:00" else value + "+00:00")
            # Not every expression goes through column_expression: text().columns() doesn't.
            return value and value.replace(tzinfo=UTC)

        return to_datetime


class AsText(GenericFunction[Any]):
    inherit_cache = True


TEXT = {
    # A cast would follow PostgreSQL's DateStyle, which is set for a database or a role.
    "postgresql": "to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00:00')",
    "mysql": "concat({}, '+00:00')",
}


@compiles(AsText)
def as_text(element: AsText, compiler: SQLCompiler, **options: Any) -> str:
    column = compiler.process(element.clauses, **options)
    return TEXT.get(compiler.dialect.name, "{}").format(column)
