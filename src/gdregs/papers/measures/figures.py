"""How the figures of the experiments look, and how they are written."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from gdregs.vae.files import write_atomically

matplotlib.use("Agg")

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "legend.fontsize": 7,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}

# Wong's palette, which colour-blind readers can tell apart; markers tell lines apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Run a function that draws in the common style."""

    @functools.wraps(draw)
    def wrapped(*arguments, **options):
        with matplotlib.rc_context(STYLE):
            return draw(*arguments, **options)

    return wrapped


def new_figure(columns: int, rows: int = 1, *, width: float = 2.4, height: float = 2.2) -> Any:
    """A figure and its axes, `[rows, columns]`."""
    figure = Figure(figsize=(width * columns, height * rows))
    return figure, figure.subplots(rows, columns, squeeze=False)


def line(axes: Any, number: int, x: Any, y: Any, label: str, errors: Any = None) -> None:
    """A line with its error bars, in its own colour and marker."""
    style = {"color": COLOURS[number % 8], "marker": MARKERS[number % 8], "label": label}
    axes.errorbar(x, y, errors, capsize=1.5, elinewidth=0.8, **style)


def rate(axes: Any, sizes: Any, start: float, power: float, text: str) -> None:
    """A dotted guide of a given rate through the first point."""
    sizes = np.asarray(sizes, float)
    values = start * (sizes / sizes[0]) ** power
    axes.plot(sizes, values, ":", color="0.4", lw=1)
    axes.annotate(text, (sizes[-1], values[-1]), ha="right", va="bottom", fontsize=7, color="0.3")


def log_axes(axes: Any, xlabel: str) -> None:
    """Logarithmic axes with decades as ticks."""
    axes.set(xscale="log", yscale="log", xlabel=xlabel)
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    if high > 30 * low:
        axes.yaxis.set_minor_formatter(NullFormatter())


def save_figure(figure: Any, folder: Path, name: str) -> list[str]:
    """Write PNG and PDF; returns the names of the files."""
    names = []
    with matplotlib.rc_context(STYLE):
        for kind, options in (("png", {"dpi": 200}), ("pdf", {"metadata": {"CreationDate": None}})):
            write_atomically(
                folder / f"{name}.{kind}",
                lambda file, kind=kind, options=options: figure.savefig(
                    file, format=kind, **options
                ),
            )
            names.append(f"{name}.{kind}")
    return names
