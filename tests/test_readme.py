"""The commands of README and docs/, run as a newcomer would on a copy of the repository."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, answers, wait_until
from databases import free_port

README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "docs/api.md", "docs/operate.md"]  # whose commands print what they say
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def console(page: str) -> list[tuple[str, str]]:
    """Return each command of the console blocks, with what the page says that it prints."""
    steps: list[tuple[str, str]] = []
    for block in re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], ""))
            else:
                command, output = steps[-1]
                steps[-1] = (command, f"{output}{line}\n")
    return steps


@pytest.fixture
def port(copy: Path) -> Iterator[int]:
    """Serve with ``make run``, in this environment instead of a new one; return the port."""
    port = free_port()
    env = {key: value for key, value in os.environ.items() if key != "DATABASE_URL"}
    log = copy / "make.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["make", "run", f"PORT={port}", f"VENV={sys.prefix}"],
            cwd=copy,
            env=env,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        wait_until(lambda: answers(f"http://localhost:{port}/livez"), log.read_text, seconds=60)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=10)


def test_readme_begins_with_the_two_commands() -> None:
    steps = console("README.md")
    assert [command.split("#")[0].strip() for command, _ in steps[:2]] == ["make run", "make test"]
    first = README.splitlines()[:40]
    assert any(line.startswith('{"id":1,') for line in first)
    assert any(line.startswith("![") for line in first)
    assert len(README.splitlines()) <= 220


@pytest.mark.parametrize("page", PAGES)
def test_commands_print_what_the_page_says(page: str, copy: Path, port: int) -> None:
    steps = [step for step in console(page) if not step[0].startswith("make ")]
    assert len(steps) > 2
    env = {key: value for key, value in os.environ.items() if key != "DATABASE_URL"}
    env["PATH"] = f"{sys.prefix}/bin:{env['PATH']}"  # as in an activated environment
    for command, expected in steps:
        command = command.replace("localhost:8000", f"localhost:{port}")
        command = command.replace(".venv/bin/python", sys.executable)
        result = subprocess.run(
            command,
            check=True,
            shell=True,
            cwd=copy,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        printed = result.stdout.replace("\r", "")
        if printed and not printed.endswith("\n"):
            printed += "\n"
        assert TIME.sub("TIME", printed) == TIME.sub("TIME", expected), command


def test_table_in_the_readme_is_made_of_the_lines_in_own_table() -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    lines = [line for line in code.splitlines() if line]
    assert len(lines) == 6
    page = (ROOT / "docs/own-table.md").read_text()
    for line in lines[:4]:
        assert f"\n{line}\n" in page, line
    [call] = re.findall(r"resource\((.*)\)", code)
    assert call in page


def test_settings_are_those_of_the_code() -> None:
    from db import Settings

    section = (ROOT / "docs/settings.md").read_text().partition("\n## ")[0]
    names = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert names == [name.upper() for name in Settings.model_fields]
    example = (ROOT / ".env.example").read_text()
    assert set(re.findall(r"^#? ?([A-Z_]+)=", example, re.MULTILINE)) == set(names)
    size = Settings.model_fields["pool_size"].default
    assert f"| `POOL_SIZE` | `{size}` |" in section
    assert f"# POOL_SIZE={size}\n" in example


def test_table_of_requests_is_that_of_the_app() -> None:
    from app import app

    section = README.partition("## The API")[2].partition("## ")[0]
    named = set(re.findall(r"`([A-Z]+ /[\w/{}]*)`", section))
    served = {
        f"{method.upper()} {path}"
        for path, item in app.openapi()["paths"].items()
        for method in item
    }
    assert named <= served
    assert not any(" /users/" in request for request in served - named)
