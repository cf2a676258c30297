"""Where an error comes from: a database's is a Fault, a handler's own is a bug."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import NO_TLS, Server, serve, wait_until
from databases import Database
from sqlalchemy import text

from db import open_backend
from engine import Database as SQLDatabase

# The keys of tests/own_app.py. An import would add its handlers to the app of all tests here.
OWN = ("file", "mail", "mail server", "page", "refused", "overflow", "unicode", "value")
SQL = ["sqlite", "postgresql", "mysql"]
on_sql = pytest.mark.parametrize("database", SQL, indirect=True, scope="session")


@pytest.fixture(scope="module")
def own_app(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield an app with handlers of its own."""
    with (
        database.new() as url,
        serve(url, tmp_path_factory.mktemp("own"), app="tests.own_app:app") as server,
    ):
        yield server


@pytest.fixture
def http(own_app: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=own_app.url, timeout=30, verify=NO_TLS) as client:
        yield client


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("kind", [*OWN, "timeout"])
def test_what_a_handler_raises_itself_is_a_bug(
    own_app: Server, http: httpx.Client, kind: str, method: str
) -> None:
    before = len(own_app.printed())
    response = http.request(method, "/own/fails", params={"kind": kind})
    assert (response.status_code, response.json()) == (500, {"detail": "Internal Server Error"})
    assert response.headers["connection"] == "close"

    def printed() -> bool:  # of each kind, two a second are
        assert http.request(method, "/own/fails", params={"kind": kind}).status_code == 500
        return "Traceback" in own_app.printed()[before:]

    wait_until(printed)


@on_sql
@pytest.mark.parametrize(
    "sent",
    [
        {"number": 10**22},
        {"number": 2**63},
        {"at": "2026-11-28T12:00:00"},
        {"at": "0001-01-01T00:00:00+01:00"},
    ],
)
def test_value_that_no_column_takes_is_the_clients(
    http: httpx.Client, sent: dict[str, object]
) -> None:
    assert http.post("/own/things", json={"number": 1, "at": "", **sent}).status_code == 422


@on_sql
def test_value_to_compare_with_is_the_clients(http: httpx.Client) -> None:
    # MySQL compares with any number, and finds none.
    assert http.get("/own/things", params={"number": 10**22}).status_code in (422, 200)
    assert http.post("/own/things/many", json=[*range(40_000)]).status_code in (422, 200)


@on_sql
def test_value_that_no_client_has_sent_is_a_bug(own_app: Server, http: httpx.Client) -> None:
    before = len(own_app.printed())
    assert http.get("/own/bug").status_code == 500
    wait_until(lambda: "Traceback" in own_app.printed()[before:])


@pytest.mark.parametrize(
    ("query", "status"),
    [("kind=a&kind=b", 200), ("kind=a&one=b", 200), ("kind=a&one=b&one=b", 422)],
)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True, scope="session")
def test_only_a_list_may_be_given_twice(http: httpx.Client, query: str, status: int) -> None:
    assert http.get(f"/own/many?{query}").status_code == status


@pytest.mark.parametrize("database", ["sqlite"], indirect=True, scope="session")
def test_path_that_a_router_has_literally_is_its_own(http: httpx.Client) -> None:
    assert (http.get("/users/me").json(), http.post("/users/me").json()) == ("me", "me")
    assert http.get("/users/7/things").json() == 7
    refused = http.delete("/users/me")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD, POST")
    assert (http.get("/users/you").status_code, http.get("/users/bulk").status_code) == (422, 405)


@pytest.mark.parametrize("database", [*SQL, "mongodb"], indirect=True, scope="session")
def test_another_unique_field_is_not_the_address(database: Database, tmp_path: Path) -> None:
    """And a bulk ends, with no address to leave out."""

    async def make_unique(url: str) -> None:
        backend = open_backend(url)
        if isinstance(backend, SQLDatabase):
            async with backend.writer.begin() as connection:
                await connection.execute(text("CREATE UNIQUE INDEX one_name ON users (name)"))
        else:
            users: Any = backend
            await users.users.create_index("name", unique=True)
        await backend.stop()

    taken = {"name": "Ada", "email": "other@example.com"}
    with database.new() as url, serve(url, tmp_path) as server:
        asyncio.run(make_unique(url))
        with httpx.Client(base_url=server.url, timeout=30, verify=NO_TLS) as client:
            for name in ("Ada", "Bo"):
                new = {"name": name, "email": f"{name}@example.com"}
                assert client.post("/users/", json=new).status_code == 201
            for response in (
                client.post("/users/", json=taken),
                client.patch("/users/2", json={"name": "Ada"}),
                client.post("/users/bulk", json=[taken]),
                client.post("/users/bulk?on_conflict=skip", json=[taken]),
            ):
                (problem,) = response.json()["detail"]
                assert (response.status_code, problem["loc"]) == (409, ["body"])
            new = {"name": "Cy", "email": "ADA@example.com"}
            (problem,) = client.post("/users/", json=new).json()["detail"]
            assert problem["loc"] == ["body", "email"]
