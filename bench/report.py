"""Print what was measured as tables, and draw it."""

import statistics
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Grid
from servers import BENCH, PEERS, SQL

RESULTS, PICTURE = BENCH / "results.json", BENCH / "results.svg"
# What FastAPI's documentation shows for a database, or, where it shows nothing, the database's own.
IDIOMS = dict.fromkeys(SQL, "tutorial") | {"redis": "redis-om"}
GOAL = ("get", "list", "create")  # operations for which a peer's goal holds
BUSY = 0.1  # of a core that other programs take
STEADY = 3  # p99 is at most so many times p50 under mixed load
Cells = list[dict[str, Any]]
Results = dict[str, Any]

console = Console(width=max(Console().width, 168))  # as wide as the tables, in a file too


def progress_bar() -> Progress:
    """Return a bar that says what is being measured."""
    shown = [TextColumn("{task.description:<56}"), BarColumn(), MofNCompleteColumn()]
    return Progress(*shown, TimeRemainingColumn(), console=console, transient=True)


def median(cells: Cells, key: str) -> float:
    """Return the median of a figure over the rounds."""
    return statistics.median(float(cell[key]) for cell in cells)


def work(cell: dict[str, Any]) -> float:
    """Return the server's processor time for a request, in microseconds."""
    return float(cell["server"] / cell["rps"] * 1e6)


def ratios(ours: Cells, theirs: Cells) -> list[float]:
    """Return how many times as fast we are in each round.

    The two of a round were measured shortly after each other.
    """
    return [float(one["rps"] / other["rps"]) for one, other in zip(ours, theirs, strict=True)]


def saved(ours: Cells, theirs: Cells) -> float:
    """Return how many times our processor time they take: the median of the rounds' ratios."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(work(other) / work(one) for one, other in pairs)


def ratio(ours: Cells, theirs: Cells) -> float:
    """Return how many times as fast we are: the median of the rounds' ratios."""
    return statistics.median(ratios(ours, theirs))


def busy(cells: Cells) -> bool:
    """Return whether other programs took much of a core meanwhile."""
    return median(cells, "others") > BUSY


def with_idiom(results: Results, backend: str, operation: str) -> list[Cells] | None:
    """Return what Roster and the database's idiom did in a cell, or None if it is not known."""
    peers = results["cells"].get(backend, {}).get(operation, {})
    both = [peers.get(name) for name in ("roster", IDIOMS[backend])]
    return both if all(both) else None


def to_idiom(results: Results, base: Results, backend: str, operation: str) -> list[float] | None:
    """Return a cell's ratio to the idiom, now and in the base, or None if one is not known.

    On a busy machine it is that of processor time: there, a peer with many threads gets a larger
    share of its core than one with a single thread.
    """
    cells = [with_idiom(each, backend, operation) for each in (results, base)]
    if cells[0] is None or cells[1] is None:
        return None
    figure = saved if busy([*cells[0][0], *cells[0][1]]) else ratio
    return [figure(*both) for both in cells if both]


def verdict(good: bool, goal: str) -> str:
    """Return a goal with whether it is met."""
    colour, word = ("green", "pass") if good else ("red", "FAIL")
    return f"[{colour}]{goal} {word}[/]"


def compared(ours: Cells, theirs: Cells) -> list[str]:
    """Return three columns: how many times as fast we are, its spread, and theirs / our work."""
    least, most = (f(ratios(ours, theirs)) for f in (min, max))
    return [f"{ratio(ours, theirs):.2f}x", f"{least:.2f}-{most:.2f}", f"{saved(ours, theirs):.2f}x"]


def summary(cells: Cells) -> Results:
    """Return what mixed rounds have together: requests a second, and how long each kind took."""
    kinds: dict[str, list[int]] = {}
    for cell in cells:
        for kind, times in cell["took"].items():
            kinds.setdefault(kind, []).extend(times)
    return {
        "rps": median(cells, "rps"),
        "others": median(cells, "others"),
        "kinds": {kind: percentiles(sorted(times)) for kind, times in kinds.items()},
    }


def percentiles(times: list[int]) -> dict[str, float]:
    """Return within how many milliseconds 50, 99 and 99.9 % had a response, and their number."""
    shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
    found = {name: times[int(share * len(times))] / 1000 for name, share in shares.items()}
    return {**found, "requests": len(times)}


def short(milliseconds: float) -> str:
    """Return a time with three digits or so."""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.1f}"


def grid(title: str, *headings: str, texts: int = 1) -> Grid:
    """Return an empty table, whose first columns are text."""
    made = Grid(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        made.add_column(heading, justify="left" if number < texts else "right", no_wrap=True)
    return made


def report_cells(results: Results, backend: str, ours: str) -> None:
    """Print one database's cells."""
    titles, settings = results["titles"], results["settings"]
    table = grid(
        f"{results['databases'][backend]}, {settings['connections']} connections, median of"
        f" {settings['rounds']} x {settings['seconds']} s; ratios: {titles[ours]} to the others",
        *("", "", "req/s", "p50 ms", "p99 ms", "ratio", "rounds", "work", "goal"),
        *("core", "us/req", "DB", "wrk"),
        texts=2,
    )
    for operation, peers in results["cells"][backend].items():
        for name, cells in peers.items():
            row = [f"{median(cells, 'rps'):,.0f}"]
            row += [f"{median(cells, key):.1f}" for key in ("p50", "p99")]
            row += compared(peers[ours], cells) if name != ours and ours in peers else [""] * 3
            goal = PEERS[name].goal if name in PEERS and operation in GOAL else None
            if goal is None or ours != "roster":
                row += [""]
            else:
                row += [verdict(ratio(peers[ours], cells) >= goal, f"{goal:g}x")]
            row += [f"{median(cells, 'server'):.0%}"]
            row += [f"{statistics.median(work(cell) for cell in cells):,.0f}"]
            row += [f"{median(cells, key):.0%}" for key in ("database", "wrk")]
            first = results["operations"][operation] if name == next(iter(peers)) else ""
            table.add_row(first, titles[name], *row)
        table.add_section()
    console.print(table)
    memory = results["memory"][backend].items()
    console.print("MB:", ", ".join(f"{titles[name]} {mb:.0f}" for name, mb in memory))


def report_mixed(results: Results, backend: str) -> None:
    """Print what one database's peers do under mixed load."""
    operations = results["operations"]
    table = grid(
        f"{results['databases'][backend]}, mixed: nine reads to one write; ms: p50 / p99 / p99.9",
        *("", "req/s", *operations.values(), f"p99 <= {STEADY} x p50"),
    )
    for name, seen in results["mixed"][backend].items():
        row, worst = [], 0.0
        for operation in operations:
            times = seen["kinds"].get(operation)
            if times is None:
                row += ["-"]
                continue
            worst = max(worst, times["p99"] / times["p50"])
            row += [" / ".join(short(times[key]) for key in ("p50", "p99", "p999"))]
        shown = f"{worst:.1f}x"
        if name.startswith("roster"):
            shown = verdict(worst <= STEADY, shown)
        table.add_row(results["titles"][name], f"{seen['rps']:,.0f}", *row, shown)
    console.print(table)


def report(results: Results) -> None:
    """Print the tables. Ratios are Roster's to the others, or else those of the first peer."""
    titles = results["titles"]
    ours = "roster" if "roster" in titles else next(iter(titles))
    for backend in results["databases"]:
        if results["cells"][backend]:
            report_cells(results, backend, ours)
        if backend in results["mixed"]:
            report_mixed(results, backend)
    if results["workers"]:
        table = grid("Two workers to one", "", "", "req/s", "req/s", "ratio", "rounds", texts=2)
        for backend, operations in results["workers"].items():
            for operation, each in operations.items():
                one, two = each["1"], each["2"]
                rates = [f"{median(cells, 'rps'):,.0f}" for cells in (one, two)]
                table.add_row(backend, operation, *rates, *compared(two, one)[:2])
        console.print(table)
    if results["connections"]:
        table = grid(
            "Connections kept open, one in a hundred busy; in brackets, without the idle ones",
            *("connections", "busy", "kB each", "MB", "req/s", "p50 ms", "p99 ms"),
        )
        for many, seen in results["connections"].items():
            row = [
                f"{seen[key]:,.{digits}f}" for key, digits in (("busy", 0), ("kb", 1), ("mb", 0))
            ]
            for key, digits in (("rps", 0), ("p50", 1), ("p99", 1)):
                row += [f"{seen[key]:,.{digits}f} ({seen[f'{key}_alone']:,.{digits}f})"]
            table.add_row(f"{int(many):,}", *row)
        console.print(table)
    report_load(results)


def report_load(results: Results) -> None:
    """Print whether it is the servers that were measured, and not wrk or another program."""
    every = [
        (operation, median(cells, "rps"), median(cells, "wrk"), median(cells, "others"))
        for operations in results["cells"].values()
        for operation, peers in operations.items()
        for cells in peers.values()
    ]
    others = [share for *_, share in every]
    others += [each["others"] for peers in results["mixed"].values() for each in peers.values()]
    console.print(f"{results['machine']}, {results['date']}")
    if others:
        console.print(f"other programs took {statistics.median(others):.0%} of a core meanwhile")
        if statistics.median(others) > BUSY:
            console.print("[red]The machine was busy: these are no numbers to publish.[/]")
    if not every:
        return
    console.print(f"wrk took at most {max(wrk for _, _, wrk, _ in every):.0%} of a core;", end=" ")
    console.print("from fixed bytes, without any framework, it gets:")
    for operation, raw in results["raw"].items():
        best = max(rps for name, rps, *_ in every if name == operation)
        title = results["operations"][operation].lower()
        console.print(f"  {title}: {raw['rps']:,.0f} req/s, {raw['rps'] / best:.1f}x the fastest")


def draw(results: Results) -> None:
    """Draw the medians, with the least and the most of the rounds, into ``PICTURE``."""
    colours = {"roster": "#0f766e", "nodb": "#cbd5e1"}
    style = {
        "svg.fonttype": "none",  # text stays text: small, sharp, and it can be searched
        "svg.hashsalt": "roster",  # the same results make the same file
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
        "font.size": 9,
        "axes.edgecolor": "#94a3b8",
        "text.color": "#0f172a",
    }
    titles, operations = results["titles"], results["operations"]
    with rc_context(style):
        figure = Figure(figsize=(15, 13), layout="constrained", facecolor="white")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
        cells = results["cells"]
        axes_of = figure.subplots(
            len(operations), len(cells), sharex="row", sharey=True, squeeze=False
        )
        for column, (backend, measured) in enumerate(cells.items()):
            for row, (operation, title) in enumerate(operations.items()):
                axes = axes_of[row][column]
                draw_cell(axes, measured.get(operation, {}), list(titles), colours)
                axes.set_yticks(range(len(titles)), titles.values())
                axes.spines[["top", "right", "bottom"]].set_visible(False)
                axes.tick_params(length=0)
                axes.set_xticks([])
                heading = f"{title}, {results['databases'][backend]}"
                axes.set_title(heading, loc="left", weight="bold", fontsize=10)
                axes.margins(x=0.3)
        axes_of[0][0].invert_yaxis()  # all have the same axis
        settings = results["settings"]
        figure.suptitle(
            f"Requests a second: one process, {settings['connections']} connections,"
            f" {settings['rows']:,} rows",
            x=0.01,
            ha="left",
            weight="bold",
            fontsize=12,
        )
        figure.supxlabel(
            f"Medians of {settings['rounds']} rounds of {settings['seconds']} s; the line is from"
            f" the slowest to the fastest round. {results['machine']}. {results['date']}.",
            x=0.01,
            ha="left",
            fontsize=8,
        )
        figure.savefig(PICTURE, metadata={"Date": None, "Creator": None})


def draw_cell(axes: Any, peers: dict[str, Cells], order: list[str], colours: Any) -> None:
    """Draw one operation on one database, each peer in its place."""
    for place, name in enumerate(order):
        if name not in peers:
            continue
        middle = median(peers[name], "rps")
        least, most = (f(cell["rps"] for cell in peers[name]) for f in (min, max))
        axes.barh(place, middle, height=0.72, color=colours.get(name, "#64748b"))
        axes.hlines(place, least, most, color="#0f172a", linewidth=1)
        label = f"{middle:,.0f}"
        if name != "roster" and "roster" in peers:
            label += f"   (Roster {ratio(peers['roster'], peers[name]):.1f}x)"
        axes.annotate(
            label,
            (most, place),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            weight="bold" if name == "roster" else "normal",
        )
