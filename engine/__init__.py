"""SQL for SQLModel and asyncio: SQLite, PostgreSQL, MySQL and MariaDB, made fast and safe.

The only door of the package, which knows nothing of an app's tables. Tested in ``tests/engine``:

- A session costs next to nothing until it is used. It commits when its block ends without an error.
  It raises if it is used later, or if it is for reading and has something to write.
- What SQLAlchemy's sessions offer works in a session for reading, too: streams, savepoints.
- ``fetch`` and ``insert_row`` leave out SQLAlchemy's steps between a statement and its driver,
  unless the session is in a transaction, or isn't ours.
- Callers get connections in the order of asking, within five seconds. There are at most ``size``,
  of SQLite six.
- Whatever a driver raises leaves here as an ``SQLAlchemyError``; ``codes`` says which error it is.
- SQLite never blocks the event loop: ``README.md`` lists what that takes.
- Only the driver of the database in use is imported.
"""

from engine.database import SQL_SCHEMES, Database, NotSQL, Session, fetch, insert_row, place_of
from engine.direct import WAIT_MAX
from engine.errors import codes
from engine.types import UTCMillis, contains
from engine.url import SettingsError, check_certificates, hosts, parse_url

__all__ = [
    "SQL_SCHEMES",
    "WAIT_MAX",
    "Database",
    "NotSQL",
    "Session",
    "SettingsError",
    "UTCMillis",
    "check_certificates",
    "codes",
    "contains",
    "fetch",
    "hosts",
    "insert_row",
    "parse_url",
    "place_of",
]
