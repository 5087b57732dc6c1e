"""Samples where the prior has a density, and others, which have no weight."""

import functools
from typing import Any

import torch
import torch.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from gdregs.torch.hierarchy import Hierarchy, Latents


@functools.singledispatch
def move_into_support(distribution: Any, z: Latents) -> tuple[Latents, Tensor | None]:
    """Replace what lies outside of the support of `distribution` by some point inside.

    Returns:
        The samples, and which of them lay inside, `[K, *batch]`; None where all values do.
    """
    if not isinstance(distribution, dist.Distribution) or not isinstance(z, Tensor):
        return z, None
    try:
        support: Any = distribution.support
    except NotImplementedError:
        return z, None
    innermost = support
    while hasattr(innermost, "base_constraint"):
        innermost = innermost.base_constraint
    if support is None or isinstance(innermost, type(constraints.real)):
        return z, None
    inside = support.check(z)
    if bool(inside.all()):
        return z, None
    unconstrained = dist.transform_to(support).inv(z)
    feasible = dist.transform_to(support)(torch.zeros_like(unconstrained))
    where = inside.reshape(inside.shape + (1,) * (z.ndim - inside.ndim))
    return torch.where(where, z, feasible), inside


@move_into_support.register(Hierarchy)
def _(hierarchy: Hierarchy, z: Latents) -> tuple[Latents, Tensor | None]:
    """Every latent given its moved parents."""
    if not isinstance(z, dict) or set(z) != set(hierarchy.parents):
        return z, None  # named by log_prob
    moved, all_inside = {}, None
    for name in hierarchy.parents:
        moved[name], inside = move_into_support(hierarchy.conditional(name, moved), z[name])
        if inside is not None:
            all_inside = inside if all_inside is None else all_inside & inside
    return moved, all_inside
