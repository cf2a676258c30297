"""PostgreSQL on three machines under Patroni and etcd, with the files of docs/operate.md."""

import asyncio
import faulthandler
import json
import os
import re
import secrets
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGQUIT, SIGSTOP, SIGTERM, Signals
from typing import Any

import asyncpg
import pytest
from conftest import ROOT, SLACK, answers, full, required, serve, wait_until
from databases import (
    _POSTGRESQL,
    Process,
    _ask_postgresql,
    _folder,
    _program,
    _running,
    free_port,
    send_to_family,
)
from load import Figures, check_healthy, count_lost, writing
from sqlalchemy import URL, make_url

ROUNDS = int(os.environ.get("ROUNDS", "5"))  # of each kind, half a minute each
RESUMED = 2 + SLACK  # seconds, at most, from the promotion to the first user who is stored
PAGE = (ROOT / "docs/operate.md").read_text()
# PostgreSQL refuses root, and only root may read a Python that is in root's home.
ACCOUNT = ["setpriv", "--pdeathsig=TERM", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
ACCOUNT += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]


class Here:
    """What the addresses, ports, folders and passwords of the page are on this machine."""

    def __init__(self) -> None:
        self.password = secrets.token_hex(16)
        self.ports = {port: free_port() for port in ("2379", "2380", "5432", "8008")}

    def read(self, begin: str, number: int = 1, folder: Path | str = "") -> str:
        """Return the block of the page that begins with some text, as it is on one machine."""
        blocks = re.findall(r"^```\w+\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
        [block] = [block for block in blocks if block.startswith(begin)]
        lines = [
            # The page: lines that name all three are the same everywhere, others have one's own.
            line
            if "192.0.2.2" in line
            else line.replace("node1", f"node{number}").replace("192.0.2.1", f"192.0.2.{number}")
            for line in block.splitlines()
        ]
        text = "\n".join(lines).replace("192.0.2.", "127.0.0.")
        for port, here in self.ports.items():
            text = re.sub(rf"(127\.0\.0\.\d):{port}\b", rf"\1:{here}", text)
        text = re.sub(r"\b[A-Z]+_PASSWORD\b", self.password, text)
        text = text.replace("/usr/lib/postgresql/15/bin", str(_POSTGRESQL[0]))
        return re.sub(r"/var/(lib/postgresql/15|run/postgresql)", str(folder), text)

    def url(self, number: int) -> URL:
        """Return the URL of one machine's PostgreSQL, for its superuser."""
        port = self.ports["5432"]
        return make_url(f"postgresql://postgres:{self.password}@127.0.0.{number}:{port}/postgres")


@dataclass
class Machine:
    """One of three: etcd, Patroni, and the PostgreSQL that Patroni has started."""

    etcd: Process
    patroni: Process
    url: URL

    def tell_postgresql(self, *numbers: Signals) -> None:
        """Send signals to PostgreSQL, which is no child of Patroni's."""
        for number in numbers:
            with suppress(FileNotFoundError):
                lines = (self.patroni.folder / "roster/postmaster.pid").read_text().splitlines()
                send_to_family(int(lines[0]), number)

    def kill_postgresql(self) -> None:
        """Let PostgreSQL fall down dead."""
        # A process that is stopped starts no other one while its family is looked for.
        self.tell_postgresql(SIGSTOP, SIGSTOP, SIGKILL)

    def freeze_postgresql(self) -> None:
        """Let PostgreSQL stand still."""
        self.tell_postgresql(SIGSTOP, SIGSTOP)

    def freeze(self) -> None:
        """Let everything stand still."""
        self.etcd.freeze()
        self.patroni.freeze()
        self.freeze_postgresql()

    def kill(self) -> None:
        """Let everything fall down dead."""
        self.freeze()
        self.kill_postgresql()
        self.patroni.kill()
        self.etcd.kill()

    def heal(self) -> None:
        """Let it run again, whatever was done to it."""
        self.etcd.heal()
        self.tell_postgresql(SIGCONT)
        self.patroni.heal()


HOW = {
    "PostgreSQL killed": Machine.kill_postgresql,
    "machine killed": Machine.kill,
    "machine frozen": Machine.freeze,
    "PostgreSQL frozen": Machine.freeze_postgresql,
}


class Cluster:
    """Three machines, and what they say of each other."""

    def __init__(self, here: Here, machines: list[Machine]) -> None:
        self.machines = machines
        self.apis = [
            f"http://127.0.0.{number}:{here.ports['8008']}/cluster" for number in (1, 2, 3)
        ]

    def roles(self) -> dict[str, Machine]:
        """Return those that have each role, as the first one says that knows."""
        for api in self.apis:
            with suppress(OSError):
                with urllib.request.urlopen(api, timeout=5) as answer:  # noqa: S310  # http:// above
                    members: list[dict[str, Any]] = json.load(answer)["members"]
                return {
                    member["role"]: self.machines[int(member["name"][-1]) - 1]
                    for member in members
                    if member["state"] in {"running", "streaming"}
                }
        return {}

    def is_whole(self) -> bool:
        """Return whether each has its role, and the leader agrees: etcd may be behind."""
        roles = self.roles()
        if roles.keys() != {"leader", "sync_standby", "replica"}:
            return False
        asked = "select count(*) from pg_stat_replication where state = 'streaming'"
        with suppress(OSError, asyncpg.PostgresError):
            return _ask_postgresql(roles["leader"].url, asked) == "2"
        return False

    def wait_until_whole(self) -> dict[str, Machine]:
        """Wait until each has its role; return who has which."""
        wait_until(self.is_whole, lambda: f"{self.roles()}", seconds=120)
        return self.roles()


@contextmanager
def start_cluster(here: Here) -> Iterator[Cluster]:
    """Run three machines with the files of the page; yield them once each has its role."""
    etcd = _program("etcd", [], "etcd-server", "")
    patroni = _program("patroni", [Path(sys.executable).parent], "patroni", "")
    account = ACCOUNT if os.getuid() == 0 else []
    machines = []
    with ExitStack() as stack:

        def run(folder: Path, *serve: str) -> Process:
            # None of them answers before the others are there.
            return stack.enter_context(_running(folder, ["true"], [*serve], SIGTERM, str))

        for number in (1, 2, 3):
            folder = stack.enter_context(_folder("root", ""))
            (folder / "yml").write_text(here.read("# /etc/patroni.yml", number, folder))
            member = here.read("# /etc/default/etcd", number).splitlines()[1:]
            machine = Machine(
                run(folder, "env", f"ETCD_DATA_DIR={folder}/etcd", *member, etcd),
                run(folder, *account, patroni, f"{folder}/yml"),
                here.url(number),
            )
            # To stop in order would take long.
            stack.callback(machine.tell_postgresql, SIGCONT, SIGQUIT)
            stack.callback(machine.patroni.kill)
            machines.append(machine)
        cluster = Cluster(here, machines)
        cluster.wait_until_whole()
        yield cluster


@pytest.fixture
def here() -> Here:
    """Return other addresses for each test."""
    return Here()


@pytest.fixture
def cluster(here: Here) -> Iterator[Cluster]:
    """Yield three new machines, with the role and the database of the page."""
    with required("PostgreSQL under Patroni"), start_cluster(here) as cluster:
        leader = cluster.wait_until_whole()["leader"]
        for statement in here.read("CREATE ROLE").splitlines():
            _ask_postgresql(leader.url, statement)
        yield cluster


async def wait_for_promotion(*standbys: Machine) -> float:
    """Return when one of them is the primary."""

    async def ask(url: str) -> float:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            while await connection.fetchval("select pg_is_in_recovery()"):  # noqa: ASYNC110 (it is on the server)
                await asyncio.sleep(0.02)
            return time.monotonic()
        finally:
            connection.terminate()

    urls = [machine.url.render_as_string(hide_password=False) for machine in standbys]
    tasks = [asyncio.create_task(ask(url)) for url in urls]
    done, others = await asyncio.wait(tasks, timeout=90, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    return done.pop().result()


@full
def test_leader_is_replaced_without_an_operator(
    here: Here, cluster: Cluster, tmp_path: Path, record_property: Figures
) -> None:
    loads, outages = [], []
    url = here.read("# .env\nDATABASE_URL=postgresql").partition("=")[2]
    with serve(url, tmp_path, "--no-access-log") as server:
        for how in [*HOW] * ROUNDS:
            faulthandler.dump_traceback_later(300, exit=True)  # as pytest's, for each round
            roles = cluster.wait_until_whole()
            leader = roles.pop("leader")
            with writing(server.url) as load:
                load.goes_on()
                time.sleep(1)
                broken = time.monotonic()
                HOW[how](leader)
                promoted = asyncio.run(wait_for_promotion(*roles.values()))
                wait_until(partial(load.succeeded_after, promoted))
                resumed = next(at for at in load.successes if at > promoted) - promoted
                # The old leader comes back while there is another one.
                leader.heal()
                time.sleep(3)
            loads.append(load)
            outages.append(resumed)
            figures = f"promoted after {promoted - broken:.1f} s, stored {resumed:.2f} s later, "
            figures += f"{len(load.stored)} acknowledged"
            record_property(f"\n  {len(loads)}. {how}:", figures)
            assert not load.wrong, load.wrong[:3]
            assert load.codes.keys() == {"201", "503"}
        wait_until(lambda: answers(f"{server.url}/readyz"))
        lost = count_lost(server.url, *loads)
        check_healthy(server, here.password)
    record_property("\n  acknowledged", sum(len(load.stored) for load in loads))
    record_property("lost", lost)
    record_property("longest from the promotion", f"{max(outages):.2f} s")
    assert lost == 0
    assert max(outages) < RESUMED
