"""Indirect score functions: kept by default; dropped, the gradient is another one, and biased."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdregs
import models
import reference
from means import assert_unbiased

stop = jax.lax.stop_gradient


def dropped(layers, graph, z, x=None):
    """The density, in which conditionals see their parents as constants."""
    total = 0.0
    for name, parents in reference.among(layers, graph).items():
        loc, scale = reference.loc_and_scale(layers[name], {p: stop(z[p]) for p in parents}, x)
        total = total + reference.normal_density(z[name], loc, scale)
    return total


def gradients(parameters, x, **options):
    def total(parameters):
        return models.total_bound(*parameters, x, **options)

    return jax.grad(total)(parameters)


def test_drop_equals_surrogate_losses_with_constant_parents(float64):
    *parameters, x = reference.init(1, latents="ab")
    key, num_samples = jax.random.key(2), 5

    def expected(phi, theta, lam):
        z = models.samples(models.posterior(phi, x), key, num_samples)
        v = jax.nn.softmax(reference.log_weight(phi, theta, lam, z, x), axis=0)

        def rest(z):
            return dropped(theta, reference.PRIOR, z) - dropped(phi, reference.POSTERIOR, z, x)

        def posterior_loss(live):
            z_q = reference.path(live, reference.POSTERIOR, z, x)
            return jnp.sum(v**2 * (reference.likelihood(lam, z_q, x) + rest(z_q)))

        def prior_loss(live):
            z_p = reference.path(live, reference.PRIOR, z)
            likelihood = reference.likelihood(lam, z_p, x)
            return jnp.sum(v * likelihood - v**2 * (likelihood + rest(z_p)))

        return jax.grad(posterior_loss)(phi), jax.grad(prior_loss)(theta)

    @jax.jit
    def run(parameters):
        found = {
            scores: gradients(
                parameters, x, key=key, num_samples=num_samples, indirect_scores=scores
            )
            for scores in ("drop", "keep")
        }
        return found, expected(*parameters)

    found, expected_gradients = jax.device_get(run(parameters))
    ours, other = found["drop"], found["keep"]
    for one, by_hand in zip(ours[:2], expected_gradients, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10, rtol=1e-10), one, by_hand
        )
    # The likelihood's gradient has no indirect scores; the top of each graph has a different one.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), ours[2], other[2]
    )
    assert np.abs(ours[0]["a"]["bias"] - other[0]["a"]["bias"]).max() > 1e-3
    assert np.abs(ours[1]["b"]["bias"] - other[1]["b"]["bias"]).max() > 1e-3


@pytest.mark.slow
def test_dropping_is_biased_and_keeping_is_not():
    *parameters, x = reference.init(1, batch=1, latents="ab")

    def estimator(posterior_estimator, prior_estimator, indirect_scores):
        return lambda key: gradients(
            parameters, x,
            key=key,
            num_samples=4,
            posterior_estimator=posterior_estimator,
            prior_estimator=prior_estimator,
            indirect_scores=indirect_scores,
        )[:2]  # fmt: skip

    assert_unbiased(
        {scores: estimator("dregs", "gdregs", scores) for scores in ("keep", "drop")},
        estimator("naive", "naive", "keep"),
        jax.random.key(3),
        biased=["drop"],
    )


def test_without_a_hierarchy_there_is_nothing_to_drop():
    @jax.jit
    def run(phi):
        def total(phi, indirect_scores):
            parts = models.normal_model(phi, jnp.zeros(2), np.ones(2))
            options = {"key": jax.random.key(0), "num_samples": 4}
            return jnp.sum(gdregs.bound(*parts, indirect_scores=indirect_scores, **options))

        return [jax.grad(total)(phi, scores) for scores in ("keep", "drop")]

    keep, drop = run(np.zeros(2))
    np.testing.assert_array_equal(keep, drop)
