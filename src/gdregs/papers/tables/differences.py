"""The differences between estimators over training, with the uncertainty of the seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from scipy import stats

from gdregs.papers.measures.figures import COLOURS, new_figure, styled
from gdregs.papers.tables.comparisons import CONFIDENCE, Cell, comparable


def difference_over_training(ours: Cell, theirs: Cell) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Epochs, the mean difference of test objectives, and half the width of its 95% interval.

    Seeds are taken in pairs, which have the same initial weights and batches; intervals are
    Student's over seeds, at each epoch by itself.
    """
    curves = []
    for one, other in zip(ours.rows, theirs.rows, strict=True):
        by_epoch = {row["epoch"]: row["test_bound"] for row in other if "test_bound" in row}
        curves.append(
            {
                row["epoch"]: row["test_bound"] - by_epoch[row["epoch"]]
                for row in one
                if "test_bound" in row and row["epoch"] in by_epoch
            }
        )
    epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = np.array([[curve[epoch] for epoch in epochs] for curve in curves])
    count = len(values)
    width = np.full(len(epochs), np.nan)
    if count > 1:
        quantile = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
        width = quantile * values.std(axis=0, ddof=1) / count**0.5
    return np.array(epochs), values.mean(axis=0), width


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
            _fit(axis, members)
            if place == 0:
                axis.set_title(question)
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
