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

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import cache
from operator import gt, lt
from ssl import SSLCertVerificationError
from typing import Any

from pydantic import MISSING
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from db import database_url, get_settings
from errors import logger
from models import Cursor, UserCreate, UserQuery, UserRead, UserUpdate, fold, index_keys, utc_now
from store import Code, EmailTaken, NotFound, StaleVersion

DRIVER_ERRORS: tuple[type[Exception], ...] = (RedisError,)
FIELDS = tuple(UserRead.model_fields)
KEYS = ("roster:last_id", "roster:emails", "roster:by_id", "roster:by_name")
LAST_ID, EMAILS, BY_ID, BY_NAME = KEYS
USER = "roster:user:"

# The beginning of every script. (Lua's numbers are floating point: ids and versions stay text.)
SHARED = f"""
local last_id, emails, by_id, by_name = unpack(KEYS)
local function read(id)
  return redis.call('HMGET', '{USER}' .. id, {", ".join(f"'{field}'" for field in FIELDS)})
end
"""
# ARGV: "skip" or "fail", the time, then four texts for each user.
ADD = rf"""{SHARED}
local seen, free, taken, ids = {{}}, {{}}, {{}}, {{}}
for i = 3, #ARGV, 4 do
  local email_key = ARGV[i]
  if seen[email_key] or redis.call('HEXISTS', emails, email_key) == 1 then
    table.insert(taken, (i - 3) / 4)
  else
    table.insert(free, i)
  end
  seen[email_key] = true
end
if #taken == 0 or ARGV[1] == 'skip' then
  for _, i in ipairs(free) do
    local email_key, name_key, email, name = unpack(ARGV, i, i + 3)
    redis.call('INCR', last_id)
    local short = redis.call('GET', last_id)
    local id = string.rep('0', 19 - #short) .. short
    redis.call('HSET', '{USER}' .. id, 'id', short, 'name', name, 'email', email,
      'created_at', ARGV[2], 'updated_at', ARGV[2], 'version', 1,
      'name_key', name_key, 'email_key', email_key)
    redis.call('HSET', emails, email_key, id)
    redis.call('ZADD', by_id, 0, id)
    redis.call('ZADD', by_name, 0, name_key .. '\0' .. id)
    table.insert(ids, short)
  end
end
return {{taken, ids}}
"""
# ARGV: what ZRANGE takes.
PAGE = f"""{SHARED}
local rows = {{}}
for i, member in ipairs(redis.call('ZRANGE', unpack(ARGV))) do
  rows[i] = read(string.sub(member, -19))
end
return rows
"""
# ARGV: a range of names, a range of ids, "-" for the highest id first, how many. The matches stand
# in the order of their names and must be sorted anew: the more there are, the longer it takes.
MATCHES_BY_ID = f"""{SHARED}
local low, high, above, below, sign, limit = unpack(ARGV)
local ids, rows = {{}}, {{}}
for _, member in ipairs(redis.call('ZRANGE', by_name, low, high, 'BYLEX')) do
  local id = string.sub(member, -19)
  if id > above and id < below then ids[#ids + 1] = id end
end
table.sort(ids, sign == '-' and function (a, b) return a > b end or nil)
for i = 1, math.min(#ids, limit) do rows[i] = read(ids[i]) end
return rows
"""
# ARGV: an email_key.
HOLDER = f"""{SHARED}
local id = redis.call('HGET', emails, ARGV[1])
return id and {{read(id)}} or {{}}
"""
# The beginning of a change. ARGV: the id, the versions that may be changed or "" for any.
LOOK = f"""{SHARED}
local id = ARGV[1]
local user = '{USER}' .. id
local version, name_key, email_key =
  unpack(redis.call('HMGET', user, 'version', 'name_key', 'email_key'))
if not version then return 'not found' end
if ARGV[2] ~= '' and not string.find(ARGV[2], ' ' .. version .. ' ', 1, true) then
  return 'stale'
end
"""
# ARGV, besides: fields and their values.
CHANGE = rf"""{LOOK}
local new = {{}}
for i = 3, #ARGV, 2 do new[ARGV[i]] = ARGV[i + 1] end
if new.email_key and new.email_key ~= email_key then
  if redis.call('HSETNX', emails, new.email_key, id) == 0 then return 'taken' end
  redis.call('HDEL', emails, email_key)
end
if new.name_key and new.name_key ~= name_key then
  redis.call('ZADD', by_name, 0, new.name_key .. '\0' .. id)
  redis.call('ZREM', by_name, name_key .. '\0' .. id)
end
if #ARGV > 2 then
  redis.call('HSET', user, unpack(ARGV, 3))
  redis.call('HINCRBY', user, 'version', 1)
end
return read(id)
"""
REMOVE = rf"""{LOOK}
redis.call('HDEL', emails, email_key)
redis.call('ZREM', by_id, id)
redis.call('ZREM', by_name, name_key .. '\0' .. id)
redis.call('DEL', user)
return 'removed'
"""
PING = f"""{SHARED}
redis.call('GET', last_id)
redis.call('HLEN', emails)
redis.call('ZCARD', by_name)
return redis.call('ZCARD', by_id)
"""


class RedisUserStore:
    """Users in the keys ``roster:*``."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        scripts = (ADD, PAGE, MATCHES_BY_ID, HOLDER, CHANGE, REMOVE, PING)
        self.scripts = {script: redis.register_script(script) for script in scripts}

    async def add(self, new: UserCreate) -> UserRead:
        """Add a list of one."""
        try:
            return (await self.add_many([new], skip_taken=False))[0][0]
        except EmailTaken:
            raise EmailTaken([("body", "email")]) from None

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

    async def get(self, user_id: int) -> UserRead:
        """Read a hash."""
        row = await reading(lambda: self.redis.hmget(f"{USER}{user_id:019}", FIELDS))
        if row[0] is None:
            raise NotFound
        return to_user(row)

    async def page(self, query: UserQuery, limit: int) -> list[UserRead]:
        """Read a range of a sorted set and the hashes of its members, in one script.

        In two steps, somebody could be renamed in between, and the next page begin elsewhere.
        """
        if query.email is not MISSING:
            return [user for user in await self.holder(query) if is_past(query, user)]
        turned, by_name = query.sort.startswith("-"), query.sort.endswith("name")
        low, high = name_range(query)
        after = f"{query.after.id:019}" if query.after else None
        args: tuple[Any, ...]
        if query.name and not by_name:
            ids = ("0" * 19, after or "9" * 19) if turned else (after or "0" * 19, "9" * 19)
            script, args = MATCHES_BY_ID, (low, high, *ids, "-" if turned else "+", limit)
        else:
            if query.after and by_name:
                after = f"{fold(query.after.name)}\0{after}"
            if after and turned:
                high = min(high, b"(" + after.encode(), key=lambda bound: bound[1:])
            elif after:
                low = max(low, b"(" + after.encode(), key=lambda bound: bound[1:])
            between = [high, low, "BYLEX", "REV"] if turned else [low, high, "BYLEX"]
            script, args = PAGE, (BY_NAME if by_name else BY_ID, *between, "LIMIT", 0, limit)
        return [to_user(row) for row in await reading(lambda: self.run(script, *args))]

    async def holder(self, query: UserQuery) -> list[UserRead]:
        """Return the user who has the query's address, if the name fits too."""
        rows = await reading(lambda: self.run(HOLDER, fold(str(query.email))))
        users = [to_user(row) for row in rows]
        return [user for user in users if fold(user.name).startswith(fold(query.name))]

    async def count(self, query: UserQuery) -> int:
        """Count by the positions of the first and the last, which Redis knows."""
        if query.email is not MISSING:
            return len(await self.holder(query))
        low, high = name_range(query)
        return int(await reading(lambda: self.redis.zlexcount(BY_NAME, low, high)))

    async def change(
        self, user_id: int, update: UserUpdate, if_match: Collection[int] | None
    ) -> UserRead:
        """Let the script compare the version, and write."""
        fields = update.model_dump()
        if fields:
            fields |= {**index_keys(update), "updated_at": utc_now().isoformat()}
        pairs = [text for pair in fields.items() for text in pair]
        return to_user(await self.run_on(CHANGE, user_id, if_match, *pairs))

    async def remove(self, user_id: int, if_match: Collection[int] | None) -> None:
        """Let the script compare the version, and delete."""
        await self.run_on(REMOVE, user_id, if_match)

    async def ping(self) -> None:
        """Read each key; it raises too if one of them is something else than the layout says."""
        await reading(lambda: self.run(PING))

    async def run(self, script: str, *args: Any) -> Any:
        """Run a script; the first time, Redis is sent its text too."""
        return await self.scripts[script](KEYS, args)

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


# What Redis says of a database number, for which it has no word of its own.
NO_SUCH_NUMBER = "DB index is out of range", "invalid DB index", "value is not an integer"


def driver_code(error: BaseException) -> Code | None:
    """Return the word that Redis begins an error with, if it says more than ERR."""
    if str(error).startswith(NO_SUCH_NUMBER):
        return "NOSUCHDB"
    if isinstance(error.__context__, SSLCertVerificationError):
        return "SSLCertVerificationError"
    word = getattr(error, "status_code", None)
    if word is None and isinstance(error, ResponseError):
        word = str(error).partition(" ")[0]
    return word if word and word.isupper() and word != "ERR" else None


async def reading(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Ask, and once more if the connection breaks: what only reads may be done twice.

    A change may not. If its connection breaks, nobody knows whether it was done.
    """
    try:
        return await ask()
    except RedisConnectionError as error:
        # Subclasses are Redis saying no. With a cause, no connection was free for five seconds.
        if type(error) is not RedisConnectionError or error.__cause__:
            raise
    return await ask()


def to_user(row: Sequence[str]) -> UserRead:
    """Return the user in the fields of a hash."""
    return UserRead.model_validate(dict(zip(FIELDS, row, strict=True)))


def name_range(query: UserQuery) -> tuple[bytes, bytes]:
    """Return the range of all members that begin with the query's name; 0xff is in no UTF-8."""
    prefix = fold(query.name).encode()
    return b"[" + prefix, b"[" + prefix + b"\xff"


def is_past(query: UserQuery, user: UserRead) -> bool:
    """Return whether a user comes after the query's cursor."""

    def position(of: UserRead | Cursor) -> tuple[str, int]:
        return fold(of.name) if query.sort.endswith("name") else "", of.id

    past = lt if query.sort.startswith("-") else gt
    return query.after is None or past(position(user), position(query.after))


@cache
def make_store() -> RedisUserStore:
    """Return the store of ``DATABASE_URL``, with its pool; nothing is connected yet."""
    url = database_url()
    if not url.host:
        sys.exit("DATABASE_URL: it must name a host: redis://user:password@host:6379/0")
    try:
        pool = BlockingConnectionPool.from_url(
            url.render_as_string(hide_password=False),
            db=url.database or 0,
            decode_responses=True,
            max_connections=get_settings().pool_size,
            timeout=5,
            socket_timeout=3,
            socket_connect_timeout=3,
            health_check_interval=30,
            retry=Retry(NoBackoff(), 0),  # redis-py does not know which scripts only read
        )
    except (TypeError, ValueError) as error:
        sys.exit(f"DATABASE_URL: an option after its ? is wrong ({type(error).__name__}).")
    return RedisUserStore(Redis(connection_pool=pool))


make_store()  # a wrong DATABASE_URL ends the app here, before it serves


async def get_store() -> RedisUserStore:
    """Return the store: it takes a connection from the pool for each command."""
    return make_store()


@asynccontextmanager
async def open_store() -> AsyncIterator[RedisUserStore]:
    """Yield the store."""
    yield make_store()


def place() -> str:
    """Return the kind of the database and where it is."""
    url = database_url()
    return f"Redis at {url.host}:{url.port or 'its usual port'}, database {url.database or 0}"


DURABLE = {
    "appendonly": ("yes", "if it stops, what was stored since its last snapshot is lost"),
    "maxmemory-policy": ("noeviction", "it may throw users away when its memory is full"),
}


async def start() -> None:
    """Read from the keys; warn if Redis is set up to lose what it has acknowledged."""
    store = make_store()
    await store.ping()
    for setting, (wanted, otherwise) in DURABLE.items():
        try:
            found = (await store.redis.config_get(setting))[setting]
        except (ResponseError, KeyError):  # not everybody may ask
            logger.warning("%s: could not check that %s is %s.", place(), setting, wanted)
            continue
        if found != wanted:
            logger.warning("%s: %s is %s, not %s: %s.", place(), setting, found, wanted, otherwise)


async def stop() -> None:
    """Close the pool."""
    await make_store().redis.connection_pool.disconnect()
