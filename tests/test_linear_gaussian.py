"""The linear-Gaussian model, whose posterior is known: z ~ N(theta, 1), x | z ~ N(z, s^2)."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
from models import OBJECTIVES

NOISE = 0.7
X = np.array([[0.3, -1.0], [2.0, 0.4], [-0.5, 0.1]])


def exact_posterior(theta):
    precision = 1 + 1 / NOISE**2
    return (theta + X / NOISE**2) / precision, precision**-0.5


def value(phi, theta, key, num_samples=8, **options):
    loc, log_scale = phi
    return jnp.sum(
        gdregs.bound(
            dist.Normal(loc, jnp.exp(log_scale)).to_event(1),
            dist.Normal(theta * jnp.ones_like(X), 1.0).to_event(1),
            lambda z: dist.Normal(z, NOISE).to_event(1).log_prob(X),
            key=key,
            num_samples=num_samples,
            **options,
        )
    )


def at_the_exact_posterior(theta):
    loc, scale = exact_posterior(theta)
    return loc, jnp.full_like(loc, jnp.log(scale))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_dregs_is_zero_draw_by_draw(float64, name):
    """All weights are equal, log w does not depend on z: no draw has any gradient of phi."""
    theta = 0.4
    phi = at_the_exact_posterior(theta)
    for seed in range(5):
        options = {"key": jax.random.key(seed), "objective": OBJECTIVES[name]}
        gradient = jax.grad(value)(phi, theta, **options)
        jax.tree.map(lambda g: np.testing.assert_allclose(g, 0, atol=1e-12), gradient)
    naive = jax.grad(value)(phi, theta, posterior_estimator="naive", **options)
    assert all(jnp.max(jnp.abs(g)) > 1e-2 for g in naive)


def test_gdregs_is_b10_draw_by_draw(float64):
    """(B.10): only the likelihood's term is left, and dT_p/dtheta = 1."""
    theta = 0.4
    phi = at_the_exact_posterior(theta)
    key = jax.random.key(3)
    loc, log_scale = phi
    z = dist.Normal(loc, jnp.exp(log_scale)).to_event(1).sample(key, (8,))
    with jax.numpy_rank_promotion("allow"):
        by_sample = jnp.sum((X - z) / NOISE**2, axis=-1)
    gradient = jax.grad(value, argnums=1)(phi, theta, key=key)
    np.testing.assert_allclose(gradient, jnp.sum(jnp.mean(by_sample, axis=0)), rtol=1e-10)


@pytest.mark.slow
def test_gradients_have_the_exact_mean():
    """With q exact, every bound is log p(x), with the gradient sum (x - theta) / (1 + s^2)."""
    theta = 0.4
    phi = at_the_exact_posterior(theta)
    expected = float(np.sum((X - theta) / (1 + NOISE**2)))
    for options in (
        {"prior_estimator": "gdregs"},
        {"prior_estimator": "naive"},
        {"prior_estimator": gdregs.mixed_gdregs(0.6)},
        {"prior_estimator": "gdregs", "num_gradient_samples": 2},
    ):
        moments = gdregs.gradient_moments(
            lambda key, o=options: jax.grad(value, argnums=1)(phi, theta, key=key, **o),
            jax.random.key(0),
            20_000,
        )
        assert abs(float(moments.mean) - expected) < 5 * float(moments.standard_error)
