"""The app or its database dies while users are written: nothing that was acknowledged is lost."""

import sqlite3
import time
from pathlib import Path
from statistics import median

from conftest import FULL, SLACK, answers, full, serve, wait_until
from databases import Database
from load import HEAL, SERVERS, Figures, check_healthy, count_lost, on, writing
from sqlalchemy.engine import make_url

START = 3 + SLACK  # seconds, at most, in which a killed app is back


@on("sqlite", *SERVERS)
def test_app_killed_while_it_writes_loses_nothing(
    own: Database, tmp_path: Path, record_property: Figures
) -> None:
    loads, starts = [], []
    for _ in range(20 if FULL else 1):
        began = time.monotonic()
        with serve(own.url, tmp_path, "--no-access-log") as server:
            wait_until(lambda url=server.url: answers(f"{url}/readyz"))  # type: ignore[misc]  # mypy cannot infer it
            starts.append(time.monotonic() - began)
            with writing(server.url) as load:
                load.goes_on()
                time.sleep(0.3)
                server.process.kill()
                load.done.set()
                server.process.wait()
        loads.append(load)
        assert not load.wrong
        assert load.codes.keys() <= {"201", "ConnectError", "ReadError", "RemoteProtocolError"}
    with serve(own.url, tmp_path) as server:
        lost = count_lost(server.url, *loads)
        check_healthy(server)
    record_property("rounds", len(loads))
    record_property("acknowledged", sum(len(load.stored) for load in loads))
    record_property("lost", lost)
    record_property("starts", f"{median(starts):.1f} s, slowest {max(starts):.1f} s")
    assert lost == 0
    if FULL:  # one start says little: the machine may be busy with something else
        assert median(starts) < START
    if own.url.startswith("sqlite"):
        connection = sqlite3.connect(str(make_url(own.url).database))
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        connection.close()


def go_away_and_come_back(
    own: Database, folder: Path, figures: Figures, rounds: int, *, kill: bool
) -> int:
    """Take the database away and give it back while users are written; return how many are lost.

    The app starts before the database, which has no tables yet.
    """
    assert own.process
    secret = str(make_url(own.url).password)
    own.process.stop()
    healed = 0.0
    with serve(own.url, folder, "--no-access-log") as server:
        assert not answers(f"{server.url}/readyz")
        with writing(server.url) as load:
            for _ in range(rounds):
                own.process.start()
                began = time.monotonic()
                load.goes_on()
                healed = max(healed, time.monotonic() - began)
                time.sleep(0.5)
                if kill:
                    own.process.kill()
                else:
                    own.process.stop()
                time.sleep(0.5)
                assert answers(f"{server.url}/livez")
            own.process.start()
            load.goes_on()
        lost = count_lost(server.url, load)
        check_healthy(server, secret)
    for name, figure in {
        "rounds": rounds,
        "acknowledged": len(load.stored),
        "lost": lost,
        "longest outage": f"{load.outage():.1f} s",
        "healed after": f"{healed:.2f} s",
        "longest request": f"{load.longest_request:.1f} s",
        "codes": dict(load.codes),
    }.items():
        figures(name, figure)
    assert not load.wrong, load.wrong[:3]
    assert load.codes.keys() == {"201", "503"}
    assert healed < HEAL
    return lost


@on("postgresql", "mysql", "redis")
def test_database_killed_while_it_is_written_to_loses_nothing(
    own: Database, tmp_path: Path, record_property: Figures
) -> None:
    rounds = 10 if FULL else 1
    assert go_away_and_come_back(own, tmp_path, record_property, rounds, kill=True) == 0


@full
@on(*SERVERS)
def test_database_stopped_and_started_under_load_heals(
    own: Database, tmp_path: Path, record_property: Figures
) -> None:
    assert go_away_and_come_back(own, tmp_path, record_property, 5, kill=False) == 0
