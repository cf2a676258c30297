"""Fill an SQL database with millions of users like Roster's own, in SQL, which is fast."""

from collections.abc import Iterator
from contextlib import contextmanager

from servers import PEERS, serve
from sqlalchemy import Connection, create_engine, make_url

# 65,536 names, each as often as every other, in no order.
FIRST = (
    "Ada Alan Barbara Claude Donald Edsger Frances Grace Hedy John Ken Linus Mary Niklaus Radia Tim"
)
SYLLABLES = "ka lo mi ne ru sta ven dor bel fin gar hol jan pet quin wood"
NEWLINE = {"sqlite": "char(10)", "postgresql": "chr(10)"}
STAMP = {"sqlite": "'2026-01-01 00:00:00.000000'", "postgresql": "'2026-01-01 00:00:00+00'"}
NUMBERS = {
    "sqlite": "SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}",
    "postgresql": "SELECT generate_series(1, {rows}::bigint)",
}
# An index is made faster of all rows at once. SQLite cannot take off a unique constraint.
BEFORE = {
    "sqlite": ["PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "PRAGMA cache_size=-1000000"],
    "postgresql": ["ALTER TABLE users DROP CONSTRAINT uq_users_email_key"],
}
AFTER = {
    "sqlite": ["ANALYZE"],
    "postgresql": [
        "ALTER TABLE users ADD CONSTRAINT uq_users_email_key UNIQUE (email_key)",
        "SELECT setval(pg_get_serial_sequence('users', 'id'), (SELECT max(id) FROM users))",
        "VACUUM ANALYZE users",
        "CHECKPOINT",
    ],
}


def word(words: str, bits: int) -> str:
    """Return the SQL for one of 16 words, by four bits of a row's number."""
    padded = "".join(f"{each:8}" for each in words.split())
    return f"trim(substr('{padded}', 1 + 8 * CAST((i * 40503 >> {bits}) & 15 AS integer), 8))"


@contextmanager
def connect(url: str) -> Iterator[Connection]:
    """Yield a connection without transactions."""
    url = url.replace("postgresql:", "postgresql+psycopg:")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def fill(url: str, rows: int) -> None:
    """Let Roster make its table, and put rows like its own there."""
    with serve(PEERS["roster"], url) as server:
        server.wait()
    backend = make_url(url).get_backend_name()
    first, *last = word(FIRST, 0), *(word(SYLLABLES, bits) for bits in (4, 8, 12))
    last[0] = f"upper(substr({last[0]}, 1, 1)) || substr({last[0]}, 2)"
    with connect(url) as connection:
        for statement in [*BEFORE[backend], "DROP INDEX ix_users_name_key_id"]:
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql(f"""
            INSERT INTO users
                (id, name, email, created_at, updated_at, version, name_key, email_key, search_key)
            WITH RECURSIVE
                n(i) AS ({NUMBERS[backend].format(rows=rows)}),
                words AS (SELECT i, {first} AS first, {" || ".join(last)} AS last FROM n),
                named AS (SELECT i, first || ' ' || last AS name,
                    first || '.' || last || i || '@example.com' AS email FROM words)
            SELECT i, name, email, {STAMP[backend]}, {STAMP[backend]}, 1, lower(name), lower(email),
                lower(name || {NEWLINE[backend]} || email)
            FROM named
            """)  # noqa: S608  # all of it is written here
        for statement in [
            "CREATE INDEX ix_users_name_key_id ON users (name_key, id)",
            *AFTER[backend],
        ]:
            connection.exec_driver_sql(statement)
