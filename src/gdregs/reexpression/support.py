"""Keep samples where the prior has a density.

A sample outside of the prior's support has weight 0. Its density would still be evaluated, and on
the way back 0 times the derivative of a NaN is NaN, which spreads to every datapoint that shares a
parameter. So such a sample is first moved to a point of the support.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, PyTree
from numpyro.distributions import constraints

from gdregs.reexpression.paths import align


@functools.singledispatch
def move_into_support(distribution: Any, z: PyTree) -> tuple[PyTree, Array | None]:
    """Replace what lies outside of the support of `distribution` by some point inside.

    Args:
        distribution: A numpyro distribution or a `Hierarchy`; the support of anything else is not
            known, and taken to be everything.
        z: Samples, leading axes `[K, *batch]`.

    Returns:
        The samples, and which of them lay inside, `[K, *batch]`; None where all values do (then
        the samples are untouched and nothing has been computed).
    """
    support = _support(distribution)
    if support is None:
        return z, None
    inside = jnp.asarray(support(z))
    return jnp.where(align(inside, z), z, support.feasible_like(z)), inside


def feasible(distribution: Any, z: Array) -> Array | float:
    """Values at which the density of a distribution is finite, like z; 0 where all values are."""
    support = _support(distribution)
    return 0.0 if support is None else support.feasible_like(z)


def _support(distribution: Any) -> Any | None:
    """The constraint that samples obey, or None if every real number does or none is known."""
    if not isinstance(distribution, dist.Distribution):
        return None
    try:
        support = distribution.support
    except (NotImplementedError, AssertionError):  # numpyro's Levy forgets its own
        return None
    innermost: Any = support
    while hasattr(innermost, "base_constraint"):
        innermost = innermost.base_constraint
    return None if isinstance(innermost, type(constraints.real)) else support
