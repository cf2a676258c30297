"""The SQLite file is read only, damaged, gone or another one: it is named, and left as it is."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from conftest import NO_TLS, serve
from load import Figures
from test_start import only_line, start_and_fail

# Root may write everything, unless it gives up the right to.
NOT_ROOT = ("setpriv", "--bounding-set=-dac_override") if os.getuid() == 0 else ()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database of 300 users, which nobody has open."""
    folder = tmp_path_factory.mktemp("original")
    with serve(f"sqlite:///{folder}/roster.db", folder) as server:
        new = [{"name": "x", "email": f"{i}@example.com"} for i in range(300)]
        answer = httpx.post(f"{server.url}/users/bulk", json=new, verify=NO_TLS)
        answer.raise_for_status()
    return folder / "roster.db"


@pytest.fixture
def file(original: Path, tmp_path: Path) -> Path:
    """Return a copy of it, in a folder of its own."""
    (tmp_path / "data").mkdir()
    return Path(shutil.copy(original, tmp_path / "data"))


def garbage(file: Path) -> None:
    """Write something else over the file, in place."""
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.write(b"this is no database " * (size // 20))


def cut(file: Path) -> None:
    """Cut off half of the file."""
    os.truncate(file, file.stat().st_size // 2 // 4096 * 4096)


def remove(file: Path) -> None:
    """Delete the file."""
    file.unlink()


def replace(file: Path) -> None:
    """Put another database in the place of the file, one with no users."""
    other = file.with_name("other.db")
    connection = sqlite3.connect(other)
    connection.execute("create table something (x)")
    connection.close()
    other.replace(file)


def move(file: Path) -> None:
    """Move the folder away."""
    file.parent.rename(file.parent.with_name("elsewhere"))


def remove_log(file: Path) -> None:
    """Delete what SQLite has not moved into the file yet."""
    Path(f"{file}-wal").unlink()


def replace_log(file: Path) -> None:
    """Put an empty log in its place."""
    remove_log(file)
    Path(f"{file}-wal").touch()


def remove_index(file: Path) -> None:
    """Delete the memory in which processes see each other's locks."""
    Path(f"{file}-shm").unlink()


@pytest.mark.parametrize(
    ("damage", "words"), [(garbage, "is not a SQLite database"), (cut, "is corrupt")]
)
def test_damaged_file_is_named_and_left_alone(
    file: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(file)
    before = file.read_bytes()
    line = only_line(start_and_fail(tmp_path, {"DATABASE_URL": f"sqlite:///{file}"}))
    assert str(file) in line
    assert words in line
    assert file.read_bytes() == before


def test_file_that_is_read_only_is_named(file: Path, tmp_path: Path) -> None:
    file.chmod(0o444)
    file.parent.chmod(0o555)
    before = file.read_bytes()
    env = {"DATABASE_URL": f"sqlite:///{file}"}
    line = only_line(start_and_fail(tmp_path, env, *NOT_ROOT))
    assert str(file) in line
    assert "cannot be written to" in line
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "damage", [garbage, cut, remove, replace, move, remove_log, replace_log, remove_index]
)
def test_file_that_is_damaged_while_it_is_open_is_503_and_not_made_anew(
    file: Path, tmp_path: Path, damage: Callable[[Path], None], record_property: Figures
) -> None:
    with (
        serve(f"sqlite:///{file}", tmp_path) as server,
        httpx.Client(base_url=server.url, trust_env=False, verify=NO_TLS) as client,
    ):
        client.get("/users/").raise_for_status()
        damage(file)
        before = file.read_bytes() if file.exists() else None
        answers = [
            client.get("/users/?limit=200&total=true"),
            client.get("/users/export"),
            client.get("/users/299"),
            client.post("/users/", json={"name": "x", "email": "new@example.com"}),
            client.post("/users/bulk", json=[{"name": "x", "email": "new@example.com"}]),
            client.patch("/users/299", json={"name": "Eve"}),
            client.delete("/users/1"),
        ]
        if damage is not garbage:  # SQLite has the page that it asks for in memory
            answers.append(client.get("/readyz"))
        codes = [answer.status_code for answer in answers]
        record_property("codes", codes)
        assert set(codes) == {503}
        printed = server.printed()
        assert "Traceback" not in printed
        assert f"the SQLite file {file}" in printed
    if not damage.__name__.endswith(("log", "index")):
        assert (file.read_bytes() if file.exists() else None) == before


@pytest.mark.parametrize("damage", [remove_log, remove_index])
def test_user_that_was_acknowledged_outlives_its_log_and_the_process(
    file: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    acknowledged = 0
    with serve(f"sqlite:///{file}", tmp_path) as server:
        for i in range(60):
            if i == 30:
                damage(file)
            new = {"name": "x", "email": f"new{i}@example.com"}
            answer = httpx.post(f"{server.url}/users/", json=new, verify=NO_TLS)
            acknowledged += answer.status_code == 201
        assert acknowledged == 30
        assert "SQLITE_READONLY_DBMOVED" in server.printed()
        server.process.kill()
        server.process.wait()
    with serve(f"sqlite:///{file}", tmp_path) as server:
        answer = httpx.get(f"{server.url}/users/?limit=1&total=true", verify=NO_TLS)
        assert answer.json()["total"] == 330
