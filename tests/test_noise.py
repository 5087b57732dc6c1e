"""Noise of the likelihood's and of conditionals' own: by the samples' keys, or refused."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
from gdregs.evaluation import pull
from means import assert_unbiased

KEY = jax.random.key(3)
K, DATAPOINTS = 6, 3


def dropout(key):
    return lambda z: z * jax.random.bernoulli(key, 0.5, z.shape)


def hierarchy(network):
    def below(a):
        return dist.Normal(network(a), 1.0)

    return gdregs.Hierarchy(
        {"a": (dist.Normal(np.zeros(DATAPOINTS), 1.0), ()), "b": (below, ("a",))}
    )


def by_rows(z):
    """Noise of each sample, in a loop over samples."""

    def row(of):
        key, value = of
        return -jnp.square(value) * jax.random.uniform(key, value.shape)

    return jax.lax.map(row, (jax.random.split(KEY, z["b"].shape[0]), z["b"]))


def by_gamma(z):
    """Noise that JAX draws by an operation of its own."""
    return -jnp.square(z["b"]) * jax.random.gamma(KEY, 2.0, z["b"].shape)


NOISY = {
    "posterior": (hierarchy(dropout(KEY)), hierarchy(jnp.tanh), lambda z: -jnp.square(z["b"])),
    "prior": (hierarchy(jnp.tanh), hierarchy(dropout(KEY)), lambda z: -jnp.square(z["b"])),
    "likelihood": (hierarchy(jnp.tanh), hierarchy(jnp.tanh), by_rows),
    "likelihood, gamma": (hierarchy(jnp.tanh), hierarchy(jnp.tanh), by_gamma),
}


@pytest.mark.parametrize("part", NOISY)
def test_noise_of_each_sample_is_refused_wherever_it_is_drawn(part):
    def evaluate(**options):
        return jax.eval_shape(
            lambda: gdregs.bound(
                *NOISY[part], key=KEY, num_samples=K, posterior_estimator="naive",
                prior_estimator="naive", **options,
            )
        )  # fmt: skip

    elbo = {"objective": gdregs.ELBO()}
    if part == "posterior":  # samples of one density, and the values of another
        for options in ({}, {"num_gradient_samples": 2}, {"chunk_size": 4}, elbo):
            with pytest.raises(ValueError, match="The posterior draws random numbers"):
                evaluate(**options)
        return
    assert evaluate().shape == (DATAPOINTS,)
    for options in ({"num_gradient_samples": 2}, {"chunk_size": 4}):
        with pytest.raises(ValueError, match=f"The {part.split(',')[0]} draws random numbers"):
            evaluate(**options)
        evaluate(**elbo, **options)


def with_keys_and_other_noise(z, keys):
    """Takes the samples' keys, and draws from another one all the same."""
    return by_gamma(z) + jax.vmap(lambda key: jax.random.normal(key, (DATAPOINTS,)))(keys)


def in_a_loop(z, keys):
    """Draws from the samples' keys alone, inside of a loop."""

    def row(of):
        key, value = of
        return -jnp.square(value) * jax.random.gamma(key, 2.0, value.shape)

    return jax.lax.map(row, (keys, z["b"]))


def test_noise_that_does_not_come_from_the_keys_is_refused():
    posterior = hierarchy(jnp.tanh)

    def evaluate(likelihood):
        return jax.eval_shape(
            lambda: gdregs.bound(
                posterior, posterior, likelihood, key=KEY, num_samples=K, chunk_size=4
            )
        )

    with pytest.raises(ValueError, match="The likelihood draws random numbers"):
        evaluate(with_keys_and_other_noise)
    assert evaluate(in_a_loop).shape == (DATAPOINTS,)


def masks(keys):
    """Dropout with a mask for each sample that its datapoints share."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (DATAPOINTS,)))(keys)


def normals(loc=0.0):
    return dist.Normal(loc * jnp.ones(DATAPOINTS), 1.0)


def of_samples(loc, slope):
    """A likelihood with a mask for each sample."""
    return normals(loc), normals(), lambda z, keys: -jnp.square(slope * z * masks(keys) - 1)


def of_datapoints(loc, slope):
    """A likelihood with noise for each sample and datapoint."""

    def likelihood(z, keys):
        return -jnp.square(slope * z * jax.vmap(jax.vmap(jax.random.exponential))(keys) - 1)

    return normals(loc), normals(), likelihood


def masked(slope, a, keys):
    return dist.Normal(slope * a * masks(keys), 1.0)


def of_conditionals(loc, slope):
    """Posterior and prior with dropout in a conditional."""
    below = jax.tree_util.Partial(masked, slope)
    posterior = gdregs.Hierarchy({"a": (normals(loc), ()), "b": (below, ("a",))})
    below = jax.tree_util.Partial(masked, 2 * slope)
    prior = gdregs.Hierarchy({"a": (normals(), ()), "b": (below, ("a",))})
    return posterior, prior, lambda z: -jnp.square(z["b"] - 1)


@pytest.mark.parametrize("parts", [of_samples, of_datapoints, of_conditionals])
def test_noise_by_the_keys_of_samples_belongs_to_its_sample(parts):
    """In blocks it is that of the whole; with M < K the gradient has the mean of the naive one."""
    parameters = (0.3, 0.4)

    def objective(parameters, key, **options):
        return jnp.sum(gdregs.bound(*parts(*parameters), key=key, num_samples=K, **options))

    def blocks(key):
        of = jax.value_and_grad(objective)
        return [jnp.stack(of(parameters, key, chunk_size=size)[1]) for size in (None, 4)]

    whole, found = jax.jit(blocks)(KEY)
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5)

    def gradient(**options):
        return lambda key: jax.grad(objective)(parameters, key, **options)

    def swapped(model, estimators, weighed, *span):
        noise = jax.tree.map(lambda keys: jnp.roll(keys, 1, axis=0), weighed.noise)
        return pull.pull(model, estimators, weighed._replace(noise=noise), *span)

    def swap_all(model, seen, estimators):
        weighed = pull.Weighed(seen.z, model.noise(0, K), seen.v, seen.r)
        return swapped(model, estimators, weighed)

    def other_noise(key):
        """The backward pass sees the noise of other samples, as if it were drawn anew."""
        with mock.patch.multiple("gdregs.bound", pull=swapped, pull_all=swap_all):
            return gradient(num_gradient_samples=2)(key)

    suspects = {"M = 2": gradient(num_gradient_samples=2), "other noise": other_noise}
    naive = gradient(posterior_estimator="naive", prior_estimator="naive")
    assert_unbiased(suspects, naive, jax.random.key(1), biased=("other noise",))


def test_conditionals_with_keys_are_drawn_with_an_axis_of_samples():
    posterior, _, _ = of_conditionals(0.3, 0.4)
    assert jax.eval_shape(lambda: posterior.sample(KEY, (5,)))["b"].shape == (5, DATAPOINTS)
    with pytest.raises(ValueError, match=r"take the keys of samples: sample_shape must be \(K,\)"):
        jax.eval_shape(lambda: posterior.sample(KEY))


def test_a_posterior_that_needs_an_axis_of_samples_is_drawn_with_one():
    """A conditional may count on the axes `[K, *batch]` of its parents."""

    def below(a):
        return dist.Normal(jnp.moveaxis(a, 1, 0).T, 1.0)

    hierarchy = gdregs.Hierarchy({"a": (normals(), ()), "b": (below, ("a",))})

    @jax.jit
    def run():
        def value(chunk_size):
            return gdregs.bound(
                hierarchy, hierarchy, lambda z: -jnp.square(z["b"]), key=KEY, num_samples=K,
                chunk_size=chunk_size,
            )  # fmt: skip

        return value(None), value(4)

    whole, blocks = run()
    np.testing.assert_allclose(blocks, whole, rtol=1e-5)
