"""Loops over time: linear recurrences, and scans that need little memory on the way back."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Carry = TypeVar("Carry")


def scan_in_segments(
    step: Callable[[Carry, Any], tuple[Carry, Any]], carry: Carry, xs: PyTree, length: int
) -> tuple[Carry, Any]:
    r"""`jax.lax.scan` that keeps about $\sqrt T$ carries; the way back computes the rest anew.

    Args:
        step: The body of the loop.
        carry: Where it begins.
        xs: What each step is given, leaves `[T, ...]`.
        length: T.
    """
    size = math.isqrt(length)
    count = length // size
    whole = count * size

    @jax.checkpoint
    def segment(carry, xs):
        return jax.lax.scan(step, carry, xs)

    def split(leaf):
        return leaf[:whole].reshape(count, size, *leaf.shape[1:])

    def join(leaf):
        return leaf.reshape(whole, *leaf.shape[2:])

    carry, ys = jax.lax.scan(segment, carry, jax.tree.map(split, xs))
    ys = jax.tree.map(join, ys)
    if whole < length:
        carry, last = segment(carry, jax.tree.map(lambda leaf: leaf[whole:], xs))
        ys = jax.tree.map(lambda first, rest: jnp.concatenate([first, rest]), ys, last)
    return carry, ys


def solve_diagonal(
    factors: Float[Array, "S *shape"], terms: Float[Array, "T *shape"], associative: bool
) -> Float[Array, "T *shape"]:
    r"""$y_1 = b_1$ and $y_t = a_t y_{t-1} + b_t$, number by number.

    Args:
        factors: $a_2, \dots, a_T$.
        terms: $b_1, \dots, b_T$.
        associative: Parallel in time, at the price of more operations.
    """

    def combine(first, second):
        return first[0] * second[0], second[0] * first[1] + second[1]

    def apply(factor, y):
        return factor * y

    return _solve(factors, terms, combine if associative else None, apply)


def solve_dense(
    factors: Float[Array, "S *shape d d"], terms: Float[Array, "T *shape d"], associative: bool
) -> Float[Array, "T *shape d"]:
    r"""$y_1 = b_1$ and $y_t = A_t y_{t-1} + b_t$, for vectors.

    Args:
        factors: $A_2, \dots, A_T$, transposed: the second last axis is that of $y_{t-1}$.
        terms: $b_1, \dots, b_T$.
        associative: Parallel in time, at the price of products of matrices.
    """

    def apply(factor, y):
        return sum(factor[..., i, :] * y[..., i : i + 1] for i in range(y.shape[-1]))

    def combine(first, second):
        moved = (first[1][..., None, :] @ second[0])[..., 0, :]
        return first[0] @ second[0], moved + second[1]

    return _solve(factors, terms, combine if associative else None, apply)


def _solve(factors, terms, combine, apply):
    if combine is not None:
        factors = jnp.concatenate([jnp.zeros_like(factors[:1]), factors])
        return jax.lax.associative_scan(combine, (factors, terms))[1]

    def step(y, pair):
        factor, term = pair
        y = apply(factor, y) + term
        return y, y

    _, rest = jax.lax.scan(step, terms[0], (factors, terms[1:]))
    return jnp.concatenate([terms[:1], rest])
