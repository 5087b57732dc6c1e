"""Variance, SNR and bias of gradient estimators against the number of importance samples K."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gdregs.papers.measures.measure import (
    Measured,
    Moments,
    bootstrap,
    jackknife,
    slope,
    squared_norm,
    typical,
)

Pick = Callable[[Any], Any]


def summarise(
    results: Mapping[int, Moments],
    signals: Mapping[str, str],
    *,
    first_fitted: int,
    least: Mapping[str, int] = {},
    pick: Pick = lambda tree: tree,
) -> dict[str, dict[str, Any]]:
    r"""Average variance and SNR of every estimator at every K, and their rates.

    The averages are over parameters; of the groups of draws it is the median (`typical`). The SNR
    of a parameter is |mean| / standard deviation. Where two estimators have one expectation, it is
    taken from the one that knows it better.

    Args:
        results: Moments by K, with a dict of arrays `[groups, parameters]` by estimator.
        signals: For each estimator, the one whose mean is its signal.
        first_fitted: Rates are fitted from this K on.
        least: The smallest K of an estimator, where it is not the smallest of all.
        pick: What to take from the moments' pytree.

    Returns:
        For each estimator `sizes`, and as `Measured` numbers `variance` and `snr` at each of
        them, `variance_slope` and `snr_slope`; and `mean_variance`, the mean over groups.
    """
    num_groups = len(next(iter(pick(next(iter(results.values())).mean).values())))

    def statistic(name: str):
        sizes = [size for size in results if size >= least.get(name, 0)]
        fitted = [size >= first_fitted for size in sizes]

        def of(groups: np.ndarray) -> dict[str, Any]:
            variances, snrs = [], []
            for size in sizes:
                variance = typical(pick(results[size].variance)[name][groups])
                mean = typical(pick(results[size].mean)[signals[name]][groups])
                variances.append(float(variance.mean()))
                snrs.append(float(np.mean(np.abs(mean) / np.sqrt(variance))))
            late = [size for size, is_late in zip(sizes, fitted, strict=True) if is_late]
            return {
                "variance": variances,
                "snr": snrs,
                "variance_slope": slope(late, np.compress(fitted, variances)),
                "snr_slope": slope(late, np.compress(fitted, snrs)),
            }

        every = [pick(results[size].variance)[name] for size in sizes]
        means = [jackknife(lambda g, v=v: v[g].mean(), num_groups) for v in every]
        return {"sizes": sizes, **bootstrap(of, num_groups), "mean_variance": means}

    return {name: statistic(name) for name in signals}


def variance_ratio(
    results: Mapping[int, Moments], name: str, other: str, *, pick: Pick = lambda tree: tree
) -> dict[int, Measured]:
    """Average variance of one estimator over another's, by K."""

    def at(moments: Moments) -> Measured:
        ours, theirs = (pick(moments.variance)[which] for which in (name, other))

        def of(groups: np.ndarray) -> float:
            return float(typical(ours[groups]).mean() / typical(theirs[groups]).mean())

        return bootstrap(of, len(ours))

    return {size: at(moments) for size, moments in results.items()}


def relative_bias(
    results: Mapping[int, Moments], difference: str, truth: str, *, pick: Pick = lambda tree: tree
) -> dict[int, Measured]:
    r"""The squared length of the mean difference, over that of the true gradient, by K.

    Both squared lengths are estimated without bias, so that an unbiased estimator has 0 on
    average, and not its noise.
    """

    def at(moments: Moments) -> Measured:
        bias, gradient = (pick(moments.mean)[which] for which in (difference, truth))
        return jackknife(
            lambda groups: squared_norm(bias[groups]) / squared_norm(gradient[groups]), len(bias)
        )

    return {size: at(moments) for size, moments in results.items()}


def largest_z_score(
    results: Mapping[int, Moments], difference: str, *, pick: Pick = lambda tree: tree
) -> float:
    """The largest |mean| of a difference of estimators, in standard errors, over all K."""
    largest = 0.0
    for moments in results.values():
        mean = pick(moments.mean)[difference]
        variance = pick(moments.variance)[difference].mean(0)
        error = np.sqrt(variance / (len(mean) * moments.num_draws))
        largest = max(largest, float(np.max(np.abs(mean.mean(0)) / error)))
    return largest


def table(curves: Mapping[Any, Any]) -> dict[str, Any]:
    """The curves as JSON can hold them."""
    return {str(key): _to_json(part) for key, part in curves.items()}


def _to_json(value: Any) -> Any:
    if isinstance(value, Measured):
        return {"value": value.value, "error": value.error}
    if isinstance(value, Mapping):
        return table(value)
    if isinstance(value, list):
        return [_to_json(part) for part in value]
    return value
