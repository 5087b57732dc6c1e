"""The factors on the densities of sites: scales and masks of handlers, and of distributions."""

import math
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from gdregs.torch.factors import Factors, multiplied, read_factor

Site = dict[str, Any]
"""What Pyro writes down of a sample statement."""


def factors_of(site: Site, whole: float = 1.0) -> Factors | None:
    """The factors on a site's log-density; None where there are none.

    Args:
        site: The site.
        whole: The factor by which the plates that enclose every site stand for the whole data: it
            is one of the bound, and of no density.
    """
    fn = site["fn"]
    factors = read_factor(fn)
    for factor in (_unless_one(site["scale"], whole), site["mask"]):
        if factor is not None and factor is not True:
            factors = (factors or Factors(fn, 1, 0)).times(factor)
    return factors


def _unless_one(scale: Any, whole: float) -> Any:
    """A scale in units of that of the whole data; None where it is 1."""
    is_number = not isinstance(scale, Tensor) or scale.numel() == 1
    is_one = is_number and math.isclose(float(scale), whole, rel_tol=1e-6)
    return None if is_one else scale / whole


@read_factor.register(dist.MaskedDistribution)
def _(distribution: Any) -> Factors | None:
    mask = distribution._mask
    if mask is True:
        return read_factor(distribution.base_dist)
    return multiplied(distribution.base_dist, mask)


@read_factor.register(dist.ExpandedDistribution)
def _(distribution: Any) -> Factors | None:
    inner = read_factor(distribution.base_dist)
    if inner is None:
        return None
    shape = distribution.batch_shape + distribution.base_dist.event_shape
    shape = shape[: len(shape) - len(inner.plain.event_shape)]
    return inner._replace(plain=inner.plain.expand(shape))
