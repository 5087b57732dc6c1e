"""The rules of `reexpress` for what Pyro adds to `torch.distributions`."""

from typing import Any

import pyro.distributions as dist
from torch import Tensor

from gdregs.torch.factors import is_point, is_point_inside
from gdregs.torch.reexpress import reexpress, rule


@rule(dist.MaskedDistribution)
def _masked(distribution: Any, z: Tensor) -> Tensor:
    """A mask hides densities, not samples."""
    return reexpress(distribution.base_dist, z)


@rule(dist.ExpandedDistribution)
def _expanded(distribution: Any, z: Tensor) -> Tensor:
    """The base distribution's own path, drawn more often."""
    return reexpress(distribution.base_dist, z)


@reexpress.register(dist.Delta)
def _(distribution: Any, z: Tensor) -> Tensor:
    """A value that the program has computed: z itself, which is live."""
    return distribution.v.expand(z.shape)


is_point.register(dist.Delta, lambda _: True)
is_point.register(dist.MaskedDistribution, is_point_inside)
is_point.register(dist.ExpandedDistribution, is_point_inside)
