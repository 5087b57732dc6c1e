"""What the paper says of its image models in words, judged by the cells that a folder has.

Sec. 4.1, 5.2 and App. G state more than the tables show: how far the posterior is from the prior,
what GDReGs does to the gradients of the *other* parameters, and what it costs.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gdregs.papers.measures import claims
from gdregs.papers.measures.claims import Claim, Statement
from gdregs.papers.measures.measure import Measured, error_of_median
from gdregs.papers.measures.results import read_result

Contents = Mapping[str, Any]
Cells = dict[tuple[str, str], dict[str, Any]]
"""The cells of a table by row and pair."""

SIMILAR = 1.1
"""Up to this ratio a variance is called similar."""

ABOUT_TWICE = 1.5, 2.5
"""Between these a ratio is called about two."""


def judge_tables(tables: Mapping[str, Contents], cost: Contents | None) -> list[Claim]:
    """All statements that the results allow to judge, those of a table together.

    Args:
        tables: The results of `table1`, `table2` and `digits`, those that there are.
        cost: The result of `benchmarks/cost.py`, if there is one.
    """
    table1, table2, digits = (
        {(cell["row"], cell["pair"]): cell for cell in tables.get(name, {"cells": ()})["cells"]}
        for name in ("table1", "table2", "digits")
    )
    families = (_closeness(table1, table2), _variances(table1), _variances(digits))
    found = [claim for family in families for claim in claims.judge(list(family))]
    return found + ([] if cost is None else list(_runtime(cost)))


def read_cost(folder: Path) -> Contents | None:
    """What `benchmarks/cost.py` has left in a folder."""
    content = read_result(folder / "cost.json")
    return content if content and "cost.py" in content.get("command", "") else None


def _closeness(conditional: Cells, unconditional: Cells) -> Iterable[Statement]:
    for (row, pair), cell in unconditional.items():
        head, _, layers = row.rpartition("-")
        twin = conditional.get((f"{head}-conditional-{layers}", pair))
        if twin is None or pair != "dregs+gdregs" or _length(cell) != _length(twin):
            continue
        yield Statement(
            "Sec. 5.2",
            f"The KL of the posterior to the prior is about twice as large unconditionally."
            f" ({row})",
            "ratio with DReGs + GDReGs:",
            _kl(cell) / _kl(twin),
            *ABOUT_TWICE,
        )


def _kl(cell: dict[str, Any]) -> np.ndarray:
    return sum(
        (np.array(values) for name, values in cell["last"].items() if name.startswith("kl.")),
        np.zeros(()),
    )


def _length(cell: dict[str, Any]) -> tuple[Any, ...]:
    config = cell["config"]
    return config["epochs"], config["train_images"], config["gradient_samples"], cell["seeds"]


class _Change(NamedTuple):
    """That GDReGs changes the variance of the gradient of a group of parameters.

    Attributes:
        source: Where it stands.
        text: What it says.
        group: The parameters.
        posteriors: With which estimators of the posterior.
        low: What the ratio of variances should be above.
        high: What it should be below.
    """

    source: str
    text: str
    group: str
    posteriors: tuple[str, ...]
    low: float = -math.inf
    high: float = math.inf


_CHANGES = (
    _Change(
        "App. G",
        "GDReGs raises the variance of the posterior's gradient where that is naive.",
        "posterior", ("naive",), low=1.0,
    ),
    _Change(
        "App. G",
        "With DReGs it leaves that variance similar or lower.",
        "posterior", ("dregs",), high=SIMILAR,
    ),
    _Change(
        "App. G",
        "GDReGs always lowers the variance of the likelihood's gradient slightly.",
        "likelihood", ("naive", "dregs"), high=1.0,
    ),
    _Change(
        "Sec. 5.2",
        "Later in training GDReGs consistently has lower variance where the posterior has DReGs.",
        "prior", ("dregs",), high=1.0,
    ),
)  # fmt: skip


def _variances(cells: Cells) -> Iterable[Statement]:
    """At the end of trainings with GDReGs over those with the naive estimator of the prior."""
    for row in dict.fromkeys(row for row, _ in cells):
        pairs = [(row, f"{q}+{p}") for q in ("naive", "dregs") for p in ("gdregs", "naive")]
        if not set(pairs) <= set(cells):
            continue

        def change(group: str, posterior: str, row: str = row) -> np.ndarray:
            new, old = (
                np.array(cells[row, f"{posterior}+{prior}"]["last"][f"variance.{group}"])
                for prior in ("gdregs", "naive")
            )
            return new / old

        for one in _CHANGES:
            yield Statement(
                one.source,
                f"{one.text} ({row})",
                f"ratio with {' or '.join(one.posteriors)}:",
                np.stack([change(one.group, posterior) for posterior in one.posteriors]),
                one.low,
                one.high,
            )


def _runtime(cost: Contents) -> Iterable[Claim]:
    """Sec. 4.1, of steps that were timed in turn on one machine."""
    for step, who in (("three surrogates", "by three surrogates"), ("gdregs, M = K", "ours")):
        ratios = [cell["steps"][step]["time_ratio"] for cell in cost["cells"]]
        largest = max(ratios, key=lambda ratio: ratio["median"])
        low, high = largest["quartiles"]
        least = min(ratio["median"] for ratio in ratios)
        yield claims.at_most(
            "Sec. 4.1",
            f"A step of DReGs and GDReGs takes less than 10% more time. ({who})",
            f"time of a step over naive, smallest {least:.2f}, largest",
            Measured(largest["median"], error_of_median(low, high, cost["repeats"])),
            1.1,
        )
