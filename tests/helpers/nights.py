"""Cases of a Cartesian product that the date draws, for a nightly run.

Every run holds a covering set, in which each pair of values occurs: that finds a fault which shows
where two choices meet. Faults of three are what other rows of the product look for, each night.
"""

import datetime
import itertools
import os
import random

import pytest

NIGHT = "GDREGS_NIGHT"
"""The variable with the date by which cases are drawn; today's, if it is not set."""


def choose_night():
    """Fix the date, for all workers."""
    os.environ.setdefault(NIGHT, datetime.date.today().isoformat())


def drawn(*axes, count=4):
    """Rows of the product of the axes, for `pytest.mark.parametrize`, marked `nightly`."""
    rows = list(itertools.product(*axes))
    chosen = random.Random(os.environ.get(NIGHT, "")).sample(rows, min(count, len(rows)))
    return [pytest.param(*row, marks=pytest.mark.nightly) for row in chosen]
