"""Cases of a Cartesian product: a covering set for every run, others by the date for a nightly one.

A fault that shows only where two choices meet is found by a set of cases in which every pair of
values occurs once (pairwise testing); faults of three choices are what the nightly cases look for.
"""

import datetime
import itertools
import os
import random

import pytest

NIGHT = "GDREGS_NIGHT"
"""The variable with the date by which nightly cases are drawn; today's, if it is not set."""


def choose_night():
    """Fix the date, for all workers."""
    os.environ.setdefault(NIGHT, datetime.date.today().isoformat())


def covering_set(axes):
    """Rows of the product of the axes, in which every pair of values of two axes occurs."""
    rows = list(itertools.product(*(range(len(axis)) for axis in axes)))

    def pairs(row):
        return set(itertools.combinations(enumerate(row), 2)) or {((0, row[0]),)}

    missing, chosen = set().union(*map(pairs, rows)), []
    while missing:
        best = max(rows, key=lambda row: len(pairs(row) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return [tuple(axis[i] for axis, i in zip(axes, row, strict=True)) for row in chosen]


def cases(*axes, nightly=4, marks=()):
    """For `pytest.mark.parametrize`: the covering set, and a few other rows marked `nightly`.

    Args:
        axes: The values of each argument; hashable.
        nightly: How many of the other rows a nightly run draws.
        marks: Of the rows of the covering set.
    """
    chosen = covering_set(axes)
    others = [row for row in itertools.product(*axes) if row not in chosen]
    night = os.environ.get(NIGHT, "")
    drawn = random.Random(night).sample(others, min(nightly, len(others)))
    return [
        *(pytest.param(*row, marks=marks) for row in chosen),
        *(pytest.param(*row, marks=pytest.mark.nightly) for row in drawn),
    ]
