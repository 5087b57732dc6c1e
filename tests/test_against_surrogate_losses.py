"""Every pair of estimators against an independent implementation, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import gdregs
import models
import reference
from models import OBJECTIVES, POSTERIOR_ESTIMATORS, PRIOR_ESTIMATORS

KEY, NUM_SAMPLES = jax.random.key(2), 5


def value_and_gradients(parameters, x, objective, posterior_estimator, prior_estimator):
    def total(*parameters):
        return models.total_bound(
            *parameters, x,
            key=KEY,
            num_samples=NUM_SAMPLES,
            objective=objective,
            posterior_estimator=posterior_estimator,
            prior_estimator=prior_estimator,
        )  # fmt: skip

    return jax.value_and_grad(total, argnums=(0, 1, 2))(*parameters)


def expected_of_all(parameters, x):
    """Values by objective, and gradients by name: all estimators' are made of v and c."""
    phi, theta, lam = parameters
    z = models.samples(models.posterior(phi, x), KEY, NUM_SAMPLES)
    log_weights = reference.log_weight(phi, theta, lam, z, x)
    functions = [reference.OBJECTIVES[name] for name in OBJECTIVES]
    values = [jnp.sum(function(log_weights)) for function in functions]
    coefficients = [
        jax.vmap(lambda column, of=of: reference.coefficients(of, column), 1, 1)(log_weights)
        for of in functions
    ]
    v, c = jax.tree.map(lambda *of: jnp.stack(of), *coefficients)
    return values, jax.vmap(lambda v, c: reference.gradients(phi, theta, lam, x, z, v, c))(v, c)


def test_gradients_equal_the_surrogate_losses(float64):
    """Every pair for every objective."""
    *parameters, x = reference.init(1)
    pairs = list(itertools.product(POSTERIOR_ESTIMATORS, PRIOR_ESTIMATORS))

    @jax.jit
    def run(parameters, numbers, rows):
        def of_pair(number, row):
            return value_and_gradients(parameters, x, models.AnyOf(number), *row)

        of_pairs = jax.vmap(of_pair, (None, 0))
        return jax.vmap(of_pairs, (0, None))(numbers, rows), expected_of_all(parameters, x)

    numbers = np.arange(len(OBJECTIVES))
    found, expected = jax.device_get(run(parameters, numbers, models.rows_of(pairs)))
    (values, gradients), (expected_values, (by_phi, by_theta, by_lam)) = found, expected
    for (i, objective), (j, pair) in itertools.product(enumerate(OBJECTIVES), enumerate(pairs)):
        case = f"{objective}: {pair}"
        np.testing.assert_allclose(values[i, j], expected_values[i], rtol=1e-12, err_msg=case)
        jax.tree.map(
            lambda a, b, i=i, j=j, case=case: np.testing.assert_allclose(
                a[i, j], b[i], atol=1e-10, rtol=1e-10, err_msg=case
            ),
            gradients,
            (by_phi[pair[0]], by_theta[pair[1]], by_lam),
        )
    # They are different estimators, so that agreement says something about each.
    for i, objective in enumerate(OBJECTIVES):
        for of_all in (by_phi, by_theta):
            for one, other in itertools.combinations(of_all, 2):
                differences = jax.tree.map(
                    lambda a, b, i=i: np.abs(a[i] - b[i]).max(), of_all[one], of_all[other]
                )
                is_same = max(jax.tree.leaves(differences)) < 1e-3
                same_on_purpose = objective == "elbo" and {one, other} == {"stl", "dregs"}
                assert is_same == same_on_purpose, (objective, one, other)


def test_rows_of_python_numbers_are_the_same(float64):
    """Of a 0 or a 1 among them no gradient is computed: with each of the paths, and with none."""
    *parameters, x = reference.init(1, latents="ab")
    pairs = [("naive", "naive"), ("dregs", "gdregs"), ("rws", "naive"), ("rws", "gdregs-mix")]

    @jax.jit
    def run(parameters, rows):
        named = [value_and_gradients(parameters, x, gdregs.IWAE(), *pair) for pair in pairs]
        traced = jax.vmap(
            lambda row: value_and_gradients(parameters, x, gdregs.IWAE(), *row)
        )(rows)  # fmt: skip
        return named, traced

    named, traced = jax.device_get(run(parameters, models.rows_of(pairs)))
    for j, pair in enumerate(pairs):
        jax.tree.map(
            lambda a, b, j=j, pair=pair: np.testing.assert_allclose(
                a, b[j], atol=1e-10, rtol=1e-10, err_msg=str(pair)
            ),
            named[j],
            traced,
        )
