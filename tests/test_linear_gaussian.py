"""The linear-Gaussian model, whose posterior is known: z ~ N(theta, 1), x | z ~ N(z, s^2)."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import gdregs
import models
from means import assert_unbiased
from models import OBJECTIVES

NOISE, THETA = 0.7, 0.4
X = np.array([[0.3, -1.0], [2.0, 0.4], [-0.5, 0.1]])


def value(phi, theta, key, pair=("dregs", "gdregs"), num_samples=8, **options):
    loc, log_scale = phi
    return jnp.sum(
        gdregs.bound(
            dist.Normal(loc, jnp.exp(log_scale)).to_event(1),
            dist.Normal(theta * jnp.ones_like(X), 1.0).to_event(1),
            lambda z: dist.Normal(z, NOISE).to_event(1).log_prob(X),
            key=key,
            num_samples=num_samples,
            posterior_estimator=pair[0],
            prior_estimator=pair[1],
            **options,
        )
    )


def exact_posterior():
    precision = 1 + 1 / NOISE**2
    loc = (THETA + X / NOISE**2) / precision
    return loc, np.full_like(loc, -0.5 * np.log(precision))


def test_dregs_is_zero_draw_by_draw(float64):
    """All weights are equal, log w does not depend on z: no draw has any gradient of phi."""
    pairs = [("dregs", "gdregs"), ("naive", "gdregs")]

    @jax.jit
    def run(phi, numbers, rows):
        def gradient(number, row, key):
            return jax.grad(value)(phi, THETA, key, row, objective=models.AnyOf(number))

        of_keys = jax.vmap(gradient, (None, None, 0))
        of_rows = jax.vmap(of_keys, (None, 0, None))
        of_objectives = jax.vmap(of_rows, (0, None, None))
        return of_objectives(numbers, rows, jax.random.split(jax.random.key(0), 5))

    found = run(exact_posterior(), np.arange(len(OBJECTIVES)), models.rows_of(pairs))
    for leaf in jax.device_get(found):
        for name, (ours, naive) in zip(OBJECTIVES, leaf, strict=True):
            np.testing.assert_allclose(ours, 0, atol=1e-12, err_msg=name)
            assert np.abs(naive).max() > 1e-2, name


def test_gdregs_is_b10_draw_by_draw(float64):
    """(B.10): only the likelihood's term is left, and dT_p/dtheta = 1."""

    @jax.jit
    def run(phi, theta):
        key = jax.random.key(3)
        loc, log_scale = phi
        posterior = dist.Normal(loc, jnp.exp(log_scale)).to_event(1)
        z = models.samples(posterior, key, 8)
        return jax.grad(value, argnums=1)(phi, theta, key), z

    gradient, z = run(exact_posterior(), THETA)
    by_sample = np.sum((X - np.asarray(z)) / NOISE**2, axis=-1)
    np.testing.assert_allclose(gradient, np.sum(np.mean(by_sample, axis=0)), rtol=1e-10)


def test_gradients_have_the_exact_mean():
    """With q exact, every bound is log p(x), with the gradient sum (x - theta) / (1 + s^2)."""
    pairs = [("dregs", "gdregs"), ("dregs", "naive"), ("dregs", "mixed 0.3")]
    loc, log_scale = exact_posterior()
    exact = jnp.asarray(np.sum((X - THETA) / (1 + NOISE**2)), jnp.float32)

    def draw(key):
        def gradient(pair=("dregs", "gdregs"), phi=(loc, log_scale), **options):
            return jax.grad(value, argnums=1)(phi, THETA, key, pair, **options)

        of_pairs = jax.vmap(gradient)(models.rows_of(pairs))
        found = {pair[1]: of_pairs[i] for i, pair in enumerate(pairs)}
        found["M = 2"] = gradient(num_gradient_samples=2)
        found["another posterior"] = gradient(phi=(loc + 0.5, log_scale))
        return found, dict.fromkeys(found, exact)

    assert_unbiased(draw, None, jax.random.key(0), biased=["another posterior"])
