"""Draws that round to an end of the support, of which nothing can be computed any more."""

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributions as dist
from torch import Tensor

from gdregs.torch.reexpress import ByClass

MOST_LOST = 0.05
"""The share of draws at an end of the support from which on a family is warned of."""

_WARNED: set[tuple[str, torch.dtype]] = set()


def warn_of_lost_digits(distribution: Any) -> None:
    r"""Warn once if the draws of a distribution have no digits left.

    Of $\mathrm{Gamma}(c, 1)$ the share $t^c / \Gamma(c + 1)$ lies below a small t. The smallest
    number of a type is such a t, and at the other end of a Beta the distance of 1 to its neighbour.
    Values on a GPU are not looked at: that would wait for it.
    """
    if torch.compiler.is_compiling():
        return
    for family, concentration, smallest in _all_ends(distribution):
        least = 1.0 if concentration.device.type != "cpu" else float(concentration.detach().min())
        if least * -math.log(smallest) < -math.log(MOST_LOST):
            _warn(family, least, concentration.dtype)


def share_lost(distribution: Any) -> float:
    """The largest share of draws, over all elements, that round to an end of the support."""
    return max(
        (
            smallest ** float(concentration.detach().min())
            for _, concentration, smallest in _all_ends(distribution)
        ),
        default=0.0,
    )


@contextlib.contextmanager
def warned_anew() -> Iterator[None]:
    """Forget afterwards what has been warned of meanwhile."""
    before = set(_WARNED)
    try:
        yield
    finally:
        _WARNED.intersection_update(before)


def _all_ends(distribution: Any) -> Iterator[tuple[str, Tensor, float]]:
    """Those of a distribution and of what it is made of, with the families' names."""
    while distribution is not None:
        for concentration, smallest in _ends(distribution):
            yield type(distribution).__name__, concentration, smallest
        distribution = getattr(distribution, "base_dist", None)


def _warn(family: str, concentration: float, dtype: torch.dtype) -> None:
    if (family, dtype) not in _WARNED:
        _WARNED.add((family, dtype))
        warnings.warn(
            f"Draws of a {family} with the concentration {concentration:.2g} round to an end of its"
            f" support in {str(dtype).removeprefix('torch.')}, so that weights and gradients are"
            f" wrong: use float64, or a distribution on the logits (of a Gamma on the logarithm).",
            stacklevel=3,
        )


@ByClass
def _ends(distribution: Any) -> Iterator[tuple[Tensor, float]]:
    """Concentrations near an end of the support, and the smallest distance from it."""
    del distribution
    return iter(())


@_ends.register(dist.Gamma)
@_ends.register(dist.Dirichlet)
def _(distribution: Any) -> Iterator[tuple[Tensor, float]]:
    concentration = distribution.concentration
    yield concentration, torch.finfo(concentration.dtype).tiny


@_ends.register(dist.Beta)
def _(distribution: Any) -> Iterator[tuple[Tensor, float]]:
    kind = torch.finfo(distribution.concentration0.dtype)
    yield distribution.concentration1, kind.tiny
    yield distribution.concentration0, kind.eps
