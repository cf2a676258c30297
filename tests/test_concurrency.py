"""What many clients do at once, over HTTP, on every database."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from conftest import NO_TLS, ROOT, Server, quick_on, serve
from databases import Database
from test_contract import User, add, read_all

Work = Callable[[httpx.AsyncClient], Awaitable[Any]]


@asynccontextmanager
async def open_client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Yield an async client."""
    async with httpx.AsyncClient(
        base_url=url, timeout=60, trust_env=False, verify=NO_TLS
    ) as client:
        yield client


def at_once(server: Server, *work: Work) -> list[Any]:
    """Do all the work at the same time, and return what each part of it returned.

    Each part has a client of its own: one with many connections goes through all of them each time.
    """

    async def do(part: Work) -> Any:
        async with open_client(server.url) as client:
            return await part(client)

    async def run() -> list[Any]:
        return await asyncio.gather(*(do(part) for part in work))

    return asyncio.run(run())


async def served(
    client: httpx.AsyncClient, method: str, path: str, **options: Any
) -> httpx.Response:
    """Send a request, and again after a 503: a busy machine may need more than five seconds."""
    async with asyncio.timeout(120):
        while True:
            response = await client.request(method, path, **options)
            if response.status_code != 503:
                return response
            await asyncio.sleep(int(response.headers["Retry-After"]))


def statuses(responses: list[httpx.Response]) -> dict[int, int]:
    """Return how many answers have which status."""
    found = [response.status_code for response in responses]
    return {status: found.count(status) for status in sorted(set(found))}


@pytest.mark.parametrize("seed", quick_on(range(20), 0))
def test_of_50_rivals_for_one_email_one_wins(
    client: httpx.Client, server: Server, seed: int
) -> None:
    variants = ["ada@example.com", "ADA@example.com", "ａda@example.com", "Ada@EXAMPLE.com"]
    chosen = Random(seed).choices(variants, k=50)
    responses = at_once(
        server,
        *(
            lambda rival, email=email: rival.post("/users/", json={"name": "A", "email": email})
            for email in chosen
        ),
    )
    assert statuses(responses) == {201: 1, 409: 49}
    assert len(read_all(client)) == 1


def test_of_20_editors_with_one_etag_one_wins(client: httpx.Client, server: Server) -> None:
    user = add(client)
    responses = at_once(
        server,
        *(
            lambda editor, i=i: editor.patch(
                f"/users/{user['id']}", json={"name": f"n{i}"}, headers={"If-Match": '"1"'}
            )
            for i in range(20)
        ),
    )
    assert statuses(responses) == {200: 1, 412: 19}
    (winner,) = (response.json() for response in responses if response.is_success)
    assert read_all(client) == [winner]


@pytest.mark.parametrize("editors", quick_on((20, 50), 20))
def test_of_many_editors_who_try_again_each_one_counts(
    client: httpx.Client, server: Server, editors: int
) -> None:
    user = add(client, "0")
    path = f"/users/{user['id']}"

    async def count_up(editor: httpx.AsyncClient) -> None:
        while True:
            seen = await editor.get(path)
            response = await editor.patch(
                path,
                json={"name": str(int(seen.json()["name"]) + 1)},
                headers={"If-Match": seen.headers["etag"]},
            )
            if response.is_success:
                return
            assert response.status_code == 412

    at_once(server, *[count_up] * editors)
    (user,) = read_all(client)
    assert (user["name"], user["version"]) == (str(editors), editors + 1)


def test_edits_without_an_etag_are_all_done(client: httpx.Client, server: Server) -> None:
    user = add(client)
    responses = at_once(
        server,
        *(
            lambda editor, new=new: editor.patch(f"/users/{user['id']}", json=new)
            for i in range(10)
            for new in ({"name": f"n{i}"}, {"email": f"e{i}@example.com"})
        ),
    )
    assert statuses(responses) == {200: 20}
    assert sorted(response.json()["version"] for response in responses) == list(range(2, 22))


def test_a_deleted_user_is_deleted_once(client: httpx.Client, server: Server) -> None:
    user = add(client)
    path = f"/users/{user['id']}"
    responses = at_once(
        server,
        *[lambda client: client.delete(path)] * 10,
        *[lambda client: client.patch(path, json={"name": "Eve"})] * 10,
    )
    deletes, edits = statuses(responses[:10]), statuses(responses[10:])
    assert deletes == {204: 1, 404: 9}
    assert set(edits) <= {200, 404}
    assert read_all(client) == []


def test_bulks_that_overlap_store_each_email_once(client: httpx.Client, server: Server) -> None:
    emails = [f"{i}@example.com" for i in range(60)]

    async def store(client: httpx.AsyncClient) -> list[User]:
        new = [{"name": "x", "email": email} for email in emails]
        while True:
            response = await client.post("/users/bulk?on_conflict=skip", json=new)
            if response.status_code != 503:
                break
        assert response.status_code == 201, response.text
        body = response.json()
        assert len(body["items"]) + len(body["skipped"]) == 60
        return body["items"]  # type: ignore[no-any-return]  # JSON

    stored = [user for users in at_once(server, *[store] * 8) for user in users]
    assert sorted(user["email"] for user in stored) == sorted(emails)
    assert read_all(client) == sorted(stored, key=lambda user: user["id"])


@pytest.mark.parametrize("sort", ["id", "-id", "name", "-name"])
def test_pages_while_others_write_hold_each_who_stayed_once(
    client: httpx.Client, server: Server, sort: str
) -> None:
    new = [{"name": f"n{i % 5}", "email": f"{i}@example.com"} for i in range(120)]
    users = client.post("/users/bulk", json=new).json()["items"]
    leaving, staying = users[::3], [user["id"] for i, user in enumerate(users) if i % 3]
    done = asyncio.Event()

    async def write(other: httpx.AsyncClient) -> int:
        """Add, edit and delete until the reader is through. Who is renamed moves in the list."""
        writes = 0
        while not done.is_set():
            i = writes // 3
            added = {"name": f"n{i % 7}", "email": f"new{i}@example.com"}
            edited = {"email": f"edited{i}@example.com"}
            if "id" in sort:
                edited["name"] = f"n{i % 11}"
            responses = [
                await other.post("/users/", json=added),
                await other.patch(f"/users/{staying[i % len(staying)]}", json=edited),
                await other.delete(f"/users/{leaving[i % len(leaving)]['id']}"),
            ]
            assert [r.status_code for r in responses][:2] == [201, 200]
            writes += 3
        return writes

    async def read(client: httpx.AsyncClient) -> list[int]:
        ids: list[int] = []
        params: dict[str, Any] = {"sort": sort, "limit": 4}
        while True:
            page = (await client.get("/users/", params=params)).json()
            ids += [user["id"] for user in page["items"]]
            params["cursor"] = page["next"]
            # With sort=id, those who are added while we read come at the end, and never end.
            if page["next"] is None or set(staying) <= set(ids):
                done.set()
                return ids

    writes, ids = at_once(server, write, read)
    assert writes >= 3
    assert len(ids) == len(set(ids)), "somebody came twice"
    assert set(staying) <= set(ids), "somebody did not come"


def test_150_clients_at_once_are_all_served(client: httpx.Client, server: Server) -> None:
    user = add(client)

    async def use(i: int, client: httpx.AsyncClient) -> list[httpx.Response]:
        new = {"name": "x", "email": f"many{i}@example.com"}
        return [
            await served(client, "POST", "/users/", json=new),
            await served(client, "GET", "/users/", params={"limit": 10}),
            await served(client, "GET", f"/users/{user['id']}"),
        ]

    responses = at_once(server, *(lambda client, i=i: use(i, client) for i in range(150)))
    assert statuses([response for three in responses for response in three]) == {200: 300, 201: 150}


def test_pool_of_2_serves_40_clients(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOL_SIZE", "2")
    with serve(database.url, tmp_path) as server:
        responses = at_once(
            server, *[lambda client: served(client, "GET", "/users/?total=true")] * 40
        )
        assert statuses(responses) == {200: 40}


def test_clients_who_leave_do_no_harm(client: httpx.Client, server: Server) -> None:
    new = [{"name": "x", "email": f"{i}@example.com"} for i in range(500)]
    client.post("/users/bulk", json=new).raise_for_status()
    began = time.monotonic()
    client.get("/users/?limit=200").raise_for_status()
    listing = time.monotonic() - began
    host, port = server.url.removeprefix("http://").split(":")
    body = b'{"name": "left", "email": "left%d@example.com"}'
    for i in range(30):
        for request in (
            b"GET /users/export HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /users/?limit=200 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"POST /users/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body % i), body % i),
            b"POST /users/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{",
        ):
            with socket.create_connection((host, int(port))) as connection:
                connection.settimeout(0.05)
                connection.sendall(request)
                if i % 2:
                    with suppress(TimeoutError):
                        connection.recv(10)
    began = time.monotonic()
    add(client, "next")
    took = time.monotonic() - began
    began = time.monotonic()
    add(client, "after")
    usual = time.monotonic() - began
    # What was accepted is done before: 30 lists, and on a busy machine all of it takes longer.
    assert took < 1 + 30 * listing + 20 * usual
    # What was accepted is stored whole or not at all.
    assert {user["name"] for user in read_all(client, limit=200)} <= {"x", "left", "next", "after"}


@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mysql"], indirect=True)
def test_session_for_reading_cannot_change_anything(database: Database) -> None:
    code = (
        "import asyncio, db\n"
        "from lifespan import start\n"
        "from models import User\n"
        "from engine import codes\n"
        "from sqlalchemy import insert\n"
        "from sqlalchemy.exc import DBAPIError\n"
        "async def main():\n"
        "    await start(db.get_backend())\n"
        "    new = {'name': 'a', 'email': 'reader@example.com'}\n"
        "    async with db.open_session(read_only=True) as session:\n"
        "        try:\n"
        "            await session.exec(insert(User), params=new)\n"
        "        except DBAPIError as error:\n"
        "            print(codes(error)[0])\n"
        "    await db.get_backend().stop()\n"
        "asyncio.run(main())\n"
    )
    env = {**os.environ, "DATABASE_URL": database.url}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, check=False
    )
    assert run.stdout.decode().strip() in ("SQLITE_READONLY", "25006", "1792"), run.stderr.decode()
