"""Three Galera nodes behind HAProxy: one dies, then there is no quorum; rivals on all three."""

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM

import httpx
import pytest
from conftest import NO_TLS, SLACK, answers, full, required, serve, wait_until
from databases import (
    _MYSQL,
    Missing,
    Process,
    _ask_mysql,
    _folder,
    _new_admin,
    _program,
    _running,
    free_port,
)
from load import Figures, check_healthy, count_lost, say, writing
from sqlalchemy import URL

pytestmark = full
RESUMED = 5 + SLACK  # seconds, at most, from a node's end to the first user who is stored
PROVIDER = Path("/usr/lib/galera/libgalera_smm.so")


@dataclass
class Cluster:
    """Three nodes, and the DATABASE_URLs of a proxy to one of them at a time and to all."""

    nodes: list[Process]
    admins: list[URL]
    one: str
    all: str


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    return [free_port() for _ in range(count)]


@contextmanager
def start_node(admin: URL, members: list[int], number: int, accounts: str) -> Iterator[Process]:
    """Run a node; the first one makes the cluster and the accounts, the others copy them."""
    install, mariadbd = (
        _program(name, _MYSQL, "mariadb-server", "") for name in ("mariadb-install-db", "mariadbd")
    )
    _program("rsync", [], "rsync", "")
    if not PROVIDER.exists():
        raise Missing("no Galera here: install Debian's galera-4")
    ist, sst = free_ports(2)
    with _folder("mysql", accounts) as folder:
        shared = ["--no-defaults", f"--datadir={folder}/data", f"--tmpdir={folder}"]
        shared += ["--skip-name-resolve"]
        # An operator who does not want to wait for 5 seconds sets suspect_timeout.
        options = {
            "gmcast.listen_addr": f"tcp://127.0.0.1:{members[number]}",
            "ist.recv_addr": f"127.0.0.1:{ist}",
            "evs.suspect_timeout": "PT2S",
            "evs.keepalive_period": "PT0.5S",
            "gcache.size": "32M",
        }
        serve = [mariadbd, *shared, f"--bind-address={admin.host}", f"--port={admin.port}"]
        serve += [f"--socket={folder}/socket", f"--pid-file={folder}/pid"]
        serve += ["--innodb-buffer-pool-size=32M", "--binlog-format=ROW"]
        serve += ["--innodb-autoinc-lock-mode=2", "--wsrep-on=ON", f"--wsrep-provider={PROVIDER}"]
        serve += ["--wsrep-cluster-address=gcomm://" + ",".join(f"127.0.0.1:{p}" for p in members)]
        serve += [f"--wsrep-node-address=127.0.0.1:{members[number]}", "--wsrep-sst-method=rsync"]
        serve += [f"--wsrep-sst-receive-address=127.0.0.1:{sst}"]
        serve += ["--wsrep-provider-options=" + ";".join(f"{k}={v}" for k, v in options.items())]
        serve += [f"--init-file={folder}/secret", "--wsrep-new-cluster"] if number == 0 else []
        with _running(
            folder,
            [install, *shared, "--skip-test-db"],
            serve,
            SIGTERM,
            lambda: _ask_mysql(admin, "select count(*) from mysql.user"),
        ) as process:
            yield process


@contextmanager
def start_proxy(admins: list[URL]) -> Iterator[list[int]]:
    """Run HAProxy; yield its two ports: to the first node that lives, and to all of them."""
    ports = free_ports(2)
    lines = ["defaults", "mode tcp", "timeout connect 2s", "timeout client 1h", "timeout server 1h"]
    for port, name, backup in zip(ports, ("one", "all"), (" backup", ""), strict=True):
        lines += [f"listen {name}", f"bind 127.0.0.1:{port}", "option mysql-check user haproxy"]
        lines += ["default-server check inter 500 fall 2 rise 2 on-marked-down shutdown-sessions"]
        for number, admin in enumerate(admins):
            spare = backup if number else ""
            lines.append(f"server node{number} {admin.host}:{admin.port}{spare}")
    with _folder("haproxy", "\n".join([*lines, ""])) as folder:
        serve = [_program("haproxy", [Path("/usr/sbin")], "haproxy", ""), "-f", f"{folder}/secret"]

        def ask() -> str:
            return " ".join(_ask_mysql(admins[0].set(port=port)) for port in ports)

        with _running(folder, ["true"], serve, SIGTERM, ask):
            yield ports


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Yield a new cluster."""
    with required("Galera"), ExitStack() as stack:
        admin = _new_admin("mysql").set(database="roster")
        who = f"'{admin.username}'@'{admin.host}'"
        accounts = f"create user {who} identified by '{admin.password}';\n"
        accounts += f"grant all on *.* to {who};\ncreate user haproxy@127.0.0.1;\n"
        accounts += "create database roster;\n"
        admins = [admin, *(admin.set(port=port) for port in free_ports(2))]
        members = free_ports(3)
        nodes = [
            stack.enter_context(start_node(admins[i], members, i, accounts if i == 0 else ""))
            for i in range(3)
        ]
        ports = stack.enter_context(start_proxy(admins))
        urls = [
            admin.set(drivername="mysql", port=port).render_as_string(hide_password=False)
            for port in ports
        ]
        yield Cluster(nodes, admins, *urls)


def bootstrap(admin: URL) -> None:
    """Make a node without a quorum the whole cluster; asyncmy cannot, for it commits first."""
    command = ["mariadb", "--no-defaults", f"-h{admin.host}", f"-P{admin.port}"]
    command += [f"-u{admin.username}", "-e", "set global wsrep_provider_options='pc.bootstrap=1'"]
    environment = {**os.environ, "MYSQL_PWD": str(admin.password)}
    subprocess.run(command, env=environment, timeout=10, check=True)


def test_a_node_dies_and_then_the_quorum(
    cluster: Cluster, tmp_path: Path, record_property: Figures
) -> None:
    with serve(cluster.one, tmp_path, "--no-access-log") as server:
        with writing(server.url) as load:
            load.goes_on()
            time.sleep(2)
            killed = time.monotonic()
            cluster.nodes[0].kill()
            time.sleep(0.5)
            load.goes_on()
            resumed = time.monotonic() - killed
            time.sleep(2)
            # Of the two that are left, one is not the majority.
            cluster.nodes[1].kill()
            time.sleep(3)
            stored = len(load.stored)
            time.sleep(3)
            assert len(load.stored) == stored
            assert "1047" in server.printed()
            assert answers(f"{server.url}/livez")
            assert not answers(f"{server.url}/readyz")
            # An operator says that the others are really gone.
            bootstrap(cluster.admins[2])
            began = time.monotonic()
            load.goes_on()
            healed = time.monotonic() - began
            time.sleep(1)
        lost = count_lost(server.url, load)
        check_healthy(server, str(cluster.admins[0].password))
    say(record_property, load, lost, resumed=resumed, healed=healed)
    assert lost == 0
    assert load.codes.keys() == {"201", "503"}
    assert not load.wrong, load.wrong[:3]
    assert resumed < RESUMED
    assert healed < 2


def test_rivals_on_three_nodes(cluster: Cluster, tmp_path: Path, record_property: Figures) -> None:
    rounds = 10
    with (
        serve(cluster.all, tmp_path) as server,
        httpx.Client(base_url=server.url, timeout=60, verify=NO_TLS) as client,
        ThreadPoolExecutor(24) as threads,
    ):
        wait_until(lambda: answers(f"{server.url}/readyz"))
        for i in range(rounds):
            ada = {"name": "Ada", "email": f"ada{i}@example.com"}
            rivals = [threads.submit(client.post, "/users/", json=ada) for _ in range(24)]
            codes = sorted(rival.result().status_code for rival in rivals)
            assert codes == [201] + [409] * 23
        check_healthy(server)
    record_property("rounds", rounds)
