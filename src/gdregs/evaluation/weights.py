"""Log-weights of importance samples, all at once or in blocks."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from gdregs.evaluation.meshes import ALONE, DATA, SAMPLES, Axis, axis
from gdregs.evaluation.streams import Shape, Start, extend_logsumexp
from gdregs.evaluation.windows import window
from gdregs.reexpression.support import move_into_support
from gdregs.shared.checks import (
    check_draw,
    check_latent,
    check_likelihood,
    check_log_densities,
    check_part,
    positive_integer,
)

Carry = TypeVar("Carry")


class Block(NamedTuple):
    """Consecutive importance samples, from position `start` of K on, and their log-weights."""

    z: PyTree
    log_weights: Float[Array, "k *batch"]
    start: Start


@functools.singledispatch
def draw_and_remember(
    posterior: Any, key: PRNGKeyArray, sample_shape: tuple[int, ...]
) -> tuple[PyTree, Array, Callable[[Any], Any]] | None:
    """Draw latents in a way that leaves behind what their density and path need.

    Returns:
        The latents, their log-density, and a function of the posterior that returns one with the
        same density and path at these latents, cheaper; None where nothing is to be gained.
    """
    del posterior, key, sample_shape
    return None


class Model(NamedTuple):
    r"""The three parts of a latent-variable model and how to draw from it.

    Attributes:
        posterior: q.
        prior: p(z).
        likelihood: $z \mapsto \log p(x|z)$.
        key: From which all samples are drawn.
        num_samples: How many samples this device has: K, or its share of them.
        chunk_size: How many of them to hold at a time; None for all.
        samples: The devices that share the K samples.
        data: The devices that share the batch.
    """

    posterior: Any
    prior: Any
    likelihood: Callable[[PyTree], Any]
    key: PRNGKeyArray
    num_samples: int
    chunk_size: Any
    samples: Axis = ALONE
    data: Axis = ALONE

    def draw(self, start: Start, size: int) -> PyTree:
        """This device's samples `start`, ..., `start + size - 1`, reparameterized."""
        return self.posterior.sample(self._key_of(start), (size,))

    def draw_weighed(self, start: Start, size: int) -> tuple[PyTree, Array | None]:
        r"""The same with $\log q(z)$, where the posterior gives it along with its samples."""
        draw = getattr(self.posterior, "sample_and_log_prob", None)
        if draw is None:
            return self.draw(start, size), None
        return draw(self._key_of(start), (size,))

    def look_and_remember(self) -> tuple[Block, Callable[[Any], Any]]:
        """All samples in one block, and what makes of the posterior one that recalls them."""
        found = draw_and_remember(self.posterior, self._key_of(0), (self.num_samples,))
        if found is None:
            return self.look(0, self.num_samples), lambda posterior: posterior
        z, log_posterior, recalled = found
        return self._weighed(0, z, log_posterior), recalled

    def _key_of(self, start: Start) -> PRNGKeyArray:
        if self.chunk_size is None and (self.samples, self.data) == (ALONE, ALONE):
            return self.key
        return window(self.key, self.position(start), self.data.index(), self.data.size)

    def position(self, start: Start) -> Start:
        """The position among all K of this device's sample `start`."""
        return self.samples.index() * self.num_samples + start

    def weigh(
        self, z: PyTree, log_posterior: Array | None = None
    ) -> tuple[PyTree, Float[Array, "k *batch"]]:
        r"""$\log p(x|z) + \log p(z) - \log q(z)$, in nats; -inf outside of the prior's support.

        Samples that lie outside come back as some point inside.
        """
        z, inside = move_into_support(self.prior, z)
        if log_posterior is None:
            log_posterior = self.posterior.log_prob(z)
        log_weights = self.likelihood(z) + self.prior.log_prob(z) - log_posterior
        return z, log_weights if inside is None else jnp.where(inside, log_weights, -jnp.inf)

    def look(self, start: Start, size: int) -> Block:
        """Draw and weigh a block without gradient. A weight that is not a number is 0."""
        return self._weighed(start, *self.draw_weighed(start, size))

    def _weighed(self, start: Start, z: PyTree, log_posterior: Array | None) -> Block:
        z, log_posterior = jax.lax.stop_gradient((z, log_posterior))
        z, log_weights = jax.lax.stop_gradient(self.weigh(z, log_posterior))
        log_weights = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
        return Block(z, log_weights, self.position(start))

    def fold(
        self, step: Callable[[Carry, Start, int], Carry], carry: Carry, block_size: int | None
    ) -> Carry:
        """Run `step(carry, start, size)` over this device's samples; None is one block."""
        if block_size is None:
            return step(carry, 0, self.num_samples)
        num_full, last = divmod(self.num_samples, block_size)

        def run(carry, start, size):
            after = step(carry, start, size)
            return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, carry)

        def scanned(carry, index):
            return run(carry, index * block_size, block_size), None

        carry, _ = jax.lax.scan(scanned, carry, jnp.arange(num_full))
        return run(carry, num_full * block_size, last) if last else carry


def read_model(
    posterior: Any,
    prior: Any,
    likelihood: Any,
    key: PRNGKeyArray,
    num_samples: Any,
    chunk_size: Any,
) -> tuple[Model, Shape]:
    """Check everything that can be checked without computing, and say what is wrong."""
    like = "a numpyro distribution or a gdregs.Hierarchy"
    check_part("posterior", posterior, ("sample", "log_prob"), like)
    check_part("prior", prior, ("log_prob",), like)
    check_likelihood(likelihood)
    num_samples = positive_integer("num_samples", num_samples)
    samples = axis(SAMPLES)
    if num_samples % samples.size:
        raise ValueError(
            f"num_samples = {num_samples} cannot be shared equally by {samples.size} devices."
        )
    num_samples //= samples.size
    if chunk_size is not None:
        chunk_size = positive_integer("chunk_size", chunk_size)
        chunk_size = chunk_size if chunk_size < num_samples else None
    model = Model(posterior, prior, likelihood, key, num_samples, chunk_size, samples)
    shape = _check_shapes(model)
    # Without a batch there is nothing to share: all devices along `data` do the same.
    return model._replace(data=axis(DATA) if shape.batch else ALONE), shape


def _check_shapes(model: Model) -> Shape:
    size = model.num_samples
    z = jax.eval_shape(lambda: model.posterior.sample(model.key, (size,)))
    for leaf in jax.tree.leaves(z):
        check_draw(leaf.shape, size, f"posterior.sample(key, ({size},))")
    densities = {
        "posterior.log_prob(z)": model.posterior.log_prob,
        "prior.log_prob(z)": model.prior.log_prob,
        "likelihood(z)": model.likelihood,
    }
    # JAX caches what it traces, and would compare the methods of modules by their arrays.
    shapes = {
        name: jax.eval_shape(lambda z, density=density: density(z), z)
        for name, density in densities.items()
    }
    found = {name: getattr(value, "shape", None) for name, value in shapes.items()}
    first = check_log_densities(found, size)
    for leaf in jax.tree.leaves(z):
        check_latent(leaf.shape, first)
    dtype = jnp.result_type(*(value.dtype for value in shapes.values()))
    return Shape(size * model.samples.size, first[1:], dtype, model.samples)


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
        likelihood: `z -> log p(x|z)`, `[K, *batch]`.
        key: A JAX random key.
        num_samples: K.
        chunk_size: Compute this many samples at a time, to save memory: those that `gdregs.bound`
            draws with the same `chunk_size`.

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
    model, shape = read_model(posterior, prior, likelihood, key, num_samples, chunk_size)
    if model.chunk_size is None:
        return model.samples.rows_of_all(model.weigh(model.draw(0, model.num_samples))[1])

    def write(collected, start, size):
        values = model.weigh(model.draw(start, size))[1]
        return jax.lax.dynamic_update_slice_in_dim(collected, values, start, axis=0)

    empty = jnp.zeros((model.num_samples, *shape.batch), shape.dtype)
    return model.samples.rows_of_all(model.fold(write, empty, model.chunk_size))


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
        likelihood: `z -> log p(x|z)`, `[K, *batch]`.
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
    model, shape = read_model(posterior, prior, likelihood, key, num_samples, chunk_size)

    def add(total, start, size):
        return extend_logsumexp(total, model.look(start, size).log_weights)

    nothing = jnp.full(shape.batch, -jnp.inf, shape.dtype)
    total = model.samples.log_total(model.fold(add, nothing, model.chunk_size))
    return total - math.log(shape.num_samples)
