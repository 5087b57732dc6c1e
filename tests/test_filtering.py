"""The filtering variational objective: its value, and what its estimators have the mean of."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
from fivo import PARAMETERS, POSTERIOR, K, T, X, chains
from means import largest_z


def objective(parameters, key, x=X, num_samples=K, **options):
    posterior, prior = chains(parameters, x)

    def likelihood(z, x):
        return dist.Normal(z, jnp.exp(parameters["log_x"])).log_prob(x)

    with jax.numpy_rank_promotion("allow"):
        return jnp.sum(
            gdregs.fivo(
                posterior, prior, likelihood, x, key=key, num_samples=num_samples, **options
            )
        )


@pytest.mark.slow
@pytest.mark.parametrize("resample_every", [1, 3])
def test_estimators_have_the_mean_of_the_usual_gradient(resample_every):
    """Over 60,000 draws; STL must be caught, and DReGs varies less by the posterior."""
    draws, chunk_size = 60_000, 2000

    def gradient(posterior, **options):
        options |= {"posterior_estimator": posterior, "resample_every": resample_every}
        return lambda key: jax.grad(objective)(PARAMETERS, key, **options)

    usual, dregs = gradient("naive"), gradient("dregs", prior_estimator="naive")
    suspects = {"dregs": dregs, "stl": gradient("stl", prior_estimator="naive")}
    if resample_every == 1:
        suspects["gdregs"] = gradient("dregs", prior_estimator="gdregs")
        suspects["mix"] = gradient("naive", prior_estimator="gdregs-mix")
    key = jax.random.key(0)
    largest = largest_z(suspects, usual, key, draws, chunk_size=chunk_size)
    assert largest.pop("stl") > 1
    assert max(largest.values()) < 1, largest

    moments = gdregs.gradient_moments(
        lambda key: (usual(key), dregs(key)), key, draws, chunk_size=chunk_size
    )
    by_posterior = [sum(of[name] for name in POSTERIOR) for of in moments.variance]
    assert by_posterior[1] < by_posterior[0]


def test_the_gradient_is_along_the_paths_of_the_particles(float64):
    """With the particles held, `naive` is the derivative of F, by differences."""
    key = jax.random.key(1)
    options = {"posterior_estimator": "naive", "prior_estimator": "naive"}
    parameters = {name: jnp.asarray(value, float) for name, value in PARAMETERS.items()}
    x = jnp.asarray(np.asarray(X), float)
    value = jax.jit(lambda parameters: objective(parameters, key, x, **options))
    gradient = jax.grad(value)(parameters)
    for name in parameters:
        step = 1e-6
        up, down = (value({**parameters, name: parameters[name] + sign * step}) for sign in (1, -1))
        # A step this small moves no particle to another ancestor.
        np.testing.assert_allclose((up - down) / (2 * step), gradient[name], rtol=1e-6)


def test_one_block_is_the_importance_weighted_bound():
    posterior, prior = chains(PARAMETERS, X)
    keys = jax.random.split(jax.random.key(0), (2, 1000))
    filtered = jax.jit(jax.vmap(lambda key: objective(PARAMETERS, key, resample_every=T)))
    whole = filtered(keys[0])

    def likelihood(z):
        densities = dist.Normal(z, jnp.exp(PARAMETERS["log_x"])).log_prob(X.T[None])
        return jnp.sum(densities, axis=-1)

    @jax.jit
    @jax.vmap
    def bounds(key):
        return jnp.sum(gdregs.bound(posterior, prior, likelihood, key=key, num_samples=K))

    with jax.numpy_rank_promotion("allow"):
        other = bounds(keys[1])
    error = np.hypot(np.std(whole), np.std(other)) / len(other) ** 0.5
    assert abs(np.mean(whole) - np.mean(other)) < 4 * error


@pytest.mark.slow
def test_a_filter_is_tighter_than_one_block_over_a_long_series():
    x = jnp.sin(jnp.arange(120.0))[:, None]
    values = {
        every: float(objective(PARAMETERS, jax.random.key(0), x, 16, resample_every=every))
        for every in (1, 120)
    }
    assert values[1] > values[120] + 2


def test_what_is_refused():
    posterior, prior = chains(PARAMETERS, X)
    options = {"key": jax.random.key(0), "num_samples": 4}

    def likelihood(z, x):
        return -((z - x[None]) ** 2)

    with pytest.raises(TypeError, match=r"prior must be a gdregs\.Chain; got Normal"):
        gdregs.fivo(posterior, dist.Normal(0.0, 1.0), likelihood, X, **options)
    backward = gdregs.Chain(
        posterior.initial, posterior.transition, length=T, inputs=X, reverse=True
    )
    with pytest.raises(ValueError, match="posterior: a particle filter runs forward"):
        gdregs.fivo(backward, prior, likelihood, X, **options)
    longer = gdregs.Chain(prior.initial, prior.transition, length=5)
    with pytest.raises(ValueError, match="posterior has T = 4 steps and prior 5"):
        gdregs.fivo(posterior, longer, likelihood, X, **options)
    with pytest.raises(ValueError, match="observations must have the leading axis T = 4"):
        gdregs.fivo(posterior, prior, likelihood, X[1:], **options)
    with pytest.raises(ValueError, match="with resample_every above 1 only 'naive'"):
        gdregs.fivo(
            posterior, prior, likelihood, X, resample_every=2, prior_estimator="gdregs", **options
        )
    with pytest.raises(ValueError, match="resample_every must be at least 1"):
        gdregs.fivo(posterior, prior, likelihood, X, resample_every=0, **options)
