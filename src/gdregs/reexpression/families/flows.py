"""Normalizing flows of flowjax; imported when one of them is first re-expressed."""

import functools

import jax
import jax.numpy as jnp
import paramax
from flowjax.distributions import AbstractTransformed
from jaxtyping import Array

from gdregs.reexpression.paths import with_path
from gdregs.reexpression.reexpress import reexpress


@reexpress.register(AbstractTransformed)
def _flow(distribution: AbstractTransformed, z: Array) -> Array:
    r"""$z = f(T(\epsilon))$ with the flow's own parameters on the path."""
    bijection = paramax.unwrap(distribution.bijection)
    on_all = functools.partial(jnp.vectorize, signature=_signature(distribution.shape))
    z = jax.lax.stop_gradient(z)
    noise = jax.lax.stop_gradient(on_all(bijection.inverse)(z))
    path = on_all(bijection.transform)(reexpress(paramax.unwrap(distribution.base_dist), noise))
    return with_path(z, path)


def _signature(shape: tuple[int, ...]) -> str:
    axes = "(" + ",".join(f"d{axis}" for axis in range(len(shape))) + ")"
    return f"{axes}->{axes}"
