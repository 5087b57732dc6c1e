r"""Truncated families.

With u the probability that a truncated sample has below it, $F(z) = (1 - u) F(l) + u F(h)$. If the
base moves by v at fixed probability and the ends l and h stay where they are,

$$dz = v(z) - (1 - u) \frac{p(l)}{p(z)} v(l) - u \frac{p(h)}{p(z)} v(h) .$$
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from gdregs.reexpression.families.tails import log_between, log_tails
from gdregs.reexpression.reexpress import hold, raise_rank, reexpress, rule

stop = jax.lax.stop_gradient


@rule(
    dist.LeftTruncatedDistribution,
    dist.RightTruncatedDistribution,
    dist.TwoSidedTruncatedDistribution,
    dist.LeftTruncatedGamma,
    dist.RightTruncatedGamma,
    dist.TwoSidedTruncatedGamma,
)
def _truncated(distribution: Any, z: Array) -> Array:
    base, fixed = distribution.base_dist, stop(distribution.base_dist)
    bounds = [getattr(distribution, name, None) for name in ("low", "high")]
    low, high = [_spread(bound, z) for bound in bounds]
    certain, impossible = jnp.zeros_like(z), jnp.full_like(z, -jnp.inf)
    at_z = log_tails(fixed, z)
    at_low = (impossible, certain) if low is None else log_tails(fixed, low)
    at_high = (certain, impossible) if high is None else log_tails(fixed, high)
    log_scale = log_between(at_low, at_high) + fixed.log_prob(z)
    path = reexpress(base, z)
    if low is not None:
        path = path - _held(base, low, z, log_between(at_z, at_high) - log_scale)
    if high is not None:
        path = path - _held(base, high, z, log_between(at_low, at_z) - log_scale)
    return hold(path, type(distribution).__name__, *[b for b in bounds if b is not None])


def _held(base: Any, bound: Array, z: Array, log_share: Array) -> Array:
    """The part of the base's move that an end which stays where it is takes back."""
    is_end = jnp.isfinite(bound)
    bound = jnp.where(is_end, bound, z)
    share = jnp.where(is_end, jnp.exp(log_share + stop(base).log_prob(bound)), 0)
    moved = reexpress(base, bound)
    return share * (moved - stop(moved))


def _spread(bound: Any, z: Array) -> Array | None:
    """A bound, constant, for each element of z."""
    if bound is None:
        return None
    return stop(jnp.broadcast_to(raise_rank(bound, z.ndim), z.shape).astype(z.dtype))
