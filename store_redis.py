r"""Redis: redis.asyncio, one Lua script to a change, and these keys.

``roster:last_id``
    A string: the newest id. It only grows, so no id is given twice.
``roster:user:<id>``
    A hash: the columns of ``models.User``. Times are ISO 8601, the rest is text; what is null is
    left out.
``roster:emails``
    A hash, email_key -> id: which addresses are taken, and by which user.
``roster:ids``
    A sorted set of id + NUL + search_key, which has the lines in which ``q`` looks for words.
``roster:names``
    A sorted set of name_key + NUL + id + NUL + search_key. No name has a NUL, so "ada" comes before
    "ada lovelace".

Ids in keys and members have 19 digits, and all scores are 0: Redis sorts such members by their
bytes, which is the order of code points, and finds a position or a prefix in a million of them as
fast as in a thousand. (Scores are floating point, which is not exact beyond 2^53.)

A script runs alone and whole, so no client sees half a change. Its first write is the only one that
Redis may reject (memory full, a replica); it comes after everything that the script itself could
reject. Scripts use keys that are not among their arguments: no Redis Cluster.

A search walks along a sorted set, 2500 members in a script; between two, Redis serves others.
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
from fields import ID_MAX, fold, fold_all, fold_email
from models import FIELDS, User, UserCreate, UserRead, UserRow, UserUpdate
from paging import UserQuery
from rows import changed_row, new_row, reader_of
from store import EmailTaken, Kind, NotFound, StaleVersion, by_code, logger, new_rows, verb

# The word that Redis begins an error with, or the name of a class of exceptions.
KINDS = by_code(
    {
        Kind.BUSY: "BUSY",
        Kind.REFUSED: "AuthenticationError NOAUTH WRONGPASS NOPERM NOSUCHDB"
        " SSLCertVerificationError",
        Kind.UNREACHABLE: "LOADING MASTERDOWN ConnectionError TimeoutError OSError",
        Kind.READ_ONLY: "READONLY MISCONF NOREPLICAS",
        Kind.FULL: "OOM FULL",
    }
)
# What makes a value of a field's text; None if it is the text.
FROM_TEXT = [reader_of(cast(Any, UserRead.model_fields[field].annotation)) for field in FIELDS]
# A hash that was stored before another field was added has that field's default.
REQUIRED = {name for name, field in UserRead.model_fields.items() if field.is_required()}
NULL = "\0"  # stands for null in a script's arguments: no text has a NUL
PIECE = 2500  # members that a script looks at

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
local function members(id)
  local keys = redis.call('HMGET', 'roster:user:' .. id, 'name_key', 'search_key')
  local tail = id .. '\\0' .. (keys[2] or '')
  return tail, (keys[1] or '') .. '\\0' .. tail
end
local function add(id)
  local of_id, of_name = members(id)
  redis.call('ZADD', 'roster:ids', 0, of_id)
  redis.call('ZADD', 'roster:names', 0, of_name)
end
local function remove(id)
  local user, of_id, of_name = 'roster:user:' .. id, members(id)
  redis.call('HDEL', 'roster:emails', redis.call('HGET', user, 'email_key') or '')
  redis.call('ZREM', 'roster:ids', of_id)
  redis.call('ZREM', 'roster:names', of_name)
  redis.call('DEL', user)
end
"""
# ARGV: "skip" or "fail", how many texts a user has, the last id after which there are just enough;
# then for each user its email_key, and fields and their values.
ADD = r"""
local seen, free, taken, ids, wide = {}, {}, {}, {}, tonumber(ARGV[2])
for i = 4, #ARGV, wide do
  local email_key = ARGV[i]
  if seen[email_key] or redis.call('HEXISTS', 'roster:emails', email_key) == 1 then
    table.insert(taken, (i - 4) / wide)
  else
    table.insert(free, i)
  end
  seen[email_key] = true
end
if #taken > 0 and ARGV[1] == 'fail' then return {taken, ids} end
-- Lua's numbers are floating point: ids and versions stay text.
local function last_id()
  local short = redis.call('GET', 'roster:last_id') or '0'
  return string.rep('0', 19 - #short) .. short, short
end
if last_id() > ARGV[3] then return redis.error_reply('FULL no id is left') end
for _, i in ipairs(free) do
  redis.call('INCR', 'roster:last_id')
  local id, short = last_id()
  redis.call('HSET', 'roster:user:' .. id, 'id', short)
  write(id, i + 1, i + wide - 1)
  redis.call('HSET', 'roster:emails', ARGV[i], id)
  add(id)
  table.insert(ids, short)
end
return {taken, ids}
"""
# ARGV: an email_key.
HOLDER = """
local id = redis.call('HGET', 'roster:emails', ARGV[1])
return id and {read(id)} or {}
"""
# ARGV: a sorted set, "-" for the highest first, the members between which to look, at how many, for
# how many users (0: count them only), a prefix of names or "", words. Returns the users, from where
# to look on, and the count.
WALK = r"""
local set, sign, low, high, few, limit, prefix = unpack(ARGV)
local range = {'(' .. low, '(' .. high, 'BYLEX', 'LIMIT', 0, few}
if sign == '-' then range = {'(' .. high, '(' .. low, 'BYLEX', 'REV', 'LIMIT', 0, few} end
local found, rows, count = redis.call('ZRANGE', set, unpack(range)), {}, 0
local find, word = string.find, ARGV[8] or ''
limit = tonumber(limit)
for _, member in ipairs(found) do
  if find(member, word, 1, true) then -- perhaps only in the name_key or the id
    local start = set == 'roster:ids' and 0 or find(member, '\0', 1, true)
    local id, fits = string.sub(member, start + 1, start + 19), true
    for i = 8, #ARGV do fits = fits and find(member, ARGV[i], start + 21, true) end
    if fits and prefix ~= '' then
      local name_key = redis.call('HGET', 'roster:user:' .. id, 'name_key')
      fits = string.sub(name_key, 1, #prefix) == prefix
    end
    if fits then
      count = count + 1
      if limit > 0 then table.insert(rows, read(id)) end
      if count == limit then break end
    end
  end
end
return {rows, found[tonumber(few)] or false, count}
"""
# The beginning of a change. ARGV: the id, the versions that may be changed or "" for any.
LOOK = """
local id = ARGV[1]
local user = 'roster:user:' .. id
local version, email_key, search_key =
  unpack(redis.call('HMGET', user, 'version', 'email_key', 'search_key'))
local of_id, of_name = members(id)
if not version then return 'not found' end
if ARGV[2] ~= '' and not string.find(ARGV[2], ' ' .. version .. ' ', 1, true) then
  return 'stale'
end
"""
# ARGV, besides: fields and their values.
CHANGE = rf"""{LOOK}
local new_key = email_key
for i = 3, #ARGV, 2 do
  if ARGV[i] == 'email_key' then new_key = ARGV[i + 1] end
  if ARGV[i] == 'search_key' then
    local name, email = string.match(ARGV[i + 1], '^(.*)\n(.*)$')
    local old_name, old_email = string.match(search_key or '\n', '^(.*)\n(.*)$')
    name, email = name == '\0' and old_name or name, email == '\0' and old_email or email
    ARGV[i + 1] = name .. '\n' .. email
  end
end
local holder = redis.call('HGET', 'roster:emails', new_key)
if holder and holder ~= id then return 'taken' end
if #ARGV > 2 then
  write(id, 3, #ARGV)
  redis.call('HINCRBY', user, 'version', 1)
  redis.call('HDEL', 'roster:emails', email_key)
  redis.call('HSET', 'roster:emails', new_key, id)
  redis.call('ZREM', 'roster:ids', of_id)
  redis.call('ZREM', 'roster:names', of_name)
  add(id)
end
return read(id)
"""
REMOVE = rf"""{LOOK}
remove(id)
return 'removed'
"""
# ARGV: the newest id, how many ids to remove, how many texts a user has; the ids in 19 digits; then
# for each user the id, its email_key, and fields and their values. An address is free only from the
# next call on.
RESTORE = r"""
if (redis.call('GET', 'roster:last_id') or '0') ~= ARGV[1] then return 'stale' end
local first, wide = 4 + ARGV[2], tonumber(ARGV[3])
for i = first, #ARGV, wide do
  if redis.call('EXISTS', 'roster:user:' .. ARGV[i]) == 1
    or redis.call('HEXISTS', 'roster:emails', ARGV[i + 1]) == 1 then return 'taken' end
end
for i = 4, first - 1 do remove(ARGV[i]) end
for i = first, #ARGV, wide do
  local id = ARGV[i]
  write(id, i + 2, i + wide - 1)
  redis.call('HSET', 'roster:emails', ARGV[i + 1], id)
  add(id)
end
return false
"""
SET_LAST_ID = """
if (redis.call('GET', 'roster:last_id') or '0') ~= ARGV[1] then return 'stale' end
redis.call('SET', 'roster:last_id', ARGV[2])
"""
# Release 1.0.0 had ids alone in ``roster:by_id``, and names with ids in ``roster:by_name``. ARGV of
# CONVERT: for each user the id in 19 digits, its version, email_key and search_key.
OLD = """
local rows = {redis.call('ZLEXCOUNT', 'roster:by_id', '-', '+')}
for i, id in ipairs(redis.call('ZRANGE', 'roster:by_id', 0, 999)) do rows[i + 1] = read(id) end
return rows
"""
CONVERT = r"""
for i = 1, #ARGV, 4 do
  local id, user = ARGV[i], 'roster:user:' .. ARGV[i]
  local version, name_key, email_key =
    unpack(redis.call('HMGET', user, 'version', 'name_key', 'email_key'))
  if version == ARGV[i + 1] then
    redis.call('HSET', user, 'email_key', ARGV[i + 2], 'search_key', ARGV[i + 3])
    redis.call('HDEL', 'roster:emails', email_key)
    redis.call('HSET', 'roster:emails', ARGV[i + 2], id)
    add(id)
    redis.call('ZREM', 'roster:by_id', id)
    redis.call('ZREM', 'roster:by_name', name_key .. '\0' .. id)
  end
end
"""


class RedisUserStore:
    """Users in the keys ``roster:*``."""

    kinds: Mapping[str, Kind] = KINDS
    errors: tuple[type[Exception], ...] = (RedisError, OSError)

    def __init__(self, url: str, size: int = 15) -> None:
        """Open the database of a URL. Nothing is connected yet. Raises SettingsError."""
        self.url = parse_url("DATABASE_URL", url)
        self.redis = Redis(connection_pool=make_pool(self.url, size))
        self.slots, self.expensive = asyncio.Semaphore(size), asyncio.Semaphore(max(2, size // 5))
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
        rows = await new_rows(new)
        texts = [[row["email_key"], *to_texts(row)] for row in rows]
        args = [text for each in texts for text in each]
        how, enough = "skip" if skip_taken else "fail", f"{ID_MAX - len(rows):019}"
        taken, ids = await self.run(ADD, how, len(texts[0]), enough, *args)
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
        """Walk along a sorted set and read the hashes of its members, piece by piece in a script.

        In two steps, a user could be renamed in between, and the next page begin elsewhere.
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
        if query.name and not query.by_name:
            if await self.count_names(low) <= PIECE:
                rows = await self.walk("names", low, high, False, 10 * PIECE, b"", words)
                return sorted(filter(beyond, rows), key=lambda row: row.id, reverse=down)[:limit]
            low, high = b"", b"\xff"
        if query.after:
            name = fold(query.after.name).encode() + b"\0" if query.by_name else b""
            member = name + b"%019d\0" % query.after.id
            low, high = (low, min(high, member)) if down else (max(low, member + b"\xff"), high)
        if query.by_name:
            return await self.walk("names", low, high, down, limit, b"", words)
        return await self.walk("ids", low, high, down, limit, prefix, words)

    async def walk(
        self, to: str, low: bytes, high: bytes, down: bool, limit: int, prefix: bytes, words: Any
    ) -> list[UserRead]:
        """Let the script look until there are enough."""
        few = PIECE if prefix or words else limit
        rows: list[UserRead] = []
        rest: Any = True
        while rest and len(rows) < limit:
            ends = "-" if down else "+", low, high, few, limit - len(rows)
            found, rest, _ = await reading(self.run, WALK, f"roster:{to}", *ends, prefix, *words)
            rows += map(to_user, found)
            if rest:
                low, high = (low, rest.encode()) if down else (rest.encode(), high)
        return rows

    async def count_names(self, prefix: bytes) -> int:
        ends = b"[" + prefix, b"[" + prefix + b"\xff"
        return int(await reading(self.redis.zlexcount, "roster:names", *ends))

    async def holder(self, query: UserQuery) -> list[UserRead]:
        """Return the user that has the query's address, if the rest fits too."""
        found = await reading(self.run, HOLDER, fold_email(query.email))
        rows = [*map(to_user, found)]
        return [
            row
            for row in rows
            if fold(row.name).startswith(fold(query.name))
            and all(word in fold_all(row.name, row.email) for word in query.words)
        ]

    @verb
    async def count(self, query: UserQuery) -> int:
        """Count by the positions of the first and the last, which Redis knows, or look at all."""
        if query.email:
            return len(await self.holder(query))
        low = fold(query.name).encode()
        high = low + b"\xff"
        if not query.words:
            return await self.count_names(low)
        total, rest = 0, True
        while rest:
            args = ("+", low, high, PIECE, 0, b"", *query.words)
            _, rest, found = await reading(self.run, WALK, "roster:names", *args)
            total, low = total + found, rest and rest.encode()
        return total

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
    async def restore(self, users: Sequence[UserRead], gone: Sequence[int], last_id: int) -> None:
        """Let the script look whether ids and addresses are free, and store the users."""
        rows = [new_row(User, {field: getattr(user, field) for field in FIELDS}) for user in users]
        texts = [[f"{row['id']:019}", row["email_key"], *to_texts(row)] for row in rows]
        args = [*(f"{each:019}" for each in gone), *(text for each in texts for text in each)]
        said = await self.run(RESTORE, last_id, len(gone), len(texts[0]) if texts else 1, *args)
        if said:
            raise StaleVersion("counter") if said == "stale" else EmailTaken([])

    @verb
    async def last_id(self) -> int:
        """Read the counter."""
        return int(await reading(self.redis.get, "roster:last_id") or 0)

    @verb
    async def set_last_id(self, last_id: int, before: int) -> None:
        """Let the script compare the counter, and set it."""
        if await self.run(SET_LAST_ID, before, last_id):
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

    @verb
    async def convert(self) -> None:
        """Give users of release 1.0.0 their search keys. The next start continues it."""
        count, *rows = await reading(self.run, OLD)
        while count:
            if count % 50_000 < PIECE:
                logger.info("%s: %s users lack their search keys.", self.place, f"{count:,}")
            args: list[Any] = []
            for user in map(to_user, rows):
                keys = fold_email(user.email), fold_all(user.name, user.email)
                args += [f"{user.id:019}", user.version, *keys]
            await self.run(CONVERT, *args)
            count, *rows = await reading(self.run, OLD)

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
