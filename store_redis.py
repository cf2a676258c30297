r"""Redis: redis.asyncio, one Lua script to a change, and these keys.

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

Ids in keys and members have 19 digits, and all scores are 0: Redis sorts such members by their
bytes, which is the order of code points, and finds a position or a prefix in a million of them as
fast as in a thousand. (Scores are floating point, which is not exact beyond 2^53.)

A script runs alone and whole, so no client sees half a change. Its first write is the only one that
Redis may reject (memory full, a replica); it comes after everything that the script itself could
reject. Scripts use keys that are not among their arguments: no Redis Cluster.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from ssl import SSLCertVerificationError
from typing import Any, cast

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig
from sqlalchemy import URL

from engine import SettingsError, codes, hosts, parse_url
from fields import fold
from models import FIELDS, User, UserCreate, UserRead, UserRow, UserUpdate
from paging import UserQuery
from rows import changed_row, new_row, reader_of
from store import (
    EmailTaken,
    Kind,
    NotFound,
    StaleVersion,
    by_code,
    logger,
    verb,
)

# The word that Redis begins an error with, or the name of a class of exceptions.
KINDS = by_code(
    {
        Kind.BUSY: "BUSY",
        Kind.REFUSED: "AuthenticationError NOAUTH WRONGPASS NOPERM NOSUCHDB"
        " SSLCertVerificationError",
        Kind.UNREACHABLE: "LOADING MASTERDOWN ConnectionError TimeoutError OSError",
        Kind.READ_ONLY: "READONLY MISCONF NOREPLICAS",
        Kind.FULL: "OOM",
    }
)
# What makes a value of a field's text; None if it is the text.
FROM_TEXT = [reader_of(cast(Any, UserRead.model_fields[field].annotation)) for field in FIELDS]
# A hash that was stored before another field was added has that field's default.
REQUIRED = {name for name, field in UserRead.model_fields.items() if field.is_required()}
NULL = "\0"  # stands for null in a script's arguments: no text has a NUL

# The beginning of every script. A hash has a field for every value that isn't null.
READ = f"""
local function read(id)
  return redis.call('HMGET', 'roster:user:' .. id, {", ".join(f"'{field}'" for field in FIELDS)})
end
local function write(id, first, last)
  local user, values, nulls = 'roster:user:' .. id, {{}}, {{}}
  for i = first, last, 2 do
    if ARGV[i + 1] == '\\0' then table.insert(nulls, ARGV[i])
    else
      table.insert(values, ARGV[i])
      table.insert(values, ARGV[i + 1])
    end
  end
  redis.call('HSET', user, unpack(values))
  if #nulls > 0 then redis.call('HDEL', user, unpack(nulls)) end
end
"""
# ARGV: "skip" or "fail", how many texts a user has; then for each user its two keys, and fields
# and their values.
ADD = r"""
local seen, free, taken, ids, wide = {}, {}, {}, {}, tonumber(ARGV[2])
for i = 3, #ARGV, wide do
  local email_key = ARGV[i]
  if seen[email_key] or redis.call('HEXISTS', 'roster:emails', email_key) == 1 then
    table.insert(taken, (i - 3) / wide)
  else
    table.insert(free, i)
  end
  seen[email_key] = true
end
if #taken > 0 and ARGV[1] == 'fail' then return {taken, ids} end
for _, i in ipairs(free) do
  redis.call('INCR', 'roster:last_id')
  -- Lua's numbers are floating point: ids and versions stay text.
  local short = redis.call('GET', 'roster:last_id')
  local id = string.rep('0', 19 - #short) .. short
  redis.call('HSET', 'roster:user:' .. id, 'id', short)
  write(id, i + 2, i + wide - 1)
  redis.call('HSET', 'roster:emails', ARGV[i], id)
  redis.call('ZADD', 'roster:by_id', 0, id)
  redis.call('ZADD', 'roster:by_name', 0, ARGV[i + 1] .. '\0' .. id)
  table.insert(ids, short)
end
return {taken, ids}
"""
# ARGV: an email_key.
HOLDER = """
local id = redis.call('HGET', 'roster:emails', ARGV[1])
return id and {read(id)} or {}
"""
# ARGV: what ZRANGE takes.
PAGE = """
local rows = {}
for i, member in ipairs(redis.call('ZRANGE', unpack(ARGV))) do
  rows[i] = read(string.sub(member, -19))
end
return rows
"""
# ARGV: a prefix of names, the ids between which to look, "-" for the highest first, how many. A few
# matches are sorted by id. To sort many would stop Redis for too long: rather look who fits among
# those that are next by id, and return besides from where to look on.
MATCHES_BY_ID = r"""
local prefix, low, high, sign, limit = unpack(ARGV)
local first, last, few, down = '[' .. prefix, '[' .. prefix .. '\255', 5000, sign == '-'
local ids, rows, rest = {}, {}, false
if redis.call('ZLEXCOUNT', 'roster:by_name', first, last) <= few then
  for _, member in ipairs(redis.call('ZRANGE', 'roster:by_name', first, last, 'BYLEX')) do
    local id = string.sub(member, -19)
    if low < id and id < high then table.insert(ids, id) end
  end
  table.sort(ids, down and function (a, b) return a > b end or nil)
else
  local range = {'(' .. low, '(' .. high, 'BYLEX', 'LIMIT', 0, few}
  if down then range = {'(' .. high, '(' .. low, 'BYLEX', 'REV', 'LIMIT', 0, few} end
  ids = redis.call('ZRANGE', 'roster:by_id', unpack(range))
  rest = ids[few] or false
end
for _, id in ipairs(ids) do
  if #rows == tonumber(limit) then break end
  local name_key = redis.call('HGET', 'roster:user:' .. id, 'name_key')
  if string.sub(name_key, 1, #prefix) == prefix then table.insert(rows, read(id)) end
end
return {rows, rest}
"""
# The beginning of a change. ARGV: the id, the versions that may be changed or "" for any.
LOOK = """
local id = ARGV[1]
local user = 'roster:user:' .. id
local version, name_key, email_key =
  unpack(redis.call('HMGET', user, 'version', 'name_key', 'email_key'))
if not version then return 'not found' end
if ARGV[2] ~= '' and not string.find(ARGV[2], ' ' .. version .. ' ', 1, true) then
  return 'stale'
end
"""
# ARGV, besides: fields and their values.
CHANGE = rf"""{LOOK}
local new = {{email_key = email_key, name_key = name_key}}
for i = 3, #ARGV, 2 do new[ARGV[i]] = ARGV[i + 1] end
local holder = redis.call('HGET', 'roster:emails', new.email_key)
if holder and holder ~= id then return 'taken' end
if #ARGV > 2 then
  write(id, 3, #ARGV)
  redis.call('HINCRBY', user, 'version', 1)
  redis.call('HDEL', 'roster:emails', email_key)
  redis.call('HSET', 'roster:emails', new.email_key, id)
  redis.call('ZREM', 'roster:by_name', name_key .. '\0' .. id)
  redis.call('ZADD', 'roster:by_name', 0, new.name_key .. '\0' .. id)
end
return read(id)
"""
REMOVE = rf"""{LOOK}
redis.call('HDEL', 'roster:emails', email_key)
redis.call('ZREM', 'roster:by_id', id)
redis.call('ZREM', 'roster:by_name', name_key .. '\0' .. id)
redis.call('DEL', user)
return 'removed'
"""
# ARGV: how many texts a user has; then for each user the id in 19 digits, its two keys, and fields
# and their values.
RESTORE = r"""
local wide = tonumber(ARGV[1])
for i = 2, #ARGV, wide do
  if redis.call('EXISTS', 'roster:user:' .. ARGV[i]) == 1
    or redis.call('HEXISTS', 'roster:emails', ARGV[i + 1]) == 1 then return 'taken' end
end
for i = 2, #ARGV, wide do
  local id = ARGV[i]
  write(id, i + 3, i + wide - 1)
  redis.call('HSET', 'roster:emails', ARGV[i + 1], id)
  redis.call('ZADD', 'roster:by_id', 0, id)
  redis.call('ZADD', 'roster:by_name', 0, ARGV[i + 2] .. '\0' .. id)
end
return false
"""


class RedisUserStore:
    """Users in the keys ``roster:*``."""

    kinds: Mapping[str, Kind] = KINDS
    errors: tuple[type[Exception], ...] = (RedisError, OSError)

    def __init__(self, url: str, size: int = 15) -> None:
        """Open the database of a URL. Nothing is connected yet. Raises SettingsError."""
        self.url = parse_url("DATABASE_URL", url)
        self.redis = Redis(connection_pool=make_pool(self.url, size))
        self.slots = asyncio.Semaphore(size)
        kind = "Redis Sentinel" if self.url.drivername.endswith("+sentinel") else "Redis"
        where, number = " or ".join(hosts(self.url)), self.url.database or 0
        if self.url.drivername == "unix":
            where, number = f"/{number}", str(self.url.query.get("db", 0))
        self.place = f"{kind} at {where}, database {number}"

    def codes(self, error: Exception) -> list[str]:
        return redis_codes(error)

    async def add(self, new: UserCreate) -> UserRead:
        """Add a list of one."""
        try:
            return (await self.add_many([new], skip_taken=False))[0][0]
        except EmailTaken:
            raise EmailTaken([("body", "email")]) from None

    @verb
    async def add_many(
        self, new: Sequence[UserCreate], skip_taken: bool
    ) -> tuple[list[UserRead], list[str]]:
        """Let the script look which addresses are free, and store their users."""
        rows = [new_row(User, user.model_dump()) for user in new]
        texts = [[row["email_key"], row["name_key"], *to_texts(row)] for row in rows]
        args = [text for each in texts for text in each]
        taken, ids = await self.run(ADD, "skip" if skip_taken else "fail", len(texts[0]), *args)
        if taken and not skip_taken:
            raise EmailTaken([("body", i, "email") for i in taken])
        left_out = set(taken)
        stored = [row for i, row in enumerate(rows) if i not in left_out]
        for row, user_id in zip(stored, ids, strict=True):
            row["id"] = int(user_id)
        return [UserRow(*(row[field] for field in FIELDS)) for row in stored], [
            new[i].email for i in taken
        ]

    @verb
    async def get(self, user_id: int) -> UserRead:
        """Read a hash."""
        texts = await reading(self.redis.hmget, f"roster:user:{user_id:019}", FIELDS)
        if texts[0] is None:
            raise NotFound
        return to_user(texts)

    @verb
    async def page(self, query: UserQuery, limit: int) -> list[UserRead]:
        """Read a range of a sorted set and the hashes of its members, in one script.

        In two steps, a user could be renamed in between, and the next page begin elsewhere.
        """
        down, by_name = query.descending, query.by_name

        def member(user_id: int, name: str) -> bytes:
            return f"{fold(name)}\0{user_id:019}".encode() if by_name else b"%019d" % user_id

        prefix = fold(query.name).encode()
        # 0xff is in no UTF-8: every key with the prefix comes before this.
        low, high = (prefix, prefix + b"\xff") if by_name else (b"0" * 19, b"9" * 19)
        if query.after and down:
            high = min(high, member(query.after.id, query.after.name))
        elif query.after:
            low = max(low, member(query.after.id, query.after.name))
        if query.email:
            rows = await self.holder(query)
            return [row for row in rows if low < member(row.id, row.name) < high]
        if query.name and not by_name:
            return await self.matches_by_id(prefix, low, high, down, limit)
        ends = [b"(" + low, b"(" + high, "BYLEX"]
        if down:
            ends = [b"(" + high, b"(" + low, "BYLEX", "REV"]
        args = ("roster:by_name" if by_name else "roster:by_id", *ends, "LIMIT", 0, limit)
        return [*map(to_user, await reading(self.run, PAGE, *args))]

    async def matches_by_id(
        self, prefix: bytes, low: bytes, high: bytes, down: bool, limit: int
    ) -> list[UserRead]:
        """Let the script look until there are enough."""
        rows: list[UserRead] = []
        rest: Any = True
        while rest and len(rows) < limit:
            args = (prefix, low, high, "-" if down else "+", limit - len(rows))
            found, rest = await reading(self.run, MATCHES_BY_ID, *args)
            rows += map(to_user, found)
            low, high = (low, rest) if down else (rest, high)
        return rows

    async def holder(self, query: UserQuery) -> list[UserRead]:
        """Return the user that has the query's address, if the name fits too."""
        found = await reading(self.run, HOLDER, fold(query.email))
        rows = [*map(to_user, found)]
        return [row for row in rows if fold(row.name).startswith(fold(query.name))]

    @verb
    async def count(self, query: UserQuery) -> int:
        """Count by the positions of the first and the last, which Redis knows."""
        if query.email:
            return len(await self.holder(query))
        prefix = fold(query.name).encode()
        ends = b"[" + prefix, b"[" + prefix + b"\xff"
        return int(await reading(self.redis.zlexcount, "roster:by_name", *ends))

    @verb
    async def change(
        self, user_id: int, update: UserUpdate, if_match: Collection[int] | None
    ) -> UserRead:
        """Let the script compare the version, and write."""
        fields = update.model_dump()
        if fields:
            fields = changed_row(User, fields)
        return to_user(await self.run_on(CHANGE, user_id, if_match, *to_texts(fields)))

    @verb
    async def remove(self, user_id: int, if_match: Collection[int] | None) -> None:
        """Let the script compare the version, and delete."""
        await self.run_on(REMOVE, user_id, if_match)

    async def ping(self) -> None:
        """Read the first user by name."""
        await self.page(UserQuery(sort="name"), 1)

    @verb
    async def restore(self, users: Sequence[UserRead]) -> None:
        """Let the script look whether ids and addresses are free, and store the users."""
        rows = [new_row(User, {field: getattr(user, field) for field in FIELDS}) for user in users]
        texts = [
            [f"{row['id']:019}", row["email_key"], row["name_key"], *to_texts(row)] for row in rows
        ]
        args = [text for each in texts for text in each]
        if await self.run(RESTORE, len(texts[0]), *args):
            raise EmailTaken([])

    @verb
    async def last_id(self) -> int:
        """Read the counter."""
        return int(await reading(self.redis.get, "roster:last_id") or 0)

    @verb
    async def set_last_id(self, last_id: int) -> None:
        """Set the counter."""
        await self.redis.set("roster:last_id", last_id)

    async def start(self) -> None:
        """Warn if Redis is set up to lose what it has acknowledged."""
        await self.ping()
        if not await self.is_durable():
            logger.warning(
                "%s may lose users unless appendonly is yes and maxmemory-policy noeviction.",
                self.place,
            )

    @verb
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

    async def run(self, script: str, *args: Any) -> Any:
        """Run a script; the first time, Redis is sent its text too."""
        return await self.redis.register_script(READ + script)(args=args)

    async def run_on(
        self, script: str, user_id: int, if_match: Collection[int] | None, *args: Any
    ) -> Any:
        """Run a script that changes a user, and raise what it says."""
        # No version at all becomes " ", which fits none; "" fits any.
        versions = "" if if_match is None else " ".join(["", *map(str, if_match), ""])
        match await self.run(script, f"{user_id:019}", versions, *args):
            case "not found":
                raise NotFound
            case "stale":
                raise StaleVersion
            case "taken":
                raise EmailTaken([("body", "email")])
            case row:
                return row


def redis_codes(error: BaseException) -> list[str]:
    """Return the word that Redis begins an error with, and the names of its classes."""
    if isinstance(error.__context__, SSLCertVerificationError):
        return ["SSLCertVerificationError"]
    if str(error) == "DB index is out of range":
        return ["NOSUCHDB"]
    word = str(getattr(error, "status_code", None) or str(error).partition(" ")[0])
    return [*([word] if word.isupper() and word != "ERR" else []), *codes(error)]


async def reading(ask: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Ask, and once more if the connection breaks: what only reads may be done twice.

    A change may not: if its connection breaks, it is unknown whether it was done.
    """
    with suppress(RedisConnectionError):
        return await ask(*args)
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
    row: dict[str, Any] = {}
    for field, text, convert in zip(FIELDS, texts, FROM_TEXT, strict=True):
        if text is not None:
            row[field] = convert(text) if convert else text
        elif field in REQUIRED:
            row[field] = None
    return UserRow(**row)


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
