"""The rows of a report that say the same in every framework."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gdregs.shared.report import Row


def describe_factor(factor: Any) -> str:
    """A factor of each element, in words."""
    factor = np.asarray(factor)
    off = np.mean(factor == 0)
    others = np.unique(factor[factor != 0])
    words = [f"{off:.0%} masked"] if off else []
    if others.size and not (others.size == 1 and others[0] == 1):
        low, high = others.min(), others.max()
        words.append(f"factor {low:g}" if low == high else f"factors {low:g} to {high:g}")
    return ", ".join(words) or "factor 1"


def row_of_factors(found: list[str]) -> Row:
    """The masks and scales of latents."""
    return Row("masks and scales", "; ".join(found) or "none")


def row_of_estimators(part: str, works: list[str], reasons: list[str]) -> Row:
    """Which estimators of a part can be used, and why another cannot."""
    found = ", ".join(works) or "none"
    return Row(f"estimators of the {part}", found, None if reasons else True, *reasons[:1])


def row_of_gradient(value: float, bad: int) -> Row:
    """Whether the bound and its gradient are finite."""
    found = f"bound {value:.5g} nats in all; {bad} entries of its gradient are not finite"
    if np.isfinite(value) and not bad:
        found = found.replace("; 0 entries of", ";").replace("are not", "is")
        return Row("gradient", found)
    if value == -np.inf:
        return Row(
            "gradient", found, False,
            "A datapoint has no sample with weight: the posterior draws outside of the prior's"
            " support, or the likelihood is -inf at all draws.",
        )  # fmt: skip
    return Row(
        "gradient", found, False,
        "A density or its derivative overflows: keep scales away from 0, clip what is"
        " exponentiated, or use float64.",
    )  # fmt: skip


def row_of_precision(dtype: str, ends: list[str], remedy: str) -> Row:
    """Whether draws have digits.

    Args:
        dtype: Of the latents.
        ends: Which share of a latent lies at an end of its support.
        remedy: How float64 is had.
    """
    if not ends:
        return Row("precision", f"{dtype}; no draw lies at an end of its support")
    return Row(
        "precision", f"{dtype}; at an end of their support: {', '.join(ends)}", False,
        f"The draws have been rounded to an end of the support (a concentration near 0), so that"
        f" their gradient has no digits left. Use float64{remedy}, or a distribution on the"
        f" logits.",
    )  # fmt: skip


def row_of_cost(milliseconds: Mapping[str, float], num_samples: int) -> Row:
    """The time of each part."""
    listed = ", ".join(f"{name} {spent:.2g} ms" for name, spent in milliseconds.items())
    return Row("cost", f"{listed}, for {num_samples} samples")


def row_of_agreement(result: Any, num_draws: int) -> Row:
    """Whether the mean of the chosen estimators is that of naive ones, by `check_unbiased`."""
    found = (
        f"largest difference from naive over {num_draws} draws: {float(result.largest):.1f}"
        f" standard errors (by chance up to {result.threshold:.1f})"
    )
    if result.unbiased:
        return Row("agreement", found)
    return Row(
        "agreement", found, False,
        "The chosen estimators have another mean than the naive gradient. Some do by definition:"
        " 'stl' for K > 1, 'rws' and 'rws-dregs'. If yours are others, a check above that failed"
        " says why; if none did, it is a fault of gdregs.",
    )  # fmt: skip
