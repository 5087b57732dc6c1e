"""Samples where the prior has a density, and others, which have no weight."""

from typing import Any, NamedTuple

import torch
import torch.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from gdregs.torch.autograd import Switch
from gdregs.torch.hierarchy import Hierarchy, Latents, walk_graph


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
    if not torch.compiler.is_compiling() and bool(inside.all()):
        return z, None
    unconstrained = dist.transform_to(support).inv(z)
    feasible = dist.transform_to(support)(torch.zeros_like(unconstrained))
    where = inside.reshape(inside.shape + (1,) * (z.ndim - inside.ndim))
    return torch.where(where, z, feasible), inside


class Settled(NamedTuple):
    """Latents where the prior has a density.

    Attributes:
        z: The latents.
        inside: Which of them lay in the prior's support, `[K, *batch]`; None where all did.
        log_prob: The prior's log-density, `[K, *batch]`.
    """

    z: Latents
    inside: Tensor | None
    log_prob: Tensor


def settle(prior: Any, z: Latents) -> Settled:
    """Move latents into the prior's support, and evaluate its density, from one evaluation."""
    is_graph = isinstance(prior, Hierarchy) and type(prior).log_prob is Hierarchy.log_prob
    if not is_graph or not isinstance(z, dict) or set(z) != set(prior.parents):
        z, inside = move_into_support(prior, z)
        return Settled(z, inside, prior.log_prob(z))
    moved: dict[str, Tensor] = {}
    all_inside: Tensor | None = None

    def move(name: str, conditional: Any) -> Tensor:
        """A latent, given its moved parents."""
        nonlocal all_inside
        moved[name], inside = move_into_support(conditional, z[name])
        if inside is not None:
            all_inside = inside if all_inside is None else all_inside & inside
        return moved[name]

    walked = walk_graph(prior, move, False, Switch())
    return Settled(moved, all_inside, walked.log_prob)
