"""Indirect score functions: kept by default; dropped, the gradient is another one, and biased."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdregs
import models
import reference
from means import largest_z

stop = jax.lax.stop_gradient


def dropped(layers, graph, z, x=None):
    """The density, in which conditionals see their parents as constants."""
    total = 0.0
    for name, parents in graph.items():
        loc, scale = reference.loc_and_scale(layers[name], {p: stop(z[p]) for p in parents}, x)
        total = total + reference.normal_density(z[name], loc, scale)
    return total


def gradients(phi, theta, lam, x, **options):
    return jax.grad(models.total_bound, argnums=(0, 1, 2))(phi, theta, lam, x, **options)


def test_drop_equals_surrogate_losses_with_constant_parents(float64):
    phi, theta, lam, x = reference.init(jax.random.key(1))
    key, num_samples = jax.random.key(2), 5
    z = models.posterior(phi, x).sample(key, (num_samples,))

    @jax.jit
    def expected(phi, theta, lam):
        v = jax.nn.softmax(reference.log_weight(phi, theta, lam, z, x), axis=0)

        def rest(z):
            return dropped(stop(theta), reference.PRIOR, z) - dropped(
                stop(phi), reference.POSTERIOR, z, x
            )

        def posterior_loss(phi):
            z_q = reference.path(phi, reference.POSTERIOR, z, x)
            return jnp.sum(v**2 * (reference.likelihood(lam, z_q, x) + rest(z_q)))

        def prior_loss(theta):
            z_p = reference.path(theta, reference.PRIOR, z)
            likelihood = reference.likelihood(lam, z_p, x)
            return jnp.sum(v * likelihood - v**2 * (likelihood + rest(z_p)))

        return jax.grad(posterior_loss)(phi), jax.grad(prior_loss)(theta)

    ours = jax.jit(
        lambda *p: gradients(*p, x, key=key, num_samples=num_samples, indirect_scores="drop")
    )
    kept = jax.jit(
        lambda *p: gradients(*p, x, key=key, num_samples=num_samples, indirect_scores="keep")
    )
    actual, other = ours(phi, theta, lam), kept(phi, theta, lam)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10),
        actual[:2],
        expected(phi, theta, lam),
    )
    # The likelihood's gradient has no indirect scores; the top of each graph has a different one.
    jax.tree.map(np.testing.assert_array_equal, actual[2], other[2])
    assert np.abs(actual[0]["a"]["bias"] - other[0]["a"]["bias"]).max() > 1e-3
    assert np.abs(actual[1]["c"]["bias"] - other[1]["c"]["bias"]).max() > 1e-3


@pytest.mark.slow
def test_dropping_is_biased_and_keeping_is_not():
    phi, theta, lam, x = jax.tree.map(
        lambda a: a.astype("float32"), reference.init(jax.random.key(1), batch=1)
    )

    def estimator(posterior_estimator, prior_estimator, indirect_scores):
        return lambda key: gradients(
            phi, theta, lam, x,
            key=key,
            num_samples=8,
            posterior_estimator=posterior_estimator,
            prior_estimator=prior_estimator,
            indirect_scores=indirect_scores,
        )[:2]  # fmt: skip

    suspects = {scores: estimator("dregs", "gdregs", scores) for scores in ("keep", "drop")}
    naive = estimator("naive", "naive", "keep")
    largest = largest_z(suspects, naive, jax.random.key(3), 20_000, chunk_size=1000)
    assert largest["keep"] < 1
    assert largest["drop"] > 2


def test_without_a_hierarchy_there_is_nothing_to_drop():
    def gradient(indirect_scores):
        return jax.grad(
            lambda phi: jnp.sum(
                gdregs.bound(
                    *models.normal_model(phi, jnp.zeros(2), jnp.ones(2)),
                    key=jax.random.key(0),
                    num_samples=4,
                    indirect_scores=indirect_scores,
                )
            )
        )(jnp.zeros(2))

    np.testing.assert_array_equal(gradient("keep"), gradient("drop"))
