"""Eq. (13) and the closed forms of App. H, against quadrature, exact integrals and samples."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
from gdregs.identities import GaussianCrossEntropy, negative_cross_entropy, score_integral

GRID = [
    GaussianCrossEntropy(*point)
    for point in itertools.product((0.0, 0.7), (0.6, 1.3), (0.0, -0.9), (0.5, 1.0, 2.4))
]


def draws(pair, estimator):
    """Both components of an estimator as functions of epsilon, by automatic differentiation."""

    class AtNoise:
        """q, which draws the one point that the quadrature asks for."""

        def __init__(self, noise):
            self.noise = noise

        def sample(self, key, sample_shape):
            return jnp.full(sample_shape, pair.mu_q + pair.sigma_q * self.noise)

        def log_prob(self, z):
            return dist.Normal(pair.mu_q, pair.sigma_q).log_prob(z)

    @jax.vmap
    def gradient(noise):
        def value(mu_p, sigma_p):
            return negative_cross_entropy(
                AtNoise(noise),
                dist.Normal(mu_p, sigma_p),
                key=jax.random.key(0),
                num_samples=1,
                prior_estimator=estimator,
            )

        return jax.grad(value, argnums=(0, 1))(pair.mu_p, pair.sigma_p)

    return gradient


@pytest.mark.parametrize("estimator", ["naive", "gdregs", gdregs.mixed_gdregs(0.3)])
def test_closed_forms_equal_quadrature_of_the_estimator_itself(float64, estimator):
    nodes, weights = np.polynomial.hermite_e.hermegauss(16)
    weights = weights / weights.sum()
    pairs = GaussianCrossEntropy(*np.array(GRID).T)
    found = jax.jit(jax.vmap(lambda pair: draws(pair, estimator)(nodes)))(pairs)
    expected = {
        "naive": (pairs.naive_variance_mu(), pairs.naive_variance_sigma()),
        "gdregs": (pairs.gdregs_variance_mu(), pairs.gdregs_variance_sigma()),
    }.get(estimator, (pairs.mixed_variance_mu(0.3), pairs.mixed_variance_sigma(0.3)))
    means = (pairs.gradient_mu(), pairs.gradient_sigma())
    for values, mean, variance in zip(map(np.asarray, found), means, expected, strict=True):
        np.testing.assert_allclose(values @ weights, mean, atol=1e-12)
        np.testing.assert_allclose((values - mean[:, None]) ** 2 @ weights, variance, atol=1e-12)


def test_value_and_gradients_are_those_of_the_cross_entropy(float64):
    """E_q[log p] = -KL - entropy(q), from the distributions' library."""

    @jax.jit
    @jax.vmap
    def run(pair):
        def expected(mu_p, sigma_p):
            q, p = dist.Normal(pair.mu_q, pair.sigma_q), dist.Normal(mu_p, sigma_p)
            return -dist.kl_divergence(q, p) - q.entropy()

        found = pair.value(), (pair.gradient_mu(), pair.gradient_sigma())
        return found, jax.value_and_grad(expected, argnums=(0, 1))(pair.mu_p, pair.sigma_p)

    found, expected = run(GaussianCrossEntropy(*np.array(GRID).T))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, expected
    )


def test_regions_and_optima_follow_from_the_variances():
    for pair in GRID:
        for name, wins in (
            ("mu", pair.largest_sigma_p_mu()),
            ("sigma", pair.largest_sigma_p_sigma()),
        ):
            for factor, expected in ((0.99, True), (1.01, False)):
                at = pair._replace(sigma_p=factor * wins)
                smaller = (
                    getattr(at, f"gdregs_variance_{name}")()
                    < getattr(at, f"naive_variance_{name}")()
                )
                assert smaller == expected, (pair, name, factor)
            best = getattr(pair, f"best_mix_{name}")()
            variance = getattr(pair, f"mixed_variance_{name}")
            np.testing.assert_allclose(
                variance(best), getattr(pair, f"best_variance_{name}")(), atol=1e-12
            )
            for other in (best - 0.1, best + 0.1, 0.0, 1.0):
                assert variance(other) >= variance(best) - 1e-12
            np.testing.assert_allclose(variance(0.0), getattr(pair, f"naive_variance_{name}")())
            np.testing.assert_allclose(
                variance(1.0), getattr(pair, f"gdregs_variance_{name}")(), atol=1e-12
            )


def test_the_printed_h10_is_another_number():
    """The misprint that the docstring names would be noticed."""
    pair = GaussianCrossEntropy(0.7, 0.6, -0.9, 2.4)
    printed = (
        2 * (pair.sigma_q**2 - pair.sigma_p**2) ** 2 / pair.sigma_p**6
        + (pair.sigma_p**2 - 2 * pair.sigma_q**2) ** 2
        * (pair.mu_q - pair.mu_p) ** 2
        / pair.sigma_q**2
    )
    assert printed > 10 * pair.gdregs_variance_sigma()


class Cubic(eqx.Module):
    """An integrand with a parameter, which the identity must treat as a constant."""

    factor: jax.Array

    def __call__(self, z):
        return self.factor * z**3 + jnp.sin(z)


def test_the_identity_holds_for_any_integrand():
    """(13) against quadrature, for a prior whose parameters g shares."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    z = 0.4 + 0.8 * nodes
    g = 0.7 * z**3 + np.sin(z)
    loc, scale = 0.7, 1.2
    weights = weights / weights.sum()
    exact = (
        weights @ (g * (z - loc) / scale**2),
        weights @ (g * ((z - loc) ** 2 / scale**3 - 1 / scale)),
    )

    def draw(estimator, of_q, of_p, key):
        def value(loc, scale):
            # The integrand's own parameter is the prior's too: only log p is differentiated.
            return score_integral(
                Cubic(loc),
                dist.Normal(*of_q),
                dist.Normal(loc, scale),
                key=key,
                num_samples=4,
                prior_estimator=estimator,
            )

        return jax.grad(value, argnums=(0, 1))(*of_p)

    @jax.jit
    def moments(key, of_q, of_p):
        of = [
            gdregs.gradient_moments(
                functools.partial(draw, estimator, of_q, of_p), key, 50_000, chunk_size=5000
            )
            for estimator in estimators
        ]
        return [(result.mean, result.standard_error) for result in of]

    estimators = ("naive", "gdregs", "gdregs-mix")
    for estimator, result in zip(
        estimators, moments(jax.random.key(1), (0.4, 0.8), (loc, scale)), strict=True
    ):
        for mean, error, truth in zip(*map(np.asarray, result), exact, strict=True):
            assert abs(mean - truth) < 4 * error, estimator
            assert error < 0.02 * abs(truth) + 0.01


def test_dregs_is_the_case_of_equal_distributions(float64):
    """Eq. (6): E[g grad log q] = E[grad g grad T], draw by draw."""
    key = jax.random.key(0)

    @jax.jit
    def run(loc, scale):
        def ours(loc, scale):
            q = dist.Normal(loc, scale)
            return score_integral(jnp.sin, q, q, key=key, num_samples=7)

        def reparameterized(loc, scale):
            return jnp.mean(jnp.sin(dist.Normal(loc, scale).sample(key, (7,))))

        return [jax.grad(of, argnums=(0, 1))(loc, scale) for of in (ours, reparameterized)]

    found, expected = run(0.3, 0.9)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_hidden_parameters_and_wrong_shapes_are_named():
    options = {"key": jax.random.key(0), "num_samples": 3}

    def value(loc, integrand):
        return score_integral(
            integrand(loc), dist.Normal(0.0, 1.0), dist.Normal(loc, 1.0), **options
        )

    def without_a_rule(loc):
        return score_integral(jnp.sin, dist.Normal(0.0, 1.0), dist.VonMises(loc, 2.0), **options)

    with pytest.raises(ValueError, match="The integrand uses a parameter"):
        jax.eval_shape(jax.grad(lambda loc: value(loc, lambda loc: lambda z: loc * z)), 0.5)
    with pytest.raises(ValueError, match=r"integrand\(z\) has shape \(\), prior.log_prob"):
        jax.eval_shape(lambda loc: value(loc, lambda loc: jnp.sum), 0.5)
    with pytest.raises(TypeError, match="no re-expression rule"):
        jax.eval_shape(without_a_rule, 1.0)
