"""Chains on a linear-Gaussian state-space model, against its exact likelihood and smoother."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import chains
import gdregs
from means import largest_z
from models import OBJECTIVES


def kalman(x, factor, spread, noise):
    """The log-likelihood of a scalar linear-Gaussian state-space model, and its smoother.

    z_1 ~ N(0, 1), z_t ~ N(factor z_{t-1}, spread^2), x_t ~ N(z_t, noise^2). The smoother runs
    backward: z_t given z_{t+1} is N(gain_t z_{t+1} + shift_t, width_t^2).
    """
    total, mean, variance = 0.0, 0.0, 1.0
    smoother = []
    for t, value in enumerate(x):
        if t:
            ahead_mean, ahead = factor * mean, factor**2 * variance + spread**2
            gain = factor * variance / ahead
            smoother.append((gain, mean - gain * ahead_mean, jnp.sqrt(variance - gain**2 * ahead)))
            mean, variance = ahead_mean, ahead
        total += dist.Normal(mean, jnp.sqrt(variance + noise**2)).log_prob(value)
        update = variance / (variance + noise**2)
        mean, variance = mean + update * (value - mean), (1 - update) * variance
    smoother.append((jnp.zeros(()), mean, jnp.sqrt(variance)))
    return total, [
        jnp.stack(jnp.broadcast_arrays(*values)) for values in zip(*smoother, strict=True)
    ]


class Backward(eqx.Module):
    """A step of the smoother; what it needs to know of each step is its input."""

    def __call__(self, later, u):
        gain, shift, width = u
        return dist.Normal(gain * later + shift, width)


X = np.array([0.3, -0.8, 0.5, 1.2, 0.1, -0.4])


def smoothed_bound(phi, theta, key, **options):
    posterior = gdregs.Chain(
        lambda u: dist.Normal(u[1], u[2]), Backward(), length=len(X), inputs=phi, reverse=True
    )
    prior = gdregs.Chain(dist.Normal(0.0, 1.0), chains.Decay(theta), length=len(X))
    with jax.numpy_rank_promotion("allow"):
        return gdregs.bound(
            posterior, prior, lambda z: dist.Normal(z, 0.7).log_prob(X).sum(-1), key=key,
            num_samples=8, **options,
        )  # fmt: skip


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_bound_at_the_smoother_is_the_likelihood_and_has_no_gradient(float64, objective):
    """Draw by draw, for the DReGs gradient of the posterior."""
    theta = jnp.array(0.9)
    exact, smoother = kalman(X, 0.9, 0.5, 0.7)
    options = {"objective": OBJECTIVES[objective]}
    for seed in range(3):
        value, gradient = jax.value_and_grad(smoothed_bound)(
            smoother, theta, jax.random.key(seed), **options
        )
        if objective != "own":
            np.testing.assert_allclose(value, exact, atol=1e-10)
        jax.tree.map(lambda g: np.testing.assert_allclose(g, 0, atol=1e-10), gradient)
    naive = jax.grad(smoothed_bound)(
        smoother, theta, jax.random.key(0), posterior_estimator="naive", **options
    )
    assert all(np.abs(g).max() > 1e-2 for g in naive)


@pytest.mark.slow
def test_gradients_of_the_prior_are_those_of_the_exact_likelihood():
    theta = jnp.array(0.9)
    _, smoother = kalman(X, theta, 0.5, 0.7)
    exact = float(jax.grad(lambda theta: kalman(X, theta, 0.5, 0.7)[0])(theta))
    estimators = {
        "gdregs": {},
        "naive": {"prior_estimator": "naive"},
        "M = 2": {"num_gradient_samples": 2},
        "mixed": {"prior_estimator": gdregs.mixed_gdregs(0.4)},
    }

    def gradients(key):
        """All in one program, as most of the time goes to compiling."""
        return {
            name: jax.grad(smoothed_bound, argnums=1)(smoother, theta, key, **options)
            for name, options in estimators.items()
        }

    moments = gdregs.gradient_moments(gradients, jax.random.key(0), 20_000)
    for name, mean in moments.mean.items():
        assert abs(float(mean) - exact) < 5 * float(moments.standard_error[name]), name


@pytest.mark.slow
def test_estimators_agree_over_draws_and_a_biased_one_does_not():
    """Away from the smoother: DReGs and GDReGs against naive; STL is biased."""
    theta = jnp.array(0.9)
    gain, shift, width = kalman(X, theta, 0.5, 0.7)[1]
    phi = [gain * 0.7, shift + 0.3, width * 1.3]

    def gradient(**options):
        return lambda key: jax.grad(smoothed_bound, argnums=(0, 1))(phi, theta, key, **options)

    naive = gradient(posterior_estimator="naive", prior_estimator="naive")
    suspects = {
        "whole": gradient(),
        "M = 2": gradient(num_gradient_samples=2),
        "stl": gradient(posterior_estimator="stl"),
    }
    largest = largest_z(suspects, naive, jax.random.key(0), 40_000)
    assert largest.pop("stl") > 1
    assert max(largest.values()) < 1, largest
