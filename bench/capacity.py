"""Write the tables of ``docs/capacity.md`` from the figures that are committed here.

A test compares them with the page, so this needs nothing but Python.
"""

import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parent
PAGE = BENCH.parent / "docs" / "capacity.md"
TABLES = re.compile(r"(<!-- (\w+): python bench/capacity.py -->\n).*?(?=\n\n|\n*\Z)", re.DOTALL)
# Of 20 requests of the mixed load.
MIX = {"get": 11, "list": 5, "find": 2, "change": 1, "create": 1}
PAUSE = 10  # seconds between two requests of a person
NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MariaDB", "redis": "Redis"}
Results = dict[str, Any]


def cost(results: Results, backend: str, operation: str, part: str) -> float:
    """Return the processor seconds of a million requests, in the app or in the database."""
    cells = results["cells"][backend][operation]["roster"]
    return float(statistics.median(max(cell[part], 0) / cell["rps"] * 1e6 for cell in cells))


def mixed(results: Results, backend: str, part: str) -> float:
    """Return the processor seconds of a million requests of the mixed load."""
    shares = (share * cost(results, backend, each, part) for each, share in MIX.items())
    return sum(shares) / sum(MIX.values())


def grid(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    lines = [[*headings], *([*row] for row in rows)]
    lines.insert(1, ["---"] + ["---:"] * (len(lines[0]) - 1))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(results: Results, found: Results) -> dict[str, str]:
    """Return the tables by their names."""
    carried, costs, grown = [], [], []
    for backend, name in NAMES.items():
        seen = results["mixed"][backend]["roster"]
        p99 = [f"{seen['kinds'][kind]['p99']:.0f} ms" for kind in ("get", "list", "create")]
        people = seen["rps"] / 2 * PAUSE
        rows, stored = max((int(rows), each["mb"]) for rows, each in found[backend].items())
        carried.append(
            [name, f"{seen['rps']:,.0f}", *p99, f"{people:,.0f}", f"{1000 * stored / rows:.2f} GB"]
        )
        each = [[cost(results, backend, op, part) for op in MIX] for part in ("server", "database")]
        each = [
            [*values, mixed(results, backend, part)]
            for values, part in zip(each, ("server", "database"), strict=True)
        ]
        both = [f"{app:,.0f} + {database:,.0f}" for app, database in zip(*each, strict=True)]
        costs.append([name, *([f"{app:,.0f}" for app in each[0]] if backend == "sqlite" else both)])
        if backend in results["workers"]:
            app, database = each[0][-1], each[1][-1]
            several = results["workers"][backend]
            arrived = [
                statistics.median(
                    two["rps"] / one["rps"]
                    for one, two in zip(several[op]["1"], several[op]["2"], strict=True)
                )
                for op in ("get", "create")
            ]
            grown.append([name, *(f"{ratio:.2f}x" for ratio in arrived), f"{app / database:.1f}"])
    kept = [
        [
            f"{int(many):,}",
            f"{seen['mb']:.0f} MB",
            f"{seen['p99_alone']:.0f} ms",
            f"{seen['p99']:.0f} ms",
        ]
        for many, seen in results["connections"].items()
    ]
    return {
        "carried": grid(
            [
                "",
                "Requests a second",
                "p99 get",
                "p99 list",
                "p99 create",
                "People",
                "A million users",
            ],
            carried,
        ),
        "costs": grid(["", *(results["operations"][op] for op in MIX), "Mixed"], costs),
        "grown": grid(
            ["", "Two workers, get", "Two workers, create", "App cores for one of the database"],
            grown,
        ),
        "kept": grid(
            ["Connections", "Memory of the app", "p99 without them", "p99 with them"], kept
        ),
    }


def page() -> str:
    """Return the page with the tables of the committed figures."""
    results, found = (
        json.loads((BENCH / f"{name}.json").read_text()) for name in ("results", "find")
    )
    made = tables(results, found)
    return TABLES.sub(lambda match: match[1] + "\n" + made[match[2]], PAGE.read_text())


if __name__ == "__main__":
    PAGE.write_text(page())
