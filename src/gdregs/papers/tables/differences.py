"""The differences between estimators over training, with the uncertainty of the seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from scipy import stats

from gdregs.papers.measures.figures import COLOURS, new_figure, styled
from gdregs.papers.tables.cells import Cell
from gdregs.papers.tables.comparisons import CONFIDENCE, comparable


def difference_over_training(ours: Cell, theirs: Cell) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Epochs, the mean difference of test objectives, and half the width of its 95% interval.

    Seeds are taken in pairs, which have the same initial weights and batches; intervals are
    Student's over seeds, at each epoch by itself. Where seeds come from a result that kept their
    means alone, the interval is known at the last epoch only, and NaN at the others.
    """
    epochs, here, there = np.intersect1d(ours.epochs, theirs.epochs, return_indices=True)
    centre = ours.curves["test_bound"][here] - theirs.curves["test_bound"][there]
    width = np.full(len(epochs), np.nan)
    if ours.by_seed is not None and theirs.by_seed is not None:
        curves = ours.by_seed["test_bound"][:, here] - theirs.by_seed["test_bound"][:, there]
        width = _half_width(curves)
    elif ours.epochs[-1] == theirs.epochs[-1]:
        width[-1] = _half_width(ours.last["test_bound"] - theirs.last["test_bound"])
    return epochs, centre, width


def _half_width(values: np.ndarray) -> np.ndarray:
    """Of Student's interval over the first axis; NaN where there is one seed alone."""
    count = len(values)
    if count < 2:
        return np.full(values.shape[1:], np.nan)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
    return np.asarray(quantile * values.std(axis=0, ddof=1) / count**0.5)


@styled
def draw_differences(cells: Sequence[Cell]) -> Any:
    """A row for each row of the table, a column for each question, a line for each pair of pairs.

    Returns:
        The figure, or None where nothing can be compared.
    """
    found = comparable(cells)
    if not found:
        return None
    rows = list(dict.fromkeys(ours.row_name for *_, ours, _ in found))
    questions = list(dict.fromkeys(question for question, *_ in found))
    figure, axes = new_figure(len(questions), len(rows), width=3.0, height=2.1)
    for place, row in enumerate(rows):
        for axis, question in zip(axes[place], questions, strict=True):
            axis.axhline(0, color="black", linewidth=0.6)
            members = [one for one in found if one[0] == question and one[3].row_name == row]
            for number, (_, better, worse, ours, theirs) in enumerate(members):
                epochs, centre, width = difference_over_training(ours, theirs)
                colour = COLOURS[number]
                axis.plot(epochs, centre, color=colour, label=f"{better} \N{MINUS SIGN} {worse}")
                axis.fill_between(
                    epochs, centre - width, centre + width, color=colour, alpha=0.15, lw=0
                )
                if np.isnan(width[:-1]).all():  # known at the end, beside one another
                    axis.errorbar(
                        epochs[-1] * (1 + 0.015 * number),
                        centre[-1],
                        width[-1],
                        color=colour,
                        capsize=2,
                    )
            _fit(axis, members)
            if place == 0:
                axis.set_title(question, fontsize="small")
            if place == len(rows) - 1:
                axis.set_xlabel("epoch")
        axes[place][0].set_ylabel(f"{row}\nnats")
    return figure


def _fit(axis: Any, members: Sequence[Any]) -> None:
    """Fit the axis to the later two thirds of the lines: the first epochs differ by far more."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    if not members:
        axis.text(0.5, 0.5, "none", ha="center", va="center", transform=axis.transAxes)
        return
    late = [line.get_ydata()[len(line.get_ydata()) // 3 :] for line in axis.lines[1:]]
    low, high = min(0.0, *map(np.min, late)), max(0.0, *map(np.max, late))
    margin = 0.5 * (high - low) or 1.0
    axis.set_ylim(low - margin, high + margin)
    axis.legend(fontsize=6, loc="best")
