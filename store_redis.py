"""Redis: redis.asyncio, the script ``store_redis.lua``, and these keys.

``roster:last_id``
    A string: the newest id. It only grows, so no id is given twice.
``roster:user:<id>``
    A hash: the columns of ``models.User``. Times are ISO 8601, the rest is text; what is null is
    left out.
``roster:emails``
    A hash, email_key -> id: which addresses are taken, and by which user.
``roster:by_id``
    A sorted set of ids.
``roster:by_name``
    A sorted set of name_key + NUL + id. No name has a NUL, so "ada" comes before "ada lovelace".
``roster:search:<id without its last two digits>``
    A string: the search keys of these users, at most a hundred. A search makes it, because looking
    into one text takes a tenth of the time; a change deletes it.

Ids in keys and members have 19 digits, and all scores are 0. Redis then sorts members by their
bytes, which is the order of code points. It finds a position or a prefix in a million of them as
fast as in a thousand. (Scores are floating point, which is not exact beyond 2^53.)

Redis runs each verb of the script alone and whole, so no client sees half a change. The first write
of a verb is the only one that Redis may reject (memory full, a replica). It comes after everything
that the verb itself could reject. Verbs use keys that are not among their arguments, so Redis
Cluster cannot run them.

A search runs a verb several times, each time for few users. Redis serves other clients in between.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig
from sqlalchemy import URL

from engine import SettingsError, codes, hosts, parse_url
from fields import ID_MAX, fold, fold_all, fold_email
from models import FIELDS, User, UserCreate, UserRead, UserRow, UserUpdate
from paging import UserQuery
from rows import changed_row, converted, new_row
from store import EmailTaken, Kind, NotFound, StaleVersion, by_code, in_slot, logger, new_rows

# The word that Redis begins an error with, or the name of a class of exceptions.
KINDS = by_code(
    {
        Kind.BUSY: "BUSY",
        Kind.REFUSED: "AuthenticationError NOAUTH WRONGPASS NOPERM NOSUCHDB"
        " SSLCertVerificationError",
        Kind.UNREACHABLE: "LOADING MASTERDOWN disconnected ConnectionError TimeoutError OSError",
        Kind.READ_ONLY: "READONLY MISCONF NOREPLICAS",
        Kind.FULL: "OOM FULL",
    }
)
REASONS = by_code(  # why a database does not start
    {
        "does not know this user name with this password": "WRONGPASS NOAUTH AuthenticationError",
        "has no database of this name": "NOSUCHDB",
        "does not give this user access to the database": "NOPERM",
    }
)
NULL = "\0"  # stands for null in a script's arguments: no text has a NUL
PIECE = 1000  # users at whose hashes a script looks
NAMES = ", ".join(map(repr, FIELDS))
SCRIPTS = f"local FIELDS, PIECE = {{{NAMES}}}, {PIECE}\n"
SCRIPTS += Path(__file__).with_suffix(".lua").read_text()


class RedisUserStore:
    """Users in the keys ``roster:*``."""

    kinds, reasons = KINDS, REASONS
    errors = RedisError, OSError, RuntimeError  # uvloop's

    def __init__(self, url: str, size: int = 15) -> None:
        """Open the database of a URL. Nothing is connected yet. Raises SettingsError."""
        self.url = parse_url("DATABASE_URL", url)
        self.redis = Redis(connection_pool=make_pool(self.url, size))
        self.scripts = self.redis.register_script(SCRIPTS)
        self.slots, self.expensive = asyncio.Semaphore(size), asyncio.Semaphore(max(2, size // 5))
        kind = "Redis Sentinel" if self.url.drivername.endswith("+sentinel") else "Redis"
        where, number = " or ".join(hosts(self.url)), self.url.database or 0
        if self.url.drivername == "unix":
            where, number = f"/{number}", str(self.url.query.get("db", 0))
        self.place = f"{kind} at {where}, database {number}"

    def codes(self, error: Exception) -> list[str]:
        """Return the word that Redis begins an error with, and the names of its classes."""
        if isinstance(error.__context__, SSLCertVerificationError):
            return ["SSLCertVerificationError"]
        if str(error) == "DB index is out of range":
            return ["NOSUCHDB"]
        word = str(getattr(error, "status_code", None) or str(error).partition(" ")[0])
        return [*([word] if word.isupper() and word != "ERR" else []), *codes(error)]

    async def add(self, new: UserCreate) -> UserRead:
        """Add a list of one."""
        try:
            return (await self.add_many([new], skip_taken=False))[0][0]
        except EmailTaken:
            raise EmailTaken([("body", "email")]) from None

    @in_slot
    async def add_many(
        self, new: Sequence[UserCreate], skip_taken: bool
    ) -> tuple[list[UserRead], list[str]]:
        """Let the script look which addresses are free, and store their users."""
        rows = await new_rows(new)
        texts = [[row["email_key"], *to_texts(row)] for row in rows]
        args = [text for each in texts for text in each]
        how, enough = "skip" if skip_taken else "fail", f"{ID_MAX - len(rows):019}"
        taken, ids = await self.run("add", how, len(texts[0]), enough, *args)
        if taken and not skip_taken:
            raise EmailTaken([("body", i, "email") for i in taken])
        left_out = set(taken)
        stored = [row for i, row in enumerate(rows) if i not in left_out]
        for row, user_id in zip(stored, ids, strict=True):
            row["id"] = int(user_id)
        return [UserRow(*(row[field] for field in FIELDS)) for row in stored], [
            new[i].email for i in taken
        ]

    @in_slot
    async def get(self, user_id: int) -> UserRead:
        """Read a hash."""
        texts = await reading(self.redis.hmget, f"roster:user:{user_id:019}", FIELDS)
        if texts[0] is None:
            raise NotFound
        return to_user(texts)

    @in_slot
    async def page(self, query: UserQuery, limit: int) -> list[UserRead]:
        """Walk along a sorted set and read the hashes of its members, in one script.

        In two, a user could be renamed in between, and the next page begin elsewhere. A search
        takes several, so it leaves such a user out. Sorted by name, it looks at the next names
        first, and then at all users.
        """
        down, words, prefix = query.descending, query.words, fold(query.name).encode()

        def beyond(row: UserRead) -> bool:
            here, there = (
                (fold(each.name) * query.by_name, each.id) for each in (row, query.after or row)
            )
            return not query.after or (here < there if down else here > there)

        if query.email:
            return [*filter(beyond, await self.holder(query))]
        # 0xff is in no UTF-8: every member with the prefix comes before this.
        low, high = prefix, prefix + b"\xff"
        if query.name and not query.by_name and await self.count_names(low) <= PIECE:
            rows, _ = await self.walk("by_name", low, high, False, 2 * PIECE, 2 * PIECE, words)
            return sorted(filter(beyond, rows), key=lambda row: row.id, reverse=down)[:limit]
        if query.after:
            name = fold(query.after.name).encode() + b"\0" if query.by_name else b""
            member = name + b"%019d" % query.after.id
            low, high = (low, min(high, member)) if down else (max(low, member), high)
        if query.by_name:
            few = PIECE if words else limit
            rows, all_seen = await self.walk("by_name", low, high, down, few, limit, words)
            if not words or all_seen or len(rows) == limit:
                return rows
        elif not (words or prefix):
            return (await self.walk("by_id", low, high, down, limit, limit, ()))[0]
        return await self.find(query, low, high, limit)

    async def walk(
        self, to: str, low: bytes, high: bytes, down: bool, few: int, limit: int, words: Any
    ) -> tuple[list[UserRead], bool]:
        """Return users among the next few members, and whether there are no more members."""
        ends = "-" if down else "+", low, high, few, limit
        all_seen, *rows = await reading(self.run, "walk", f"roster:{to}", *ends, *words)
        return [*map(to_user, rows)], bool(all_seen)

    async def count_names(self, prefix: bytes) -> int:
        ends = b"[" + prefix, b"[" + prefix + b"\xff"
        return int(await reading(self.redis.zlexcount, "roster:by_name", *ends))

    async def find(self, query: UserQuery, low: bytes, high: bytes, limit: int) -> list[UserRead]:
        """Look at all users, piece by piece, for those that fit."""
        by_name, down = query.by_name, query.descending
        what, prefix = "name" if by_name else "id", fold(query.name)
        rest: Any = f"{query.after.id:019}" if query.after and not by_name else ""
        rows: list[UserRead] = []
        members: list[str] = []
        while rest is not None and len(rows) < limit:
            args = what, "-" if down else "+", rest, 0 if by_name else limit - len(rows), prefix
            found, rest, _ = await reading(self.run, "find", *args, *query.words)
            if by_name:
                members += [each for each in found if low < each.encode() < high]
            elif found:
                rows += await self.read(found)
        members.sort(reverse=down)
        for first in range(0, len(members), limit):
            if len(rows) < limit:
                rows += await self.read(members[first : first + limit])
        return rows[:limit]

    async def read(self, members: Sequence[str]) -> list[UserRead]:
        """Return the users of members of a sorted set, but none renamed or deleted meanwhile."""
        found = await reading(self.run, "read", *(each[-19:] for each in members))
        rows = zip(members, map(to_user, found), strict=True)
        return [row for each, row in rows if row.id and each[:-20] in ("", fold(row.name or ""))]

    async def holder(self, query: UserQuery) -> list[UserRead]:
        """Return the user that has the query's address, if the rest fits too."""
        found = await reading(self.run, "holder", fold_email(query.email))
        rows = [*map(to_user, found)]
        return [
            row
            for row in rows
            if fold(row.name).startswith(fold(query.name))
            and all(word in fold_all(row.name, row.email) for word in query.words)
        ]

    @in_slot
    async def count(self, query: UserQuery) -> int:
        """Count by the positions of the first and the last, which Redis knows, or look at all."""
        if query.email:
            return len(await self.holder(query))
        if not query.words:
            return await self.count_names(fold(query.name).encode())
        total, rest = 0, ""
        while rest is not None:
            args = "count", "+", rest, 0, fold(query.name), *query.words
            _, rest, found = await reading(self.run, "find", *args)
            total += found
        return total

    @in_slot
    async def change(
        self, user_id: int, update: UserUpdate, if_match: Collection[int] | None
    ) -> UserRead:
        """Let the script compare the version, and write."""
        fields = update.model_dump()
        if fields:
            fields = changed_row(User, fields)
        return to_user(await self.run_on("change", user_id, if_match, *to_texts(fields)))

    @in_slot
    async def remove(self, user_id: int, if_match: Collection[int] | None) -> None:
        """Let the script compare the version, and delete."""
        await self.run_on("remove", user_id, if_match)

    async def ping(self) -> None:
        """Read the first user by name."""
        await self.page(UserQuery(sort="name"), 1)

    @in_slot
    async def restore(self, users: Sequence[UserRead], gone: Sequence[int], last_id: int) -> None:
        """Let the script look whether ids and addresses are free, and store the users."""
        rows = [new_row(User, {field: getattr(user, field) for field in FIELDS}) for user in users]
        texts = [[f"{row['id']:019}", row["email_key"], *to_texts(row)] for row in rows]
        args = [*(f"{each:019}" for each in gone), *(text for each in texts for text in each)]
        said = await self.run("restore", last_id, len(gone), len(texts[0]) if texts else 1, *args)
        if said:
            raise StaleVersion("counter") if said == "stale" else EmailTaken([])

    @in_slot
    async def last_id(self) -> int:
        """Read the counter."""
        return int(await reading(self.redis.get, "roster:last_id") or 0)

    @in_slot
    async def set_last_id(self, last_id: int, before: int) -> None:
        """Let the script compare the counter, and set it."""
        if await self.run("set_last_id", before, last_id):
            raise StaleVersion("counter")

    async def start(self) -> None:
        """Warn if Redis is set up to lose what it has acknowledged."""
        await self.convert()
        await self.ping()
        if not await self.is_durable():
            logger.warning(
                "%s may lose users unless appendonly is yes and maxmemory-policy noeviction.",
                self.place,
            )

    @in_slot
    async def convert(self) -> None:
        """Give users of release 1.0.0 their search keys. The next start continues it."""
        first, below = await reading(self.redis.zrange, "roster:by_id", 0, 0), "+"
        if not first or await reading(self.redis.hexists, f"roster:user:{first[0]}", "search_key"):
            return  # it is the last to get it
        while below:
            left, last, *rows = await reading(self.run, "old", below)
            args: list[Any] = []
            for user in map(to_user, rows):
                keys = fold_email(user.email), fold_all(user.name, user.email)
                args += [f"{user.id:019}", user.version, *keys]
            if rows:  # look at them again: one that has changed meanwhile is left out
                if left % 50_000 < 1000:
                    logger.info("%s: %s users lack their search keys.", self.place, f"{left:,}")
                await self.run("convert", *args)
            else:
                below = last and f"({last}"

    @in_slot
    async def is_durable(self) -> bool:
        """Ask for the settings; False if this user may not."""
        try:
            info = await reading(self.redis.info)
        except ResponseError:
            return False
        return bool(info.get("aof_enabled")) and info.get("maxmemory_policy") == "noeviction"

    async def stop(self) -> None:
        """Close the pool."""
        pool = self.redis.connection_pool
        await pool.disconnect()
        if isinstance(pool, SentinelConnectionPool):
            await pool.sentinel_manager.aclose()

    async def run(self, verb: str, *args: Any) -> Any:
        """Run a verb of store_redis.lua; the first time, Redis is sent the text too."""
        return await self.scripts(args=[verb, *args])

    async def run_on(
        self, verb: str, user_id: int, if_match: Collection[int] | None, *args: Any
    ) -> Any:
        """Run a verb that changes a user, and raise what it says."""
        # No version at all becomes " ", which fits none; "" fits any.
        versions = "" if if_match is None else " ".join(["", *map(str, if_match), ""])
        match await self.run(verb, f"{user_id:019}", versions, *args):
            case "not found":
                raise NotFound
            case "stale":
                raise StaleVersion
            case "taken":
                raise EmailTaken([("body", "email")])
            case row:
                return row


async def reading(ask: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Ask, and once more if the connection breaks: what only reads may be done twice.

    A change may not: if its connection breaks, it is unknown whether it was done.
    """
    try:
        return await ask(*args)
    except (RedisConnectionError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "disconnected" not in codes(error):
            raise
    return await ask(*args)


def to_texts(row: dict[str, Any]) -> list[str]:
    """Return fields and their values as a script takes them."""
    texts: list[str] = []
    for field, value in row.items():
        if isinstance(value, datetime):
            value = value.isoformat()
        texts += [field, NULL if value is None else str(value)]
    return texts


def to_user(texts: Sequence[str | None]) -> UserRead:
    """Return the user in the fields of a hash."""
    found = {field: text for field, text in zip(FIELDS, texts, strict=True) if text is not None}
    return converted(found, UserRow, strict=False)


def make_pool(url: URL, size: int) -> ConnectionPool:
    """Return the pool of a URL. Nothing is connected yet. Raises SettingsError."""
    named = bool(url.database)
    if url.drivername != "unix":
        number = (url.database or "0").isdecimal() and "db" not in url.query
        named = number and bool(url.host or "host" in url.query)
    if not named:
        raise SettingsError(
            "DATABASE_URL: it must name a host, and a database once, by its number:"
            " redis://user:password@host:6379/0 or unix:///path/redis.sock?db=0"
        )
    options: dict[str, Any] = {
        "decode_responses": True,
        "max_connections": size,
        "socket_timeout": 3,
        "socket_connect_timeout": 3,
        "health_check_interval": 30,
        "retry": Retry(NoBackoff(), 0),  # redis-py does not know which scripts only read
        # Otherwise it hands out idle connections that the server has closed.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    text = url.difference_update_query(SENTINEL_OPTIONS).render_as_string(hide_password=False)
    try:
        if url.drivername.endswith("+sentinel"):
            options |= ask_sentinel(url)
            return SentinelConnectionPool.from_url(text.replace("+sentinel", "", 1), **options)
        return ConnectionPool.from_url(text, **options)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"DATABASE_URL: an option after its ? is wrong ({type(error).__name__})."
        ) from None


SENTINEL_OPTIONS = ("host", "service", "sentinel_username", "sentinel_password")


def ask_sentinel(url: URL) -> dict[str, Any]:
    """Return what a pool for Sentinel needs besides. Raises SettingsError if the URL lacks it.

    ``redis+sentinel://user:password@host1:26379,host2:26379/0?service=mymaster`` has the hosts of
    the Sentinels, but the user and the password of the servers that they watch.
    """
    service, *login = (url.query.get(name) for name in SENTINEL_OPTIONS[1:])
    if url.drivername != "redis+sentinel" or not service:
        raise SettingsError(
            "DATABASE_URL: for Sentinel it must name a service, and has no TLS yet:"
            " redis+sentinel://user:password@host1:26379,host2:26379/0?service=mymaster"
        )
    places = [host.rpartition(":")[::2] for host in hosts(url)]
    sentinels = [(host, int(port) if port.isdecimal() else 26379) for host, port in places]
    options: dict[str, Any] = {"username": login[0], "password": login[1]}
    options |= {"socket_timeout": 1, "socket_connect_timeout": 1, "retry": Retry(NoBackoff(), 0)}
    manager = Sentinel(  # type: ignore[no-untyped-call]  # it has no types
        sentinels, sentinel_kwargs=options
    )
    return {"service_name": service, "sentinel_manager": manager}
