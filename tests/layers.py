"""Checks that imports go down only, by import-linter with the layers in ``pyproject.toml``.

import-linter looks at packages, and Roster's modules are in no package of their own. So it gets a
copy of them as a package: ``from db import ...`` becomes ``from roster.db import ...``.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent


def check(root: Path) -> int:
    """Print what import-linter says of the modules in a folder; return its exit status."""
    packages = [init.parent for init in root.glob("*/__init__.py")]
    files = [*root.glob("*.py"), *(file for each in packages for file in each.rglob("*.py"))]
    modules = "|".join({file.relative_to(root).parts[0].removesuffix(".py") for file in files})
    with TemporaryDirectory(prefix="roster-lint-") as folder:
        for file in files:
            copy = Path(folder, "roster", file.relative_to(root))
            copy.parent.mkdir(parents=True, exist_ok=True)
            ours = rf"^(\s*(?:from|import)) (?=(?:{modules})\b)"
            copy.write_text(re.sub(ours, r"\1 roster.", file.read_text(), flags=re.M))
        Path(folder, "roster", "__init__.py").touch()
        command = [f"{Path(sys.executable).parent}/lint-imports", "--no-logo", "--no-cache"]
        command.append(str(ROOT / "pyproject.toml"))
        environment = {**os.environ, "PYTHONPATH": folder}
        return subprocess.run(command, env=environment, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(check(ROOT))
