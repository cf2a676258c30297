"""Requests made up from the OpenAPI document: Schemathesis with all of its checks."""

import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, Server

EXAMPLES = 10


def test_schemathesis_finds_nothing(server: Server, tmp_path: Path) -> None:
    shutil.copy(ROOT / "schemathesis.toml", tmp_path)
    program = Path(sys.executable).with_name("schemathesis")
    command = [str(program), "run", f"{server.url}/openapi.json"]
    options = ["--checks=all", f"--max-examples={EXAMPLES}", "--seed=1", "--no-color"]
    result = subprocess.run(
        [*command, *options], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stdout
    assert "9 selected / 9 total" in result.stdout, result.stdout
    assert '" 500' not in server.printed()
