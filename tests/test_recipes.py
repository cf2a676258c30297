"""The recipes of docs/recipes.md, each followed to the letter on a copy of Roster and tried."""

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import ROOT, answers, quick_on, wait_until
from databases import Database, free_port
from test_docs import BLOCK, DOCS, follow

PAGE = (DOCS / "recipes.md").read_text()
RECIPES = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))

# Each recipe's trial has these names. ``asked`` is a request whose status has to be right.
TRIAL = """
import asyncio, httpx
from app import app

async def main():
    local = httpx.ASGITransport(app, client=("127.0.0.1", 1))
    started = app.router.lifespan_context(app)
    async with started, httpx.AsyncClient(transport=local, base_url="http://localhost") as http:
        async def asked(status, method, path, **options):
            response = await http.request(method, path, **options)
            assert response.status_code == status, (response, response.text)
            return response

        ada = {"name": "Ada", "email": "ada@example.com"}
%s

asyncio.run(main())
"""
TRIALS = {
    "A list with its children": """
        from db import open_session
        from sqlalchemy.exc import MissingGreenlet
        from teams import Player, Team
        async with open_session() as session:
            for name in ("Red", "Blue"):
                session.add(Team(name=name, players=[Player(name="A"), Player(name="B")]))
        teams = (await asked(200, "GET", "/teams/")).json()
        assert [team["name"] for team in teams] == ["Red", "Blue"]
        assert [player["name"] for player in teams[1]["players"]] == ["A", "B"]
        async with open_session(read_only=True) as session:
            team = await session.get_one(Team, 1)
            try:
                team.players
            except MissingGreenlet:
                pass
            else:
                raise AssertionError("it was loaded")
    """,
    "Many-to-many with fields on the link": """
        await asked(201, "POST", "/users/", json=ada)
        await asked(201, "POST", "/projects/", json={"title": "Apollo", "owner_id": 1})
        pilot = {"user_id": 1, "project_id": 1, "role": "Pilot"}
        await asked(201, "POST", "/assignments/", json=pilot)
        work = await asked(200, "GET", "/users/1/work")
        assert work.json() == [{"title": "Apollo", "role": "Pilot"}]
    """,
    "A JSON column": """
        phone = await asked(201, "POST", "/devices/", json={"kind": "phone", "on": True})
        await asked(201, "POST", "/devices/", json={"kind": "door"})
        found = await asked(200, "GET", "/devices/?kind=phone")
        assert found.json() == [phone.json()]
        from db import open_session
        from devices import Device
        async with open_session() as session:
            device = await session.get_one(Device, phone.json()["id"])
            device.details = {**device.details, "on": False}
        found = await asked(200, "GET", "/devices/?kind=phone")
        assert found.json()[0]["details"] == {"kind": "phone", "on": False}
    """,
    "A UUID key": """
        document = (await asked(201, "POST", "/documents/?title=A")).json()
        assert (await asked(200, "GET", f"/documents/{document['id']}")).json() == document
        await asked(404, "GET", "/documents/00000000-0000-4000-8000-000000000000")
        await asked(422, "GET", "/documents/1")
    """,
    "Soft delete": """
        from db import open_session
        from letters import Letter
        from sqlmodel import select
        async with open_session() as session:
            session.add_all([Letter(text="A"), Letter(text="B")])
        await asked(204, "DELETE", "/letters/1")
        await asked(404, "GET", "/letters/1")
        await asked(404, "DELETE", "/letters/1")
        async with open_session(read_only=True) as session:
            assert [each.text for each in await session.exec(select(Letter))] == ["B"]
            every = select(Letter).execution_options(deleted=True)
            assert len((await session.exec(every)).all()) == 2
    """,
    "One schema for each tenant": """
        acme, globex, other = ({"Authorization": f"Bearer {c * 24}"} for c in "ago")
        for headers in (acme, globex):
            created = await asked(201, "POST", "/users/", json=ada, headers=headers)
            assert created.json()["id"] == 1
            await asked(409, "POST", "/users/", json=ada, headers=headers)
        await asked(200, "PATCH", "/users/1", json={"name": "Eve"}, headers=acme)
        bob = [{"name": "Bob", "email": "bob@example.com"}]
        await asked(201, "POST", "/users/bulk", json=bob, headers=acme)
        users = (await asked(200, "GET", "/users/", headers=globex)).json()["items"]
        assert [user["name"] for user in users] == ["Ada"]
        assert len((await asked(200, "GET", "/users/export", headers=acme)).text.splitlines()) == 2
        await asked(204, "DELETE", "/users/1", headers=globex)
        await asked(200, "GET", "/users/1", headers=acme)
        await asked(403, "GET", "/users/", headers=other)
        await asked(200, "GET", "/readyz")
    """,
    "A background task": """
        await asked(201, "POST", "/users/", json=ada)
        await asked(202, "POST", "/users/1/greeting")
        assert (await asked(200, "GET", "/users/1")).json()["name"] == "Welcome, Ada"
    """,
    "A front end on another site": """
        site = {"Origin": "https://app.example.com", "Sec-Fetch-Site": "cross-site"}
        other = {**site, "Origin": "https://evil.example.com"}
        question = {"Access-Control-Request-Method": "POST"}
        question["Access-Control-Request-Headers"] = "authorization,content-type,if-match"
        answer = await asked(200, "OPTIONS", "/users/", headers={**site, **question})
        assert answer.headers["Access-Control-Allow-Origin"] == site["Origin"]
        await asked(400, "OPTIONS", "/users/", headers={**other, **question})
        created = await asked(201, "POST", "/users/", json=ada, headers=site)
        assert created.headers["Access-Control-Allow-Origin"] == site["Origin"]
        assert "ETag" in created.headers["Access-Control-Expose-Headers"]
        await asked(403, "POST", "/users/", json=ada, headers=other)
    """,
}
# Starlette's own client, because httpx has no WebSockets.
WEBSOCKET = """
from fastapi.testclient import TestClient
from app import app

with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 1)) as http:
    http.post("/users/", json={"name": "Ada Lovelace", "email": "ada@example.com"})
    http.post("/users/", json={"name": "Bob", "email": "bob@example.com"})
    with http.websocket_connect("ws://localhost/find") as socket:
        for text, names in {"ADA": ["Ada Lovelace"], "": ["Ada Lovelace", "Bob"], "%": []}.items():
            socket.send_text(text)
            assert socket.receive_json() == names
"""
ADD_ADA = TRIAL % '        await asked(201, "POST", "/users/", json=ada)'


def run(copy: Path, *command: str, **options: str) -> str:
    """Run a command in a copy with its own Python; return what it prints."""
    environment = {**os.environ, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
    result = subprocess.run(
        command,
        cwd=copy,
        env={**environment, "PYTHONWARNINGS": "error", "PYTEST_ADDOPTS": "", **options},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def commands(recipe: str) -> list[str]:
    return re.findall(r"^\$ (.*)$", RECIPES[recipe], re.MULTILINE)


@pytest.fixture
def followed(copy: Path, request: pytest.FixtureRequest) -> Path:
    """Return a copy in which a recipe has been followed."""
    if request.param == "Many-to-many with fields on the link":
        follow((DOCS / "own-table.md").read_text(), copy)
    follow(RECIPES[request.param], copy)
    return copy


on_both = pytest.mark.parametrize(
    "database", quick_on(["sqlite", "postgresql"], "sqlite"), indirect=True
)


def follows(*recipes: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("followed", recipes, indirect=True)


@on_both
@pytest.mark.parametrize(
    ("followed", "trial"),
    [(name, trial) for name, trial in TRIALS.items() if "tenant" not in name],
    indirect=["followed"],
)
def test_recipe_works(database: Database, followed: Path, trial: str) -> None:
    with database.new() as url:
        code = TRIAL % textwrap.indent(textwrap.dedent(trial), " " * 8)
        run(followed, sys.executable, "-c", code, DATABASE_URL=url)


@on_both
@follows("A WebSocket")
def test_websocket_has_a_session_for_each_message(database: Database, followed: Path) -> None:
    with database.new() as url:
        run(followed, sys.executable, "-c", WEBSOCKET, DATABASE_URL=url)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@follows("One schema for each tenant")
def test_tenants_see_their_own_rows(database: Database, followed: Path) -> None:
    trial = textwrap.indent(
        textwrap.dedent(TRIALS["One schema for each tenant"]),
        " " * 8,
    )
    tokens = ",".join(f"{name}:{name[0] * 24}" for name in ("acme", "globex", "other"))
    with database.new() as url:
        for tenant in ("acme", "globex"):
            run(followed, sys.executable, "add_tenant.py", tenant, DATABASE_URL=url)
        run(followed, sys.executable, "-c", TRIAL % trial, DATABASE_URL=url, API_TOKENS=tokens)


@on_both
@follows("Tests of your own")
def test_tests_of_your_own_roll_back(database: Database, followed: Path) -> None:
    with database.new() as url:
        said = run(
            followed,
            *("pytest", "-p", "no:xdist", "tests/test_mine.py", "tests/test_with_a_client.py"),
            TEST_URL=url,
            PYTHONWARNINGS="",  # pytest has its own filter
        )
    assert "4 passed" in said, said


@on_both
@follows("A script")
def test_script_and_console_use_the_database(database: Database, followed: Path) -> None:
    recipe = RECIPES["An interactive session"]
    [console] = re.findall(r"```console\n(.*?)```", recipe, re.DOTALL)
    typed = re.findall(r"^(?:>>>|\.\.\.) ?(.*)\n", console, re.MULTILINE)
    with database.new() as url:
        run(followed, sys.executable, "-c", ADD_ADA, DATABASE_URL=url)
        [command] = commands("A script")
        run(followed, *shlex.split(command), DATABASE_URL=url)
        result = subprocess.run(
            [sys.executable, *shlex.split(commands("An interactive session")[0])[1:]],
            input="\n".join([*typed, ""]),
            cwd=followed,
            env={**os.environ, "DATABASE_URL": url},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert console.splitlines()[-1] in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize(
    "command", [*commands("`fastapi dev` and `fastapi run`"), *commands("A path behind a proxy")]
)
def test_command_serves(command: str, copy: Path) -> None:
    port = free_port()
    program, *options = shlex.split(command.replace("8000", str(port)))
    log = copy / "served.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [Path(sys.prefix, "bin", program), *options],
            cwd=copy,
            env={**os.environ, "DATABASE_URL": f"sqlite:///{copy}/roster.db"},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        wait_until(lambda: answers(f"http://localhost:{port}/users/"), log.read_text)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_has_at_most_25_lines(recipe: str) -> None:
    """Without imports, blank lines and comments, as own-table.md counts."""
    for name, *_, code in BLOCK.findall(RECIPES[recipe]):
        imports = {
            line
            for node in ast.parse(code).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for line in range(node.lineno, (node.end_lineno or 0) + 1)
        }
        lines = [
            line
            for number, line in enumerate(code.splitlines(), 1)
            if line.strip() and line.strip()[0] != "#" and number not in imports
        ]
        assert len(lines) <= 25, (name, len(lines))


def test_code_of_the_recipes_is_clean(copy: Path) -> None:
    """Their code passes what a team's own code has to pass."""
    follow((DOCS / "own-table.md").read_text(), copy)
    for recipe in RECIPES.values():
        follow(recipe, copy)
    run(copy, "ruff", "check", ".")
    run(copy, "ruff", "format", "--check", ".")


def test_recipes_are_all_tried() -> None:
    index = re.findall(r"\[([^]]*)\]\(#", PAGE.partition("\n## ")[0])
    assert [name.lower() for name in index] == [name.lower() for name in RECIPES]
    assert ROOT.joinpath("docs", "recipes.md").exists()
