"""A table of trained cells: bounds over seeds, and the papers' orderings row by row."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from gdregs.papers.cells import find_groups
from gdregs.papers.measure import Measured
from gdregs.papers.published import published_bound
from gdregs.vae.config import Config
from gdregs.vae.run import read_metrics

AGREES, DISAGREES, OPEN = "agrees", "disagrees", "undecided"
CONFIDENCE = 0.95

QUESTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "DReGs against naive, φ": (
        ("dregs+naive", "naive+naive"),
        ("dregs+gdregs", "naive+gdregs"),
        ("rws-dregs+naive", "rws+naive"),
    ),
    "DReGs against STL, φ": (("dregs+naive", "stl+naive"), ("dregs+gdregs", "stl+gdregs")),
    "GDReGs against naive, θ": (
        ("naive+gdregs", "naive+naive"),
        ("stl+gdregs", "stl+naive"),
        ("dregs+gdregs", "dregs+naive"),
    ),
}
"""What the tables are read for: pairs of estimators that differ in one, better one first."""


class Cell(NamedTuple):
    """The metrics of a cell's seeds.

    Attributes:
        config: Its settings.
        seeds: The seeds.
        rows: By seed, the rows of metrics up to the settings' number of epochs.
    """

    config: Config
    seeds: tuple[int, ...]
    rows: tuple[list[dict[str, Any]], ...]

    @property
    def pair(self) -> str:
        """Posterior and prior estimator."""
        return self.config.pair

    @property
    def row_name(self) -> str:
        """The row of the table that the cell stands in."""
        objective = "" if self.config.objective == "iwae" else f", {self.config.objective}"
        return self.config.task + objective

    def finals(self, name: str) -> np.ndarray:
        """A metric at the last epoch, by seed."""
        return np.array([rows[-1][name] for rows in self.rows])

    def bound(self) -> Measured:
        """The mean test objective and its standard error over seeds."""
        return mean(self.finals("test_bound"))

    def to_dict(self) -> dict[str, Any]:
        """What was measured, as JSON can hold it: the last epoch by seed, and curves over seeds."""
        recorded = [[flatten(row) for row in rows if "test_bound" in row] for rows in self.rows]
        names = [name for name in recorded[0][-1] if name != "epoch"]
        curves = {name: np.array([[r[name] for r in rows] for rows in recorded]) for name in names}
        return {
            "row": self.row_name,
            "pair": self.pair,
            "config": self.config.to_dict(),
            "seeds": list(self.seeds),
            "test_bound": self.bound()._asdict(),
            "last": {name: [_short(v) for v in curve[:, -1]] for name, curve in curves.items()},
            "curves": {
                "epoch": [row["epoch"] for row in recorded[0]],
                **{name: [_short(v) for v in c.mean(axis=0)] for name, c in curves.items()},
            },
            "images_per_second": _short(self.speed()),
        }

    def speed(self) -> float:
        """Images that training took a second; the median over epochs."""
        return float(np.median([row["images_per_second"] for rows in self.rows for row in rows]))


def flatten(row: dict[str, Any]) -> dict[str, Any]:
    """Nested metrics as one dict, with names such as `kl.z1`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): value
        for path, value in jax.tree.leaves_with_path(row)
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def mean(values: np.ndarray) -> Measured:
    """The mean and its standard error; of a single value the error is not known."""
    count = len(values)
    error = float(np.std(values, ddof=1) / count**0.5) if count > 1 else float("nan")
    return Measured(float(np.mean(values)), error)


def read_cell(runs: Path, config: Config, num_seeds: int) -> Cell | None:
    """The cell of seeds 0, ..., `num_seeds` - 1; None where one of them is missing or unfinished.

    Args:
        runs: The folder of all run folders.
        config: The cell's settings.
        num_seeds: How many seeds.
    """
    by_seed = {}
    for group in find_groups(runs, config):
        for number in group.seeds.numbers:
            rows = read_metrics(group.folder / f"seed{number}")
            rows = [row for row in rows if row["epoch"] <= config.epochs]
            if rows and rows[-1]["epoch"] == config.epochs:
                by_seed[number] = rows
    seeds = tuple(range(num_seeds))
    if not set(seeds) <= set(by_seed):
        return None
    return Cell(config, seeds, tuple(by_seed[number] for number in seeds))


class Comparison(NamedTuple):
    """Two cells of a row that differ in one estimator.

    Attributes:
        question: A key of `QUESTIONS`.
        row: The row.
        better: The pair that should be better.
        worse: The other.
        ours: The mean difference of the test objective and its standard error, over seeds: the
            same seeds draw the same weights and batches.
        published: The published difference; None if there is none.
        verdict: Whether the signs agree, given the confidence intervals of both.
    """

    question: str
    row: str
    better: str
    worse: str
    ours: Measured
    published: Measured | None
    verdict: str


def compare(table: str, cells: Iterable[Cell]) -> list[Comparison]:
    """All comparisons that the cells allow. Where nothing is published, ours should be above 0."""
    rows: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.row_name, {})[cell.pair] = cell
    found = []
    for question, pairs in QUESTIONS.items():
        for row, by_pair in rows.items():
            for better, worse in pairs:
                if better in by_pair and worse in by_pair:
                    ours, theirs = by_pair[better], by_pair[worse]
                    differences = ours.finals("test_bound") - theirs.finals("test_bound")
                    published = _difference(table, ours.config, theirs.config)
                    sign = _sign(mean(differences), len(differences))
                    verdict = _verdict(sign, published)
                    found.append(
                        Comparison(
                            question, row, better, worse, mean(differences), published, verdict
                        )
                    )
    return found


def _difference(table: str, one: Config, other: Config) -> Measured | None:
    first, second = published_bound(table, one), published_bound(table, other)
    if first is None or second is None:
        return None
    return Measured(first.value - second.value, float(np.hypot(first.error, second.error)))


def _sign(measured: Measured, count: int) -> int:
    """The sign of the mean of so many values, or 0 where its confidence interval includes 0."""
    if count < 2:
        return 0
    half_width = stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1) * measured.error
    return int(np.sign(measured.value)) if abs(measured.value) > half_width else 0


def _verdict(sign: int, published: Measured | None) -> str:
    expected = 1 if published is None else _sign(published, 5)
    if not sign or not expected:
        return OPEN
    return AGREES if sign == expected else DISAGREES


def rank_correlation(table: str, cells: list[Cell]) -> float | None:
    """Kendall's tau between our order of a row's pairs and the published one."""
    published = [published_bound(table, cell.config) for cell in cells]
    if len(cells) < 3 or any(value is None for value in published):
        return None
    ours = [cell.bound().value for cell in cells]
    theirs = [value.value for value in published if value is not None]
    return float(stats.kendalltau(ours, theirs)[0])  # pyright: ignore[reportArgumentType]
