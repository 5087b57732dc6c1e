"""A table of trained cells: bounds over seeds, and the papers' orderings row by row."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from gdregs.papers.grids.cells import find_groups
from gdregs.papers.measures.measure import Measured
from gdregs.papers.tables.published import published_bound
from gdregs.vae.config import Config
from gdregs.vae.runs.folders import read_metrics

AGREES, DISAGREES, OPEN = "agrees", "disagrees", "undecided"
CONFIDENCE = 0.95
LOOKS = {3: 0.01, 5: 0.015, 10: 0.025}
"""Two-sided levels by number of seeds: the plan adds seeds up to each look, and may stop there."""

QUESTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "DReGs against naive, φ": (
        ("dregs+naive", "naive+naive"),
        ("dregs+gdregs", "naive+gdregs"),
        ("rws-dregs+naive", "rws+naive"),
    ),
    "DReGs against STL, φ": (("dregs+naive", "stl+naive"), ("dregs+gdregs", "stl+gdregs")),
    "IWAE-DReGs against RWS-DReGs, φ": (("dregs+naive", "rws-dregs+naive"),),
    "IWAE-DReGs against JVI-DReGs, φ": (("dregs+naive", "dregs+naive, jvi"),),
    "GDReGs against naive, θ": (
        ("naive+gdregs", "naive+naive"),
        ("stl+gdregs", "stl+naive"),
        ("dregs+gdregs", "dregs+naive"),
    ),
    "Learned mix against naive and GDReGs, θ": (
        ("dregs+gdregs-mix", "dregs+naive"),
        ("dregs+gdregs-mix", "dregs+gdregs"),
    ),
}
"""What the tables are read for: pairs of estimators that differ in one, better one first. With an
objective behind a comma they stand in another row."""


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
    """Two cells of a task that differ in one estimator.

    Attributes:
        question: A key of `QUESTIONS`.
        row: The row.
        better: The pair that should be better.
        worse: The other.
        ours: The mean difference of the test objective and its standard error, over seeds: the
            same seeds draw the same weights and batches.
        published: The published difference; None if there is none.
        p_value: Two-sided, of no difference (Student's t over seeds), corrected by Holm's procedure
            for all comparisons of the table.
        verdict: Whether the signs agree, given the p-value at the level of this look (`LOOKS`) and
            the published confidence interval.
    """

    question: str
    row: str
    better: str
    worse: str
    ours: Measured
    published: Measured | None
    p_value: float
    verdict: str


def comparable(cells: Iterable[Cell]) -> list[tuple[str, str, str, Cell, Cell]]:
    """Question, better pair, worse pair and their cells, for all `QUESTIONS` that cells allow."""
    by_task: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        by_task.setdefault(cell.config.task, {})[cell.pair + _suffix(cell)] = cell
    found = []
    for question, pairs in QUESTIONS.items():
        for by_label in by_task.values():
            for suffix in dict.fromkeys(map(_suffix, by_label.values())):
                for better, worse in pairs:
                    ours, theirs = (by_label.get(pair + suffix) for pair in (better, worse))
                    if ours is not None and theirs is not None:
                        found.append((question, better, worse, ours, theirs))
    return found


def compare(table: str, cells: Iterable[Cell]) -> list[Comparison]:
    """All comparisons that the cells allow. Where nothing is published, ours should be above 0."""
    found = []
    for question, better, worse, ours, theirs in comparable(cells):
        differences = ours.finals("test_bound") - theirs.finals("test_bound")
        published = _difference(table, ours.config, theirs.config)
        found.append((question, ours.row_name, better, worse, differences, published))
    p_values = holm([_p_value(differences) for *_, differences, _ in found])
    return [
        Comparison(
            question,
            row,
            better,
            worse,
            mean(differences),
            published,
            p_value,
            _verdict(_sign(differences, p_value), published),
        )
        for (question, row, better, worse, differences, published), p_value in zip(
            found, p_values, strict=True
        )
    ]


def _suffix(cell: Cell) -> str:
    return "" if cell.config.objective == "iwae" else f", {cell.config.objective}"


def holm(p_values: list[float]) -> list[float]:
    """p-values of several tests, corrected so that any false one is as rare as one alone."""
    order = np.argsort(p_values)
    corrected, largest = np.ones(len(p_values)), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min((len(order) - place) * p_values[index], 1.0))
        corrected[index] = largest
    return corrected.tolist()


def _p_value(differences: np.ndarray) -> float:
    """Of no difference, two-sided; 1 where a single seed cannot tell."""
    count = len(differences)
    if count < 2:
        return 1.0
    measured = mean(differences)
    if not measured.error > 0:
        return float(measured.value == 0)
    return float(2 * stats.t.sf(abs(measured.value) / measured.error, count - 1))


def _sign(differences: np.ndarray, p_value: float) -> int:
    """The sign of the mean, or 0 where it is not decided at the level of this number of seeds."""
    level = LOOKS.get(len(differences), 1 - CONFIDENCE)
    return int(np.sign(np.mean(differences))) if p_value <= level else 0


def _difference(table: str, one: Config, other: Config) -> Measured | None:
    first, second = published_bound(table, one), published_bound(table, other)
    if first is None or second is None:
        return None
    return Measured(first.value - second.value, float(np.hypot(first.error, second.error)))


def _published_sign(measured: Measured) -> int:
    """The sign of a published difference, or 0 where its confidence interval includes 0."""
    half_width = stats.t.ppf(0.5 + CONFIDENCE / 2, 4) * measured.error  # five seeds
    return int(np.sign(measured.value)) if abs(measured.value) > half_width else 0


def _verdict(sign: int, published: Measured | None) -> str:
    expected = 1 if published is None else _published_sign(published)
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
