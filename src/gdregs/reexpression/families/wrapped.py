"""Distributions made of others: independent, expanded, masked and transformed ones."""

import math
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints, transforms
from numpyro.util import not_jax_tracer

from gdregs.reexpression.reexpress import NoReexpressionError, hold, reexpress, rule


@rule(dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)
def _wrapped(distribution: Any, z: Array) -> Array:
    """The base distribution's own path: these wrappers only change how densities add up."""
    return reexpress(distribution.base_dist, z)


@rule(dist.TransformedDistribution)
def _transformed(distribution: dist.TransformedDistribution, z: Array) -> Array:
    r"""$z = f_n(\dots f_1(T(\epsilon)))$, with every transform's own parameters on the path."""
    name = type(distribution).__name__
    steps = _flatten(distribution.transforms)
    base = z
    for step in reversed(steps):
        if isinstance(step, transforms.AbsTransform) or not hasattr(step, "_inverse"):
            raise NoReexpressionError(
                f"{name} has no re-expression rule: its transform {type(step).__name__} is not"
                f" invertible."
            )
        base = _invert(step, base, name)
    path = reexpress(distribution.base_dist, jax.lax.stop_gradient(base))
    ends = _ends(distribution.base_dist.support)
    for step in steps:
        path = hold(step(path), name, *_movers(step, ends))
        ends = _moved_ends(step, ends)
    return path


@rule(dist.FoldedDistribution)
def _folded(distribution: dist.FoldedDistribution, z: Array) -> Array:
    r"""$z = |x|$: it moves as x does, averaged over the x of either sign that it may come from."""
    base: Any = distribution.base_dist
    weight = jax.lax.stop_gradient(jax.nn.sigmoid(base.log_prob(z) - base.log_prob(-z)))
    return weight * reexpress(base, z) - (1 - weight) * reexpress(base, -z)


def _invert(step: Any, z: Array, name: str) -> Array:
    try:
        return step.inv(z)
    except NotImplementedError:
        raise NoReexpressionError(
            f"{name} has no re-expression rule: the inverse of its transform"
            f" {type(step).__name__} is not implemented."
        ) from None


def _flatten(steps: Any) -> list[Any]:
    """The elementary transforms in a list of transforms and compositions of them."""
    flat = []
    for step in steps:
        is_composition = isinstance(step, transforms.ComposeTransform)
        flat.extend(_flatten(step.parts) if is_composition else [step])
    return flat


def _movers(step: Any, ends: set[float]) -> list[Any]:
    """The parameters of a transform that move an end of the support that it is given."""
    if isinstance(step, transforms.AffineTransform) and ends:
        return [step.loc] if ends == {0.0} else [step.loc, step.scale]
    if not ends or (isinstance(step, transforms.PowerTransform) and ends <= {0.0, 1.0}):
        return []
    return jax.tree.leaves(step)


def _moved_ends(step: Any, ends: set[float]) -> set[float]:
    with jax.ensure_compile_time_eval():
        if isinstance(step, transforms.AffineTransform):
            return {_number(step.loc if end == 0 else step(end)) for end in ends}
        return {_number(step(end)) for end in ends if not math.isnan(end)} | _ends(step.codomain)


def _ends(support: Any) -> set[float]:
    """The finite ends of a support; NaN for one that is not known or not a number."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if isinstance(support, (type(constraints.real), type(constraints.real_vector))):
        return set()
    bounds = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    numbers = {_number(bound) for bound in bounds if bound is not None}
    return numbers - {math.inf, -math.inf} if numbers else {math.nan}


def _number(value: Any) -> float:
    """A concrete number, or NaN for what is being traced or differs along an array."""
    if not not_jax_tracer(value):
        return math.nan
    value = np.asarray(value)  # whose minimum is known while a program is traced, unlike JAX's
    smallest, largest = float(np.min(value)), float(np.max(value))
    return smallest if smallest == largest else math.nan
