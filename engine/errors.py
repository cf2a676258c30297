"""Drivers' exceptions: their codes, and how they become SQLAlchemy's."""

from typing import Any

from sqlalchemy import Dialect, ExceptionContext
from sqlalchemy.exc import DBAPIError, OperationalError, StatementError

# Causes that say more than the code of the error that they led to.
SPECIFIC = {"ClientConfigurationError", "SSLCertVerificationError"}  # the first is asyncpg's
SPECIFIC |= {"TargetServerAttributeNotMatched"}  # no host is the primary at the moment (asyncpg)
# How uvloop and asyncmy, in a RuntimeError, report a connection that the server has just closed.
CLOSED = ("the handler is closed", "Transport does not expose socket")
# A value that asyncpg rejected after it prepared the statement, whose locks the connection holds.
REJECTED = "22000"
# "This server takes no changes now", of PostgreSQL, MySQL and (the last two) Galera.
DEMOTED = {"25006", "1290", "1792", "1836", "1047", "1180"}


def codes(error: BaseException) -> list[str]:
    """Return what a database calls an error, the most telling code first; then names of classes."""
    found, names = list[str](), list[str]()
    cause: BaseException | None = (isinstance(error, StatementError) and error.orig) or error
    while isinstance(cause, Exception):  # a CancelledError led to a TimeoutError, and says less
        if name := getattr(cause, "sqlite_errorname", None):
            found += [name, "_".join(name.split("_")[:2])]
        # MySQL's number says more than its SQLSTATE, which asyncmy has too.
        elif not isinstance(cause, OSError) and cause.args and type(cause.args[0]) is int:
            found.append(str(cause.args[0]))
        elif state := getattr(cause, "sqlstate", None):
            found += [state, state[:2]]
        elif "query arguments" in str(cause):  # too many: asyncpg has no code for it
            found += [REJECTED, REJECTED[:2]]
        names[:0] = [kind.__name__ for kind in type(cause).__mro__]
        cause = cause.__cause__
    if getattr(error, "connection_invalidated", False) or lost_connection(error):
        found.append("disconnected")
    return [*(name for name in names if name in SPECIFIC), *found, *names]


def lost_connection(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CLOSED)


def wrapped(error: BaseException, dialect: Dialect, connection: Any = None) -> BaseException:
    """Return a driver's exception as SQLAlchemy's; ``connection`` is SQLAlchemy's, too."""
    if connection:
        try:
            connection._handle_exception(error)
        except BaseException as found:  # noqa: BLE001 (raising is how it returns its own form)
            error = found
    if isinstance(error, dialect.loaded_dbapi.Error):
        return DBAPIError.instance(None, None, error, dialect.loaded_dbapi.Error, dialect=dialect)
    closed = lost_connection(error)
    if closed or isinstance(error, (OSError, OverflowError, ValueError)):
        return OperationalError(None, None, error, connection_invalidated=closed)
    return error


def on_error(writes: bool, context: ExceptionContext) -> BaseException | None:
    """Wrap exceptions that SQLAlchemy does not wrap, and close unusable connections."""
    found = {*codes(context.sqlalchemy_exception or context.original_exception)}
    if writes and DEMOTED & found:  # close all: another server may take changes
        context.is_disconnect = True
    if REJECTED in found:
        context.is_disconnect, context.invalidate_pool_on_disconnect = True, False
    error = wrapped(context.original_exception, context.dialect)
    passed_on = context.sqlalchemy_exception or error is context.original_exception
    return None if passed_on else error
