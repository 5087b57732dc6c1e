"""Log-weights of importance samples, all at once or in blocks."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray, PyTree

from gdregs.evaluation.keys import Start, keys_of_noise, keys_of_samples, typed_key
from gdregs.evaluation.meshes import DATA, SAMPLES, devices_along, spread
from gdregs.reexpression.paths import align, only_once_differentiable
from gdregs.reexpression.support import move_into_support
from gdregs.shared.checks import (
    check_draw,
    check_latent,
    check_likelihood,
    check_log_densities,
    check_part,
    num_arguments,
    positive_integer,
)

T = TypeVar("T")


def takes_keys(part: Any) -> bool:
    """Whether a posterior or prior has noise of its own, and a method `with_keys` for its keys."""
    return bool(getattr(part, "takes_keys", False))


@functools.singledispatch
def draw_and_remember(
    posterior: Any, keys: Key[Array, " K"]
) -> tuple[PyTree, Array, Callable[[Any], Any]] | None:
    """Draw latents in a way that leaves behind what their density and path need.

    Returns:
        The latents, their log-density, and a function of the posterior that returns one with the
        same density and path at these latents, cheaper; None where nothing is to be gained.
    """
    del posterior, keys
    return None


class Noise(NamedTuple):
    """The keys of the samples at hand that parts with noise of their own are given, or None."""

    likelihood: Any = None
    posterior: Any = None
    prior: Any = None


class Model(NamedTuple):
    r"""The three parts of a latent-variable model and how to draw from it.

    Attributes:
        posterior: q.
        prior: p(z).
        likelihood: $z \mapsto \log p(x|z)$, or a function of z and of keys.
        key: From which everything is drawn.
        num_samples: K.
        chunk_size: How many samples to hold at a time; None for all.
        num_key_axes: How many axes the keys have that the likelihood is given: 0 if it takes none,
            1 for `[K]`, more for `[K, *batch]`.
        batch: The shape of the datapoints.
        dtype: Of the log-weights.
        shapes: Of K samples.
        lead: The axes with which one sample is drawn: (), or (1,) for a posterior that needs an
            axis of samples.
    """

    posterior: Any
    prior: Any
    likelihood: Callable[..., Any]
    key: PRNGKeyArray
    num_samples: int
    chunk_size: int | None
    num_key_axes: int = 0
    batch: tuple[int, ...] = ()
    dtype: Any = None
    shapes: PyTree = None
    lead: tuple[int, ...] = ()

    def only_once_differentiable(self) -> "Model":
        """The same, whose posterior and prior raise if they are differentiated twice."""
        posterior, prior = map(only_once_differentiable, (self.posterior, self.prior))
        return self._replace(posterior=posterior, prior=prior)

    def without_dead(self, alive: Bool[Array, "M *batch"]) -> "Model":
        """The same, whose distributions have no derivative where no sample has weight.

        It is 0 times the derivative of a density there, which may be NaN.
        """
        dead = ~jnp.any(alive, axis=0)

        def stopped(leaf: Any) -> Any:
            if not (isinstance(leaf, jax.Array) and eqx.is_inexact_array(leaf)):
                return leaf
            is_of_datapoint = leaf.shape[: dead.ndim] == dead.shape
            where = align(dead, leaf) if is_of_datapoint else jnp.all(dead)
            return jnp.where(where, jax.lax.stop_gradient(leaf), leaf)

        def of_part(part: Any) -> Any:
            is_distribution = isinstance(part, dist.Distribution)
            return jax.tree.map(stopped, part) if is_distribution else part

        posterior, prior = (
            jax.tree.map(of_part, part, is_leaf=lambda one: isinstance(one, dist.Distribution))
            for part in (self.posterior, self.prior)
        )
        return self._replace(posterior=posterior, prior=prior)

    def sample_keys(self, start: Start, size: int) -> Key[Array, " size"]:
        """The keys with which the samples from `start` on are drawn."""
        return spread(keys_of_samples(self.key, start, size), SAMPLES)

    def draw(self, start: Start, size: int) -> PyTree:
        """The samples `start`, ..., `start + size - 1`, reparameterized."""
        return self._draw_each(self.posterior.sample, start, size)

    def draw_weighed(self, start: Start, size: int) -> tuple[PyTree, Array | None]:
        r"""The same with $\log q(z)$, where the posterior gives it along with its samples."""
        draw = getattr(self.posterior, "sample_and_log_prob", None)
        if draw is None:
            return self.draw(start, size), None
        return self._draw_each(draw, start, size)

    def _draw_each(self, draw: Callable[..., T], start: Start, size: int) -> T:
        def one(key):
            found = draw(key, self.lead)
            return jax.tree.map(lambda leaf: leaf[0], found) if self.lead else found

        found = jax.vmap(one)(self.sample_keys(start, size))
        return spread(found, SAMPLES, DATA) if self.batch else found

    def noise(self, start: Start, size: int) -> Noise:
        """What the parts are given beside the samples from `start` on."""
        of_samples = self.sample_keys(start, size)
        likelihood = keys_of_noise(of_samples, "likelihood") if self.num_key_axes else None
        if self.num_key_axes > 1:
            likelihood = jax.vmap(lambda key: keys_of_samples(key, 0, math.prod(self.batch)))(
                likelihood
            ).reshape(size, *self.batch)
        others = (
            keys_of_noise(of_samples, name) if takes_keys(part) else None
            for name, part in (("posterior", self.posterior), ("prior", self.prior))
        )
        return Noise(likelihood, *others)

    def with_noise(self, noise: Noise) -> "Model":
        """The model at samples with this noise."""
        posterior, prior = (
            part if keys is None else part.with_keys(keys)
            for part, keys in ((self.posterior, noise.posterior), (self.prior, noise.prior))
        )
        return self._replace(posterior=posterior, prior=prior)

    @property
    def shares_noise(self) -> bool:
        """Whether the datapoints have noise in common, which belongs to whole samples then."""
        is_shared = self.num_key_axes == 1 or takes_keys(self.posterior) or takes_keys(self.prior)
        return bool(self.batch) and is_shared

    def log_likelihood(self, z: PyTree, keys: Any) -> Array:
        r"""$\log p(x|z)$, `[K, *batch]`."""
        return self.likelihood(z) if keys is None else self.likelihood(z, keys)

    def weigh(
        self, z: PyTree, noise: Noise, log_posterior: Array | None = None
    ) -> tuple[PyTree, Float[Array, "k *batch"]]:
        r"""$\log p(x|z) + \log p(z) - \log q(z)$, in nats; -inf outside of the prior's support.

        Samples that lie outside come back as some point inside.
        """
        given = self.with_noise(noise)
        z, inside = move_into_support(given.prior, z)
        if log_posterior is None:
            log_posterior = given.posterior.log_prob(z)
        log_likelihood = self.log_likelihood(z, noise.likelihood)
        log_weights = log_likelihood + given.prior.log_prob(z) - log_posterior
        return z, log_weights if inside is None else jnp.where(inside, log_weights, -jnp.inf)

    def look(self, start: Start, size: int) -> tuple[PyTree, Float[Array, "k *batch"]]:
        """Draw and weigh a block without gradient. A weight that is not a number is 0."""
        return self.look_at(start, *self.draw_weighed(start, size))

    def look_at(
        self, start: Start, z: PyTree, log_posterior: Array | None
    ) -> tuple[PyTree, Float[Array, "k *batch"]]:
        """The same of samples that have been drawn."""
        z, log_posterior = jax.lax.stop_gradient((z, log_posterior))
        size = jax.tree.leaves(z)[0].shape[0]
        found = self.weigh(z, self.noise(start, size), log_posterior)
        z, log_weights = jax.lax.stop_gradient(found)
        return z, jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)

    def in_blocks(self, function: Callable[[Start, int], T]) -> T:
        """What `function(start, size)` returns of all samples, leading axis K, block by block."""
        size = self.chunk_size
        if size is None:
            return function(0, self.num_samples)
        num_full, last = divmod(self.num_samples, size)
        full = jax.lax.map(lambda index: function(index * size, size), jnp.arange(num_full))
        parts = [jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), full)]
        if last:
            parts.append(function(num_full * size, last))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    def fold(self, step: Callable[[T, Start, int], T], carry: T) -> T:
        """Run `step(carry, start, size)` over the blocks, one after another."""
        size = self.chunk_size
        if size is None:
            return step(carry, 0, self.num_samples)
        num_full, last = divmod(self.num_samples, size)

        def run(carry, start, size):
            after = step(carry, start, size)
            return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, carry)

        def scanned(carry, index):
            return run(carry, index * size, size), None

        carry, _ = jax.lax.scan(scanned, carry, jnp.arange(num_full))
        return run(carry, num_full * size, last) if last else carry


def read_model(
    posterior: Any,
    prior: Any,
    likelihood: Any,
    key: PRNGKeyArray,
    num_samples: Any,
    chunk_size: Any,
) -> Model:
    """Check everything that can be checked without computing, and say what is wrong."""
    like = "a numpyro distribution or a gdregs.Hierarchy"
    check_part("posterior", posterior, ("sample", "log_prob"), like)
    check_part("prior", prior, ("log_prob",), like)
    check_likelihood(likelihood)
    num_samples = positive_integer("num_samples", num_samples)
    devices = devices_along(SAMPLES)
    if num_samples % devices:
        raise ValueError(
            f"num_samples = {num_samples} cannot be shared equally by {devices} devices."
        )
    if chunk_size is not None:
        chunk_size = positive_integer("chunk_size", chunk_size) * devices
        chunk_size = chunk_size if chunk_size < num_samples else None
    return _with_shapes(
        Model(posterior, prior, likelihood, typed_key(key), num_samples, chunk_size)
    )


def _with_shapes(model: Model) -> Model:
    size = model.num_samples
    model = _with_lead(model)
    z = model.shapes
    given = model.with_noise(model.noise(0, size))
    densities = {
        "posterior.log_prob(z)": given.posterior.log_prob,
        "prior.log_prob(z)": given.prior.log_prob,
    }
    # JAX caches what it traces, and would compare the methods of modules by their arrays.
    found = {
        name: jax.eval_shape(lambda z, density=density: density(z), z)
        for name, density in densities.items()
    }
    shape = tuple(getattr(found["posterior.log_prob(z)"], "shape", ()))
    model, found["likelihood(z)"] = _with_keys(model._replace(batch=shape[1:]))
    shape = check_log_densities(
        {name: getattr(value, "shape", None) for name, value in found.items()}, size
    )
    for leaf in jax.tree.leaves(z):
        check_latent(leaf.shape, shape)
    return model._replace(dtype=jnp.result_type(*(value.dtype for value in found.values())))


def _with_lead(model: Model) -> Model:
    """The model that draws one sample as its posterior can.

    Without an axis of samples, the compiler sees that a conditional is evaluated where its density
    is too.
    """
    size, key = model.num_samples, model.key
    z = jax.eval_shape(lambda: model.posterior.sample(key, (size,)))
    for leaf in jax.tree.leaves(z):
        check_draw(leaf.shape, size, f"posterior.sample(key, ({size},))")

    def shapes(model):
        return jax.tree.map(jnp.shape, jax.eval_shape(lambda: model.draw(0, size)))

    try:
        draws_alone = not takes_keys(model.posterior) and shapes(model) == jax.tree.map(
            jnp.shape, z
        )
    except (TypeError, ValueError, IndexError):
        draws_alone = False
    return model._replace(shapes=z, lead=() if draws_alone else (1,))


def _with_keys(model: Model) -> tuple[Model, Any]:
    """The model with the keys that its likelihood takes, and the shape of what that returns.

    Keys are `[K]`; if the likelihood cannot be traced with those, `[K, *batch]`.
    """

    def traced(model):
        def evaluate(z):
            return model.log_likelihood(z, model.noise(0, model.num_samples).likelihood)

        return model, jax.eval_shape(evaluate, model.shapes)

    if num_arguments(model.likelihood) != 2:
        return traced(model)
    try:
        return traced(model._replace(num_key_axes=1))
    except (TypeError, ValueError) as error:
        try:
            return traced(model._replace(num_key_axes=1 + len(model.batch)))
        except (TypeError, ValueError):
            raise error from None
