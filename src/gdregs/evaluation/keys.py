"""The random keys of a bound: one for each importance sample, and one for each other purpose.

Sample k, and all that is drawn while it is evaluated, comes from `fold_in(key, k)`. So it is a
function of its key, whatever the family: in a block, in a subset, on another device or on the way
back it is the same sample. What else is drawn has the key of a number that no sample has; latents
and steps have children of their sample's key, so that no count of them can meet it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PRNGKeyArray

Start = int | Int[Array, ""]

_RESAMPLING = 2**32 - 1
_NOISE = {"likelihood": 2**32 - 1, "posterior": 2**32 - 2, "prior": 2**32 - 3}
"""Numbers that no sample, and no latent or step of a sample, has."""


def typed_key(key: Any) -> PRNGKeyArray:
    """A key as `jax.random.key` makes it; an error if it is none."""
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and jnp.ndim(key) == 0:
        return key
    if dtype == jnp.uint32 and jnp.ndim(key) == 1:  # of `jax.random.PRNGKey`
        return jax.random.wrap_key_data(jnp.asarray(key))
    raise TypeError(f"key must be a JAX random key, such as jax.random.key(0); got {key!r}.")


def keys_of_samples(key: PRNGKeyArray, start: Start, size: int) -> Key[Array, " size"]:
    """The keys with which the samples `start`, ..., `start + size - 1` are drawn."""
    numbers = jnp.asarray(start, jnp.uint32) + jnp.arange(size, dtype=jnp.uint32)
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


def keys_of_noise(of_samples: Key[Array, " size"], part: str) -> Key[Array, " size"]:
    """The keys that a part with noise of its own is given, from those of its samples.

    Args:
        of_samples: The keys with which the samples are drawn.
        part: `likelihood`, `posterior` or `prior`.
    """
    return jax.vmap(lambda key: jax.random.fold_in(key, _NOISE[part]))(of_samples)


def key_of_resampling(key: PRNGKeyArray) -> PRNGKeyArray:
    """The key that decides which samples the backward pass keeps."""
    return jax.random.fold_in(key, _RESAMPLING)
