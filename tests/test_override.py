"""A test's own session in place of ``get_session``: the whole app uses it, and nothing else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.ext.asyncio import AsyncSession as StockSession
from sqlalchemy.pool import StaticPool
from sqlmodel import SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

import db
import edge
from app import app
from engine import Database

# Whatever reaches the database of the settings fails.
UNREACHABLE = "postgresql://nobody@127.0.0.1:1/nothing"


def file(folder: Path) -> AsyncEngine:
    return create_async_engine(f"sqlite+aiosqlite:///{folder}/test.db")


def memory(_: Path) -> AsyncEngine:
    return create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)


def ours(folder: Path) -> AsyncEngine:
    return Database(f"sqlite:///{folder}/test.db").writer


def use_everything(
    engine: AsyncEngine, session_class: type[StockSession], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Call every handler; return the statements that the engine ran."""
    monkeypatch.setenv("DATABASE_URL", UNREACHABLE)
    for forget in (db.get_settings, db.get_backend, edge.get_callers):
        forget.cache_clear()
    statements: list[str] = []
    event.listen(
        engine.sync_engine, "before_cursor_execute", lambda *given: statements.append(given[2])
    )

    async def test() -> None:
        async with engine.begin() as connection:
            await connection.run_sync(SQLModel.metadata.create_all)
        async with session_class(engine) as session:

            async def get_session() -> AsyncIterator[StockSession]:
                yield session

            app.dependency_overrides[db.get_session] = get_session
            transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                await call_every_handler(http)
            assert len(statements) > 10
        await engine.dispose()

    try:
        asyncio.run(test())
    finally:
        app.dependency_overrides.clear()
        for forget in (db.get_settings, db.get_backend, edge.get_callers):
            forget.cache_clear()
    return statements


async def call_every_handler(http: httpx.AsyncClient) -> None:
    new = {"name": "Ada", "email": "ada@example.com"}
    created = await http.post("/users/", json=new)
    assert (created.status_code, created.headers["ETag"]) == (201, '"1"')
    path = created.headers["Location"]
    assert (await http.post("/users/", json=new)).status_code == 409
    assert (await http.get(path)).json() == created.json()
    changed = await http.patch(path, json={"name": "Eve"}, headers={"If-Match": '"1"'})
    assert (changed.status_code, changed.json()["name"], changed.headers["ETag"]) == (
        *(200, "Eve"),
        '"2"',
    )
    assert (await http.patch(path, json={"name": "x"}, headers={"If-Match": '"1"'})).is_error
    many = [{"name": "Grace", "email": f"{i}@example.com"} for i in range(3)]
    assert (await http.post("/users/bulk", json=many)).status_code == 201
    assert (await http.post("/users/bulk", json=many)).status_code == 409
    other = await http.patch(path, json={"email": "0@example.com"})
    assert other.status_code == 409
    page = (await http.get("/users/?sort=name&total=true&limit=2")).json()
    assert (len(page["items"]), page["total"]) == (2, 4)
    assert len((await http.get("/users/export")).text.splitlines()) == 4
    assert (await http.delete(path)).status_code == 204
    assert (await http.get(path)).status_code == 404
    assert (await http.get("/readyz")).status_code == 200


Make = Callable[[Path], AsyncEngine]


@pytest.mark.parametrize("make", [file, memory, ours])
@pytest.mark.parametrize("session_class", [AsyncSession, StockSession])
def test_every_handler_uses_the_session_of_a_test(
    make: Make,
    session_class: type[StockSession],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_everything(make(tmp_path), session_class, monkeypatch)


def test_without_the_override_the_database_of_the_settings_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", UNREACHABLE)
    for forget in (db.get_settings, db.get_backend, edge.get_callers):
        forget.cache_clear()

    async def ready(http: httpx.AsyncClient) -> int:
        return (await http.get("/readyz")).status_code

    async def test(use: Callable[[httpx.AsyncClient], Awaitable[int]]) -> int:
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
        ):
            return await use(http)

    assert asyncio.run(test(ready)) == 503
    for forget in (db.get_settings, db.get_backend, edge.get_callers):
        forget.cache_clear()
