"""``q``: the same users are found on every database, and a search never keeps others waiting."""

import asyncio
import csv
import io
import random
import string
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import Database
from pymongo import MongoClient
from sqlalchemy import insert, update
from sqlalchemy.engine import make_url
from sqlmodel import col
from test_contract import User, add, fields, names, read_all

from db import open_backend
from engine import Database as SQLDatabase
from fields import ID_MAX, fold, fold_email, words_of
from lifespan import open_store, start
from models import User as Row
from models import UserCreate
from paging import UserQuery
from rows import new_row
from store import Fault, Kind

PEOPLE = [
    ("Ada Lovelace", "ada@example.com"),
    ("Jürgen Müller", "jm@firma.example"),
    ("Zoe\u0308 O’Neil", "zoë@example.com"),
    ("Élodie 100%_/\\", "E.lodie+x@example.com"),
    ("İbrahim Çelik", "ibo@straße.de"),
    ("Łukasz Ørsted-Æbelø", "lo@example.com"),
    ("Fußmann", "fm@example.com"),
    ("Ｆｕｌｌ Ｗｉｄｔｈ", "fw@bücher.example"),
    ("علی\u200cرضا", "ali@example.com"),
    ("田中 太郎", "tanaka@example.com"),
    ("한글 😀", "hangul@example.com"),
    ("Ада Байрон", "byron@example.com"),
]


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("lovelace", ["Ada Lovelace"]),
        ("LOVE ada", ["Ada Lovelace"]),
        ("  ada   lovelace ", ["Ada Lovelace"]),
        ("Ada Lovelace <ada@example.com>", ["Ada Lovelace"]),
        ("Lovelace, Ada", ["Ada Lovelace"]),
        ("ovelaceada", []),
        ("lovelace\u00a0zoe", []),
        ("jurgen", ["Jürgen Müller"]),
        ("MÜLLER", ["Jürgen Müller"]),
        ("mu\u0308ller firma.example", ["Jürgen Müller"]),
        ("zoe o'neil", ["Zoe\u0308 O’Neil"]),
        ("elodie", ["Élodie 100%_/\\"]),
        ("%", ["Élodie 100%_/\\"]),
        ("_", ["Élodie 100%_/\\"]),
        ("0%_/\\", ["Élodie 100%_/\\"]),
        ("/", ["Élodie 100%_/\\"]),
        ("\\", ["Élodie 100%_/\\"]),
        (".*", []),
        ("e.lodie+", ["Élodie 100%_/\\"]),
        ("ibrahim celik", ["İbrahim Çelik"]),
        ("İBRAHİM", ["İbrahim Çelik"]),
        ("lukasz", ["Łukasz Ørsted-Æbelø"]),
        ("orsted aebelo", ["Łukasz Ørsted-Æbelø"]),
        ("ØRSTED", ["Łukasz Ørsted-Æbelø"]),
        ("ss", ["İbrahim Çelik", "Fußmann"]),
        ("strasse.de", ["İbrahim Çelik"]),
        ("full width", ["Ｆｕｌｌ Ｗｉｄｔｈ"]),
        ("bucher.example", ["Ｆｕｌｌ Ｗｉｄｔｈ"]),
        ("علیرضا", ["علی\u200cرضا"]),
        ("太", ["田中 太郎"]),
        ("한 😀", ["한글 😀"]),
        ("ада", ["Ада Байрон"]),
        ("@example.com ada", ["Ada Lovelace"]),
        ("nobody", []),
        ("   ", [name for name, _ in PEOPLE]),
    ],
)
def test_q_finds_users_by_all_its_words(client: httpx.Client, q: str, found: list[str]) -> None:
    for name, email in PEOPLE:
        add(client, name, email)
    assert names(read_all(client, q=q)) == found
    by_name = sorted(found, key=fold)
    assert names(read_all(client, q=q, sort="name", limit=2)) == by_name
    assert names(read_all(client, q=q, sort="-name", limit=1)) == by_name[::-1]
    page = client.get("/users/", params={"q": q, "total": True, "limit": 1}).json()
    assert page["total"] == len(found)


def test_search_follows_each_change(client: httpx.Client) -> None:
    user = add(client, "Ada Lovelace", "ada@example.com")
    path = f"/users/{user['id']}"
    renamed = client.patch(path, json={"name": "Zoë King"}).json()
    assert read_all(client, q="zoe ada@") == [renamed]
    assert read_all(client, q="lovelace") == []
    moved = client.patch(path, json={"email": "zk@example.org"}).json()
    assert read_all(client, q="king zk@", sort="name") == [moved]
    assert read_all(client, q="ada") == []
    both = client.patch(path, json={"name": "A B", "email": "ab@example.net"}).json()
    assert read_all(client, q="example.net", sort="-id") == [both]
    assert read_all(client, q="example.org") == []
    client.delete(path).raise_for_status()
    assert read_all(client, q="a", sort="name") == read_all(client, q="a") == []


def test_q_combines_with_name_and_email(client: httpx.Client) -> None:
    ada = add(client, "Ada", "ada@example.com")
    add(client, "Adam", "adam@example.org")
    assert read_all(client, q="com", name="ad") == [ada]
    assert read_all(client, q="com", name="ad", sort="-name") == [ada]
    assert read_all(client, q="da", email="ADA@example.com") == [ada]
    assert read_all(client, q="org", email="ADA@example.com") == []
    page = client.get("/users/?q=org&name=ad&total=true").json()
    assert (names(page["items"]), page["total"]) == (["Adam"], 1)


def test_q_that_is_too_long_or_no_text_is_refused(client: httpx.Client) -> None:
    for q in ("x" * 400, "a\0b", "a\ufffdb"):
        response = client.get("/users/", params={"q": q})
        assert (response.status_code, fields(response)) == (422, [["query", "q"]])


@pytest.fixture(scope="module")
def many() -> list[dict[str, str]]:
    """Return 1200 users with few letters, so that a word is anything from common to rare."""
    chance = random.Random(21)

    def word(length: int) -> str:
        return "".join(chance.choices("aáÁbBßø", k=length))

    return [
        {"name": f"{word(3)} {word(2)}", "email": f"{string.ascii_lowercase[i % 26]}{i}@b.example"}
        for i in range(1200)
    ]


@pytest.mark.parametrize("sort", ["id", "-id", "name", "-name"])
def test_pages_of_a_search_are_those_of_a_search_in_all(
    client: httpx.Client, many: list[dict[str, str]], sort: str
) -> None:
    users: list[User] = []
    for first in (0, 600):
        new = many[first : first + 600]
        users += client.post("/users/bulk", json=new).json()["items"]
    users.sort(key=lambda user: (fold(user["name"]) if "name" in sort else "", user["id"]))
    if sort.startswith("-"):
        users.reverse()
    plain = str.maketrans({"á": "a", "ß": "ss", "ø": "o"})
    for q, prefix in (("a", ""), ("abb", ""), ("z119 a", ""), ("1 ss", ""), ("o", "a"), ("", "b")):
        found = [
            user
            for user in users
            if fold(user["name"]).startswith(prefix)
            and all(
                word in user["name"].lower().translate(plain) or word in user["email"]
                for word in q.split()
            )
        ]
        assert read_all(client, q=q, name=prefix, sort=sort, limit=200) == found, (q, prefix)
        params = {"q": q, "name": prefix, "total": True, "limit": 7, "sort": sort}
        page = client.get("/users/", params=params).json()
        assert (page["items"], page["total"]) == (found[:7], len(found))
        if len(found) > 8:
            page = client.get("/users/", params={**params, "cursor": page["next"]}).json()
            assert page["items"] == found[7:14]


def test_export_of_a_search(client: httpx.Client) -> None:
    for name, email in PEOPLE:
        add(client, name, email)
    text = client.get("/users/export", params={"format": "csv", "q": "example.com o"}).text
    exported = [row["name"] for row in csv.DictReader(io.StringIO(text))]
    assert exported == names(read_all(client, q="example.com o")) != []
    assert client.get("/users/export", params={"q": "nobody"}).text == ""
    assert client.get("/users/export", params={"q": "\0"}).status_code == 422


def test_search_key_follows_in_every_idiom(tmp_path: Path) -> None:
    async def check() -> None:
        database = SQLDatabase(f"sqlite:///{tmp_path}/roster.db")
        await start(database)
        async with database.session() as session:
            row = Row(name="Zoë", email="z@straße.de")
            session.add(row)
            await session.flush()
            assert row.search_key == "zoe\nz@strasse.de"
            row.name = "Ada"
            await session.flush()
            assert row.search_key == "ada\nz@strasse.de"
            connection = await session.connection()
            await connection.execute(insert(Row).values(name="Ö", email="o@example.com"))
            await connection.execute(insert(Row), [{"name": "É", "email": "e@example.com"}])
            both = {"name": "Í", "email": "i@example.com"}
            await session.exec(update(Row).where(col(Row.name) == "É").values(both))
            with pytest.raises(ValueError, match="search_key follows name and email"):
                await session.exec(update(Row).values(name="Í"))
        async with open_store(database, read_only=True) as store:
            for q, name in (("ada strasse", "Ada"), ("o o@", "Ö"), ("i i@", "Í")):
                assert [user.name for user in await store.page(UserQuery(q=q), 9)] == [name]
        await database.stop()

    asyncio.run(check())


def test_dear_reads_leave_room_for_others(database: Database) -> None:
    """As many searches as there can be at once are under way; everything else goes on."""

    async def check(url: str) -> None:
        backend: Any = open_backend(url)
        await start(backend)
        async with open_store(backend) as store:
            user = await store.add(UserCreate(name="Ada", email="ada@example.com"))
        searches = []
        while not backend.dear.locked():
            await backend.dear.acquire()
            searches.append(backend.dear)
        assert 2 <= len(searches) <= 5

        async def ask(query: UserQuery) -> list[Any]:
            async with open_store(backend, read_only=True) as store:
                return await store.page(query, 10)

        for dear in ({"q": "a"}, {"name": "a"}, {"total": True}):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ask(UserQuery.model_validate(dear)), 0.1)
        async with open_store(backend, read_only=True) as store:
            assert await store.get(user.id) == user
        for cheap in ({}, {"name": "a", "sort": "name"}, {"email": "ada@example.com"}):
            assert await ask(UserQuery.model_validate(cheap)) == [user]
        backend.dear.release()
        assert await ask(UserQuery(q="a")) == [user]
        await backend.stop()

    with database.new() as url:
        asyncio.run(check(url))


@pytest.mark.parametrize("left", [0, 3])
def test_bulk_for_which_ids_run_out_stores_nothing(database: Database, left: int) -> None:
    async def check(url: str) -> None:
        backend = open_backend(url)
        await start(backend)
        new = [UserCreate(name="x", email=f"{i}@example.com") for i in range(5)]
        async with open_store(backend) as store:
            # MySQL counts the next id, and so cannot have given the last one.
            await store.set_last_id(ID_MAX - 1 - left)
        for skip in (True, False):
            with pytest.raises(Fault) as error:
                async with open_store(backend) as store:
                    await store.add_many(new, skip)
            assert error.value.kind is Kind.FULL
        async with open_store(backend, read_only=True) as store:
            assert await store.page(UserQuery(), 9) == await store.page(UserQuery(q="x"), 9) == []
            assert await store.count(UserQuery(email="0@example.com")) == 0
        await backend.stop()

    with database.new() as url:
        asyncio.run(check(url))


@pytest.mark.parametrize("database", ["mongodb"], indirect=True)
def test_users_of_1_0_0_get_their_search_keys_at_the_start(database: Database) -> None:
    """MongoDB; Redis' is in test_redis.py. A start that was interrupted is continued."""

    async def read(url: str) -> list[Any]:
        backend: Any = open_backend(url)
        await start(backend)
        rows: list[Any] = await backend.page(UserQuery(q="zoe strasse", limit=200), 3000)
        await backend.stop()
        return rows

    with database.new() as url, MongoClient[dict[str, Any]](url) as client:
        asyncio.run(read(url))
        mongo = client[str(make_url(url).database)]
        old = [{"name": "Zoë", "email": f"{i}@straße.de", "id": i} for i in range(1, 450)]
        rows = [new_row(Row, {**each, "version": each["id"]}) for each in old]
        for row in rows:
            row |= {"_id": row.pop("id"), "email_key": fold(row["email"])}
            row["search_key"] = row["search_key"].split("\n")
            if row["_id"] > 100:
                del row["search_key"]
        mongo["users"].insert_many(rows)
        mongo["counters"].update_one({"_id": "users"}, {"$unset": {"layout": 1}})
        found = asyncio.run(read(url))
        assert [(user.id, user.version) for user in found] == [(i, i) for i in range(1, 450)]
        late = mongo["users"].find_one({"_id": 400}) or {}
        assert late["email_key"] == fold_email(late["email"]) == "400@straße.de"
        assert late["updated_at"] == rows[399]["updated_at"]


def test_words_of_a_search() -> None:
    assert words_of(" Ada ada <ADA@example.com>; ") == ("ada", "ada@example.com")
    assert words_of("< > \u0301") == ("<", ">")
