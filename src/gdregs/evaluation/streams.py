"""Log-weights that come block by block: how many there are, and how they are added up."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

from gdregs.evaluation.meshes import ALONE, Axis

Carry = Any
Start = int | Int[Array, ""]
Update = Callable[[Carry, Float[Array, "k *batch"], Start], Carry]
Fold = Callable[[Update, Carry], Carry]
"""Passes every block of log-weights, with the position of its first sample, to an update."""


class Shape(NamedTuple):
    """What an objective may know before it sees a log-weight."""

    num_samples: int
    batch: tuple[int, ...]
    dtype: Any
    devices: Axis = ALONE  # that share the samples: a fold passes the blocks of this one


def whole(log_weights: Float[Array, "K *batch"]) -> tuple[Fold, Shape]:
    """The fold over log-weights that are all in memory, as one block."""
    shape = Shape(log_weights.shape[0], log_weights.shape[1:], log_weights.dtype)
    return (lambda update, carry: update(carry, log_weights, 0)), shape


def extend_logsumexp(
    total: Float[Array, "*batch"], values: Float[Array, "k *batch"]
) -> Float[Array, "*batch"]:
    r"""$\log(e^{\mathrm{total}} + \sum_k e^{\mathrm{values}_k})$: a logsumexp, block by block."""
    return logsumexp(jnp.concatenate([total[None], values]), axis=0)
