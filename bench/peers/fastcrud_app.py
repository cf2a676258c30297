"""FastAPI and FastCRUD: its CRUD class on an async session, in handlers of one's own."""

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Query
from fastcrud import FastCRUD
from pydantic import AfterValidator, BaseModel, EmailStr, StringConstraints
from sqlalchemy import BigInteger, DateTime, Integer, String, or_
from sqlalchemy.dialects.mysql import DATETIME
from sqlalchemy.exc import IntegrityError, NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
DRIVERS |= {"mysql": "mysql+asyncmy"}
Stored = DateTime(timezone=True).with_variant(DATETIME(fsp=6), "mysql")
UTCTime = Annotated[datetime, AfterValidator(lambda t: t if t.tzinfo else t.replace(tzinfo=UTC))]
Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Email = Annotated[EmailStr, StringConstraints(max_length=254)]


class Base(DeclarativeBase):
    """The base of the tables."""


class User(Base):
    """The table."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    email: Mapped[str] = mapped_column(String(254), unique=True)
    created_at: Mapped[datetime] = mapped_column(Stored, default=lambda: datetime.now(UTC))
    updated_at: Mapped[datetime] = mapped_column(Stored, default=lambda: datetime.now(UTC))
    version: Mapped[int] = mapped_column(default=1)


class UserCreate(BaseModel):
    """The body of a POST."""

    name: Name
    email: Email


class UserUpdate(BaseModel):
    """The body of a PATCH."""

    name: Name | None = None
    email: Email | None = None


class UserRead(BaseModel):
    """A user in a response; SQLite and MariaDB return UTC without its zone."""

    id: int
    name: str
    email: str
    created_at: UTCTime
    updated_at: UTCTime
    version: int


class UserPage(BaseModel):
    """A page of users."""

    items: list[UserRead]
    next: str | None


scheme, _, place = os.environ["DATABASE_URL"].partition(":")
engine = create_async_engine(f"{DRIVERS[scheme]}:{place}", pool_size=15, max_overflow=0)
async_session = async_sessionmaker(engine, expire_on_commit=False)


async def get_session() -> AsyncIterator[AsyncSession]:
    """Yield the session of a request."""
    async with async_session() as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session)]
users = FastCRUD(User)
app = FastAPI()


@app.post("/users/", status_code=201)
async def create_user(user: UserCreate, session: SessionDep) -> UserRead:
    """Add a user."""
    try:
        return await users.create(session, user, schema_to_select=UserRead)
    except IntegrityError:
        raise HTTPException(status_code=409, detail="Email taken") from None


@app.get("/users/")
async def read_users(
    session: SessionDep,
    cursor: int = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    q: str = "",
) -> UserPage:
    """List users."""
    wanted = [
        or_(*(field.icontains(word, autoescape=True) for field in (User.name, User.email)))
        for word in q.split()
    ]
    found = await users.get_multi_by_cursor(
        session, cursor, limit + 1, schema_to_select=UserRead, where=wanted
    )
    items = found["data"]
    following = str(items[limit - 1]["id"]) if len(items) > limit else None
    return {"items": items[:limit], "next": following}


@app.get("/users/{user_id}")
async def read_user(user_id: int, session: SessionDep) -> UserRead:
    """Return a user."""
    user = await users.get(session, schema_to_select=UserRead, id=user_id)
    if user is None:
        raise HTTPException(status_code=404, detail="User not found")
    return user


@app.patch("/users/{user_id}")
async def update_user(
    user_id: int,
    update: UserUpdate,
    session: SessionDep,
    if_match: Annotated[str | None, Header()] = None,
) -> UserRead:
    """Change a user."""
    user = await users.get(session, schema_to_select=UserRead, id=user_id)
    if user is None:
        raise HTTPException(status_code=404, detail="User not found")
    version = user["version"]
    if if_match not in (None, f'"{version}"'):
        raise HTTPException(status_code=412, detail="The user has changed")
    change = update.model_dump(exclude_unset=True) | {"version": version + 1}
    try:
        # FastCRUD sets updated_at itself.
        await users.update(session, change, id=user_id, version=version)
    except NoResultFound:
        raise HTTPException(status_code=412, detail="The user has changed") from None
    except IntegrityError:
        raise HTTPException(status_code=409, detail="Email taken") from None
    return await users.get(session, schema_to_select=UserRead, id=user_id)
