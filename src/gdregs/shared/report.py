"""A report of checks: one row for each, and what to do about those that failed."""

import math
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

ENOUGH_WEIGHTS = 500
"""The generalized Pareto distribution is fitted to the tail of at least so many weights."""

LARGEST_SHAPE = 0.7
"""Importance sampling is unreliable above this shape of the tail (Vehtari et al., 2024)."""


class Row(NamedTuple):
    """One check.

    Attributes:
        check: The subject.
        found: The observation, in words and numbers.
        ok: Whether it passed; None for a remark.
        remedy: A sentence that says what to do, if it did not pass.
    """

    check: str
    found: str
    ok: bool | None = True
    remedy: str = ""


class Report(NamedTuple):
    """All checks of a model. Its `str` is a table."""

    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(row.ok is not False for row in self.rows)

    def __str__(self) -> str:
        """A table with one row for each check, and the remedies below it."""
        marks = {True: "ok", None: "note", False: "FAIL"}
        width = max(len(row.check) for row in self.rows)
        lines = []
        for row in self.rows:
            first, *rest = textwrap.wrap(row.found, 78) or [""]
            lines.append(f"{marks[row.ok]:<4}  {row.check:<{width}}  {first}")
            lines.extend(" " * (8 + width) + line for line in rest)
        for row in self.rows:
            if row.remedy:
                lines += ["", *textwrap.wrap(f"{row.check}: {row.remedy}", 100)]
        return "\n".join(lines)


def attempt(check: str, run: Callable[[], Iterable[Row]]) -> list[Row]:
    """The rows of a check; its error is a row as well."""
    try:
        return list(run())
    except Exception as error:  # noqa: BLE001: a user's code may raise anything
        text = " ".join(str(error).split()) or type(error).__name__
        return [Row(check, f"{type(error).__name__}: {text}", False)]


def row_of_weights(log_weights: Any) -> Row:
    r"""How the weights of many samples are spread: `[K, *batch]`, in nats.

    The shape k of the tail is that of the generalized Pareto distribution which fits the largest
    weights of each datapoint; the mean of K weights has a finite variance for k below 1/2, and is
    of no use above 0.7.

    Reference:
        Vehtari et al., Pareto Smoothed Importance Sampling, 2024.
    """
    log_weights = np.asarray(log_weights, np.float64)
    log_weights = log_weights.reshape(len(log_weights), -1)
    is_finite = np.isfinite(log_weights)
    if np.isnan(log_weights).any():
        return Row(
            "weights", f"{np.isnan(log_weights).mean():.1%} of the log-weights are NaN", False,
            "A density is not a number at some samples. They have weight 0 in a bound, which hides"
            " it: mend the density (a logarithm or root of a negative number, 0 / 0).",
        )  # fmt: skip
    if not is_finite.all():
        share = 1 - is_finite.mean()
        found = f"{share:.1%} of the log-weights are not finite"
        if not is_finite.any(axis=0).all():
            return Row(
                "weights", found + "; a datapoint has none at all", False,
                "No sample of the posterior has a density under prior and likelihood: check the"
                " supports of posterior and prior, and the data.",
            )  # fmt: skip
    else:
        found = "all finite"
    weights = np.exp(log_weights - log_weights.max(axis=0))
    weights = np.where(is_finite, weights, 0) / np.where(is_finite, weights, 0).sum(axis=0)
    size = 1 / np.sum(weights**2, axis=0)
    found += f"; effective sample size {size.min():.3g} to {size.max():.3g} of {len(weights)}"
    shapes = [shape for column in weights.T[:32] if (shape := _shape_of_tail(column)) is not None]
    if not shapes:
        return Row("weights", found, None if not is_finite.all() else True)
    found += f"; shape of the tail k at most {max(shapes):.2f}"
    if max(shapes) <= LARGEST_SHAPE:
        return Row("weights", found, None if not is_finite.all() else True)
    return Row(
        "weights", found, None,
        "A few samples carry the weight (k above 0.7): the bound is far from log p(x), and its"
        " gradient is noisy. A wider posterior, or more training, helps.",
    )  # fmt: skip


def _shape_of_tail(weights: Any) -> float | None:
    """The shape of the tail of some weights; None where there are too few, or all are alike."""
    number = len(weights)
    if number < ENOUGH_WEIGHTS:
        return None
    try:
        from scipy.stats import genpareto
    except ImportError:
        return None
    largest = int(min(0.2 * number, 3 * math.sqrt(number)))
    ordered = np.sort(weights)[-largest - 1 :]
    excess = ordered[1:] - ordered[0]
    if not excess[-1] > 1e-9 * ordered[-1]:
        return None
    return float(genpareto.fit(excess / excess.mean(), floc=0)[0])
