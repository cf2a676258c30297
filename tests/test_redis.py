"""What is special about Redis: what it may lose or refuse, and that its keys stay whole."""

import asyncio
import random
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from conftest import required, serve
from databases import open_redis, redis_server
from redis import Redis
from redis import exceptions as redis_errors
from redis._parsers.base import BaseParser
from sqlalchemy.engine import URL, make_url
from test_contract import add, fields, read_all
from test_start import only_line, start_and_fail

from errors import FAULTS
from fields import fold, fold_all, fold_email
from models import UserCreate, UserUpdate
from store import Fault, Kind, find_fault
from store_redis import RedisUserStore


@pytest.fixture(scope="module")
def own_server() -> Iterator[URL]:
    """Yield the URL of a server that these tests may set up as they like."""
    with required("redis"), redis_server() as (url, _):
        yield url


@pytest.fixture
def url(own_server: URL) -> str:
    """Return the URL of an empty database, durable and without a limit."""
    url = own_server.render_as_string(hide_password=False)
    with open_redis(url) as redis:
        redis.flushdb()
        redis.config_set("appendonly", "yes")
        redis.config_set("maxmemory-policy", "noeviction")
        redis.config_set("maxmemory", 0)
        redis.config_resetstat()
    return url


@pytest.fixture
def redis(url: str) -> Iterator[Redis]:
    """Yield a client of that database."""
    with open_redis(url) as redis:
        yield redis


def check_keys(redis: Redis) -> None:
    """Check that the keys say the same of all users, and that there are no others."""
    users: dict[str, Any] = {
        key.removeprefix("roster:user:"): redis.hgetall(key)
        for key in redis.scan_iter("roster:user:*")
    }
    for padded, user in users.items():
        assert padded == f"{int(user['id']):019}"
        assert user["name_key"] == fold(user["name"])
        assert user["email_key"] == fold_email(user["email"])
        assert user["search_key"] == fold_all(user["name"], user["email"])
    assert redis.hgetall("roster:emails") == {user["email_key"]: i for i, user in users.items()}
    assert redis.zrange("roster:by_id", 0, -1) == sorted(users)
    members = sorted(f"{user['name_key']}\0{i}" for i, user in users.items())
    assert redis.zrange("roster:by_name", 0, -1) == members
    texts = [*redis.scan_iter("roster:search:*")]
    for key in texts:
        hundred = [i for i in sorted(users) if i.startswith(key.removeprefix("roster:search:"))]
        text = "".join(f"{users[i]['search_key']}\0{i}\1" for i in hundred)
        assert redis.get(key) == text
    keys = len(users) + len(texts) + len(["last_id", "emails", "by_id", "by_name"])
    assert redis.dbsize() == keys


def test_field_that_a_hash_lacks_is_null(url: str, redis: Redis, tmp_path: Path) -> None:
    with serve(url, tmp_path) as server, httpx.Client(base_url=server.url) as client:
        user = add(client)
        redis.hdel(f"roster:user:{user['id']:019}", "name")
        assert read_all(client) == [{**user, "name": None}]
        assert client.get(f"/users/{user['id']}").json() == {**user, "name": None}


def test_durable_server_starts_without_a_warning(url: str, tmp_path: Path) -> None:
    with serve(url, tmp_path) as server:
        assert "WARNING" not in server.printed()


@pytest.mark.parametrize(
    ("setting", "value"), [("appendonly", "no"), ("maxmemory-policy", "allkeys-lru")]
)
def test_server_that_may_lose_users_is_warned_of_at_start(
    url: str, redis: Redis, tmp_path: Path, setting: str, value: str
) -> None:
    redis.config_set(setting, value)
    with serve(url, tmp_path) as server:
        warnings = re.findall("WARNING:.*", server.printed())
    assert len(warnings) == 1
    assert "may lose users unless appendonly is yes and maxmemory-policy noeviction" in warnings[0]


def test_account_that_may_do_no_more_than_it_needs(url: str, redis: Redis, tmp_path: Path) -> None:
    commands = "-@all +evalsha +script|load +get +incr +del +hget +hmget +hset +hdel"
    commands += " +hexists +hincrby +zadd +zrem +set +zrange +zlexcount +ping +select"
    rules = ["on", ">secret", "~roster:*", *commands.split()]
    redis.execute_command("ACL SETUSER", "limited", *rules)  # type: ignore[no-untyped-call]  # redis-py's
    limited = make_url(url).set(username="limited", password="secret")
    with serve(limited.render_as_string(hide_password=False), tmp_path) as server:
        with httpx.Client(base_url=server.url) as client:
            assert client.get("/readyz").is_success
            path = f"/users/{add(client)['id']}"
            assert client.patch(path, json={"name": "b", "email": "b@c.de"}).is_success
            assert client.get("/users/?name=b&total=true").json()["total"] == 1
            assert client.get("/users/?email=b@c.de").is_success
            assert client.delete(path).is_success
        assert server.printed().count("may lose users unless") == 1
        assert "secret" not in server.printed()


def test_key_of_somebody_else_ends_the_app(url: str, redis: Redis, tmp_path: Path) -> None:
    redis.set("roster:by_name", "something")
    line = only_line(start_and_fail(tmp_path, {"DATABASE_URL": url}))
    assert "cannot be used (WRONGTYPE)" in line


def test_full_memory_answers_507_and_reads_and_deletes_go_on(
    url: str, redis: Redis, tmp_path: Path
) -> None:
    with serve(url, tmp_path) as server, httpx.Client(base_url=server.url) as client:
        ada, eve = add(client, "Ada"), add(client, "Eve")
        redis.config_set("maxmemory", 1)
        new = {"name": "new", "email": "new@example.com"}
        for response in (
            client.post("/users/", json=new),
            client.post("/users/bulk", json=[new]),
            client.patch(f"/users/{ada['id']}", json={"name": "new"}),
            client.patch(f"/users/{ada['id']}", json={"email": "new@example.com"}),
            client.patch(f"/users/{ada['id']}", json={"name": "ada"}),
        ):
            assert response.status_code == 507
            assert response.json() == {"detail": FAULTS[Kind.FULL][1]}
        check_keys(redis)
        assert read_all(client) == [ada, eve]
        assert read_all(client, name="a", sort="-id") == [ada]
        assert client.get("/readyz").is_success
        assert client.delete(f"/users/{eve['id']}").status_code == 204
        assert client.patch(f"/users/{ada['id']}", json={}).json() == ada
        redis.config_set("maxmemory", 0)
        assert add(client, email="new@example.com")["id"] > eve["id"]
        check_keys(redis)


@pytest.mark.parametrize("limit", [1, 3, 50, 200])
def test_matches_sorted_by_id_are_those_of_a_search_in_all(
    url: str, tmp_path: Path, limit: int
) -> None:
    chance = random.Random(limit)
    new = [{"name": chance.choice("aAb") + str(i % 7), "email": f"{i}@b.de"} for i in range(300)]
    with serve(url, tmp_path) as server, httpx.Client(base_url=server.url) as client:
        users = client.post("/users/bulk", json=new).json()["items"]
        found = [user for user in users if user["name"].lower().startswith("a")]
        assert read_all(client, name="a", sort="id", limit=limit) == found
        assert read_all(client, name="a", sort="-id", limit=limit) == found[::-1]


def test_search_that_fits_thousands_finds_them_by_id(url: str, tmp_path: Path) -> None:
    # More than Redis sorts in one go, after more than it looks through in one go.
    with serve(url, tmp_path) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        for first in range(0, 10_400, 800):
            new = [
                {"name": "b" if i < 5_100 else "A", "email": f"{i}@b.de"}
                for i in range(first, first + 800)
            ]
            client.post("/users/bulk", json=new).raise_for_status()
        found = [f"{i}@b.de" for i in range(5_100, 10_400)]
        for sort, wanted in (("id", found), ("-id", found[::-1])):
            users = read_all(client, name="a", sort=sort, limit=200)
            assert [user["email"] for user in users] == wanted


SEARCHES = [("00", ""), ("7", "a"), ("a 1 b1", ""), ("zz", ""), ("de0", ""), ("b0", "c 9")]


@pytest.mark.parametrize("sort", ["id", "-id", "name", "-name"])
def test_search_in_texts_finds_what_the_users_have(url: str, tmp_path: Path, sort: str) -> None:
    """Words of digits, which the ids in a text have too; a text that a change has deleted."""
    chance = random.Random(sort)

    def found(users: list[dict[str, Any]], q: str, name: str) -> list[dict[str, Any]]:
        fit = [
            user
            for user in users
            if all(word in fold_all(user["name"], user["email"]) for word in q.split())
            and fold(user["name"]).startswith(name)
        ]
        key = "id" if sort.endswith("id") else "name"
        fit.sort(key=lambda user: (key == "name" and fold(user["name"]), user["id"]))
        return fit[::-1] if sort.startswith("-") else fit

    with serve(url, tmp_path) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        for first in range(0, 3200, 800):
            new = [
                {"name": f"{chance.choice('aBc')} {i % 97}", "email": f"{i * 7}@b{i % 2}.de"}
                for i in range(first, first + 800)
            ]
            client.post("/users/bulk", json=new).raise_for_status()
        for _ in range(2):  # the second time, with texts that are partly those of the first
            users = read_all(client, limit=200)
            for q, name in SEARCHES:
                wanted = found(users, q, name)
                assert read_all(client, q=q, name=name, sort=sort, limit=37) == wanted
                asked: Any = {"q": q, "name": name, "sort": sort, "total": True, "limit": 1}
                assert client.get("/users/", params=asked).json()["total"] == len(wanted)
            client.patch(f"/users/{users[5]['id']}", json={"name": "a 007"}).raise_for_status()
            client.delete(f"/users/{users[2500]['id']}").raise_for_status()


def test_change_of_a_user_without_a_search_key_leaves_it_to_the_start(
    url: str, redis: Redis, tmp_path: Path
) -> None:
    """A server that is unreachable at the start has its changes before its users are converted."""
    with serve(url, tmp_path) as server, httpx.Client(base_url=server.url) as client:
        path = f"/users/{add(client, 'Ada')['id']}"
        redis.hdel("roster:user:0000000000000000001", "search_key")
        client.patch(path, json={"name": "Eve"}).raise_for_status()
        assert read_all(client, q="eve") == []
    with serve(url, tmp_path) as server, httpx.Client(base_url=server.url) as client:
        assert [user["name"] for user in read_all(client, q="eve")] == ["Eve"]
        check_keys(redis)


def test_users_of_1_0_0_get_their_search_keys_at_the_start(
    url: str, redis: Redis, tmp_path: Path
) -> None:
    """Even if an earlier start was interrupted. A domain with ß has a key of its own since."""
    at = "2026-11-23T12:00:00.000000+00:00"
    many = {i: (f"Zoë {i % 7}", f"{i}@straße.de") for i in range(1, 2300)}
    pipeline = redis.pipeline(transaction=False)
    for i, (name, email) in many.items():
        keys = {"name_key": fold(name), "email_key": fold(email)}
        times = {"created_at": at, "updated_at": at}
        user: dict[Any, Any] = {"id": i, "version": i, "name": name, "email": email}
        pipeline.hset(f"roster:user:{i:019}", mapping=user | times | keys)
        pipeline.hset("roster:emails", keys["email_key"], f"{i:019}")
        pipeline.zadd("roster:by_id", {f"{i:019}": 0})
        pipeline.zadd("roster:by_name", {f"{keys['name_key']}\0{i:019}": 0})
    pipeline.set("roster:last_id", len(many))
    pipeline.execute()
    asyncio.run(interrupted_start(url))
    done = sum(redis.hexists(f"roster:user:{i:019}", "search_key") for i in many)
    assert 0 < done < len(many)
    with serve(url, tmp_path) as server, httpx.Client(base_url=server.url) as client:
        assert "users lack their search keys" in server.printed()
        check_keys(redis)
        found = read_all(client, q="zoe strasse", limit=200)
        assert [(user["id"], user["version"]) for user in found] == [(i, i) for i in many]
        assert {user["updated_at"] for user in found} == {"2026-11-23T12:00:00Z"}


async def interrupted_start(url: str) -> None:
    """Start, and be cancelled after the first piece."""
    store = RedisUserStore(url)
    run = store.run
    ran: list[Any] = []

    async def run_twice(*args: Any) -> Any:
        if len(ran) == 2:
            raise asyncio.CancelledError
        ran.append(args)
        return await run(*args)

    store.run = run_twice  # type: ignore[assignment]  # to stop in the middle
    with pytest.raises(asyncio.CancelledError):
        await store.start()
    await store.stop()


def test_ids_beyond_the_exact_numbers_of_lua_are_exact(
    url: str, redis: Redis, tmp_path: Path
) -> None:
    redis.set("roster:last_id", 2**53)
    with serve(url, tmp_path) as server, httpx.Client(base_url=server.url) as client:
        users = [add(client, "a"), add(client, "b")]
        assert [user["id"] for user in users] == [2**53 + 1, 2**53 + 2]
        assert client.patch(f"/users/{2**53 + 1}", json={}).json() == users[0]
        for search in ({}, {"sort": "name"}, {"email": users[1]["email"]}, {"name": "b"}):
            assert read_all(client, **search)[-1] == users[1]
        check_keys(redis)


def test_no_command_walks_through_all_keys(url: str, redis: Redis, tmp_path: Path) -> None:
    with serve(url, tmp_path) as server, httpx.Client(base_url=server.url) as client:
        add(client, "a*", "ada@example.com")
        for sort in ("id", "-id", "name", "-name"):
            for search in ({}, {"name": "a"}, {"q": "*"}, {"email": "ada@example.com"}):
                client.get("/users/", params={"sort": sort, "total": True, **search})
        client.get("/users/export")
        used = {name.removeprefix("cmdstat_") for name in redis.info("commandstats")}
    assert "zrange" in used
    assert not used & {"keys", "scan", "sscan", "hscan", "zscan", "sort", "hgetall", "hkeys"}


def test_change_is_one_script_and_no_other_command(url: str, redis: Redis, tmp_path: Path) -> None:
    with serve(url, tmp_path) as server, httpx.Client(base_url=server.url) as client:

        def change() -> None:
            path = f"/users/{add(client)['id']}"
            new = [{"name": "b", "email": "b@c.de"}]
            client.post("/users/bulk?on_conflict=skip", json=new).raise_for_status()
            client.patch(path, json={"name": "c"}, headers={"If-Match": '"1"'}).raise_for_status()
            client.delete(path, headers={"If-Match": '"2"'}).raise_for_status()

        change()  # the first time, Redis is sent the scripts' texts too
        seen: list[str] = []
        with redis.monitor() as monitor:  # type: ignore[no-untyped-call]  # redis-py's
            redis.ping()
            change()
            redis.ping()
            while seen.count("PING") < 2:
                command = monitor.next_command()
                if command["client_type"] != "lua":
                    seen.append(command["command"].split()[0])
    assert seen[seen.index("PING") :] == ["PING", *["EVALSHA"] * 4, "PING"]


def test_three_processes_at_once_keep_the_keys_whole(
    url: str, redis: Redis, tmp_path: Path
) -> None:
    def work(base_url: str, seed: int) -> list[int]:
        chance, ids = random.Random(seed), []
        with httpx.Client(base_url=base_url, timeout=30) as client:
            for _ in range(60):
                new = {"name": chance.choice("aAbc"), "email": f"{chance.randrange(30)}@b.de"}
                path = f"/users/{chance.randrange(1, 60)}"
                response = client.post("/users/", json=new)
                if response.is_success:
                    ids.append(response.json()["id"])
                else:
                    assert fields(response) == [["body", "email"]]
                assert client.patch(path, json=new).status_code in (200, 404, 409)
                if chance.random() < 0.5:
                    assert client.delete(path).status_code in (204, 404)
        return ids

    with ExitStack() as stack, ThreadPoolExecutor(6) as pool:
        servers = []
        for i in range(3):
            (folder := tmp_path / str(i)).mkdir()
            servers.append(stack.enter_context(serve(url, folder)))
        work_done = [pool.submit(work, servers[i % 3].url, i) for i in range(6)]
        ids = [user_id for part in work_done for user_id in part.result()]
        assert sorted(ids) == list(range(1, len(ids) + 1))
        check_keys(redis)
        with httpx.Client(base_url=servers[0].url) as client:
            assert len(read_all(client)) == redis.zcard("roster:by_id") > 0
        for server in servers:
            assert "Traceback" not in server.printed()


@contextmanager
def swallow(to: int, sent: list[bytes]) -> Iterator[int]:
    """Yield a port that passes everything on, but hangs up instead of answering a script."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", to)) as redis:
                while data := self.request.recv(65536):
                    redis.sendall(data)
                    answer = redis.recv(65536)
                    if b"EVALSHA" in data and b"NOSCRIPT" not in answer and sent:
                        sent.append(data)
                        return
                    self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as relay:
        relay.daemon_threads = True
        threading.Thread(target=relay.serve_forever, daemon=True).start()
        yield relay.server_address[1]
        relay.shutdown()


@contextmanager
def serve_through(url: str, sent: list[bytes], folder: Path) -> Iterator[httpx.Client]:
    """Yield a client of the app, which reaches Redis through a port that swallows answers."""
    with swallow(make_url(url).port or 0, sent) as port:
        through = make_url(url).set(port=port).render_as_string(hide_password=False)
        with serve(through, folder) as server, httpx.Client(base_url=server.url) as client:
            yield client


def test_change_whose_answer_is_lost_is_not_sent_again(
    url: str, redis: Redis, tmp_path: Path
) -> None:
    sent: list[bytes] = []
    with serve_through(url, sent, tmp_path) as client:
        path = f"/users/{add(client)['id']}"
        client.patch(path, json={}).raise_for_status()
        sent.append(b"from now on")
        assert client.patch(path, json={"name": "Eve"}).status_code == 503
        assert len(sent) == 2
        assert redis.hget("roster:user:0000000000000000001", "version") == "2"


def test_read_whose_answer_is_lost_is_sent_once_more(url: str, tmp_path: Path) -> None:
    sent: list[bytes] = []
    with serve_through(url, sent, tmp_path) as client:
        client.get("/users/").raise_for_status()
        sent.append(b"from now on")
        assert client.get("/users/").status_code == 503
        assert len(sent) == 3
        sent.clear()
        assert client.get("/users/").is_success


def test_connection_that_ends_just_before_a_command_is_unreachable(
    url: str, redis: Redis, tmp_path: Path
) -> None:
    """redis-py has looked at it, and has not written yet; uvloop raises a RuntimeError."""

    async def use() -> None:
        store = RedisUserStore(url)
        pool: Any = store.redis.connection_pool

        def end_connection() -> None:
            (connection,) = pool._available_connections
            connection._writer.transport.abort()  # the loop is told of it a moment later

        try:
            user = await store.add(UserCreate(name="Ada", email="ada@example.com"))
            end_connection()
            with pytest.raises(Fault) as found:
                await store.change(user.id, UserUpdate.model_validate({"name": "Eve"}), None)
            assert found.value.kind is Kind.UNREACHABLE
            assert isinstance(found.value.__cause__, RuntimeError)
            assert await store.get(user.id) == user
            end_connection()
            assert await store.get(user.id) == user  # sent once more
        finally:
            await store.stop()

    uvloop.run(use())


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", Kind.FULL),
        ("READONLY You can't write against a read only replica.", Kind.READ_ONLY),
        ("MISCONF Errors writing to the AOF file.", Kind.READ_ONLY),
        ("NOREPLICAS Not enough good replicas to write.", Kind.READ_ONLY),
        ("LOADING Redis is loading the dataset in memory", Kind.UNREACHABLE),
        ("MASTERDOWN Link with MASTER is down", Kind.UNREACHABLE),
        ("ERR max number of clients reached", Kind.UNREACHABLE),
        ("BUSY Redis is busy running a script.", Kind.BUSY),
        ("NOAUTH Authentication required.", Kind.REFUSED),
        ("WRONGPASS invalid username-password pair", Kind.REFUSED),
        ("NOPERM this user has no permissions", Kind.REFUSED),
        ("ERR DB index is out of range", Kind.REFUSED),
        ("ERR unknown command", None),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", None),
        (redis_errors.ConnectionError("Connection closed by server."), Kind.UNREACHABLE),
        (redis_errors.TimeoutError("Timeout reading from socket"), Kind.UNREACHABLE),
    ],
    ids=lambda value: str(value)[:24],
)
def test_errors_of_redis_have_their_answer(said: str | Exception, fault: Kind | None) -> None:
    parse: Any = BaseParser.parse_error
    error = parse(said) if isinstance(said, str) else said
    store = RedisUserStore("redis://localhost")
    found = find_fault(store.codes(error), store.kinds, store.place)
    assert (found and found.kind) is fault


def test_get_a_page_and_create_take_one_round_trip_each(
    url: str, redis: Redis, tmp_path: Path
) -> None:
    with serve(url, tmp_path) as server, httpx.Client(base_url=server.url) as client:

        def use() -> None:
            path = f"/users/{add(client)['id']}"
            client.get(path).raise_for_status()
            client.get("/users/?sort=name").raise_for_status()

        use()  # sends the scripts
        with redis.monitor() as monitor:  # type: ignore[no-untyped-call]  # it has no types
            redis.echo("begin")
            use()
            redis.echo("end")
            asked = []
            for said in monitor.listen():
                if said["client_type"] != "lua":  # that is within a script
                    asked.append(said["command"])
                if said["command"] == "ECHO end":
                    break
        asked = [command.split()[0] for command in asked[asked.index("ECHO begin") + 1 : -1]]
        assert asked == ["EVALSHA", "HMGET", "EVALSHA"]
