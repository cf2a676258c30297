"""Redis Sentinel: the replica takes over from the master."""

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from signal import SIGTERM

import pytest
from conftest import SLACK, answers, full, required, serve, wait_until
from databases import Process, _folder, _new_admin, _program, _running, open_redis, redis_server
from load import Figures, check_healthy, count_lost, say, writing
from sqlalchemy import URL

pytestmark = full
# Seconds, at most, from the master's end to the first user who is stored: Sentinel waits for one,
# and that a server says nothing is an error after 3.
RESUMED = {"killed": 5 + SLACK, "frozen": 8 + SLACK}
LOGIN = secrets.token_hex(8)  # to the Sentinels


def text(url: URL) -> str:
    """Return a URL with its password."""
    return url.render_as_string(hide_password=False)


@pytest.fixture
def cluster() -> Iterator[tuple[Process, str]]:
    """Yield a master that has one replica and is watched by three Sentinels.

    Yields its process, and the app's DATABASE_URL.
    """
    with required("Redis Sentinel"), ExitStack() as stack:
        durable = ["--min-replicas-to-write 1", "--min-replicas-max-lag 2"]
        master, process = stack.enter_context(redis_server(*durable))
        assert process
        login = f"--masteruser {master.username}", f"--masterauth {master.password}"
        replica, _ = stack.enter_context(
            redis_server(*login, f"--replicaof {master.host} {master.port}")
        )
        with open_redis(text(replica)) as client:
            client.acl_setuser(
                str(master.username), True, passwords=[f"+{master.password}"], keep=True
            )
            wait_until(lambda: client.info("replication")["master_link_status"] == "up")
        hosts = []
        for _ in range(3):
            port = _new_admin("redis").port
            hosts.append(f"127.0.0.1:{port}")
            settings = f"""
port {port}
bind 127.0.0.1
requirepass "{LOGIN}"
sentinel sentinel-pass "{LOGIN}"
sentinel monitor roster {master.host} {master.port} 2
sentinel auth-user roster {master.username}
sentinel auth-pass roster {master.password}
sentinel down-after-milliseconds roster 1000
sentinel failover-timeout roster 5000
"""
            folder = stack.enter_context(_folder("redis", settings))
            command = [_program("redis-server", [], "redis-server", ""), f"{folder}/secret"]
            command += ["--sentinel", f"--dir {folder}"]

            def ask(port: int | None = port) -> str:
                url = URL.create("redis", "", LOGIN, "127.0.0.1", port)
                with open_redis(text(url)) as client:
                    return str(client.ping())

            stack.enter_context(_running(folder, ["true"], command, SIGTERM, ask))
        options = {"service": "roster", "sentinel_password": LOGIN}
        url = master.set(drivername="redis+sentinel", query=options)
        yield process, text(url).replace(f"{master.host}:{master.port}", ",".join(hosts))


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_replica_takes_over_from_a_master_that_is(
    cluster: tuple[Process, str], tmp_path: Path, record_property: Figures, how: str
) -> None:
    master, url = cluster
    with serve(url, tmp_path, "--no-access-log") as server:
        wait_until(lambda: answers(f"{server.url}/readyz"))
        with writing(server.url) as load:
            load.goes_on()
            time.sleep(2)
            killed = time.monotonic()
            if how == "killed":
                master.kill()
            else:
                master.freeze()
            time.sleep(0.5)
            load.goes_on()
            resumed = time.monotonic() - killed
            time.sleep(1)
        lost = count_lost(server.url, load)
        check_healthy(server, LOGIN)
    say(record_property, load, lost, resumed=resumed)
    assert lost == 0
    assert load.codes.keys() == {"201", "503"}
    assert not load.wrong, load.wrong[:3]
    assert resumed < RESUMED[how]
