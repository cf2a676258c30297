"""The app with handlers of a team's own, which fail in ways that no database has caused."""

import asyncio
import smtplib
import urllib.error
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, WebSocket
from sqlalchemy import BigInteger, Column
from sqlmodel import Field, SQLModel, col, select

from app import app
from db import SessionDep, StoreDep
from edge import Route
from paging import UserQuery
from rows import TABLE, RowId, Versioned


class Thing(Versioned, table=True):
    __tablename__ = "things"
    __table_args__ = TABLE

    id: int = Field(default=None, primary_key=True, sa_type=RowId)
    number: int = Field(default=0, sa_column=Column(BigInteger, nullable=False))


router = APIRouter(prefix="/own", route_class=Route)
OWN: dict[str, Any] = {
    "file": lambda: Path("/no/such/file").read_text(),
    "mail": lambda: smtplib.SMTP("127.0.0.1", 1),
    "mail server": lambda: throw(smtplib.SMTPServerDisconnected("no")),
    "page": lambda: throw(urllib.error.URLError("no")),
    "refused": lambda: throw(ConnectionRefusedError(111, "no")),
    "overflow": lambda: float(10**400),
    "unicode": lambda: "\ud800".encode(),
    "value": lambda: int("x"),
}


def throw(error: Exception) -> None:
    raise error


async def fail(kind: str) -> None:
    if kind == "timeout":
        async with asyncio.timeout(0.01):
            await asyncio.sleep(5)
    OWN[kind]()


@router.get("/fails")
async def fails_reading(kind: str, store: StoreDep) -> None:
    """Use the database, then fail without it."""
    await store.page(UserQuery(), 1)
    await fail(kind)


@router.post("/fails")
async def fails_writing(kind: str, store: StoreDep) -> None:
    await store.page(UserQuery(), 1)
    await fail(kind)


@router.get("/things")
async def find_thing(number: int, session: SessionDep) -> bool:
    return (await session.exec(select(Thing).where(Thing.number == number))).first() is not None


@router.post("/things")
async def create_thing(
    session: SessionDep, number: Annotated[int, Body()] = 0, at: Annotated[str, Body()] = ""
) -> None:
    thing = Thing(number=number)
    if at:
        thing.created_at = datetime.fromisoformat(at)
    session.add(thing)


@router.post("/things/many")
async def find_many(numbers: list[int], session: SessionDep) -> int:
    return len((await session.exec(select(Thing).where(col(Thing.number).in_(numbers)))).all())


@router.get("/bug")
async def ask_for_nonsense(session: SessionDep) -> None:
    """Compare with a naive time, and none that the client has sent."""
    await session.exec(select(Thing).where(Thing.created_at == datetime(2026, 11, 28)))


@router.get("/many")
async def read_many(kind: Annotated[list[str], Query()], one: str = "") -> list[str]:
    return [*kind, one]


@router.websocket("/socket")
async def socket(websocket: WebSocket, session: SessionDep, kind: str = "") -> None:
    await websocket.accept()
    await session.exec(select(Thing))
    if kind:
        await fail(kind)
    await websocket.send_text("ok")


me = APIRouter(prefix="/users", route_class=Route)


@me.get("/me")
@me.post("/me")
async def read_me() -> str:
    return "me"


@me.get("/{user_id}/things")
async def read_things(user_id: int) -> int:
    return user_id


app.include_router(router)
app.include_router(me)  # after the handlers of users
__all__ = ["SQLModel", "app"]
