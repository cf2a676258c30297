"""The pages of docs/: what they quote is in the code, and what they say to run runs."""

import ast
import contextlib
import csv
import io
import os
import re
import runpy
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from conftest import FULL, ROOT, full, quick_on
from databases import BACKENDS, Database

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
TOUR = (DOCS / "tour.md").read_text()
SCRIPTS = dict(
    re.findall(r"```console\n\$ python (docs/pitfalls/\w+\.py)\n(.*?)```", TOUR, re.DOTALL)
)

# What all of them import takes longer than what they do.
PRELOADED = ["asyncpg", "email_validator", "fastapi.openapi", "httpx", "pydantic_settings"]
PRELOADED += ["sqlmodel.ext.asyncio.session", "sqlalchemy.ext.asyncio", "sqlalchemy.dialects.mysql"]


def run_script(script: str, folder: Path) -> str:
    """Run a script, in a process of its own that has imported much already; return its output."""
    printed = io.StringIO()
    tempfile.tempdir = str(folder)
    sys.path.insert(0, str(DOCS / "pitfalls"))
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return printed.getvalue()


def test_pitfalls_print_what_the_tour_says(tmp_path: Path) -> None:
    assert sorted(SCRIPTS) == sorted(
        str(path.relative_to(ROOT)) for path in DOCS.glob("pitfalls/[0-9]*.py")
    )
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with context.Pool(2, maxtasksperchild=1) as pool:
        printed = pool.starmap(run_script, [(script, tmp_path) for script in SCRIPTS], chunksize=1)
    assert dict(zip(SCRIPTS, printed, strict=True)) == SCRIPTS


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", TOUR, re.DOTALL))
def test_lines_in_the_tour_are_in_the_code(block: str) -> None:
    """A line "..." leaves lines out; "# file.py" says where those after it are."""
    code = ""
    for part in block.split("...\n"):
        if match := re.match(r"# ([\w/]+\.py)\n", part):
            code, part = (ROOT / match[1]).read_text(), part[match.end() :]
        assert part.strip()
        assert f"\n{part}" in f"\n{code}", part


def test_each_stop_of_the_tour_shows_code_and_what_goes_wrong_without_it() -> None:
    stops = re.split(r"^## (?=\d)", TOUR, flags=re.MULTILINE)[1:]
    assert len(stops) == 11
    for stop in stops:
        assert "```python\n" in stop, stop
        assert "```console\n" in stop, stop


def headings(page: Path) -> list[str]:
    """Return what GitHub's links call a page's headings."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link, heading in re.findall(r"\]\(([^)#:]*)(?:#([^):]*))?\)", page.read_text()):
        file = page.parent / link if link else page
        assert file.exists(), link
        assert not heading or heading in headings(file), f"{link}#{heading}"


BLOCK = re.compile(
    r"""^```\w+\n(?:\#|<!--)[ ]([\w./-]+)  # the file
    (?:,[ ](?:(at[ ]the[ ]end)|(above|below|instead[ ]of)[ ]"([^\n]*)"))?(?:[ ]-->)?\n
    (.*?)^```$""",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)


def follow(page: str, folder: Path) -> None:
    """Do in a copy what the code blocks of a page say in their first lines."""
    assert len(BLOCK.findall(page)) == len(re.findall(r"^```(?!console)\w", page, re.MULTILINE))
    for name, at_the_end, how, line, code in BLOCK.findall(page):
        file = folder / name
        if not (at_the_end or how):
            assert not file.exists(), name
            file.write_text(code)
        elif at_the_end:
            file.write_text(file.read_text() + code)
        else:
            [found] = re.findall(rf"^{re.escape(line)}.*\n", file.read_text(), re.MULTILINE)
            new = {"above": code + found, "below": found + code, "instead of": code}[how]
            file.write_text(file.read_text().replace(found, new))


# On a database with all tables: a conflict names the field, and copy takes everything along.
USE_IT = """
import asyncio, httpx
from app import app

async def main():
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    started = app.router.lifespan_context(app)
    async with started, httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        await http.post("/users/", json={"name": "Ada", "email": "ada@example.com"})
        await http.post("/projects/", json={"title": "Apollo", "owner_id": 1})
        assert (await http.post("/tasks/", json={"title": "Call", "project_id": 1})).is_success
        assert (await http.put("/tasks/")).headers["Allow"] == "GET, HEAD, POST"
        assert (await http.delete("/users/1")).status_code == 409

asyncio.run(main())
"""


@full
def test_recipe_for_a_table_works(copy: Path) -> None:
    if (ROOT / "tasks.py").exists():
        pytest.skip("this copy of Roster has followed it already")
    page = (DOCS / "own-table.md").read_text()
    url = f"sqlite:///{copy}/roster.db"
    env = {**os.environ, "DATABASE_URL": url, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    env.pop("PYTEST_ADDOPTS", None)

    def run(command: str) -> str:
        result = subprocess.run(
            shlex.split(command, comments=True),
            cwd=copy,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    follow(page, copy)
    run("ruff check .")
    run("ruff format --check .")
    run("mypy .")
    for command in re.findall(r"^\$ (.*)$", page, re.MULTILINE):
        run(command)
    assert "No new upgrade operations" in run("alembic check")
    run(shlex.join([sys.executable, "-W", "error", "-c", USE_IT]))
    new = f"sqlite:///{copy}/new.db"
    run(f"python cli.py copy {url} {new}")
    with closing(sqlite3.connect(copy / "new.db")) as connection:
        assert connection.execute("SELECT title, project_id FROM tasks").fetchall() == [("Call", 1)]


OLD_USER = """
import asyncio
from db import get_backend
from lifespan import open_store, start
from models import UserCreate

async def main():
    await start(get_backend())
    async with open_store(get_backend()) as store:
        await store.add(UserCreate(name="Ada", email="ada@example.com"))
    await get_backend().stop()

asyncio.run(main())
"""
NEW_FIELD = """
import asyncio, httpx
from app import app, lifespan

async def main():
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    async with lifespan(app), httpx.AsyncClient(
        transport=transport, base_url="http://localhost"
    ) as http:
        [old] = (await http.get("/users/")).json()["items"]
        assert old["phone"] is None
        path = f"/users/{old['id']}"
        assert (await http.get(path)).json() == old
        changed = (await http.patch(path, json={"phone": "1"})).json()
        assert changed == {**old, "phone": "1", "version": 2, "updated_at": changed["updated_at"]}
        assert (await http.patch(path, json={"name": "Ada L."})).json()["phone"] == "1"
        bob = {"name": "Bob", "email": "bob@example.com", "phone": "2"}
        assert (await http.post("/users/", json=bob)).json()["phone"] == "2"
        many = [{"name": "Cy", "email": "cy@example.com", "phone": "3"}]
        many.append({"name": "Di", "email": "di@example.com"})
        stored = (await http.post("/users/bulk", json=many)).json()["items"]
        assert [user["phone"] for user in stored] == ["3", None]
        assert (await http.patch(f"/users/{stored[0]['id']}", json={"phone": None})).is_success
        users = (await http.get("/users/?sort=name")).json()["items"]
        assert [user["phone"] for user in users] == ["1", "2", None, None]
        assert '"phone":"2"' in (await http.get("/users/export")).text

asyncio.run(main())
"""


@pytest.mark.parametrize("database", quick_on(BACKENDS, "sqlite"), indirect=True)
def test_field_that_is_added_is_everywhere(
    database: Database, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (DOCS / "change-a-field.md").read_text()
    monkeypatch.setenv("PATH", f"{sys.prefix}/bin:{os.environ['PATH']}")

    def run(*command: str, **options: Any) -> str:
        result = subprocess.run(
            command, cwd=copy, capture_output=True, text=True, timeout=300, **options
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return str(result.stdout)

    other = f"sqlite:///{copy}/copied.db"
    with database.new() as url:
        monkeypatch.setenv("DATABASE_URL", url)
        run(sys.executable, "-c", OLD_USER)
        follow(page, copy)
        if database.url.startswith(("sqlite", "postgresql", "mysql")):
            for command in re.findall(r"^\$ (.*)$", page, re.MULTILINE):
                run(*shlex.split(command, comments=True))
        if FULL and database.url.startswith("sqlite"):
            suite = [f"tests/test_{name}.py" for name in ("contract", "migrations", "models")]
            run("pytest", "-q", "-p", "no:cacheprovider", "-k", "sqlite", *suite)
        run(sys.executable, "-W", "error", "-c", NEW_FIELD)
        before = run("python", "cli.py", "export", "--format=csv")
        run("python", "cli.py", "copy", url, other)
        monkeypatch.setenv("DATABASE_URL", other)
        assert run("python", "cli.py", "export", "--format=csv") == before
    # What was exported, with its empty cells, can be imported.
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{copy}/imported.db")
    assert "4 users stored" in run("python", "cli.py", "import", "-", input=before)
    again = run("python", "cli.py", "export", "--format=csv")
    for old, new in zip(
        csv.reader(before.splitlines()), csv.reader(again.splitlines()), strict=True
    ):
        assert (old[1], old[2], old[-1]) == (new[1], new[2], new[-1])


USE_A_SESSION = """
import asyncio, db, models
async def use():
    async with db.open_session() as session:
        session.add(models.User())
asyncio.run(use())
"""


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "mongodb://127.0.0.1:1/roster"])
def test_session_on_a_database_without_sql_says_that_it_needs_sql(url: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", USE_A_SESSION],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr.endswith(
        "This needs an SQL database, and DATABASE_URL names another kind.\n"
    )


def run_on(database: Database, code: str) -> None:
    """Run Python on an empty database, with the modules of the app and of the tests."""
    with database.new() as url:
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": url, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr


USE_A_TABLE = """
import asyncio, httpx, web_app
from app import app, lifespan

async def main():
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    async with lifespan(app), httpx.AsyncClient(
        transport=transport, base_url="http://localhost"
    ) as http:
        for path in ("projects/", "projects/1", "projects/export"):
            answer = await http.get(path)
            assert answer.status_code == 501, answer.text
            assert answer.json()["detail"].startswith("This needs an SQL database")
        assert (await http.post("users/", json={"name": "A", "email": "a@example.com"})).is_success

asyncio.run(main())
"""


@pytest.mark.parametrize("database", quick_on(("mongodb", "redis"), "redis"), indirect=True)
def test_own_table_on_a_database_without_sql_is_501_and_users_work(database: Database) -> None:
    run_on(database, USE_A_TABLE)


WALK_A_TABLE = """
import asyncio, httpx, web_app
from app import app, lifespan

DUE = ["2026-01-02", None, "2025-01-01", "2026-01-02", None, "2026-01-02", None]

async def main():
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    async with lifespan(app), httpx.AsyncClient(
        transport=transport, base_url="http://localhost"
    ) as http:
        for n, due in enumerate(DUE):
            sent = {"title": f"{n % 3} {n}", "due": due}
            assert (await http.post("/projects/", json=sent)).is_success
        for sort in ("id", "title", "due"):
            for limit in (1, 2):
                for minus in ("", "-"):
                    ids, query = [], {"sort": minus + sort, "limit": limit}
                    while query.get("cursor", "") is not None:
                        page = (await http.get("/projects/", params=query)).json()
                        ids += [row["id"] for row in page["items"]]
                        query["cursor"] = page["next"]
                    order = {"id": [1, 2, 3, 4, 5, 6, 7], "title": [1, 4, 7, 2, 5, 3, 6]}
                    expected = order.get(sort, [3, 1, 4, 6, 2, 5, 7])
                    assert ids == expected[:: -1 if minus else 1], (sort, minus, ids)
        for cursor in ("x", "5b5d", b'["due","x",1]'.hex(), b'["due",null,"x"]'.hex()):
            answer = await http.get("/projects/", params={"sort": "due", "cursor": cursor})
            assert answer.status_code == 422, (cursor, answer.text)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "database", quick_on(("sqlite", "postgresql", "mysql"), "sqlite"), indirect=True
)
def test_pages_of_an_own_table_hold_each_row_once_in_every_order(database: Database) -> None:
    run_on(database, WALK_A_TABLE)


def test_lines_of_the_recipe_are_as_few_as_it_says() -> None:
    page = (DOCS / "own-table.md").read_text()
    [code] = [block[-1] for block in BLOCK.findall(page) if block[0] == "projects.py"]
    tree = ast.parse(code)
    imports = {
        line
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    lines = [
        line
        for number, line in enumerate(code.splitlines(), 1)
        if line.strip() and line.strip()[0] != "#" and number not in imports
    ]
    assert f"The first table takes {len(lines)} lines" in page
    assert len(lines) <= 40


def test_tables_of_the_capacity_page_are_of_the_committed_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    assert import_module("capacity").page() == (DOCS / "capacity.md").read_text()


def test_image_has_the_files_that_the_app_needs(tmp_path: Path) -> None:
    """Nothing builds the image here: what the Dockerfile copies is copied, and asked to start."""
    copied = re.findall(r"^COPY (?!--from)(.*) (\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
    for names, target in copied:
        for path in (path for name in names.split() for path in ROOT.glob(name)):
            if path.is_dir():
                shutil.copytree(path, tmp_path / target)
            else:
                shutil.copy(path, tmp_path)
    env = {**os.environ, "DATABASE_URL": f"sqlite:///{tmp_path}/roster.db"}
    start = "import asyncio, app; asyncio.run(app.lifespan(app.app).__aenter__())"
    for command in (["-c", start], ["-m", "alembic", "upgrade", "head"]):
        subprocess.run([sys.executable, *command], cwd=tmp_path, env=env, check=True, timeout=120)


@pytest.mark.parametrize("name", ["roster.service", "patroni.service"])
def test_unit_is_one_that_systemd_takes(tmp_path: Path, name: str) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    [unit] = re.findall(
        rf"^# /etc/systemd/system/{name}\n(.*?)^```",
        (DOCS / "operate.md").read_text(),
        re.M | re.S,
    )
    unit = re.sub(r"/opt/\S+/bin/(uvicorn|patroni)", sys.executable, unit)
    file = tmp_path / name
    file.write_text(unit)
    result = subprocess.run(
        ["systemd-analyze", "verify", file], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_backup_of_postgresql_can_be_restored(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    path = f"{sys.prefix}/bin:{tools[-1] if tools else ''}:{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    page = (DOCS / "operate.md").read_text()
    [commands] = re.findall(r"^```sh\n# As the user roster[^`]*?\n(.*?)```", page, re.M | re.DOTALL)
    python = "/opt/roster/.venv/bin/python /opt/roster/cli.py"
    commands = commands.replace(python, f"{sys.executable} {ROOT}/cli.py")
    with database.new() as url, database.new() as new:
        commands = commands.replace("'postgresql://...'", f"'{new}'")
        Path(tmp_path, ".env").write_text(f"DATABASE_URL='{url}'\n")
        monkeypatch.setenv("DATABASE_URL", url)
        subprocess.run([sys.executable, "-c", OLD_USER], cwd=ROOT, check=True, timeout=120)
        monkeypatch.delenv("DATABASE_URL")
        printed = subprocess.check_output(
            ["sh", "-e", "-c", commands], cwd=tmp_path, text=True, timeout=120
        )
    assert printed.split() == ["1"]


# What is another's, with the new name in it.
NOT_RENAMED = r'runguest|multi-guest|guestadd|"?GUEST"?[: ]+(roster|unquote)'
NOT_RENAMED += r"|(create|check|this) guest |createguest|guest=url|remote\|guest|://guest"


@full
def test_rename_works(copy: Path) -> None:
    [commands] = re.findall(r"```sh\n(.*?)```", (DOCS / "rename.md").read_text(), re.DOTALL)
    env = {**os.environ, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    env.pop("PYTEST_ADDOPTS", None)
    for command in (
        "git init -q && git add -A",
        commands,
        "ruff check .",
        "ruff format --check .",
        "! grep -rn /users --include='*.py' --include='*.js' --include='*.lua' .",
        f"! grep -rnE {shlex.quote(NOT_RENAMED)} . --exclude=test_docs.py --exclude-dir=.git",
        "pytest -q tests/test_contract.py -k 'sqlite and (bulk or taken or update)'",
    ):
        result = subprocess.run(
            command, shell=True, cwd=copy, env=env, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stdout + result.stderr
