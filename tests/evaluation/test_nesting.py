"""Bounds and noise inside of a likelihood: right, or refused."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
import models
from means import assert_unbiased

X = np.float32([0.5, -1.0, 2.0])
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


PARAMETERS = (0.3, -0.2, 0.4)


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
        jax.eval_shape(lambda of: nested(of, jax.random.key(0), outer, inner), PARAMETERS)


@pytest.mark.slow
def test_what_is_taken_is_unbiased_and_what_is_refused_is_biased(monkeypatch):
    def gradient(outer, inner):
        return lambda key: jax.grad(nested)(PARAMETERS, key, outer, inner)

    def refused(outer, inner):
        def unchecked(key):
            with monkeypatch.context() as patch:
                patch.setattr(sys.modules["gdregs.bound"], "refuse_inside", lambda **_: None)
                return gradient(outer, inner)(key)

        return unchecked

    elbo, few = {"objective": gdregs.ELBO()}, {"num_gradient_samples": 2}
    naive, naive_of_elbo = gradient(NAIVE, NAIVE), gradient({**elbo, **NAIVE}, NAIVE)
    cases = {
        "naive inside": (gradient({}, NAIVE), naive),
        "linear outside": (gradient(elbo, {}), naive_of_elbo),
        "linear outside, M < K": (gradient({**elbo, **few}, few), naive_of_elbo),
        "both": (refused({}, {}), naive),
        "inner": (refused(NAIVE, {}), naive),
    }
    assert_unbiased(
        {name: suspect for name, (suspect, _) in cases.items()},
        {name: reference for name, (_, reference) in cases.items()},
        jax.random.key(1), biased=("both", "inner"),
    )  # fmt: skip


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
        jax.eval_shape(lambda loc: noisy(loc, jnp.shape, **options), 0.3)

    @jax.jit
    def taken(loc):
        same = noisy(loc, lambda z: (1,), **options), noisy(loc, lambda z: (1,))
        one_each = noisy(loc, jnp.shape), noisy(loc, jnp.shape, objective=gdregs.ELBO(), **options)
        return same, one_each

    one_for_all, one_each = taken(0.3)
    np.testing.assert_allclose(*one_for_all, rtol=1e-5)
    assert np.isfinite(one_each).all()


def test_indirect_scores_that_cannot_be_told_apart_are_not_dropped():
    posterior = models.OwnSampler(np.zeros(2, np.float32), np.ones(2, np.float32))
    with pytest.raises(TypeError, match="the posterior is a OwnSampler, in which they cannot"):
        gdregs.bound(
            posterior,
            dist.Normal(np.zeros(2, np.float32), 1.0),
            lambda z: -z,
            key=jax.random.key(0),
            num_samples=3,
            indirect_scores="drop",
        )
