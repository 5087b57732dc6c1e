"""The Bernoulli likelihood of a network's logits, and the binary images that it is of."""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, PRNGKeyArray, UInt8


def binarise(
    key: PRNGKeyArray, images: UInt8[Array, "batch pixels"], levels: int
) -> Float[Array, "batch pixels"]:
    """Draw every pixel from a Bernoulli with its grey value as probability."""
    uniform = jax.random.uniform(key, images.shape)
    return (uniform * levels < images).astype(jnp.float32)


@jax.custom_jvp
def bernoulli_log_prob(
    logits: Float[Array, "*shape pixels"], pixels: Float[Array, "*#shape pixels"]
) -> Float[Array, "*shape"]:
    r"""$\sum_j x_j l_j - \log(1 + e^{l_j})$: the log-probability of all pixels together, in nats.

    With $\log(1 + e^l) = \max(l, 0) + \log(1 + e^{-|l|})$, whose second terms are added up as the
    logarithm of a product of up to 8 numbers between 1 and 2. That leaves an eighth of the
    logarithms and of the memory: half of what the sum costs beside the product that makes the
    logits.
    """
    count = logits.shape[-1]
    parts = max(parts for parts in range(1, 9) if count % parts == 0)
    linear, products = jnp.zeros((), logits.dtype), jnp.ones((), logits.dtype)
    for logit, pixel in zip(
        jnp.split(logits, parts, axis=-1), jnp.split(pixels, parts, axis=-1), strict=True
    ):
        linear = pixel * logit - jnp.maximum(logit, 0) + linear
        products = (1 + jnp.exp(-jnp.abs(logit))) * products
    return jnp.sum(linear - jnp.log(products), axis=-1)


@functools.partial(bernoulli_log_prob.defjvp, symbolic_zeros=True)
def _(primals, tangents):
    (logits, pixels), (by_logits, by_pixels) = primals, tangents
    slope = jnp.zeros(logits.shape, logits.dtype)
    if not isinstance(by_logits, SymbolicZero):
        slope = (pixels - jax.nn.sigmoid(logits)) * by_logits
    if not isinstance(by_pixels, SymbolicZero):
        slope = slope + logits * by_pixels
    return bernoulli_log_prob(logits, pixels), jnp.sum(slope, axis=-1)
