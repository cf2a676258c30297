r"""Redis: redis.asyncio, one Lua script to a change, and these keys.

``roster:last_id``
    A string: the newest id. It only grows, so no id is given twice.
``roster:user:<id>``
    A hash: a user as clients see it, and the two index keys. Times are ISO 8601, the rest text.
``roster:emails``
    A hash, email_key -> id: which addresses are taken, and whose they are.
``roster:by_id``
    A sorted set of ids.
``roster:by_name``
    A sorted set of name_key + NUL + id. No name has a NUL, so "ada" comes before "ada lovelace".

Ids in keys and members have 19 digits, and all scores are 0: Redis sorts such members by their
bytes, which is the order of code points, and finds a position or a prefix in them as fast in a
million as in a thousand. (Scores are floating point, which is not exact beyond 2^53.)

A script runs alone and whole, so nobody sees half a change. Its first write is the only one that
Redis may refuse (memory full, a replica); it comes after everything that the script itself could
refuse. Scripts use keys that are not among their arguments: no Redis Cluster.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import cache
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

from db import database_url, get_settings
from engines import hosts
from errors import logger
from models import (
    UserCreate,
    UserQuery,
    UserRead,
    UserRow,
    UserUpdate,
    fold,
    index_keys,
    stored_fields,
    utc_now,
)
from pool import in_turn
from store import Code, EmailTaken, NotFound, StaleVersion

DRIVER_ERRORS: tuple[type[Exception], ...] = (RedisError,)
FIELDS = UserRow.__struct_fields__
# What is no text in a UserRow.
FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "id": int,
    "created_at": datetime.fromisoformat,
    "updated_at": datetime.fromisoformat,
    "version": int,
}
STORED = (*FIELDS, "name_key", "email_key")

# The beginning of every script.
READ = f"""
local function read(id)
  return redis.call('HMGET', 'roster:user:' .. id, {", ".join(f"'{field}'" for field in FIELDS)})
end
"""
# ARGV: "skip" or "fail", the time, then four texts for each user.
ADD = r"""
local seen, free, taken, ids = {}, {}, {}, {}
for i = 3, #ARGV, 4 do
  local email_key = ARGV[i]
  if seen[email_key] or redis.call('HEXISTS', 'roster:emails', email_key) == 1 then
    table.insert(taken, (i - 3) / 4)
  else
    table.insert(free, i)
  end
  seen[email_key] = true
end
if #taken > 0 and ARGV[1] == 'fail' then return {taken, ids} end
for _, i in ipairs(free) do
  local email_key, name_key, email, name = unpack(ARGV, i, i + 3)
  redis.call('INCR', 'roster:last_id')
  -- Lua's numbers are floating point: ids and versions stay text.
  local short = redis.call('GET', 'roster:last_id')
  local id = string.rep('0', 19 - #short) .. short
  redis.call('HSET', 'roster:user:' .. id, 'id', short, 'name', name, 'email', email,
    'created_at', ARGV[2], 'updated_at', ARGV[2], 'version', 1,
    'name_key', name_key, 'email_key', email_key)
  redis.call('HSET', 'roster:emails', email_key, id)
  redis.call('ZADD', 'roster:by_id', 0, id)
  redis.call('ZADD', 'roster:by_name', 0, name_key .. '\0' .. id)
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
  redis.call('HSET', user, unpack(ARGV, 3))
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
# ARGV: for each user, the id in 19 digits, then the values of STORED.
RESTORE = rf"""
local fields, wide = {{{", ".join(f"'{field}'" for field in STORED)}}}, {len(STORED) + 1}
for i = 1, #ARGV, wide do
  if redis.call('EXISTS', 'roster:user:' .. ARGV[i]) == 1
    or redis.call('HEXISTS', 'roster:emails', ARGV[i + wide - 1]) == 1 then return 'taken' end
end
for i = 1, #ARGV, wide do
  local id, user = ARGV[i], {{}}
  for j, field in ipairs(fields) do
    table.insert(user, field)
    table.insert(user, ARGV[i + j])
  end
  redis.call('HSET', 'roster:user:' .. id, unpack(user))
  redis.call('HSET', 'roster:emails', ARGV[i + wide - 1], id)
  redis.call('ZADD', 'roster:by_id', 0, id)
  redis.call('ZADD', 'roster:by_name', 0, ARGV[i + wide - 2] .. '\0' .. id)
end
return false
"""


class RedisUserStore:
    """Users in the keys ``roster:*``."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.turn = asyncio.Semaphore(redis.connection_pool.max_connections)

    async def add(self, new: UserCreate) -> UserRead:
        """Add a list of one."""
        try:
            return (await self.add_many([new], skip_taken=False))[0][0]
        except EmailTaken:
            raise EmailTaken([("body", "email")]) from None

    @in_turn
    async def add_many(
        self, new: Sequence[UserCreate], skip_taken: bool
    ) -> tuple[list[UserRead], list[str]]:
        """Let the script look who is new, and store them."""
        now = utc_now()
        args = ["skip" if skip_taken else "fail", now.isoformat()]
        for user in new:
            args += (fold(user.email), fold(user.name), user.email, user.name)
        taken, ids = await self.run(ADD, *args)
        if taken and not skip_taken:
            raise EmailTaken([("body", i, "email") for i in taken])
        left_out = set(taken)
        stored = [user for i, user in enumerate(new) if i not in left_out]
        return [
            UserRead(id=user_id, **user.model_dump(), created_at=now, updated_at=now, version=1)
            for user_id, user in zip(ids, stored, strict=True)
        ], [new[i].email for i in taken]

    @in_turn
    async def get(self, user_id: int) -> UserRow:
        """Read a hash."""
        texts = await reading(self.redis.hmget, f"roster:user:{user_id:019}", FIELDS)
        if texts[0] is None:
            raise NotFound
        return to_row(texts)

    @in_turn
    async def page(self, query: UserQuery, limit: int) -> list[UserRow]:
        """Read a range of a sorted set and the hashes of its members, in one script.

        In two steps, somebody could be renamed in between, and the next page begin elsewhere.
        """
        down, by_name = query.sort.startswith("-"), query.sort.endswith("name")

        def member(user_id: int, name: str) -> bytes:
            return f"{fold(name)}\0{user_id:019}".encode() if by_name else b"%019d" % user_id

        prefix = fold(query.name).encode()
        # 0xff is in no UTF-8: what begins with the prefix is before this.
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
        return [to_row(texts) for texts in await reading(self.run, PAGE, *args)]

    async def matches_by_id(
        self, prefix: bytes, low: bytes, high: bytes, down: bool, limit: int
    ) -> list[UserRow]:
        """Let the script look until there are enough."""
        rows: list[UserRow] = []
        rest: Any = True
        while rest and len(rows) < limit:
            args = (prefix, low, high, "-" if down else "+", limit - len(rows))
            found, rest = await reading(self.run, MATCHES_BY_ID, *args)
            rows += map(to_row, found)
            low, high = (low, rest) if down else (rest, high)
        return rows

    async def holder(self, query: UserQuery) -> list[UserRow]:
        """Return the user who has the query's address, if the name fits too."""
        found = await reading(self.run, HOLDER, fold(query.email))
        rows = [to_row(texts) for texts in found]
        return [row for row in rows if fold(row.name).startswith(fold(query.name))]

    @in_turn
    async def count(self, query: UserQuery) -> int:
        """Count by the positions of the first and the last, which Redis knows."""
        if query.email:
            return len(await self.holder(query))
        prefix = fold(query.name).encode()
        ends = b"[" + prefix, b"[" + prefix + b"\xff"
        return int(await reading(self.redis.zlexcount, "roster:by_name", *ends))

    @in_turn
    async def change(
        self, user_id: int, update: UserUpdate, if_match: Collection[int] | None
    ) -> UserRead:
        """Let the script compare the version, and write."""
        fields = update.model_dump()
        if fields:
            fields |= {**index_keys(update), "updated_at": utc_now().isoformat()}
        pairs = [text for pair in fields.items() for text in pair]
        return to_user(await self.run_on(CHANGE, user_id, if_match, *pairs))

    @in_turn
    async def remove(self, user_id: int, if_match: Collection[int] | None) -> None:
        """Let the script compare the version, and delete."""
        await self.run_on(REMOVE, user_id, if_match)

    async def ping(self) -> None:
        """Read the first user by name."""
        await self.page(UserQuery(sort="name"), 1)

    @in_turn
    async def restore(self, users: Sequence[UserRow]) -> None:
        """Let the script look whether nobody is there, and store them."""
        args: list[Any] = []
        for user in users:
            fields = stored_fields(user)
            args += [f"{user.id:019}"]
            args += [
                value.isoformat() if isinstance(value, datetime) else value
                for value in fields.values()
            ]
        if await self.run(RESTORE, *args):
            raise EmailTaken([])

    @in_turn
    async def last_id(self) -> int:
        """Read the counter."""
        return int(await reading(self.redis.get, "roster:last_id") or 0)

    @in_turn
    async def set_last_id(self, last_id: int) -> None:
        """Set the counter."""
        await self.redis.set("roster:last_id", last_id)

    async def run(self, script: str, *args: Any) -> Any:
        """Run a script; the first time, Redis is sent its text too."""
        return await self.redis.register_script(READ + script)(args=args)

    async def run_on(
        self, script: str, user_id: int, if_match: Collection[int] | None, *args: Any
    ) -> Any:
        """Run a script that changes a user, and raise what it says."""
        # Of no version at all " " is left, which fits none; "" fits any.
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


def driver_code(error: BaseException) -> Code | None:
    """Return the word that Redis begins an error with, if it says more than ERR."""
    if isinstance(error.__context__, SSLCertVerificationError):
        return "SSLCertVerificationError"
    if str(error) == "DB index is out of range":
        return "NOSUCHDB"
    word = getattr(error, "status_code", None) or str(error).partition(" ")[0]
    return word if word.isupper() and word != "ERR" else None


async def reading(ask: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Ask, and once more if the connection breaks: what only reads may be done twice.

    A change may not. If its connection breaks, nobody knows whether it was done.
    """
    with suppress(RedisConnectionError):
        return await ask(*args)
    return await ask(*args)


def to_fields(texts: Sequence[str]) -> dict[str, Any]:
    """Return the values in the fields of a hash, by name."""
    fields: dict[str, Any] = dict(zip(FIELDS, texts, strict=True))
    for field, convert in FROM_TEXT.items():
        fields[field] = convert(fields[field])
    return fields


def to_row(texts: Sequence[str]) -> UserRow:
    """Return the user in the fields of a hash, to be read."""
    return UserRow(**to_fields(texts))


def to_user(texts: Sequence[str]) -> UserRead:
    """Return the user in the fields of a hash, as a change leaves it."""
    return UserRead(**to_fields(texts))


@cache
def make_store() -> RedisUserStore:
    """Return the store of ``DATABASE_URL``, with its pool; nothing is connected yet."""
    url = database_url()
    if not (url.host or "host" in url.query) or not (url.database or "0").isdecimal():
        sys.exit(
            "DATABASE_URL: it must name a host, and a database only by its number:"
            " redis://user:password@host:6379/0"
        )
    options: dict[str, Any] = {
        "decode_responses": True,
        "max_connections": get_settings().pool_size,
        "socket_timeout": 3,
        "socket_connect_timeout": 3,
        "health_check_interval": 30,
        "retry": Retry(NoBackoff(), 0),  # redis-py does not know which scripts only read
        # Else it gives out idle connections that the server has closed.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    text = url.difference_update_query(SENTINEL_OPTIONS).render_as_string(hide_password=False)
    pool: ConnectionPool
    try:
        if url.drivername.endswith("+sentinel"):
            options |= ask_sentinel(url)
            pool = SentinelConnectionPool.from_url(text.replace("+sentinel", "", 1), **options)
        else:
            pool = ConnectionPool.from_url(text, **options)
    except (TypeError, ValueError) as error:
        sys.exit(f"DATABASE_URL: an option after its ? is wrong ({type(error).__name__}).")
    return RedisUserStore(Redis(connection_pool=pool))


SENTINEL_OPTIONS = ("host", "service", "sentinel_username", "sentinel_password")


def ask_sentinel(url: URL) -> dict[str, Any]:
    """Return what a pool for Sentinel needs besides; leave with one line if the URL lacks it.

    ``redis+sentinel://user:password@host1:26379,host2:26379/0?service=mymaster`` has the Sentinels'
    hosts, but the user and the password of the servers that they watch.
    """
    service, *login = (url.query.get(name) for name in SENTINEL_OPTIONS[1:])
    if url.drivername != "redis+sentinel" or not service:
        sys.exit(
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


make_store()  # a wrong DATABASE_URL ends the app here, before it serves


async def get_store() -> RedisUserStore:
    """Return the store: it takes a connection from the pool for each command."""
    return make_store()


get_session_store = get_store


@asynccontextmanager
async def open_store() -> AsyncIterator[RedisUserStore]:
    """Yield a store for one change, outside a request."""
    yield await get_store()


def place() -> str:
    """Return the kind of the database and where it is."""
    url = database_url()
    kind = "Redis Sentinel" if url.drivername.endswith("+sentinel") else "Redis"
    return f"{kind} at {' or '.join(hosts(url))}, database {url.database or 0}"


async def start() -> None:
    """Read from the keys; warn if Redis is set up to lose what it has acknowledged."""
    store = make_store()
    await store.ping()
    try:
        async with store.turn:
            info = await store.redis.info()
    except ResponseError:  # not everybody may ask
        info = {}
    if not info.get("aof_enabled") or info.get("maxmemory_policy") != "noeviction":
        logger.warning(
            "%s may lose users unless appendonly is yes and maxmemory-policy noeviction.", place()
        )


async def stop() -> None:
    """Close the pool."""
    pool = make_store().redis.connection_pool
    await pool.disconnect()
    if isinstance(pool, SentinelConnectionPool):
        await pool.sentinel_manager.aclose()
