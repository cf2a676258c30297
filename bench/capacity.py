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


def costs_of(results: Results, backend: str, part: str) -> list[float]:
    """Return the processor seconds of a million requests of each kind, and of the mixed load.

    ``part`` is "server" or "database": which of the two computes.
    """
    found = []
    for operation in MIX:
        cells = results["cells"][backend][operation]["roster"]
        found.append(statistics.median(max(cell[part], 0) / cell["rps"] * 1e6 for cell in cells))
    shares = sum(cost * share for cost, share in zip(found, MIX.values(), strict=True))
    return [*found, shares / sum(MIX.values())]


def gained(rounds: Results) -> float:
    """Return how many times as many requests two workers serve as one."""
    pairs = zip(rounds["1"], rounds["2"], strict=True)
    return float(statistics.median(two["rps"] / one["rps"] for one, two in pairs))


def grid(headings: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown; the headings are separated by ``|``."""
    lines = [headings.split("|"), *([*row] for row in rows)]
    lines.insert(1, ["---"] + ["---:"] * (len(lines[0]) - 1))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(results: Results, found: Results) -> dict[str, str]:
    """Return the tables by their names."""
    carried, costs, grown, kept = list[list[str]](), list[list[str]](), list[list[str]](), []
    for backend, name in NAMES.items():
        load = results["mixed"][backend]["roster"]
        p99 = [f"{load['kinds'][kind]['p99']:.0f} ms" for kind in ("get", "list", "create")]
        people = f"{load['rps'] / 2 * PAUSE:,.0f}"
        rows, megabytes = max((int(rows), each["mb"]) for rows, each in found[backend].items())
        room = f"{1000 * megabytes / rows:.2f} GB"
        carried.append([name, f"{load['rps']:,.0f}", *p99, people, room])

        app, database = (costs_of(results, backend, part) for part in ("server", "database"))
        texts = [f"{cost:,.0f}" for cost in app]
        if backend != "sqlite":
            texts = [f"{text} + {cost:,.0f}" for text, cost in zip(texts, database, strict=True)]
        costs.append([name, *texts])

        if workers := results["workers"].get(backend):
            ratios = [f"{gained(workers[operation]):.2f}x" for operation in ("get", "create")]
            grown.append([name, *ratios, f"{app[-1] / database[-1]:.1f}"])
    for many, seen in results["connections"].items():
        p99 = [f"{seen[key]:.0f} ms" for key in ("p99_alone", "p99")]
        kept.append([f"{int(many):,}", f"{seen['mb']:.0f} MB", *p99])
    operations = "|".join(results["operations"][operation] for operation in MIX)
    return {
        "carried": grid(
            "|Requests a second|p99 get|p99 list|p99 create|People|A million users", carried
        ),
        "costs": grid(f"|{operations}|Mixed", costs),
        "grown": grid(
            "|Two workers, get|Two workers, create|App cores for one of the database", grown
        ),
        "kept": grid("Connections|Memory of the app|p99 without them|p99 with them", kept),
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
