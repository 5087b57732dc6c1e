r"""Likelihoods in which importance samples depend on each other, found in the traced program.

The identities need $\partial \ell_j / \partial z_k = 0$ for $j \ne k$. A batch normalisation over
the axis of samples breaks that. The search follows the axis of samples from operation to operation
as long as it knows where the axis goes, and gives up otherwise: `gdregs.check_model` evaluates.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

COUPLES = -1
"""In the place of an axis: the values depend on several samples."""

REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod"}
ALONG_ONE_AXIS = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"}
CALLS = {
    "jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call",
    "custom_vjp_call", "custom_vjp_call_jaxpr",
}  # fmt: skip
ENTRY_BY_ENTRY = {
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
    "cbrt", "ceil", "clamp", "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma",
    "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt",
    "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min",
    "mul", "ne", "neg", "not", "or", "pow", "regularized_incomplete_beta", "igamma", "igammac",
    "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient",
    "sub", "tan", "tanh", "xor",
}  # fmt: skip


COUPLED = (
    "The likelihood of one importance sample depends on the other samples (it reduces over the axis"
    " of samples, as a batch norm over them does), which biases this gradient silently. Normalise"
    " over features (layer or group norm), use batch norm over x only or in evaluation mode, or"
    " take the estimators 'naive' with all samples and no chunk_size."
)


class CoupledSamplesError(ValueError):
    """Raised where the likelihood of one sample depends on the others."""


def refuse_coupled(program: Any, samples: Sequence[bool]) -> None:
    """An error if a program combines different samples.

    Args:
        program: A traced likelihood.
        samples: Of each of its inputs, whether its first axis is that of the samples.
    """
    axes = _follow(program.jaxpr, [0 if is_sampled else None for is_sampled in samples])
    if COUPLES in axes:
        raise CoupledSamplesError


def _follow(jaxpr: Any, axes: Sequence[int | None]) -> list[int | None]:
    """Of each output, the axis of samples; None where it has none, or is not known.

    `COUPLES` where samples have been combined.
    """
    known: dict[Any, int] = {
        var: axis for var, axis in zip(jaxpr.invars, axes, strict=True) if axis is not None
    }
    for equation in jaxpr.eqns:
        found = [None if hasattr(one, "val") else known.get(one) for one in equation.invars]
        if any(axis is not None for axis in found):
            couples = COUPLES in found and equation.primitive.name not in CALLS
            after = [COUPLES] * len(equation.outvars) if couples else _after(equation, found)
            after = [None if axis is None else int(axis) for axis in after]  # some are numpy's
            known.update(
                (var, axis)
                for var, axis in zip(equation.outvars, after, strict=True)
                if axis is not None
            )
    return [None if hasattr(one, "val") else known.get(one) for one in jaxpr.outvars]


def _after(equation: Any, axes: list[int | None]) -> Sequence[Any]:
    name, params = equation.primitive.name, equation.params
    unknown: list[int | None] = [None] * len(equation.outvars)
    if name in CALLS:
        names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
        inner = next((params[one] for one in names if one in params), None)
        inner = getattr(inner, "jaxpr", inner)
        if inner is None or len(inner.invars) != len(axes):
            return unknown
        return _follow(inner, axes)
    if name in ENTRY_BY_ENTRY:
        different = set(axes) - {None}
        return [next(iter(different))] if len(different) == 1 else unknown
    if name == "dot_general":
        return [_after_product(equation, axes)]
    if len(equation.invars) > 1 and any(axis is not None for axis in axes[1:]):
        return unknown
    axis, shape = axes[0], equation.invars[0].aval.shape
    if axis is None:
        return unknown
    after = equation.outvars[0].aval.shape
    if name in REDUCTIONS:
        if axis in params["axes"]:
            return [_combined(equation)]
        return [axis - len([one for one in params["axes"] if one < axis])]
    if name in ALONG_ONE_AXIS:
        return [_combined(equation) if axis == params["axis"] else axis]
    if name == "sort":
        return [_combined(equation) if axis == params["dimension"] else axis]
    if name == "broadcast_in_dim":
        return [params["broadcast_dimensions"][axis]]
    if name == "transpose":
        return [params["permutation"].index(axis)]
    if name == "squeeze":
        return [axis - len([one for one in params["dimensions"] if one < axis])]
    if name == "expand_dims":
        return [axis + len([one for one in params["dimensions"] if one <= axis])]
    if name == "reshape":
        return [_in_shape(shape, axis, after)]
    if name == "slice" and after[axis] == shape[axis]:
        return [axis]
    return unknown


def _combined(equation: Any) -> int | None:
    """Flags do not count: those of a check, for example."""
    is_number = jnp.issubdtype(equation.invars[0].aval.dtype, jnp.inexact)
    return COUPLES if is_number else None


def _after_product(equation: Any, axes: list[int | None]) -> int | None:
    """The axis of samples in a product of two arrays, of which one or both have it."""
    contracted, batched = equation.params["dimension_numbers"]
    ranks = [one.aval.ndim for one in equation.invars]
    places = []
    for side in (0, 1):
        axis = axes[side]
        if axis is None:
            continue
        if axis in contracted[side]:
            return COUPLES
        if axis in batched[side]:
            places.append(list(batched[side]).index(axis))
            continue
        summed = (*contracted[side], *batched[side])
        free = [one for one in range(ranks[side]) if one not in summed]
        before = len(batched[0])
        if side == 1:
            before += ranks[0] - len(contracted[0]) - len(batched[0])
        places.append(before + free.index(axis))
    return places[0] if len(set(places)) == 1 else COUPLES  # every sample with every other one


def _in_shape(shape: tuple[int, ...], axis: int, after: tuple[int, ...]) -> int | None:
    """Where an axis is after a reshape that leaves it as it is, or merges it with those behind it.

    What is merged is taken apart again only where the sizes say so.
    """
    before = math.prod(shape[:axis])
    for place, size in enumerate(after):
        if math.prod(after[:place]) == before and size and size % shape[axis] == 0:
            return place
    return None
