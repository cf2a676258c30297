"""FastAPI and redis-om: a HashModel, as in "FastAPI Integration" of its documentation.

Its queries need RediSearch, which Debian's Redis has not: a sorted set of redis-py's keeps the
order of the ids, and a key for each address keeps it unique. It cannot find users by a word.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated

from aredis_om import Field, HashModel, NotFoundError, get_redis_connection
from fastapi import FastAPI, Header, HTTPException, Query
from pydantic import BaseModel, EmailStr, StringConstraints
from redis.exceptions import WatchError

LAST = 10_000
THEN = datetime(2026, 1, 1, tzinfo=UTC)
Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Email = Annotated[EmailStr, StringConstraints(max_length=254)]
redis = get_redis_connection(url=os.environ["DATABASE_URL"], decode_responses=True)


class User(HashModel, index=True):
    """What is stored."""

    id: int = Field(primary_key=True)
    name: str
    email: str
    created_at: datetime
    updated_at: datetime
    version: int = 1

    class Meta:
        """Where it is."""

        database = redis
        global_key_prefix = "roster"  # whose keys the benchmark empties
        model_key_prefix = "user"


class UserCreate(BaseModel):
    """The body of a POST."""

    name: Name
    email: Email


class UserUpdate(BaseModel):
    """The body of a PATCH."""

    name: Name | None = None
    email: Email | None = None


class UserRead(BaseModel):
    """A user in a response."""

    id: int
    name: str
    email: str
    created_at: datetime
    updated_at: datetime
    version: int


class UserPage(BaseModel):
    """A page of users."""

    items: list[UserRead]
    next: str | None


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Store the users that the other databases have."""
    for first in range(1, LAST + 1, 1000):
        async with redis.pipeline() as pipe:
            for number in range(first, first + 1000):
                email = f"user{number}@example.com"
                user = {"id": number, "name": f"User {number}", "email": email}
                await User(**user, created_at=THEN, updated_at=THEN).save(pipe)
                pipe.set(f"roster:email:{email}", number)
                pipe.zadd("roster:ids", {number: number})
            await pipe.execute()
    await redis.set("roster:last", LAST)
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/users/", status_code=201, response_model=UserRead)
async def create_user(user: UserCreate):
    """Add a user."""
    user_id = await redis.incr("roster:last")
    if not await redis.set(f"roster:email:{user.email}", user_id, nx=True):
        raise HTTPException(409, "Email taken")
    now = datetime.now(UTC)
    stored = User(id=user_id, **user.model_dump(), created_at=now, updated_at=now)
    async with redis.pipeline() as pipe:
        await stored.save(pipe)
        pipe.zadd("roster:ids", {user_id: user_id})
        await pipe.execute()
    return stored


@app.get("/users/", response_model=UserPage)
async def read_users(cursor: int = 0, limit: Annotated[int, Query(ge=1, le=200)] = 50):
    """List users."""
    ids = await redis.zrange(
        "roster:ids", f"({cursor}", "+inf", byscore=True, offset=0, num=limit + 1
    )
    async with redis.pipeline(transaction=False) as pipe:
        for user_id in ids[:limit]:
            pipe.hgetall(User.make_primary_key(user_id))
        users = await pipe.execute()
    return {"items": users, "next": ids[limit - 1] if len(ids) > limit else None}


@app.get("/users/{user_id}", response_model=UserRead)
async def read_user(user_id: int):
    """Return a user."""
    try:
        return await User.get(user_id)
    except NotFoundError:
        raise HTTPException(404, "User not found") from None


@app.patch("/users/{user_id}", response_model=UserRead)
async def update_user(
    user_id: int, update: UserUpdate, if_match: Annotated[str | None, Header()] = None
):
    """Change a user; WATCH keeps it from being changed meanwhile."""
    async with redis.pipeline() as pipe:
        await pipe.watch(User.make_primary_key(user_id))
        try:
            user = await User.get(user_id)
        except NotFoundError:
            raise HTTPException(404, "User not found") from None
        if if_match not in (None, f'"{user.version}"'):
            raise HTTPException(412, "The user has changed")
        before = user.email
        changes = update.model_dump(exclude_unset=True)
        meta = {"updated_at": datetime.now(UTC), "version": user.version + 1}
        user = user.model_copy(update=changes | meta)
        if user.email != before and not await redis.set(
            f"roster:email:{user.email}", user_id, nx=True
        ):
            raise HTTPException(409, "Email taken")
        pipe.multi()
        await user.save(pipe)
        if user.email != before:
            pipe.delete(f"roster:email:{before}")
        try:
            await pipe.execute()
        except WatchError:
            raise HTTPException(412, "The user has changed") from None
    return user
