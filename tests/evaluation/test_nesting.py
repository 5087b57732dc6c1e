"""Bounds and noise inside of a likelihood: right, or refused."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
import models
from means import largest_z

X = jnp.array([0.5, -1.0, 2.0])
NAIVE = {"posterior_estimator": "naive", "prior_estimator": "naive"}


def nested(parameters, key, outer, inner):
    """A global latent, and an inner bound over the local latents of three datapoints."""
    outer_key, inner_key = jax.random.split(key)
    loc, level, gain = parameters

    def likelihood(z):
        local = dist.Normal(gain * (X[None] + z[:, None]), 0.8)
        prior = dist.Normal(z[:, None] * jnp.ones((1, 3)), 1.0)
        return jnp.sum(
            gdregs.bound(
                local,
                prior,
                lambda u: dist.Normal(u, 1.0).log_prob(X[None, None]),
                key=inner_key,
                num_samples=3,
                **inner,
            ),
            axis=-1,
        )

    return gdregs.bound(
        dist.Normal(loc, 0.9),
        dist.Normal(level, 1.0),
        likelihood,
        key=outer_key,
        num_samples=4,
        **outer,
    )


PARAMETERS = (jnp.array(0.3), jnp.array(-0.2), jnp.array(0.4))


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ({}, {}),
        ({}, {"posterior_estimator": "naive"}),
        ({"num_gradient_samples": 2}, NAIVE),
        ({"chunk_size": 2}, NAIVE),
        ({"objective": gdregs.VRIWAE(0.5)}, {}),
        ({**NAIVE}, {}),
    ],
)
def test_what_would_be_biased_is_refused(outer, inner):
    with pytest.raises(ValueError, match="A bound inside of the likelihood of another one"):
        nested(PARAMETERS, jax.random.key(0), outer, inner)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ({}, NAIVE),
        ({"objective": gdregs.ELBO()}, {}),
        ({"objective": gdregs.ELBO(), "num_gradient_samples": 2}, {"num_gradient_samples": 2}),
    ],
)
def test_what_is_taken_is_unbiased(outer, inner):
    objective = {"objective": outer["objective"]} if "objective" in outer else {}

    def gradient(outer, inner):
        return lambda key: jax.grad(nested)(PARAMETERS, key, outer, inner)

    check = gdregs.check_unbiased(
        gradient(outer, inner), gradient({**objective, **NAIVE}, NAIVE), jax.random.key(1), 40_000
    )
    assert check.unbiased, check


@pytest.mark.slow
def test_what_is_refused_is_biased(monkeypatch):
    monkeypatch.setattr(sys.modules["gdregs.bound"], "refuse_inside", lambda **_: None)

    def gradient(outer, inner):
        return lambda key: jax.grad(nested)(PARAMETERS, key, outer, inner)

    suspects = {"both": gradient({}, {}), "inner": gradient(NAIVE, {})}
    largest = largest_z(suspects, gradient(NAIVE, NAIVE), jax.random.key(1), 40_000)
    assert min(largest.values()) > 1, largest


def noisy(loc, shape_of, **options):
    def likelihood(z):
        noise = 0.5 * jax.random.normal(jax.random.key(3), shape_of(z))
        return dist.Normal(z + noise, 1.0).log_prob(0.7)

    return gdregs.bound(
        dist.Normal(loc, 0.9), dist.Normal(0.0, 1.0), likelihood, key=jax.random.key(0),
        num_samples=6, **options,
    )  # fmt: skip


@pytest.mark.parametrize("options", [{"num_gradient_samples": 2}, {"chunk_size": 4}])
def test_noise_of_a_likelihood_must_be_the_same_each_time(options):
    with pytest.raises(ValueError, match="The likelihood draws random numbers of its own"):
        noisy(0.3, jnp.shape, **options)
    one_for_all = noisy(0.3, lambda z: (1,), **options)
    np.testing.assert_allclose(one_for_all, noisy(0.3, lambda z: (1,)), rtol=1e-5)
    assert jnp.isfinite(noisy(0.3, jnp.shape))
    assert jnp.isfinite(noisy(0.3, jnp.shape, objective=gdregs.ELBO(), **options))


def test_indirect_scores_that_cannot_be_told_apart_are_not_dropped():
    posterior = models.OwnSampler(jnp.zeros(2), jnp.ones(2))
    with pytest.raises(TypeError, match="the posterior is a OwnSampler, in which they cannot"):
        gdregs.bound(
            posterior,
            dist.Normal(jnp.zeros(2), 1.0),
            lambda z: -z,
            key=jax.random.key(0),
            num_samples=3,
            indirect_scores="drop",
        )
