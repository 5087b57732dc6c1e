"""F, v and c of every objective, against formulas written from their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdregs
import models
import reference

OBJECTIVES = {name: made for name, made in models.OBJECTIVES.items() if name != "own"}
LOG_WEIGHTS = {
    "ordinary": [-1.0, 0.5, -3.0, 2.0, 0.1],
    "one dominates": [-40.0, -38.0, 3.0, -45.0, -41.0],
    "two tie": [1.0, -4.0, 1.0, -2.0, -30.0],
    "all tie": [0.3] * 5,
    "far from 0": [-5001.0, -5000.0, -5003.0, -5000.5, -5002.0],
}


def value_and_coefficients(objective, log_weights):
    """F, v and c."""
    return objective(log_weights), *objective.coefficients(log_weights)


def of_all(function, *arguments):
    """A function of each objective, in one program."""
    run = jax.jit(lambda *of: {name: function(name, one, *of) for name, one in OBJECTIVES.items()})
    return jax.device_get(run(*arguments))


def test_value_and_coefficients(float64):
    columns = np.array(list(LOG_WEIGHTS.values())).T  # each case is a datapoint

    def both(name, objective, columns):
        of = reference.OBJECTIVES[name]
        expected = jax.vmap(lambda w: (of(w), *reference.coefficients(of, w)), 1, (0, 1, 1))
        return value_and_coefficients(objective, columns), expected(columns)

    for name, (found, expected) in of_all(both, columns).items():
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-12, err_msg=name)
        for a, b in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12, rtol=1e-9, err_msg=name)


def test_closed_forms_equal_autodiff_of_the_same_function(float64):
    """The derivatives of an objective of a user's own."""
    log_weights = np.array(LOG_WEIGHTS["ordinary"])[:, None] * np.array([[1.0, 0.3]])

    class Own(gdregs.Objective):
        name: str

        def __call__(self, log_weights):
            return reference.broadcasting(reference.OBJECTIVES[self.name])(log_weights)

    def both(name, objective, log_weights):
        return [value_and_coefficients(one, log_weights) for one in (objective, Own(name))]

    for name, (found, expected) in of_all(both, log_weights).items():
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12, err_msg=name)


def test_jackknife_keeps_precision_in_float32():
    """However far the best sample leads: its weight among the others is never 0 times infinity."""
    others = np.array([-1.0, 0.5, -1.5, 2.0, -0.3], np.float32)
    columns = np.stack([np.append(others - lead, 0.0) for lead in (18, 45, 120)], axis=1)
    _, *found = jax.jit(lambda w: value_and_coefficients(gdregs.JVI(), w))(columns)
    with jax.enable_x64(True):
        of = jax.vmap(lambda w: reference.coefficients(reference.OBJECTIVES["jvi"], w), 1, 1)
        expected = jax.jit(of)(columns.astype(float))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.sum(found[0], axis=0), 1, rtol=1e-5)


def test_one_sample_is_the_elbo_and_no_weight_at_all_is_minus_infinity():
    one_sample, no_weight = np.array([[-2.0, 0.5]], np.float32), np.full(4, -np.inf, np.float32)

    def both(name, objective, one_sample, no_weight):
        return value_and_coefficients(objective, one_sample), objective(no_weight)

    for name, ((value, v, c), nothing) in of_all(both, one_sample, no_weight).items():
        np.testing.assert_allclose(value, one_sample[0], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose((v, c), 1.0, rtol=1e-6, err_msg=name)
        assert nothing == -np.inf, name


def test_renyi_order_one_is_refused():
    with pytest.raises(ValueError, match=r"alpha = 1 is the ELBO; use gdregs.ELBO\(\)"):
        gdregs.VRIWAE(1.0)


def test_an_objective_must_reduce_the_samples_alone():
    class Total(gdregs.Objective):
        def __call__(self, log_weights):
            return jnp.sum(log_weights)

    with pytest.raises(ValueError, match="objective Total maps log-weights of shape"):
        jax.eval_shape(lambda w: Total().coefficients(w), np.zeros((3, 2)))
