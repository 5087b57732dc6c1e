"""Samples that are evaluated twice are the same ones, and what should be independent is."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import gdregs
from gdregs.evaluation import choose
from gdregs.numpyro.bound import Bound
from means import assert_unbiased
from nights import drawn

KEY = jax.random.key(3)
K, DATAPOINTS = 6, 3


def gamma_below(z):
    return dist.InverseGamma(4.0, 1.0 + z**2)


POSTERIORS = {
    "normal": dist.Normal(np.zeros(DATAPOINTS), 1.5),
    "gamma": dist.Gamma(2 * np.ones(DATAPOINTS), 1.5),
    "beta": dist.Beta(2 * np.ones(DATAPOINTS), 1.5),
    "dirichlet": dist.Dirichlet(0.8 * np.ones((DATAPOINTS, 3))),
    "hierarchy": gdregs.Hierarchy(
        {
            "a": (dist.Normal(np.zeros(DATAPOINTS), 1.0), ()),
            "b": (gamma_below, ("a",)),
        }
    ),
}


OBJECTIVES = (gdregs.IWAE(), gdregs.JVI(), gdregs.VRIWAE(0.4))


def weights_added_up(posterior, objective, key=KEY, **options):
    """The derivative of the bounds by a constant that is added to the log-likelihood."""

    def total(constant):
        def likelihood(z):
            terms = [-jnp.square(leaf) for leaf in jax.tree.leaves(z)]
            events = [term.sum(tuple(range(2, term.ndim))) for term in terms]
            return constant + sum(events)

        return jnp.sum(
            gdregs.bound(
                posterior, posterior, likelihood, key=key, num_samples=K, objective=objective,
                posterior_estimator="naive", prior_estimator="naive", **options,
            )
        )  # fmt: skip

    return jax.grad(total)(0.0)


@pytest.mark.parametrize(
    ("name", "objective", "chunk_size"),
    [
        ("gamma", gdregs.IWAE(), 4),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("normal", gdregs.IWAE(), 5),
                ("beta", gdregs.VRIWAE(0.4), 4),
                ("dirichlet", gdregs.IWAE(), 2),
                ("hierarchy", gdregs.JVI(), 4),
            )
        ),
        *drawn(POSTERIORS, OBJECTIVES, (1, 2, 4, 5)),
    ],
)
def test_weights_add_up_to_1_whatever_the_blocks(name, objective, chunk_size):
    """The look and the surrogate are of the same samples, however a family draws them."""
    found = jax.jit(lambda: weights_added_up(POSTERIORS[name], objective, chunk_size=chunk_size))()
    np.testing.assert_allclose(found, DATAPOINTS, rtol=1e-4)


def test_weights_of_kept_samples_add_up_to_1_on_average():
    """Over 4,000 keys, with M = 2 of K = 6: a kept sample stands for those that are not."""

    def weights(key):
        posterior = POSTERIORS["normal"]
        return weights_added_up(posterior, gdregs.IWAE(), key, num_gradient_samples=2)

    found = np.asarray(jax.jit(jax.vmap(weights))(jax.random.split(KEY, 4000)))
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - DATAPOINTS) < 4.5 * error + 1e-4
    assert error < 0.05


def normal_model():
    constant = numpyro.param("constant")
    with numpyro.plate("data", DATAPOINTS):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("x", constant - (z - 0.7) ** 2)


def normal_guide():
    with numpyro.plate("data", DATAPOINTS):
        numpyro.sample("z", dist.Normal(numpyro.param("loc"), 1.0))


def test_weights_of_particles_add_up_whatever_the_blocks():
    @jax.jit
    def run(params):
        def loss(params, size):
            return Bound(K, chunk_size=size).loss(KEY, params, normal_model, normal_guide)

        return [jax.grad(loss)(params, size)["constant"] for size in (2, 4)]

    np.testing.assert_allclose(run({"constant": 0.1, "loc": 0.2}), -DATAPOINTS, rtol=1e-4)


def test_the_offset_of_the_resampling_has_a_key_of_its_own():
    """A number that `fold_in` makes a key of is the number of a key that `split` makes."""

    @jax.jit
    def keys(key):
        nodes = jax.random.split(key, 1000)
        samples = jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(1000))
        own = jax.random.fold_in(key, choose._RESAMPLING)
        return jax.tree.map(jax.random.key_data, (nodes, samples, own))

    nodes, samples, own = jax.tree.map(np.asarray, keys(KEY))
    np.testing.assert_array_equal(nodes, samples)
    assert not (nodes == own).all(axis=1).any()


def step(previous, u):
    return dist.Normal(0.6 * previous + 0.2 * u, 0.8)


@pytest.mark.slow
def test_one_kept_sample_of_a_chain_longer_than_there_are_samples():
    """The offset was drawn with the key of step K of it: then it must be found out as biased."""
    length, num_samples = 8, 4

    def gradient(kept, number=choose._RESAMPLING):
        def objective(parameters, key):
            shift, factor = parameters
            posterior = gdregs.Chain(
                dist.Normal(0.0, 1.0), step, length=length, inputs=shift * jnp.ones(length)
            )
            prior = gdregs.Chain(
                dist.Normal(0.0, 1.0),
                jax.tree_util.Partial(lambda a, z, u: dist.Normal(a * z, 1.0), factor),
                length=length,
            )
            return gdregs.bound(
                posterior, prior, lambda z: -0.5 * jnp.sum((z - 1.0) ** 2, axis=-1), key=key,
                num_samples=num_samples, num_gradient_samples=kept,
            )  # fmt: skip

        def draw(key):
            with mock.patch.object(choose, "_RESAMPLING", number):
                return jax.grad(objective)((0.3, 0.5), key)

        return draw

    suspects = {"own key": gradient(1), "key of a step": gradient(1, num_samples)}
    assert_unbiased(suspects, gradient(None), jax.random.key(0), biased=("key of a step",))


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

    assert evaluate().shape == (DATAPOINTS,)
    for options in ({"num_gradient_samples": 2}, {"chunk_size": 4}):
        with pytest.raises(ValueError, match=f"The {part.split(',')[0]} draws random numbers"):
            evaluate(**options)
        elbo = {"objective": gdregs.ELBO(), **options}
        if part == "posterior":  # samples of one density, and the values of another
            with pytest.raises(ValueError, match="The posterior draws random numbers"):
                evaluate(**elbo)
        else:
            evaluate(**elbo)
