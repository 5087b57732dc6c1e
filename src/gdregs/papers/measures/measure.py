"""Moments of gradients in independent groups of draws, and standard errors of what follows from
them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from gdregs.diagnostics import gradient_moments


class Measured(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        """The number with as many decimals as its error has; alone where that is not known."""
        if not 0 < self.error < np.inf:
            return f"{self.value:.4g}"
        decimals = 1 - int(np.floor(np.log10(self.error)))
        if decimals > 6:
            return f"{self.value:.2e} ± {self.error:.1e}"
        decimals = max(decimals, 0)
        return f"{self.value:,.{decimals}f} ± {self.error:,.{decimals}f}"


def mean(values: np.ndarray) -> Measured:
    """The mean and its standard error; of a single value the error is not known."""
    count = len(values)
    error = float(np.std(values, ddof=1) / count**0.5) if count > 1 else float("nan")
    return Measured(float(np.mean(values)), error)


def of_few(values: np.ndarray) -> Measured:
    """The mean over a few trainings, with an error that is as wide as so few make it.

    Twice the error is half of the 95% t interval, as it is about that of many.
    """
    values = np.asarray(values)
    if len(values) < 2:
        return Measured(float(values.mean()), float("inf"))
    width = float(stats.t.ppf(0.975, len(values) - 1)) / 2
    return Measured(float(values.mean()), width * float(values.std(ddof=1) / len(values) ** 0.5))


def error_of_median(low: float, high: float, count: int) -> float:
    """The standard error of a median of so many numbers, from their quartiles, as if normal."""
    return 1.25 * (high - low) / 1.35 / count**0.5


class Moments(NamedTuple):
    """Means and variances of a pytree of numbers, by group of draws.

    Attributes:
        mean: Each leaf `[groups, ...]`.
        variance: The same; of a single draw.
        num_draws: Draws in each group.
    """

    mean: Any
    variance: Any
    num_draws: int


class Measurement(NamedTuple):
    """A compiled measurement, for any value of its argument.

    Attributes:
        group: Maps a key and the argument to the moments of one group of draws.
        num_draws: Draws in a group.
    """

    group: Callable[[jax.Array, Any], Any]
    num_draws: int

    def run(
        self,
        key: jax.Array,
        argument: Any,
        num_groups: int,
        progress: Callable[[int], Any] = lambda cost: None,
        cost: int = 1,
    ) -> Moments:
        """The moments of all groups, in float64; `progress(cost)` is called after each."""
        groups = []
        for number in range(num_groups):
            groups.append(jax.device_get(self.group(jax.random.fold_in(key, number), argument)))
            progress(cost)
        mean, variance = jax.tree.map(lambda *leaves: np.stack(leaves).astype(float), *groups)
        return Moments(mean, variance, self.num_draws)


def compile_measurement(
    draw: Callable[[jax.Array, Any], Any],
    *,
    num_draws: int,
    chunk_size: int = 1,
    reduce: Callable[[Any, Any], tuple[Any, Any]] = lambda mean, variance: (mean, variance),
) -> Measurement:
    """Make a measurement; memory grows neither with the draws nor with the groups.

    Args:
        draw: Maps a random key and an argument to one draw of a pytree of arrays.
        num_draws: Draws in a group.
        chunk_size: Draws held in memory at a time.
        reduce: Maps the mean and the variance of a draw to what is kept of them.
    """

    @jax.jit
    def group(key, argument):
        moments = gradient_moments(
            lambda key: draw(key, argument), key, num_draws, chunk_size=chunk_size
        )
        return reduce(moments.mean, moments.variance)

    return Measurement(group, num_draws)


def jackknife(statistic: Callable[[np.ndarray], Any], num_groups: int) -> Any:
    """A statistic of all groups, with the standard error from leaving out each in turn.

    Args:
        statistic: Maps the numbers of the groups to use to a number or a dict of numbers.
        num_groups: How many groups there are; at least 2.

    Returns:
        A `Measured`, or a dict of them. As the jackknife does, it corrects the bias of order
        1/groups.
    """
    everyone = np.arange(num_groups)
    whole = statistic(everyone)
    parts = [statistic(np.delete(everyone, number)) for number in everyone]

    def summarise(whole, *parts):
        parts = np.array(parts, float)
        error = np.sqrt((num_groups - 1) * np.mean((parts - parts.mean()) ** 2))
        value = num_groups * whole - (num_groups - 1) * parts.mean()
        return Measured(float(value), float(error))

    return jax.tree.map(summarise, whole, *parts)


def bootstrap(
    statistic: Callable[[np.ndarray], Any], num_groups: int, num_resamples: int = 200
) -> Any:
    """A statistic of all groups, with the standard error from resampling the groups.

    For medians, of which the jackknife knows nothing. Takes and returns what `jackknife` does.
    """
    rng = np.random.default_rng(0)
    whole = statistic(np.arange(num_groups))
    parts = [statistic(rng.integers(num_groups, size=num_groups)) for _ in range(num_resamples)]

    def summarise(whole, *parts):
        return Measured(float(whole), float(np.std(parts)))

    return jax.tree.map(summarise, whole, *parts)


def typical(values: np.ndarray) -> np.ndarray:
    """The median over groups, `[groups, ...]`.

    Doubly reparameterized gradients of many samples have rare draws that are larger than the
    others by orders of magnitude; a mean over groups would be that of the group that has one.
    """
    return np.median(values, axis=0)


def squared_norm(values: np.ndarray) -> float:
    """An unbiased estimate of the squared length of the groups' common mean, `[groups, ...]`."""
    flat = values.reshape(len(values), -1)
    count = len(flat)
    return float((np.sum(flat.sum(0) ** 2) - np.sum(flat**2)) / (count * (count - 1)))


def slope(sizes: Any, values: Any) -> float:
    """The slope of a straight line through the points on log-log axes, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
