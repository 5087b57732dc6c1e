"""Log-weights, and what many of them say of log p(x)."""

import math
from typing import Any

import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray

from gdregs.evaluation.weights import read_model


def log_weights(
    posterior: Any,
    prior: Any,
    likelihood: Any,
    *,
    key: PRNGKeyArray,
    num_samples: Any,
    chunk_size: Any = None,
) -> Float[Array, "K *batch"]:
    r"""Log importance weights $\ell_k = \log p(x|z_k) + \log p(z_k) - \log q(z_k)$ (2).

    The samples are those that `gdregs.bound` draws with the same key. Differentiating them gives
    the reparameterized gradient in which everything is live; for any other estimator use
    `gdregs.bound`.

    Args:
        posterior: q, with `sample(key, sample_shape)` and `log_prob(z)`.
        prior: p(z), with `log_prob(z)`.
        likelihood: `z -> log p(x|z)`, `[K, *batch]`; or a function of z and the samples' keys.
        key: A JAX random key.
        num_samples: K.
        chunk_size: Compute this many samples at a time, to save memory. The samples are the same.

    Returns:
        `[K, *batch]`, in nats.

    Raises:
        TypeError: If a part lacks a method, or a number is not whole.
        ValueError: If K < 1, or the shapes of the three densities differ.

    Example:
        >>> import gdregs, jax, numpyro.distributions as dist
        >>> q = p = dist.Normal(0.0, 1.0)
        >>> @jax.jit
        ... def log_weights(key):
        ...     return gdregs.log_weights(q, p, lambda z: 0 * z, key=key, num_samples=3)
        >>> log_weights(jax.random.key(0))
        Array([0., 0., 0.], dtype=float32)
    """
    model = read_model(posterior, prior, likelihood, key, num_samples, chunk_size)

    def weigh(start, size):
        return model.weigh(model.draw(start, size), model.noise(start, size))[1]

    return model.in_blocks(weigh)


def log_marginal(
    posterior: Any,
    prior: Any,
    likelihood: Any,
    *,
    key: PRNGKeyArray,
    num_samples: Any = 5000,
    chunk_size: Any = 50,
) -> Float[Array, "*batch"]:
    r"""An estimate of $\log p(x)$: the bound (2) with many importance samples, streamed.

    It is a lower bound in expectation, tight as K grows. Memory does not grow with K. This is for
    evaluation: its gradient is 0.

    Args:
        posterior: q, with `sample(key, sample_shape)` and `log_prob(z)`.
        prior: p(z), with `log_prob(z)`.
        likelihood: `z -> log p(x|z)`, `[K, *batch]`; or a function of z and the samples' keys.
        key: A JAX random key.
        num_samples: K.
        chunk_size: How many samples to hold in memory at a time; None holds all.

    Returns:
        `[*batch]`, in nats.

    Raises:
        TypeError: If a part lacks a method, or a number is not whole.
        ValueError: If K < 1, or the shapes of the three densities differ.

    Example:
        >>> import gdregs, jax, numpyro.distributions as dist
        >>> q = p = dist.Normal(0.0, 1.0)
        >>> likelihood = lambda z: dist.Normal(z, 1.0).log_prob(0.0)  # log p(x) = -1.266
        >>> estimate = gdregs.log_marginal(q, p, likelihood, key=jax.random.key(0))
        >>> bool(abs(estimate + 1.266) < 0.03)
        True

    Reference:
        Burda et al., Importance Weighted Autoencoders, 2016.
    """
    model = read_model(posterior, prior, likelihood, key, num_samples, chunk_size)

    def add(total, start, size):
        _, values = model.look(start, size)
        return logsumexp(jnp.concatenate([total[None], values]), axis=0)

    nothing = jnp.full(model.batch, -jnp.inf, model.dtype)
    return model.fold(add, nothing) - math.log(model.num_samples)
