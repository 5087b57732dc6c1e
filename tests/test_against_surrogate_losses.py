"""Every pair of estimators against an independent implementation, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdregs
import models
import reference

OBJECTIVES = {
    "elbo": gdregs.ELBO(),
    "iwae": gdregs.IWAE(),
    "vr-iwae 0.3": gdregs.VRIWAE(0.3),
    "vr-iwae 2": gdregs.VRIWAE(2.0),
    "jvi": gdregs.JVI(),
}


class Own(gdregs.Objective):
    """An objective of a user's own: derivatives by autodiff."""

    def __call__(self, log_weights):
        return reference.OBJECTIVES["own"](log_weights)


OBJECTIVES["own"] = Own()
POSTERIOR_ESTIMATORS = {
    **{name: name for name in gdregs.POSTERIOR_ESTIMATORS},
    "interpolated 0.3": gdregs.interpolated_dregs(0.3),
}
PRIOR_ESTIMATORS = {
    "naive": "naive",
    "gdregs": "gdregs",
    "mixed 0.3": gdregs.mixed_gdregs(0.3),
}


def bound_gradients(phi, theta, lam, x, key, num_samples, objective, pair, **options):
    def total(phi, theta, lam):
        return jnp.sum(
            gdregs.bound(
                models.posterior(phi, x),
                models.prior(theta),
                models.likelihood(lam, x),
                key=key,
                num_samples=num_samples,
                objective=OBJECTIVES[objective],
                posterior_estimator=POSTERIOR_ESTIMATORS[pair[0]],
                prior_estimator=PRIOR_ESTIMATORS[pair[1]],
                **options,
            )
        )

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(phi, theta, lam)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("pair", list(itertools.product(POSTERIOR_ESTIMATORS, PRIOR_ESTIMATORS)))
def test_gradients_equal_the_surrogate_losses(float64, objective, pair):
    phi, theta, lam, x = reference.init(jax.random.key(1))
    key, num_samples = jax.random.key(2), 5
    z = models.posterior(phi, x).sample(key, (num_samples,))
    expected = reference.gradients(phi, theta, lam, x, z, reference.OBJECTIVES[objective], *pair)
    value, actual = bound_gradients(phi, theta, lam, x, key, num_samples, objective, pair)
    log_weights = reference.log_weight(phi, theta, lam, z, x)
    np.testing.assert_allclose(
        value, jnp.sum(reference.OBJECTIVES[objective](log_weights)), rtol=1e-12
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), actual, expected)
    assert all(jnp.any(jnp.abs(leaf) > 1e-4) for leaf in jax.tree.leaves(expected))
