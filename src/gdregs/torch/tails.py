"""Log-probabilities below and above a value, to full precision in both tails."""

import math
from typing import Any

import torch
import torch.distributions as dist
from torch import Tensor

from gdregs.torch.reexpress import ByClass

Tails = tuple[Tensor, Tensor]


@ByClass
def log_tails(distribution: Any, z: Tensor) -> Tails:
    r"""$\log F(z)$ and $\log(1 - F(z))$ of a scalar family.

    Raises:
        NotImplementedError: If PyTorch does not know the family's cdf.
    """
    probability = distribution.cdf(z)
    return probability.log(), torch.log1p(-probability)


@log_tails.register(dist.Normal)
def _(distribution: Any, z: Tensor) -> Tails:
    x = (z - distribution.loc) / distribution.scale
    return torch.special.log_ndtr(x), torch.special.log_ndtr(-x)


@log_tails.register(dist.Laplace)
def _(distribution: Any, z: Tensor) -> Tails:
    x = (z - distribution.loc) / distribution.scale
    near = -x.abs() - math.log(2)
    return _by_side(x, near, torch.log1p(-near.exp()))


@log_tails.register(dist.Cauchy)
def _(distribution: Any, z: Tensor) -> Tails:
    x = (z - distribution.loc) / distribution.scale
    near = torch.atan2(torch.ones_like(x), x.abs()) / math.pi
    return _by_side(x, near.log(), torch.log1p(-near))


def _by_side(x: Tensor, near: Tensor, far: Tensor) -> Tails:
    """Of a symmetric family, from the smaller and the larger of both."""
    return torch.where(x < 0, near, far), torch.where(x < 0, far, near)


@log_tails.register(dist.Exponential)
def _(distribution: Any, z: Tensor) -> Tails:
    above = -distribution.rate * z
    return torch.log(-torch.expm1(above)), above


@log_tails.register(dist.HalfNormal)
def _(distribution: Any, z: Tensor) -> Tails:
    x = z / distribution.scale
    return torch.erf(x / math.sqrt(2)).log(), math.log(2) + torch.special.log_ndtr(-x)


@log_tails.register(dist.HalfCauchy)
def _(distribution: Any, z: Tensor) -> Tails:
    x = z / distribution.scale
    above = torch.atan2(torch.ones_like(x), x) * (2 / math.pi)
    return (torch.atan(x) * (2 / math.pi)).log(), above.log()


@log_tails.register(dist.Gamma)
def _(distribution: Any, z: Tensor) -> Tails:
    """In double precision, which holds far smaller numbers."""
    x = (z * distribution.rate).double()
    concentration = distribution.concentration.double().expand(x.shape)
    below = torch.special.gammainc(concentration, x)
    above = torch.special.gammaincc(concentration, x)
    return below.log().to(z.dtype), above.log().to(z.dtype)


@log_tails.register(dist.Gumbel)
def _(distribution: Any, z: Tensor) -> Tails:
    x = (z - distribution.loc) / distribution.scale
    below = -torch.exp(-x)
    return below, torch.where(x > 10, -x, torch.log(-torch.expm1(below)))


@log_tails.register(dist.TransformedDistribution)
def _(distribution: Any, z: Tensor) -> Tails:
    """Those of the base; a decreasing transform exchanges them."""
    sign: Any = 1
    for step in reversed(distribution.transforms):
        z = step.inv(z)
        sign = sign * step.sign
    below, above = log_tails(distribution.base_dist, z)
    is_increasing = torch.as_tensor(sign, device=z.device) > 0
    return torch.where(is_increasing, below, above), torch.where(is_increasing, above, below)
