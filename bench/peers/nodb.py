"""FastAPI with a dependency that yields, and no database: the ceiling of what Roster can reach.

It checks the same requests and sends the same answers, of users that it makes at the start.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import count
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Query
from pydantic import BaseModel, EmailStr, StringConstraints

LAST = 10_000
THEN = datetime(2026, 1, 1, tzinfo=UTC)
ids = count(LAST + 1)
Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Email = Annotated[EmailStr, StringConstraints(max_length=254)]


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


# The users that the databases have.
USERS = [
    UserRead(
        id=user_id,
        name=f"User {user_id}",
        email=f"user{user_id}@example.com",
        created_at=THEN,
        updated_at=THEN,
        version=1,
    )
    for user_id in range(1, LAST + 1)
]


async def get_session() -> AsyncIterator[list[UserRead]]:
    """Yield what stands for a database."""
    yield USERS


SessionDep = Annotated[list[UserRead], Depends(get_session, scope="function")]
app = FastAPI()


# The places of the users whose name or address has three letters; a change of letters is ignored.
index: dict[str, list[int]] = {}
for place, user in enumerate(USERS):
    text = f"{user.name} {user.email}".casefold()
    for letters in {text[start : start + 3] for start in range(len(text) - 2)}:
        index.setdefault(letters, []).append(place)


def find(q: str) -> list[UserRead]:
    """Return the users whose name or address has every word, of three letters at least."""
    words = q.casefold().split()
    letters = (word[start : start + 3] for word in words for start in range(len(word) - 2))
    some = (USERS[place] for place in min((index.get(each, []) for each in letters), key=len))
    return [
        user for user in some if all(w in f"{user.name} {user.email}".casefold() for w in words)
    ]


@app.post("/users/", status_code=201)
async def create_user(user: UserCreate, users: SessionDep) -> UserRead:
    """Answer as if the user were stored."""
    now = datetime.now(UTC)
    return UserRead(id=next(ids), **user.model_dump(), created_at=now, updated_at=now, version=1)


@app.get("/users/")
async def read_users(
    users: SessionDep,
    cursor: int = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    q: str | None = None,
) -> UserPage:
    """Return as many users as the databases have after the cursor."""
    if q is not None:
        return UserPage(items=find(q)[:limit], next=None)
    last = cursor + limit
    return UserPage(items=users[cursor:last], next=str(last) if last < LAST else None)


@app.get("/users/{user_id}")
async def read_user(user_id: int, users: SessionDep) -> UserRead:
    """Return a user."""
    return users[user_id - 1]


@app.patch("/users/{user_id}")
async def update_user(
    user_id: int,
    update: UserUpdate,
    users: SessionDep,
    if_match: Annotated[str | None, Header()] = None,
) -> UserRead:
    """Change a user, in memory."""
    user = users[user_id - 1]
    if if_match not in (None, f'"{user.version}"'):
        raise HTTPException(412)
    meta = {"updated_at": datetime.now(UTC), "version": user.version + 1}
    users[user_id - 1] = user.model_copy(update=update.model_dump(exclude_unset=True) | meta)
    return users[user_id - 1]
