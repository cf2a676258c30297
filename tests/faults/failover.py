"""What the tests of failover share: servers that may be missing, and the line of figures."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from databases import Missing
from load import Figures, Load


@contextmanager
def required(what: str) -> Iterator[None]:
    """Skip a test whose servers are not on this machine, or fail it if all are required."""
    try:
        yield
    except Missing as error:
        if os.environ.get("REQUIRE_ALL_DATABASES"):
            pytest.fail(str(error))
        pytest.skip(f"{what}: {error}")


def say(figures: Figures, load: Load, lost: int, **seconds: float) -> None:
    """Print what a load was answered, how many are lost, and how long things took."""
    figures("acknowledged", len(load.stored))
    figures("lost", lost)
    figures("longest outage", f"{load.outage():.1f} s")
    figures("longest request", f"{load.longest_request:.1f} s")
    figures("codes", dict(load.codes))
    for what, figure in seconds.items():
        figures(what, f"{figure:.2f} s")
