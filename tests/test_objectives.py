"""F, v and c of every objective, against formulas written from their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdregs
import models
import reference
from gdregs.evaluation.streams import whole

OBJECTIVES = {name: made for name, made in models.OBJECTIVES.items() if name != "own"}
LOG_WEIGHTS = {
    "ordinary": [-1.0, 0.5, -3.0, 2.0, 0.1],
    "one dominates": [-40.0, -38.0, 3.0, -45.0, -41.0],
    "two tie": [1.0, -4.0, 1.0, -2.0, -30.0],
    "all tie": [0.3] * 5,
    "far from 0": [-5001.0, -5000.0, -5003.0, -5000.5, -5002.0],
}


@pytest.mark.parametrize("values", LOG_WEIGHTS.values(), ids=LOG_WEIGHTS.keys())
@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_and_coefficients(float64, name, values):
    log_weights = jnp.array(values)
    objective, expected = OBJECTIVES[name], reference.OBJECTIVES[name]
    summary = objective.summarize(*whole(log_weights))
    v, c = objective.coefficients(summary, log_weights, 0)
    expected_v, expected_c = reference.coefficients(expected, log_weights)
    np.testing.assert_allclose(objective(log_weights), expected(log_weights), rtol=1e-12)
    np.testing.assert_allclose(v, expected_v, atol=1e-12, rtol=1e-9)
    np.testing.assert_allclose(c, expected_c, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_closed_forms_equal_autodiff_of_the_same_function(float64, name):
    log_weights = jnp.array(LOG_WEIGHTS["ordinary"])[:, None] * jnp.array([[1.0, 0.3]])
    objective = OBJECTIVES[name]

    class Own(gdregs.Objective):
        def __call__(self, log_weights):
            return reference.broadcasting(reference.OBJECTIVES[name])(log_weights)

    closed = objective.summarize(*whole(log_weights))
    own = Own().summarize(*whole(log_weights))
    for a, b in zip(
        objective.coefficients(closed, log_weights, 0),
        Own().coefficients(own, log_weights, 0),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_jackknife_keeps_precision_in_float32():
    log_weights = np.array([0.0, -18.0, -17.0, -19.5, -16.0], np.float32)
    objective = gdregs.JVI()
    summary = objective.summarize(*whole(jnp.asarray(log_weights)))
    v, c = objective.coefficients(summary, jnp.asarray(log_weights), 0)
    with jax.enable_x64(True):
        exact = jnp.asarray(log_weights, jnp.float64)
        expected_v, expected_c = reference.coefficients(reference.OBJECTIVES["jvi"], exact)
        np.testing.assert_allclose(v, expected_v, rtol=2e-4)
        np.testing.assert_allclose(c, expected_c, rtol=2e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_log_weights_may_be_computed_anew(float64, name):
    """A stream evaluates twice: differences in a last bit must not change the coefficients."""
    objective = OBJECTIVES[name]
    for values in LOG_WEIGHTS.values():
        log_weights = jnp.array(values)
        summary = objective.summarize(*whole(log_weights))
        again = jnp.concatenate(
            [jnp.nextafter(log_weights[:2], jnp.inf), jnp.nextafter(log_weights[2:], -jnp.inf)]
        )
        for a, b in zip(
            objective.coefficients(summary, log_weights, 0),
            objective.coefficients(summary, again, 0),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_sample_is_the_elbo(name):
    objective = OBJECTIVES[name]
    log_weights = jnp.array([[-2.0, 0.5]])
    summary = objective.summarize(*whole(log_weights))
    np.testing.assert_allclose(objective(log_weights), log_weights[0], rtol=1e-6)
    for coefficient in objective.coefficients(summary, log_weights, 0):
        np.testing.assert_allclose(coefficient, 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_weight_at_all_is_minus_infinity(name):
    assert OBJECTIVES[name](jnp.full(4, -jnp.inf)) == -jnp.inf


def test_renyi_order_one_is_refused():
    with pytest.raises(ValueError, match=r"alpha = 1 is the ELBO; use gdregs.ELBO\(\)"):
        gdregs.VRIWAE(1.0)


def test_an_objective_must_reduce_the_samples_alone():
    class Total(gdregs.Objective):
        def __call__(self, log_weights):
            return jnp.sum(log_weights)

    with pytest.raises(ValueError, match="objective Total maps log-weights of shape"):
        Total().summarize(*whole(jnp.zeros((3, 2))))
