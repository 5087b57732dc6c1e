"""Every pair of estimators against an independent implementation, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdregs
import models
import reference

OBJECTIVES = models.OBJECTIVES
PAIRS = [
    *itertools.product(gdregs.POSTERIOR_ESTIMATORS, ("naive", "gdregs")),
    ("dregs", "gdregs-mix"),
    ("interpolated 0.3", "mixed 0.3"),
]


FAST = ("iwae",)


@pytest.mark.parametrize(
    "objective",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in OBJECTIVES],
)
def test_gradients_equal_the_surrogate_losses(float64, objective):
    """All pairs in one program, which compiles much faster than one program each."""
    phi, theta, lam, x = reference.init(jax.random.key(1))
    key, num_samples = jax.random.key(2), 5
    z = models.posterior(phi, x).sample(key, (num_samples,))
    function = reference.OBJECTIVES[objective]

    @jax.jit
    def expected(phi, theta, lam):
        value = jnp.sum(function(reference.log_weight(phi, theta, lam, z, x)))
        gradients = [reference.gradients(phi, theta, lam, x, z, function, *pair) for pair in PAIRS]
        return value, gradients

    @jax.jit
    def actual(phi, theta, lam):
        arguments = (phi, theta, lam, x, key, num_samples, objective)
        results = [models.bound_gradients(*arguments, pair) for pair in PAIRS]
        return [value for value, _ in results], [gradients for _, gradients in results]

    expected_value, expected_gradients = expected(phi, theta, lam)
    values, gradients = actual(phi, theta, lam)
    np.testing.assert_allclose(values, expected_value, rtol=1e-12)
    for pair, ours, theirs in zip(PAIRS, gradients, expected_gradients, strict=True):
        jax.tree.map(
            lambda a, b, pair=pair: np.testing.assert_allclose(
                a, b, atol=1e-10, rtol=1e-10, err_msg=str(pair)
            ),
            ours,
            theirs,
        )
    # The pairs are different estimators, so that agreement says something about each.
    flat = [np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(g)]) for g in gradients]
    for (one, a), (other, b) in itertools.combinations(zip(PAIRS, flat, strict=True), 2):
        same_on_purpose = (
            objective == "elbo"
            and one[1] == other[1]
            and {one[0], other[0]}
            == {
                "stl",
                "dregs",
            }
        )
        assert same_on_purpose or np.abs(a - b).max() > 1e-3, (one, other)
