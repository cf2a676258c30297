"""A slip in DATABASE_URL (a letter in the port), and the traceback has the password."""

import os
import subprocess
import sys
from pathlib import Path

import pitfall  # noqa: F401 (no .env of yours is read)

TUTORIAL = """
from pydantic import PostgresDsn
from pydantic_settings import BaseSettings

class Settings(BaseSettings):
    database_url: PostgresDsn

Settings()
"""


def start(*command: str) -> str:
    """Return what Python prints when it cannot start."""
    result = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"DATABASE_URL": "postgresql://ada:hunter2@localhost:54E2/people"},
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return result.stderr


[line] = [line for line in start("-c", TUTORIAL).splitlines() if "hunter2" in line]
print("tutorial:", line.strip())
print("Roster:  ", start("cli.py", "export").strip())
