"""Samples where the prior has a density, and others, which have no weight."""

from typing import Any, NamedTuple

import torch
import torch.distributions as dist
from torch import Tensor

from gdregs.torch.autograd import Switch
from gdregs.torch.factors import Factors, read_factor, support_of
from gdregs.torch.gates import PRIOR, read_factors
from gdregs.torch.hierarchy import Hierarchy, Latents, walk_graph


def move_into_support(distribution: Any, z: Latents) -> tuple[Latents, Tensor | None]:
    """Replace what lies outside of the support of `distribution` by some point inside.

    Returns:
        The samples, and which of them lay inside, `[K, *batch]`; None where all values do.
    """
    if not isinstance(distribution, dist.Distribution) or not isinstance(z, Tensor):
        return z, None
    return move_into(distribution, read_factor(distribution), z)


def move_into(distribution: Any, factors: Factors | None, z: Tensor) -> tuple[Any, Tensor | None]:
    """The same, where the factors on the density are known: elements that have 0 stay."""
    plain = distribution if factors is None else factors.plain
    support = support_of(plain)
    if support is None:
        return z, None
    inside = support.check(z)
    if factors is not None:
        inside = inside | (factors.value == 0)
    if not torch.compiler.is_compiling() and bool(inside.all()):
        return z, None
    unconstrained = dist.transform_to(support).inv(z)
    feasible = dist.transform_to(support)(torch.zeros_like(unconstrained))
    where = inside.reshape(inside.shape + (1,) * (z.ndim - inside.ndim))
    if factors is not None and factors.num_summed:
        inside = inside.all(list(range(-factors.num_summed, 0)))
    return torch.where(where, z, feasible), inside


class Settled(NamedTuple):
    """Latents where the prior has a density.

    Attributes:
        z: The latents.
        inside: Which of them lay in the prior's support, `[K, *batch]`; None where all did.
        log_prob: The prior's log-density, `[K, *batch]`.
        has_factors: Whether it has factors.
    """

    z: Latents
    inside: Tensor | None
    log_prob: Tensor
    has_factors: bool


def settle(prior: Any, z: Latents) -> Settled:
    """Move latents into the prior's support, and evaluate its density, from one evaluation."""
    is_graph = isinstance(prior, Hierarchy) and type(prior).log_prob is Hierarchy.log_prob
    if not is_graph or not isinstance(z, dict) or set(z) != set(prior.parents):
        z, inside = move_into_support(prior, z)
        node = read_factors(prior, PRIOR)
        return Settled(z, inside, node.log_probs(z)[0], node.factors is not None)
    moved: dict[str, Tensor] = {}
    all_inside: Tensor | None = None

    def move(name: str, conditional: Any) -> Tensor:
        """A latent, given its moved parents."""
        nonlocal all_inside
        moved[name], inside = move_into_support(conditional, z[name])
        if inside is not None:
            all_inside = inside if all_inside is None else all_inside & inside
        return moved[name]

    walked = walk_graph(prior, move, False, Switch(), PRIOR)
    return Settled(moved, all_inside, walked.log_prob, walked.plain is not None)
