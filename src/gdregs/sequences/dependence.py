"""Whether a function moves each number by itself."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

ELEMENTWISE = {
    "add", "add_any", "convert_element_type", "copy", "div", "mul", "neg", "select_n", "sub",
}  # fmt: skip
"""Linear operations on one number at a time; others may act on what does not depend on it."""


def is_elementwise(function: Callable[[Array], Array], value: Array) -> bool:
    """Whether the derivative of each number of what a function returns is by one number alone.

    That is so if its linearisation multiplies and adds up numbers of the same place. False says
    that it could not be seen.
    """

    def derivative(tangent):
        return jax.jvp(function, (value,), (tangent,))[1]

    jaxpr = jax.make_jaxpr(derivative)(jnp.zeros_like(value)).jaxpr
    return _keeps_places(jaxpr, [True], jnp.shape(value))[0]


def _keeps_places(jaxpr: Any, moves: list[bool], shape: tuple[int, ...]) -> list[bool]:
    """Of each output, whether it depends on the inputs that move, if at all, place by place."""
    moving = {var for var, moved in zip(jaxpr.invars, moves, strict=True) if moved}
    mixed = set()

    def among(variables, group):
        return any(not hasattr(var, "val") and var in group for var in variables)

    for equation in jaxpr.eqns:
        if among(equation.invars, mixed):
            mixed.update(equation.outvars)
        elif among(equation.invars, moving):
            inner = (
                equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit") else None
            )
            if inner is not None:
                inner_moves = [among([var], moving) for var in equation.invars]
                kept = _keeps_places(inner.jaxpr, inner_moves, shape)
            else:
                kept = [equation.primitive.name in ELEMENTWISE] * len(equation.outvars)
            for var, keeps in zip(equation.outvars, kept, strict=True):
                same = keeps and var.aval.shape == shape
                (moving if same else mixed).add(var)
    return [not among([var], mixed) for var in jaxpr.outvars]
