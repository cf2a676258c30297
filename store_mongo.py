"""MongoDB: PyMongo's own async client, one document to a user.

``users`` holds ``{_id, name, email, name_key, email_key, created_at, updated_at, version}``, and
``counters`` the last id that was given. The unique index on ``email_key`` and the version in the
filter of every change are the truth: each verb is one atomic operation on one document, and only a
list of users takes a transaction, which a standalone server has not.
"""

import asyncio
import sys
import warnings
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache, partial
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pymongo
from bson import Int64
from bson.errors import BSONError
from pymongo import AsyncMongoClient, ReadPreference, ReturnDocument
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from db import get_settings
from errors import Fault, classify, logger
from models import (
    KEY_MAX,
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

Document = dict[str, Any]
# OverflowError, UnicodeEncodeError: a value that BSON cannot hold.
DRIVER_ERRORS: tuple[type[Exception], ...] = (
    PyMongoError,
    BSONError,
    OverflowError,
    UnicodeEncodeError,
)
NO_TRANSACTIONS = 20  # MongoDB's IllegalOperation: what a standalone server answers to one
# What a client sees, and nothing else, is fetched; its id is _id here.
SEEN = {field: 1 for field in UserRow.__struct_fields__ if field != "id"}


class MongoUserStore:
    """Users in the collection ``users``."""

    def __init__(self, client: AsyncMongoClient[Document]) -> None:
        self.client = client
        self.turn = asyncio.Semaphore(get_settings().pool_size)
        database = client.get_default_database("roster")
        # What only reads goes where readPreference in the URL says; a change needs no replica.
        self.for_reading: AsyncCollection[Document] = database["users"]
        self.users = self.for_reading.with_options(read_preference=ReadPreference.PRIMARY)
        self.counters: AsyncCollection[Document] = database["counters"]

    @in_turn
    async def add(self, new: UserCreate) -> UserRead:
        """Insert a document; the unique index says whether the address is free."""
        document = new_document(await self.take_ids(1), new)
        try:
            await self.users.insert_one(document)
        except DuplicateKeyError:
            raise EmailTaken([("body", "email")]) from None
        return to_user(document)

    @in_turn
    async def add_many(
        self, new: Sequence[UserCreate], skip_taken: bool
    ) -> tuple[list[UserRead], list[str]]:
        """Insert all documents in a transaction; if one is refused, ask which and start again."""
        if not await self.has_transactions():
            raise OperationFailure("a standalone server", NO_TRANSACTIONS)
        first: dict[str, int] = {}
        taken = {i for i, user in enumerate(new) if first.setdefault(fold(user.email), i) != i}
        first_id = await self.take_ids(len(new))
        while True:
            if taken and not skip_taken:
                taken |= await self.find_taken(first)
                raise EmailTaken([("body", i, "email") for i in sorted(taken)])
            documents = [
                new_document(first_id + i, user) for i, user in enumerate(new) if i not in taken
            ]
            try:
                with pymongo.timeout(4):  # else it goes on trying for two minutes
                    async with self.client.start_session() as session:
                        await session.with_transaction(partial(self.insert, documents))
            except BulkWriteError as error:
                if classify(error, driver_code(error)) is not Fault.CONFLICT:
                    raise
                taken |= await self.find_taken(first)
            else:
                return [to_user(document) for document in documents], [
                    new[i].email for i in sorted(taken)
                ]

    async def insert(self, documents: list[Document], session: AsyncClientSession) -> None:
        """Insert documents in the session's transaction."""
        if documents:
            await self.users.insert_many(documents, session=session)

    async def find_taken(self, places: dict[str, int]) -> set[int]:
        """Return the places of those keys that documents in the collection have."""
        found = self.users.find({"email_key": {"$in": [*places]}}, {"email_key": 1, "_id": 0})
        return {places[document["email_key"]] async for document in found}

    @in_turn
    async def get(self, user_id: int) -> UserRow:
        """Find a document by its primary key."""
        document = await self.for_reading.find_one({"_id": user_id}, SEEN)
        if document is None:
            raise NotFound
        return to_row(document)

    @in_turn
    async def page(self, query: UserQuery, limit: int) -> list[UserRow]:
        """Find by position, not by skip: the index leads to the first document of any page."""
        wanted = fits(query)
        turned, by_name = query.sort.startswith("-"), query.sort.endswith("name")
        past = "$lt" if turned else "$gt"
        if (after := query.after) and by_name:
            key, names = fold(after.name), wanted.get("name_key", {})
            # Two ranges of one index, which MongoDB merges: the rest of this name, the next ones.
            same = {**wanted, "name_key": {**names, "$eq": key}, "_id": {past: after.id}}
            wanted = {"$or": [same, {**wanted, "name_key": {**names, past: key}}]}
        elif after:
            wanted["_id"] = {past: after.id}
        order = ["name_key", "_id"] if by_name else ["_id"]
        found = self.for_reading.find(wanted, SEEN)
        found = found.sort([(field, -1 if turned else 1) for field in order]).limit(limit)
        # If the client of an export leaves, this is cancelled, and PyMongo would lose an open
        # socket: it has to read on, though our turn is over. If it fails then, asyncio is not to
        # print its exception.
        reading = asyncio.create_task(found.to_list())
        reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.wait([reading])
        return [to_row(document) for document in await reading]

    @in_turn
    async def count(self, query: UserQuery) -> int:
        """Count documents; the more fit, the longer it takes."""
        return await self.for_reading.count_documents(fits(query))

    @in_turn
    async def change(
        self, user_id: int, update: UserUpdate, if_match: Collection[int] | None
    ) -> UserRead:
        """Compare the version and set the fields, as one operation on the document."""
        if fields := update.model_dump():
            fields |= {**index_keys(update), "updated_at": utc_now()}
            try:
                document = await self.users.find_one_and_update(
                    with_version(user_id, if_match),
                    {"$set": fields, "$inc": {"version": 1}},
                    SEEN,
                    return_document=ReturnDocument.AFTER,
                )
            except DuplicateKeyError:
                raise EmailTaken([("body", "email")]) from None
        else:
            document = await self.users.find_one(with_version(user_id, if_match), SEEN)
        if document is None:
            await self.say_why(user_id)
        return to_user(document)

    @in_turn
    async def remove(self, user_id: int, if_match: Collection[int] | None) -> None:
        """Compare the version and delete, as one operation on the document."""
        result = await self.users.delete_one(with_version(user_id, if_match))
        if not result.deleted_count:
            await self.say_why(user_id)

    @in_turn
    async def ping(self) -> None:
        """Find a document, with all fields, and the counter, which ``start`` makes last."""
        await self.for_reading.find_one({})
        if await self.counters.find_one({"_id": "users"}) is None:
            raise AutoReconnect("not set up yet")  # it was away when the app started

    @in_turn
    async def restore(self, users: Sequence[UserRow]) -> None:
        """Insert documents in this order, up to the first one that is refused."""
        documents = []
        for user in users:
            fields = stored_fields(user)
            documents.append({"_id": Int64(fields.pop("id")), **fields})
        try:
            await self.users.insert_many(documents)
        except BulkWriteError as error:
            conflict = classify(error, driver_code(error)) is Fault.CONFLICT
            raise (EmailTaken([]) if conflict else error) from None

    @in_turn
    async def last_id(self) -> int:
        """Find the counter."""
        counter = await self.counters.find_one({"_id": "users"})
        return int(counter["last"]) if counter else 0

    @in_turn
    async def set_last_id(self, last_id: int) -> None:
        """Set the counter."""
        await self.counters.update_one({"_id": "users"}, {"$set": {"last": Int64(last_id)}})

    async def take_ids(self, count: int) -> int:
        """Take ids off the counter, for good, and return the first of them."""
        counter = await self.counters.find_one_and_update(
            {"_id": "users"}, {"$inc": {"last": count}}, return_document=ReturnDocument.AFTER
        )
        if counter is None:
            raise AutoReconnect("not set up yet")
        return int(counter["last"]) - count + 1

    async def has_transactions(self) -> bool:
        """Ask the server whether it is a replica set's or a mongos."""
        hello = await self.client.admin.command("hello")
        return "setName" in hello or hello.get("msg") == "isdbgrid"

    async def say_why(self, user_id: int) -> NoReturn:
        """Raise what kept a change from finding its document."""
        if await self.users.find_one({"_id": user_id}, {"_id": 1}) is None:
            raise NotFound
        raise StaleVersion


def driver_code(error: Any) -> Code | None:
    """Return MongoDB's number for an error, with its name: MySQL has the same numbers."""
    # Of what went wrong with each server, only the text is kept.
    if isinstance(error, ServerSelectionTimeoutError) and "CERTIFICATE_VERIFY" in str(error):
        return "SSLCertVerificationError"
    said = getattr(error, "details", None) or {}
    # Of several inserts, the first that was refused says why.
    first = [*said.get("writeErrors", []), *said.get("writeConcernErrors", []), said][0]
    number = first.get("code") or getattr(error, "code", None)
    return f"MongoDB {number}" if number else None


def new_document(user_id: int, new: UserCreate) -> Document:
    """Return the document of a new user."""
    now = utc_now()
    times = {"created_at": now, "updated_at": now}
    return {"_id": Int64(user_id), **new.model_dump(), **times, "version": 1, **index_keys(new)}


def to_row(document: Document) -> UserRow:
    """Return a document's fields as a client sees them; None for one that it lacks."""
    found = [document["_id"], *map(document.get, SEEN)]
    # msgspec does not know Int64, and old shells of MongoDB's make a float of every number.
    fields: list[Any] = [int(each) if isinstance(each, (Int64, float)) else each for each in found]
    return UserRow(*fields)


def to_user(document: Document) -> UserRead:
    """Return a document as a client sees it."""
    return UserRead(id=document["_id"], **document)


def with_version(user_id: int, if_match: Collection[int] | None) -> Document:
    """Return the filter that finds a user if it has one of the versions."""
    return {"_id": user_id} | ({} if if_match is None else {"version": {"$in": [*if_match]}})


def fits(query: UserQuery) -> Document:
    """Return the filter of a query, its cursor apart. Texts compare by their bytes."""
    conditions: Document = {}
    if query.name:
        prefix = fold(query.name)
        # Every key that begins with the prefix is in this range, and no other.
        conditions["name_key"] = {"$gte": prefix, "$lte": prefix.ljust(KEY_MAX, "\U0010ffff")}
    if query.email:
        conditions["email_key"] = fold(query.email)
    return conditions


@cache
def make_store() -> MongoUserStore:
    """Return the store of ``DATABASE_URL``, with its pool; leave with one line if it is wrong.

    Nothing is connected yet. A change is answered when most members have it in their journals.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # an option that PyMongo does not know
            client: AsyncMongoClient[Document] = AsyncMongoClient(
                get_settings().database_url.get_secret_value(),
                maxPoolSize=get_settings().pool_size,
                connectTimeoutMS=3000,
                # Of an operation as a whole: the search for a server, the retries. The search has a
                # limit of its own only while the client is closed.
                timeoutMS=4000,
                serverSelectionTimeoutMS=3000,
                # Else PyMongo, once a server has failed it, can wait 10 seconds for news of it.
                serverMonitoringMode="poll",
                w="majority",
                journal=True,
                tz_aware=True,
            )
            return MongoUserStore(client)
    except UserWarning:
        sys.exit("DATABASE_URL: PyMongo does not know an option after its ?, or not this value.")
    except (PyMongoError, ValueError, OSError) as error:
        sys.exit(
            f"DATABASE_URL: not a URL of MongoDB's ({type(error).__name__}); write an @ in the"
            " user name or the password as %40, a / as %2F: mongodb://user:password@host:27017/name"
        )


make_store()  # a wrong DATABASE_URL ends the app here, before it serves


async def get_store() -> MongoUserStore:
    """Return the store: it takes a connection from the pool for each operation."""
    return make_store()


get_session_store = get_store


@asynccontextmanager
async def open_store() -> AsyncIterator[MongoUserStore]:
    """Yield a store for one change, outside a request."""
    yield await get_store()


def place() -> str:
    """Return the kind of the database and where it is."""
    url = urlsplit(get_settings().database_url.get_secret_value())
    name = make_store().users.database.name
    return f"MongoDB at {url.netloc.rpartition('@')[2]}, database {name}"


async def start() -> None:
    """Make the indexes and the counter that are not there, and read a user.

    The counter comes last: without it nobody is added, so nobody before the unique index is there.
    """
    store = make_store()
    await store.users.create_index("email_key", unique=True)
    await store.users.create_index([("name_key", 1), ("_id", 1)])
    newest = await store.users.find_one({}, sort=[("_id", -1)])
    # Users may have been restored without their counter.
    last = {"last": Int64(newest["_id"] if newest else 0)}
    with suppress(DuplicateKeyError):  # somebody else who started at the same moment was faster
        await store.counters.update_one({"_id": "users"}, {"$max": last}, upsert=True)
    await store.ping()
    if not await store.has_transactions():
        logger.warning("%s is a standalone server: POST /users/bulk will answer 503.", place())


async def stop() -> None:
    """Close the pool."""
    await make_store().client.close()
