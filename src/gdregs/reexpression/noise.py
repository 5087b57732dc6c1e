"""Noise that a sample does not show, drawn from what it does show."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def noise_of(z: Float[Array, "*shape d"], size: int) -> Float[Array, "*shape size"]:
    """Standard normal numbers for each sample: the same for the same sample, bit for bit.

    A re-expression has no random key, and is asked for the same sample more than once. The bits of
    the sample, hashed, are a key that nothing else uses.
    """
    words = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(z), jnp.uint32)
    words = words.reshape(*z.shape[:-1], -1)
    count = words.shape[-1]
    factors = np.random.default_rng(count).integers(0, 2**32, (2, count), np.uint32) | np.uint32(1)
    hashed = [jnp.sum(words * _like(row, words), axis=-1, dtype=jnp.uint32) for row in factors]
    keys = jax.random.wrap_key_data(jnp.stack(hashed, axis=-1).reshape(-1, 2), impl="threefry2x32")
    draw = jax.vmap(lambda key: jax.random.normal(key, (size,), z.dtype))
    return draw(keys).reshape(*z.shape[:-1], size)


def _like(row: np.ndarray, words: Array) -> Array:
    return jnp.asarray(row).reshape((1,) * (words.ndim - 1) + row.shape)
