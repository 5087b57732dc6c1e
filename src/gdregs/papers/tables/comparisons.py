"""The papers' orderings of estimators, row by row, and whether trained cells have them."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import stats

from gdregs.papers.measures.looks import group_sequential
from gdregs.papers.measures.measure import Measured, mean
from gdregs.papers.tables.cells import Cell
from gdregs.papers.tables.published import published_bound
from gdregs.vae.config import Config

AGREES, DISAGREES, OPEN = "agrees", "disagrees", "undecided"
CONFIDENCE = 0.95

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
        p_value: Two-sided, of no difference (Student's t over seeds), at the last of the `LOOKS`
            that the seeds have reached (over all of them before the first), corrected by Holm's
            procedure for all comparisons of the table at this look.
        verdict: Whether the signs agree, ours from the first look whose level the p-value keeps,
            the published one from its confidence interval.
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
        differences = ours.last["test_bound"] - theirs.last["test_bound"]
        published = _difference(table, ours.config, theirs.config)
        found.append((question, ours.row_name, better, worse, differences, published))
    judged = group_sequential([differences for *_, differences, _ in found])
    return [
        Comparison(
            question,
            row,
            better,
            worse,
            mean(differences),
            published,
            p_value,
            _verdict(sign, published),
        )
        for (question, row, better, worse, differences, published), (p_value, sign) in zip(
            found, judged, strict=True
        )
    ]


def _suffix(cell: Cell) -> str:
    return "" if cell.config.objective == "iwae" else f", {cell.config.objective}"


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
