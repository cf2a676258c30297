"""Requests made up from the OpenAPI document: Schemathesis with all of its checks."""

import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from conftest import ROOT, quick_on, serve
from databases import BACKENDS, Database

EXAMPLES = 5
TOKEN = "schemathesis" * 2


@pytest.mark.parametrize("database", quick_on(BACKENDS, "sqlite"), indirect=True)
def test_schemathesis_finds_nothing(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a token, which the document asks for: one check is that nothing is done without.
    monkeypatch.setenv("API_TOKENS", f"tester:{TOKEN}")
    shutil.copy(ROOT / "schemathesis.toml", tmp_path)
    program = Path(sys.executable).with_name("schemathesis")
    options = ["--checks=all", f"--max-examples={EXAMPLES}", "--seed=1", "--no-color"]
    sql = database.url.startswith(("sqlite", "postgresql", "mysql"))
    app = "tests.second_app:app" if sql else "tests.served:app"  # with a second resource
    with database.new() as url, serve(url, tmp_path, app=app) as server:
        command = [str(program), "run", f"{server.url}/openapi.json"]
        result = subprocess.run(
            [*command, *options, "--header", f"Authorization: Bearer {TOKEN}"],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert result.returncode == 0, result.stdout
        paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
        count = sum(len(operations) for operations in paths.values())
        assert count >= (16 if sql else 9)
        assert f"{count} selected / {count} total" in result.stdout, result.stdout
        assert '" 500' not in server.printed()
