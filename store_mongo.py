"""MongoDB: PyMongo's own async client, one document for each user.

``users`` holds documents with the columns of ``models.User``. The id is ``_id``, and ``search_key``
is the list of its lines. ``counters`` holds the last id that was given. The unique index on
``email_key`` and the version in the filter of every change are the truth. Each verb is one atomic
operation on one document. Only a list of users takes a transaction, which a standalone server does
not have.
"""

import asyncio
import re
import warnings
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pymongo
from bson import Int64
from bson.errors import BSONError
from pymongo import AsyncMongoClient, ReadPreference, ReturnDocument, UpdateOne
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

from engine import SettingsError, check_certificates, codes
from fields import ID_MAX, KEEP, KEY_MAX, fold, fold_email
from models import FIELDS, User, UserCreate, UserRead, UserRow, UserUpdate
from paging import UserQuery
from rows import changed_row, follow, new_row
from store import EmailTaken, Kind, NotFound, StaleVersion, by_code, in_slot, logger, new_rows

Document = dict[str, Any]
NO_TRANSACTIONS = 20  # MongoDB's IllegalOperation: how a standalone server answers to one
NO_SPACE = 14031  # its OutOfDiskSpace
# MongoDB's numbers, or the name of a class of exceptions.
KINDS = by_code(
    {
        Kind.CONFLICT: "11000",
        Kind.BAD_VALUE: "121 BSONError OverflowError UnicodeEncodeError",
        Kind.BUSY: "24 112 246 251",
        Kind.TOO_SLOW: "50 64 202 262 NetworkTimeout",
        # 8000: MongoDB Atlas. ConfigurationError: no such name for mongodb+srv, or an old server.
        Kind.REFUSED: "13 18 8000 ConfigurationError SSLCertVerificationError",
        Kind.READ_ONLY: "10107 13435 13436 NotPrimaryError",
        Kind.UNREACHABLE: "6 7 91 189 9001 11600 11602 ConnectionFailure OSError",
        Kind.NO_TRANSACTIONS: "20",
        Kind.FULL: "14031",
    }
)
REASONS = by_code(  # why a database does not start
    {
        "does not know this user name with this password": "18",
        "does not give this user access to the database": "13 8000",
        "has a name that is not known, or is older than PyMongo supports": "ConfigurationError",
    }
)
# Fetch what a client sees, and nothing else; its id is _id here.
SEEN = {field: 1 for field in FIELDS if field != "id"}


class MongoUserStore:
    """Users in the collection ``users``."""

    kinds, reasons = KINDS, REASONS
    # The last two: a value that BSON cannot hold.
    errors = PyMongoError, BSONError, OSError, OverflowError, UnicodeEncodeError

    def __init__(self, url: str, size: int = 15) -> None:
        """Open the database of a URL. Nothing is connected yet. Raises SettingsError."""
        self.client = make_client(url, size)
        self.slots, self.expensive = asyncio.Semaphore(size), asyncio.Semaphore(max(2, size // 5))
        database = self.client.get_default_database("roster")
        self.place = (
            f"MongoDB at {urlsplit(url).netloc.rpartition('@')[2]}, database {database.name}"
        )
        # What only reads goes where readPreference in the URL says; a change needs no replica.
        self.for_reading: AsyncCollection[Document] = database["users"]
        self.users = self.for_reading.with_options(read_preference=ReadPreference.PRIMARY)
        self.counters: AsyncCollection[Document] = database["counters"]

    def codes(self, error: Exception) -> list[str]:
        """Return MongoDB's number for an error, and the names of its classes."""
        # Of what went wrong with each server, only the text is kept.
        if isinstance(error, ServerSelectionTimeoutError) and "CERTIFICATE_VERIFY" in str(error):
            return ["SSLCertVerificationError"]
        said = getattr(error, "details", None) or {}
        # Of several inserts, the first that was rejected says why.
        first = [*said.get("writeErrors", []), *said.get("writeConcernErrors", []), said][0]
        number = first.get("code") or getattr(error, "code", None)
        return [*([str(number)] if number else []), *codes(error)]

    @in_slot
    async def add(self, new: UserCreate) -> UserRead:
        """Insert a document; the unique index says whether the address is free."""
        document = new_document(await self.take_ids(1), new_row(User, new.model_dump()))
        try:
            await self.users.insert_one(document)
        except DuplicateKeyError as error:
            raise to_conflict(error) from None
        return to_user(document)

    @in_slot
    async def add_many(
        self, new: Sequence[UserCreate], skip_taken: bool
    ) -> tuple[list[UserRead], list[str]]:
        """Insert all documents in a transaction; if one is rejected, ask which and start again."""
        rows = await new_rows(new)
        first = {row["email_key"]: i for i, row in reversed([*enumerate(rows)])}
        taken = {i for i, row in enumerate(rows) if first[row["email_key"]] != i}
        first_id = await self.take_ids(len(new))
        while True:
            if taken and not skip_taken:
                taken |= await self.find_taken(first)
                raise EmailTaken([("body", i, "email") for i in sorted(taken)])
            documents = [
                new_document(first_id + i, row) for i, row in enumerate(rows) if i not in taken
            ]
            try:
                await self.transact(partial(self.insert, documents))
            except BulkWriteError as error:
                found = await self.find_taken(first)
                if "11000" not in self.codes(error) or found <= taken:  # no address is taken
                    raise
                taken |= found  # one more each time, so the loop ends
            else:
                return [to_user(document) for document in documents], [
                    new[i].email for i in sorted(taken)
                ]

    async def insert(self, documents: list[Document], session: AsyncClientSession) -> None:
        """Insert documents in the session's transaction."""
        if documents:
            await self.users.insert_many(documents, session=session)

    async def transact(
        self, work: Callable[[AsyncClientSession], Awaitable[None]], seconds: float = 4
    ) -> None:
        """Do something in a transaction."""
        if not await self.has_transactions():
            raise OperationFailure("a standalone server", NO_TRANSACTIONS)
        with pymongo.timeout(seconds):  # otherwise it retries for two minutes
            async with self.client.start_session() as session:
                await session.with_transaction(work)

    async def find_taken(self, places: dict[str, int]) -> set[int]:
        """Return the places of those keys that documents in the collection have."""
        found = self.users.find({"email_key": {"$in": [*places]}}, {"email_key": 1, "_id": 0})
        return {places[document["email_key"]] async for document in found}

    @in_slot
    async def get(self, user_id: int) -> UserRead:
        """Find a document by its primary key."""
        document = await self.for_reading.find_one({"_id": user_id}, SEEN)
        if document is None:
            raise NotFound
        return to_user(document)

    @in_slot
    async def page(self, query: UserQuery, limit: int) -> list[UserRead]:
        """Find by position, not by skip: the index leads to the first document of any page."""
        wanted = fits(query)
        past = "$lt" if query.descending else "$gt"
        if (after := query.after) and query.by_name:
            key, names = fold(after.name), wanted.get("name_key", {})
            # Two ranges of one index, which MongoDB merges: the rest of this name, the next ones.
            same = {**wanted, "name_key": {**names, "$eq": key}, "_id": {past: after.id}}
            wanted = {"$or": [same, {**wanted, "name_key": {**names, past: key}}]}
        elif after:
            wanted["_id"] = {past: after.id}
        order = ["name_key", "_id"] if query.by_name else ["_id"]
        found = self.for_reading.find(wanted, SEEN)
        found = found.sort([(field, -1 if query.descending else 1) for field in order])
        # If the client of an export leaves, this is cancelled, and PyMongo would leak an open
        # socket: it has to continue without our slot. If it fails then, asyncio must not print it.
        reading = asyncio.create_task(found.limit(limit).to_list())
        reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.wait([reading])
        return [*map(to_user, await reading)]

    @in_slot
    async def count(self, query: UserQuery) -> int:
        """Count documents; the more match, the longer it takes."""
        return await self.for_reading.count_documents(fits(query))

    @in_slot
    async def change(
        self, user_id: int, update: UserUpdate, if_match: Collection[int] | None
    ) -> UserRead:
        """Compare the version and set the fields, as one operation on the document."""
        document, other = None, list[Document]()
        if fields := update.model_dump():
            values = to_set(fields)
            latest = {"updated_at": values.pop("updated_at")}  # the clock may have been set back
            other = [{field: {"$ne": value}} for field, value in fields.items()]
            try:
                document = await self.users.find_one_and_update(
                    with_version(user_id, if_match) | {"$or": other},
                    {"$set": values, "$max": latest, "$inc": {"version": 1}},
                    SEEN,
                    return_document=ReturnDocument.AFTER,
                )
            except DuplicateKeyError as error:
                raise to_conflict(error) from None
        if document is None:  # the user is there, and has these values already
            same = {"$nor": other} if other and if_match is not None else {}
            document = await self.users.find_one(with_version(user_id, if_match) | same, SEEN)
        if document is None:
            await self.say_why(user_id)
        return to_user(document)

    @in_slot
    async def remove(self, user_id: int, if_match: Collection[int] | None) -> None:
        """Compare the version and delete, as one operation on the document."""
        result = await self.users.delete_one(with_version(user_id, if_match))
        if not result.deleted_count:
            await self.say_why(user_id)

    @in_slot
    async def ping(self) -> None:
        """Find a document, with all fields, and the counter, which ``start`` makes last."""
        await self.for_reading.find_one({})
        if await self.counters.find_one({"_id": "users"}) is None:
            raise AutoReconnect("not set up yet")  # it was unreachable when the app started

    @in_slot
    async def restore(self, users: Sequence[UserRead], gone: Sequence[int], last_id: int) -> None:
        """Delete and insert documents in a transaction, which changes the counter's too."""
        documents = [
            new_document(user.id, new_row(User, {field: getattr(user, field) for field in SEEN}))
            for user in users
        ]

        async def work(session: AsyncClientSession) -> None:
            # A change: otherwise the transaction would not rule out that another copy takes over.
            counter = {"_id": "users", "last": last_id}, {"$inc": {"batches": 1}}
            if not (await self.counters.update_one(*counter, session=session)).matched_count:
                raise StaleVersion("counter")
            await self.users.delete_many({"_id": {"$in": [*gone]}}, session=session)
            await self.insert(documents, session)

        try:
            await self.transact(work, 60)
        except BulkWriteError as error:
            raise (EmailTaken([]) if "11000" in self.codes(error) else error) from None

    @in_slot
    async def last_id(self) -> int:
        """Find the counter."""
        counter = await self.counters.find_one({"_id": "users"})
        return int(counter["last"]) if counter else 0

    @in_slot
    async def set_last_id(self, last_id: int, before: int) -> None:
        """Set the counter."""
        counter = {"_id": "users", "last": before}, {"$set": {"last": Int64(last_id)}}
        if not (await self.counters.update_one(*counter)).matched_count:
            raise StaleVersion("counter")

    @in_slot
    async def start(self) -> None:
        """Make the indexes and the counter that are missing.

        The counter comes last: without it no user is added, so none before the unique index exists.
        """
        await self.users.create_index("email_key", unique=True)
        await self.users.create_index([("name_key", 1), ("_id", 1)])
        counter = await self.counters.find_one({"_id": "users"})
        if not counter or "layout" not in counter:
            with pymongo.timeout(600):  # of each start
                await self.add_search_keys()
        newest = await self.users.find_one({}, sort=[("_id", -1)])
        # Users may have been restored without their counter.
        last = {"last": Int64(newest["_id"] if newest else 0), "layout": 2}
        with suppress(DuplicateKeyError):  # another process that starts now was faster
            await self.counters.update_one({"_id": "users"}, {"$max": last}, upsert=True)
        if not await self.has_transactions():
            logger.warning("%s is a standalone server: POST /users/bulk answers 503.", self.place)

    async def stop(self) -> None:
        """Close the pool."""
        await self.client.close()

    async def add_search_keys(self) -> None:
        """Give documents of release 1.0.0 their search keys. The next start continues it."""
        # Of a document without a list, a change meanwhile makes an object with the key "0".
        lacking: Document = {"search_key": {"$not": {"$type": "array"}}}
        while left := await self.users.count_documents(lacking):
            last = -1
            while documents := await self.users.find(
                {**lacking, "_id": {"$gt": last}}, sort=[("_id", 1)], limit=200
            ).to_list():
                if left % 50_000 < 200:
                    logger.info("%s: %s users lack their search keys.", self.place, f"{left:,}")
                changes = [  # of those that do not change meanwhile; the others are found again
                    UpdateOne(with_version(each["_id"], [each["version"]]), {"$set": keys(each)})
                    for each in documents
                ]
                await self.users.bulk_write(changes, ordered=False)
                last, left = documents[-1]["_id"], left - len(documents)

    async def take_ids(self, count: int) -> int:
        """Take ids off the counter, for good, and return the first of them."""
        counter = await self.counters.find_one_and_update(
            {"_id": "users", "last": {"$lte": ID_MAX - count}},
            {"$inc": {"last": count}},
            return_document=ReturnDocument.AFTER,
        )
        if counter is None:
            if await self.counters.find_one({"_id": "users"}):
                raise OperationFailure("no id is left", NO_SPACE)
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


def to_conflict(error: DuplicateKeyError) -> Exception:
    """Return what the rejection of a document means: EmailTaken, or else the same error."""
    return EmailTaken([("body", "email")]) if "email_key" in str(error) else error


def new_document(user_id: int, row: dict[str, Any]) -> Document:
    """Return the document of a user with these values."""
    return {"_id": Int64(user_id), **row, "search_key": row["search_key"].split("\n")}


def keys(document: Document) -> Document:
    """Return the keys that follow the fields of a document."""
    found = follow(User, {name: document[name] for name in ("name", "email")})
    return found | {"search_key": found["search_key"].split("\n")}


def to_set(fields: dict[str, Any]) -> Document:
    """Return what a change of these fields sets, of the search key only the lines that follow."""
    row = changed_row(User, fields)
    lines = enumerate(row.pop("search_key", KEEP).split("\n"))
    return row | {f"search_key.{i}": line for i, line in lines if line != KEEP}


def to_user(document: Document) -> UserRead:
    """Return what clients see of a document."""
    row = {field: document[field] for field in SEEN if field in document}
    # msgspec does not know Int64, and old shells of MongoDB's make a float of every number.
    for field, value in row.items():
        if isinstance(value, (Int64, float)):
            row[field] = int(value)
    return UserRow(int(document["_id"]), **row)


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
        conditions["email_key"] = fold_email(query.email)
    if query.words:
        conditions["$and"] = [{"search_key": {"$regex": re.escape(w)}} for w in query.words]
    return conditions


def make_client(url: str, size: int) -> AsyncMongoClient[Document]:
    """Return the client of a URL. Raises SettingsError.

    A change is acknowledged when most members have it in their journals.
    """
    check_certificates("DATABASE_URL", url)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # an option that PyMongo does not know
            return AsyncMongoClient(
                url,
                maxPoolSize=size,
                connectTimeoutMS=3000,
                # Of an operation as a whole: the search for a server, the retries. The search has a
                # limit of its own only while the client is closed.
                timeoutMS=4000,
                serverSelectionTimeoutMS=3000,
                # Otherwise PyMongo, after a server failed, can wait 10 seconds for news of it.
                serverMonitoringMode="poll",
                w="majority",
                journal=True,
                tz_aware=True,
            )
    except UserWarning:
        raise SettingsError(
            "DATABASE_URL: PyMongo does not know an option after its ?, or not this value."
        ) from None
    except (PyMongoError, ValueError, OSError) as error:
        raise SettingsError(
            f"DATABASE_URL: not a URL of MongoDB's ({type(error).__name__}); write an @ in the"
            " user name or the password as %40, a / as %2F: mongodb://user:password@host:27017/name"
        ) from None
