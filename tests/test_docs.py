"""The pages of docs/: what they quote is in the code, and what they say to run runs."""

import contextlib
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
from multiprocessing import get_context
from pathlib import Path

import pytest
from conftest import ROOT, full

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
    assert len(stops) == 10
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


# Somebody adds a task in the admin's form, as a browser does; another site's page tries to. Then
# Roster's answers on what it did not have before: an included router, and a table that refers to
# users without ON DELETE.
USE_IT = """
import asyncio, re, httpx
from sqlalchemy import text
from admin import app
from app import app as roster
from db import open_session
from models import User

async def main():
    async with open_session() as session:
        session.add(User(name="Ada", email="ada@example.com"))
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        form = await http.get("/admin/task/create")
        token = re.search('name="csrftoken" value="([^"]+)"', form.text)[1]
        sent = {"title": "Call Ada", "owner": "1", "csrftoken": token}
        evil = {"Origin": "http://evil.example"}
        assert (await http.post("/admin/task/create", data=sent, headers=evil)).status_code == 403
        assert (await http.post("/admin/task/create", data=sent)).status_code == 303
        assert "Call Ada" in (await http.get("/admin/task/list")).text
        assert (await http.get("/admin/user/create")).status_code == 403
    async with open_session() as session:
        await session.exec(text("CREATE TABLE note (user_id INTEGER REFERENCES users (id))"))
        await session.exec(text("INSERT INTO note VALUES (1)"))
    transport = httpx.ASGITransport(roster, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        assert (await http.put("/tasks/")).headers["Allow"] == "GET, POST"
        refused = await http.delete("/users/1")
        assert refused.status_code == 409
        assert "email" not in refused.text

asyncio.run(main())
"""


@full
def test_recipe_for_a_table_works(copy: Path) -> None:
    if (ROOT / "tasks.py").exists():
        pytest.skip("somebody has followed it here")
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
            timeout=60,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    follow(page, copy)
    run("ruff check --ignore I001 .")  # the order of names, which a rename changes
    run("ruff format --check .")
    for command in re.findall(r"^\$ (.*)$", page, re.MULTILINE):
        match command.split()[0]:
            case "alembic":
                run(command)
            case "pytest":
                run(f"{command} -k 'sqlite and task or classified or tables_of_requests'")
    assert "No new upgrade operations" in run("alembic check")
    run(shlex.join([sys.executable, "-W", "error", "-c", USE_IT]))
    new = f"sqlite:///{copy}/new.db"
    assert "Not copied, for only users are: tasks." in run(f"python cli.py copy {url} {new}")
    assert run(f"python move.py {url} {new}") == "tasks: 1 moved\n"
    with closing(sqlite3.connect(copy / "new.db")) as connection:
        assert connection.execute("SELECT title, owner_id FROM tasks").fetchall() == [
            ("Call Ada", 1)
        ]


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
    assert result.stderr.endswith("a session needs an SQL database, and DATABASE_URL names none\n")


def test_lines_of_the_recipe_are_as_few_as_it_says() -> None:
    page = (DOCS / "own-table.md").read_text()
    task = tests_and_pages = 0
    for name, *_, code in BLOCK.findall(page):
        lines = [line for line in code.splitlines() if line.strip() and line.strip()[0] != "#"]
        if name in ("models.py", "tasks.py", "app.py"):
            task += len(lines)
        elif name != "move.py":
            tests_and_pages += len(lines)
    assert f"It takes {task}\nlines" in page
    assert f"{tests_and_pages} more for tests and pages" in page


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


def test_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    [unit] = re.findall(
        r"^# /etc/systemd/system/roster.service\n(.*?)^```",
        (DOCS / "deploy.md").read_text(),
        re.M | re.S,
    )
    unit = unit.replace("/opt/roster/.venv/bin/uvicorn", sys.executable)
    file = tmp_path / "roster.service"
    file.write_text(unit)
    result = subprocess.run(
        ["systemd-analyze", "verify", file], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


@full
def test_rename_works(copy: Path) -> None:
    [commands] = re.findall(r"```sh\n(.*?)```", (DOCS / "rename.md").read_text(), re.DOTALL)
    env = {**os.environ, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    env.pop("PYTEST_ADDOPTS", None)
    for command in (
        "git init -q && git add -A",
        commands,
        "ruff check .",
        "! grep -rn /users --include='*.py' --include='*.js' .",
        "pytest -q tests/test_contract.py -k 'sqlite and (bulk or taken or update)'",
    ):
        result = subprocess.run(
            command, shell=True, cwd=copy, env=env, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stdout + result.stderr
