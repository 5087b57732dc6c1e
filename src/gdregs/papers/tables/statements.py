"""What the paper says of its image models in words, judged by the cells that a folder has.

Sec. 4.1, 5.2 and App. G state more than the tables show: how far the posterior is from the prior,
what GDReGs does to the gradients of the *other* parameters, and what it costs.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gdregs.papers.measures import claims
from gdregs.papers.measures.claims import Claim
from gdregs.papers.measures.measure import Measured, of_few
from gdregs.papers.measures.results import read_result

Contents = Mapping[str, Any]
Cells = dict[tuple[str, str], dict[str, Any]]
"""The cells of a table by row and pair."""

SIMILAR = 1.1
"""Up to this ratio a variance is called similar."""


def judge_tables(tables: Mapping[str, Contents], cost: Contents | None) -> list[Claim]:
    """All statements that the results allow to judge.

    Args:
        tables: The results of `table1`, `table2` and `digits`, those that there are.
        cost: The result of `benchmarks/cost.py`, if there is one.
    """
    by_table = {
        name: {(cell["row"], cell["pair"]): cell for cell in content["cells"]}
        for name, content in tables.items()
        if name in ("table1", "table2", "digits")
    }
    found = list(_closeness(by_table.get("table1", {}), by_table.get("table2", {})))
    found += _variances(by_table.get("table1", {}))
    found += _variances(by_table.get("digits", {}))
    return found + ([] if cost is None else list(_runtime(cost)))


def read_cost(folder: Path) -> Contents | None:
    """What `benchmarks/cost.py` has left in a folder."""
    content = read_result(folder / "cost.json")
    return content if content and "cost.py" in content.get("command", "") else None


def _closeness(conditional: Cells, unconditional: Cells) -> Iterable[Claim]:
    for (row, pair), cell in unconditional.items():
        head, _, layers = row.rpartition("-")
        twin = conditional.get((f"{head}-conditional-{layers}", pair))
        if twin is None or pair != "dregs+gdregs" or _length(cell) != _length(twin):
            continue
        ratio = _kl(cell) / _kl(twin)
        yield claims.within(
            "Sec. 5.2",
            f"The KL of the posterior to the prior is about twice as large unconditionally."
            f" ({row})",
            "ratio with DReGs + GDReGs:",
            of_few(ratio),
            2.0,
            0.5,
        )


def _kl(cell: dict[str, Any]) -> np.ndarray:
    return sum(
        (np.array(values) for name, values in cell["last"].items() if name.startswith("kl.")),
        np.zeros(()),
    )


def _length(cell: dict[str, Any]) -> tuple[Any, ...]:
    config = cell["config"]
    return config["epochs"], config["train_images"], config["gradient_samples"], cell["seeds"]


def _variances(cells: Cells) -> Iterable[Claim]:
    for row in dict.fromkeys(row for row, _ in cells):
        if not all((row, f"{q}+{p}") in cells for q in ("naive", "dregs") for p in _PRIORS):
            continue

        def change(group: str, posterior: str, row: str = row) -> Measured:
            """GDReGs' variance over that of the naive estimator, after trainings with each."""
            new, old = (cells[row, f"{posterior}+{prior}"]["last"] for prior in _PRIORS)
            return of_few(np.array(new[f"variance.{group}"]) / np.array(old[f"variance.{group}"]))

        yield from (make(row, change) for make in _STATEMENTS)


_PRIORS = ("gdregs", "naive")


def _raises_posterior(row: str, change: Callable[..., Measured]) -> Claim:
    return claims.at_least(
        "App. G",
        f"GDReGs raises the variance of the posterior's gradient where that is naive. ({row})",
        "ratio at the end:",
        change("posterior", "naive"),
        1.0,
    )


def _keeps_posterior(row: str, change: Callable[..., Measured]) -> Claim:
    return claims.at_most(
        "App. G",
        f"With DReGs it leaves that variance similar or lower. ({row})",
        "ratio at the end:",
        change("posterior", "dregs"),
        SIMILAR,
    )


def _lowers_likelihood(row: str, change: Callable[..., Measured]) -> Claim:
    return claims.at_most(
        "App. G",
        f"GDReGs always lowers the variance of the likelihood's gradient slightly. ({row})",
        "larger of the ratios with naive and with DReGs:",
        max(change("likelihood", "naive"), change("likelihood", "dregs")),
        1.0,
    )


def _lowers_prior(row: str, change: Callable[..., Measured]) -> Claim:
    naive = change("prior", "naive")
    return claims.at_most(
        "Sec. 5.2",
        f"Later in training GDReGs consistently has lower variance where the posterior has DReGs."
        f" ({row})",
        "ratio of the prior's variances at the end:",
        change("prior", "dregs"),
        1.0,
        f"With the naive estimator of the posterior the ratio is {naive}.",
    )


_STATEMENTS = (_raises_posterior, _keeps_posterior, _lowers_likelihood, _lowers_prior)


def _runtime(cost: Contents) -> Iterable[Claim]:
    """Sec. 4.1, of steps that were timed in turn on one machine."""
    for step, who in (("three surrogates", "by three surrogates"), ("gdregs, M = K", "ours")):
        ratios = [cell["steps"][step]["time_ratio"] for cell in cost["cells"]]
        largest = max(ratios, key=lambda ratio: ratio["median"])
        low, high = largest["quartiles"]
        error = (high - low) / 1.35 * 1.25 / cost["repeats"] ** 0.5  # of a median of normal draws
        least = min(ratio["median"] for ratio in ratios)
        yield claims.at_most(
            "Sec. 4.1",
            f"A step of DReGs and GDReGs takes less than 10% more time. ({who})",
            f"time of a step over naive, smallest {least:.2f}, largest",
            Measured(largest["median"], error),
            1.1,
        )
