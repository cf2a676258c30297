"""The codes of SQL databases, as kinds of ``Fault``; and verbs that retry."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from engine import Session, codes, place_of
from store import EmailTaken, Fault, Kind, by_code, find_fault

# Each code is one of these: PostgreSQL's SQLSTATE or its class (two characters), MySQL's number,
# SQLite's name or its beginning, or the name of a class of exceptions.
KINDS = by_code(
    {
        Kind.CONFLICT: "23505 23503 1062 1451 1452"
        " SQLITE_CONSTRAINT_UNIQUE SQLITE_CONSTRAINT_PRIMARYKEY SQLITE_CONSTRAINT_FOREIGNKEY",
        Kind.BAD_VALUE: "22 23502 23514 1048 1264 1366 1406 SQLITE_CONSTRAINT"
        " OverflowError UnicodeEncodeError DataError ValueError TypeError",
        # 1305: no such savepoint; a deadlock has undone the transaction and its savepoints.
        Kind.BUSY: "40001 40P01 55P03 1020 1205 1213 1305 SQLITE_BUSY SQLITE_LOCKED StaleDataError",
        # 1180: a commit without the majority of a Galera cluster. 42P01 and 1146, 42703 and 1054:
        # no table or column yet, in a database that was unreachable when the app started.
        Kind.UNREACHABLE: "08 57P01 57P02 57P03 53300 55000 42P01 42703 1040 1047 1053 1054 1146"
        " 1180 1927 2002 2003 2004 2005 2006 2007 2008 2009 2010 2011 2012 2013 2055 disconnected"
        " OSError TimeoutError InterfaceError InternalClientError TargetServerAttributeNotMatched",
        Kind.TOO_SLOW: "57014 1969 3024 SQLITE_INTERRUPT",
        Kind.READ_ONLY: "25006 1290 1792 1836 SQLITE_READONLY",
        # 08P01, 26000 and 42P05: PgBouncer without the settings that Roster needs.
        Kind.REFUSED: "08P01 26000 42P05 28 3D000 42501 1044 1045 1049 1142 3159 SQLITE_CANTOPEN"
        " SQLITE_READONLY_DBMOVED SSLCertVerificationError ClientConfigurationError",
        Kind.CORRUPT: "SQLITE_CORRUPT SQLITE_NOTADB SQLITE_IOERR",
        # No id is left: 2200H, 167, 1467.
        Kind.FULL: "53100 1021 1114 SQLITE_FULL 2200H 167 1467",
    }
)
# Why a database does not start.
REASONS = by_code(
    {
        "does not know this user name with this password": "28P01",
        # PostgreSQL and MariaDB say the same of a connection that isn't encrypted, if it has to be.
        "does not accept this user name with this password, or not without TLS": "28000 1045",
        "has no database of this name": "3D000 1049",
        "does not give this user access to the database, or does not let it make tables,"
        " for which PostgreSQL wants GRANT CREATE ON SCHEMA public": "42501",
        "does not give this user access to the database": "1044 1142",
        "has an option with a wrong value after its ?, or"
        " sslmode=verify-full without sslrootcert": "ClientConfigurationError",
        "does not know an option that the URL has after its ?": "42704",
        "accepts connections with TLS only": "3159",
        "does not accept Roster's settings: see PgBouncer in the documentation": "08P01",
        "forgets prepared statements: behind PgBouncer, add"
        " ?prepared_statement_cache_size=0": "26000 42P05",
        "cannot be opened: the folder is missing, or you may not write in it": "SQLITE_CANTOPEN",
        "is corrupt: restore it from a backup": "SQLITE_CORRUPT",
        "is not a SQLite database": "SQLITE_NOTADB",
        "cannot be written to": "SQLITE_READONLY SQLITE_READONLY_DIRECTORY",
    }
)
UNIQUE = {"23505", "1062", "SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"}


def sql_fault(error: SQLAlchemyError, place: str = "SQL") -> Fault | None:
    """Return the fault that an error of a session stands for, None if it is a bug."""
    return find_fault(codes(error), KINDS, place)


def is_unique(error: IntegrityError) -> bool:
    """Return whether a unique constraint rejected a row, rather than a foreign key, for example."""
    return not UNIQUE.isdisjoint(codes(error))


def is_taken(error: IntegrityError) -> bool:
    """Return whether the address is taken: each driver's message names the constraint."""
    return is_unique(error) and "email_key" in str(error.orig)


def to_conflict(error: IntegrityError) -> Exception:
    """Return what the rejection of a row means: EmailTaken, or else the same error."""
    return EmailTaken([("body", "email")]) if is_taken(error) else error


P = ParamSpec("P")
T = TypeVar("T")


def retry_if_busy(
    work: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Roll a verb back if it fails; retry it, twice at most, if another transaction won.

    Then nothing of it was done: a deadlock (PostgreSQL 40P01, MySQL 1213), or on Galera a change on
    another node. A verb that waited for a lock (3 seconds) is not retried. Nor is one whose session
    was in a transaction: the rollback undid that, too. Raises Fault.
    """

    @wraps(work)
    async def run(store: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        began = time.monotonic()
        session = store.session
        alone = session.idle if isinstance(session, Session) else not session.in_transaction()
        pauses = [0.2, 0.02] if alone else []  # what the caller did before cannot be repeated
        while True:
            try:
                return await work(store, *args, **kwargs)
            except EmailTaken:
                await store.session.rollback()
                raise
            except SQLAlchemyError as error:
                await store.session.rollback()
                fault = sql_fault(error, place_of(store.session))
                if not fault:
                    raise
                if fault.kind is not Kind.BUSY or not pauses or time.monotonic() - began > 2.5:
                    raise fault from error
            # Not all of the pause: the other transaction retries, too, and not at the same moment.
            await asyncio.sleep(pauses.pop() * (time.monotonic() % 1))

    return run
