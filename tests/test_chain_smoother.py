"""Chains on a linear-Gaussian state-space model, against its exact likelihood and smoother."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import chains
import gdregs
from chains import kalman
from means import assert_unbiased


class Backward(eqx.Module):
    """A step of the smoother; what it needs to know of each step is its input."""

    def __call__(self, later, u):
        gain, shift, width = u
        return dist.Normal(gain * later + shift, width)


X = np.array([0.3, -0.8, 0.5, 1.2, 0.1, -0.4])
FACTOR, SPREAD, NOISE = 0.9, 0.5, 0.7


def smoothed_bound(phi, theta, key, num_samples=8, **options):
    posterior = gdregs.Chain(
        lambda u: dist.Normal(u[1], u[2]), Backward(), length=len(X), inputs=phi, reverse=True
    )
    prior = gdregs.Chain(dist.Normal(0.0, 1.0), chains.Decay(theta, SPREAD), length=len(X))
    with jax.numpy_rank_promotion("allow"):
        return gdregs.bound(
            posterior, prior, lambda z: dist.Normal(z, NOISE).log_prob(X).sum(-1), key=key,
            num_samples=num_samples, **options,
        )  # fmt: skip


def test_the_bound_at_the_smoother_is_the_likelihood_and_has_no_gradient(float64):
    """Draw by draw, for the DReGs gradient of the posterior, and not for the naive one."""
    exact, smoother = kalman(X, FACTOR, SPREAD, NOISE)

    @jax.jit
    @jax.vmap
    def draws(seed):
        key = jax.random.key(seed)
        value_and_gradient = jax.value_and_grad(smoothed_bound)
        return (
            value_and_gradient(tuple(smoother), FACTOR, key),
            value_and_gradient(
                tuple(smoother), FACTOR, key, posterior_estimator="naive", prior_estimator="naive"
            ),
        )

    (value, gradient), (again, naive) = jax.device_get(draws(np.arange(3)))
    np.testing.assert_allclose([value, again], exact, atol=1e-10)
    jax.tree.map(lambda g: np.testing.assert_allclose(g, 0, atol=1e-10), gradient)
    assert all((np.abs(g).max(axis=1) > 1e-2).all() for g in naive)


@pytest.mark.slow
def test_gradients_are_those_of_the_exact_likelihood_or_have_the_mean_of_naive():
    """The prior's at the smoother, where the bound is exact; both away from it; STL is biased."""
    _, smoother = kalman(X, FACTOR, SPREAD, NOISE)
    step = 1e-5
    up, down = (kalman(X, FACTOR + sign * step, SPREAD, NOISE)[0] for sign in (1, -1))
    exact = (up - down) / (2 * step)
    gain, shift, width = smoother
    away = (gain * 0.7, shift + 0.3, width * 1.3)

    def at_smoother(**options):
        return lambda key: jax.grad(smoothed_bound, 1)(tuple(smoother), FACTOR, key, **options)

    def elsewhere(**options):
        return lambda key: jax.grad(smoothed_bound, (0, 1))(away, FACTOR, key, 4, **options)

    naive = elsewhere(posterior_estimator="naive", prior_estimator="naive")
    suspects = {
        "gdregs": at_smoother(),
        "naive": at_smoother(prior_estimator="naive"),
        "mixed, M = 2": at_smoother(
            prior_estimator=gdregs.mixed_gdregs(0.4), num_gradient_samples=2
        ),
    }
    references = dict.fromkeys(suspects, lambda key: jnp.asarray(exact, jnp.float32))
    others = {
        "away": elsewhere(),
        "away, M = 2": elsewhere(num_gradient_samples=2),
        "stl": elsewhere(posterior_estimator="stl"),
    }
    assert_unbiased(
        suspects | others, references | dict.fromkeys(others, naive), jax.random.key(0),
        biased=("stl",),
    )  # fmt: skip
