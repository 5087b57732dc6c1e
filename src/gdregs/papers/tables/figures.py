"""The figures of the image models: Fig. 6, 7, G.1 and G.2, and curves of any cells."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from gdregs.papers.measures.figures import COLOURS, new_figure, styled
from gdregs.papers.tables.cells import Cell
from gdregs.papers.tables.published import Z95


class Column(NamedTuple):
    """One column of a figure.

    Attributes:
        title: What is shown.
        names: The metrics that are added up, by their names or the part before the dot.
        log: Whether the axis is logarithmic.
    """

    title: str
    names: tuple[str, ...]
    log: bool = False

    def read(self, metrics: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The quantity from named metrics; None where it was not recorded."""
        found = [
            values
            for name, values in metrics.items()
            if name in self.names or name.partition(".")[0] in self.names
        ]
        return np.sum(found, axis=0) if found else None


TEST = Column("test objective", ("test_bound",))
TRAIN = Column("train objective", ("train_bound",))
PRIOR = Column("variance, prior", ("variance.prior",), log=True)
POSTERIOR = Column("variance, posterior", ("variance.posterior",), log=True)
LIKELIHOOD = Column("variance, likelihood", ("variance.likelihood",), log=True)
KL = Column("total KL (nats)", ("kl",))


class Layout(NamedTuple):
    """A figure of the paper.

    Attributes:
        title: What it shows.
        tasks: Its rows, as `Config.task` spells them.
        columns: Its columns.
    """

    title: str
    tasks: tuple[str, ...]
    columns: tuple[Column, ...]


LAYOUTS: dict[str, Layout] = {
    "figure6": Layout(
        "Conditional modelling of MNIST, 1 and 2 layers (Fig. 6)",
        ("mnist-conditional-L1", "mnist-conditional-L2"),
        (TEST, PRIOR, POSTERIOR),
    ),
    "figure7": Layout(
        "Unconditional modelling of Fashion-MNIST, 3 layers (Fig. 7)",
        ("fashion-mnist-L3",),
        (TEST, PRIOR, POSTERIOR),
    ),
    "figureG1": Layout(
        "Conditional modelling, 1 and 3 layers (Fig. G.1)",
        (
            "mnist-conditional-L1",
            "mnist-conditional-L3",
            "fashion-mnist-conditional-L1",
            "fashion-mnist-conditional-L3",
        ),
        (TEST, PRIOR, POSTERIOR, LIKELIHOOD),
    ),
    "figureG2": Layout(
        "Conditional and unconditional modelling of Fashion-MNIST, 3 layers (Fig. G.2)",
        ("fashion-mnist-conditional-L3", "fashion-mnist-L3"),
        (TRAIN, TEST, PRIOR, KL),
    ),
}
CURVES = (TEST, PRIOR, POSTERIOR, LIKELIHOOD, KL)
"""What is drawn for any table."""


@styled
def draw_cells(
    cells: Sequence[Cell], columns: Sequence[Column], tasks: Sequence[str] | None = None
) -> Any:
    """A row for each task, a column for each quantity, a line for each pair of estimators.

    Shaded areas are 1.96 standard deviations over seeds, as in the paper, where these are known.

    Args:
        cells: The cells; those of other tasks are left out.
        columns: What to show.
        tasks: The rows, in order; by default all that the cells have.

    Returns:
        The figure, or None where no task has a cell.
    """
    present = dict.fromkeys(cell.row_name for cell in cells)
    rows = [task for task in (tasks or present) if task in present]
    if not rows:
        return None
    marked = len({cell.config.gradient_samples for cell in cells}) > 1
    figure, axes = new_figure(len(columns), len(rows), width=2.3, height=1.9)
    for place, task in enumerate(rows):
        members = [cell for cell in cells if cell.row_name == task]
        for axis, column in zip(axes[place], columns, strict=True):
            for cell in members:
                _draw_line(axis, cell, column, marked)
            _fit(axis, column)
            if place == 0:
                axis.set_title(column.title)
            if place == len(rows) - 1:
                axis.set_xlabel("epoch")
        axes[place][0].set_ylabel(task.replace("-conditional", "\nconditional"))
    lines = {line.get_label(): line for panel in axes.flat for line in panel.lines}
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=min(len(lines), 7)
    )
    return figure


def _draw_line(axis: Any, cell: Cell, column: Column, marked: bool) -> None:
    centre = column.read(cell.curves)
    if centre is None:
        return
    shown = np.isfinite(centre) & ((centre > 0) | (not column.log))
    if not shown.any():
        return
    epochs, centre = np.array(cell.epochs)[shown], centre[shown]
    colour, style, label = _style(cell, marked)
    marker = "." if len(epochs) < 30 else None
    axis.plot(epochs, centre, style, color=colour, label=label, marker=marker, ms=3)
    if cell.by_seed is not None and len(cell.seeds) > 1:
        values = column.read(cell.by_seed)
        assert values is not None
        spread = Z95 * values[:, shown].std(axis=0, ddof=1)
        low = np.maximum(centre - spread, centre / 100) if column.log else centre - spread
        axis.fill_between(epochs, low, centre + spread, color=colour, alpha=0.15, lw=0)


def _style(cell: Cell, marked: bool) -> tuple[str, str, str]:
    """Colour by the posterior's estimator, dashes by the prior's.

    A learned mix of the prior's has a colour of its own. Where cells differ in M (`marked`), those
    whose backward pass is resampled have dots, and say so.
    """
    posterior, prior = cell.config.posterior_estimator, cell.config.prior_estimator
    names = ("naive", "stl", "dregs", "rws", "rws-dregs")
    plain = posterior in names and prior != "gdregs-mix"
    colour = COLOURS[names.index(posterior)] if plain else COLOURS[-1]
    style = "--" if prior == "naive" else "-"
    label = cell.pair
    if marked and cell.config.gradient_samples:
        style = ":" if style == "-" else "-."
        label = f"{label}, M = {cell.config.gradient_samples}"
    return colour, style, label


def _fit(axis: Any, column: Column) -> None:
    """Fit the axis to the lines and not to wide shaded areas, nor to the steep start of a bound."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    series = [line.get_ydata() for line in axis.lines]
    if not series:  # such as the variance of a prior without parameters
        axis.text(0.5, 0.5, "none", ha="center", va="center", transform=axis.transAxes)
        axis.set(xticks=[], yticks=[])
        return
    start = len(series[0]) // 4 if column in (TEST, TRAIN) else 0
    values = np.concatenate([line[start:] for line in series])
    low, high = float(values.min()), float(values.max())
    if column.log:
        axis.set_yscale("log")
        axis.set_ylim(low / 1.5, high * 1.5)
        axis.yaxis.set_minor_formatter(NullFormatter())
        if high < 10 * low:
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    elif high > low:
        margin = 0.1 * (high - low)
        axis.set_ylim(low - margin, high + margin)
