"""The doctor finds each fault of a model, and nothing in one that has none."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
from gdregs.shared.report import Report, Row, row_of_weights

KEY = jax.random.key(0)
X = np.array([1.0, -0.5], np.float32)
Q = dist.Normal(0.3 * X, 0.8)
P, OF_THREE = (dist.Normal(np.zeros(size, np.float32), 1.0) for size in (2, 3))


def seen(z):
    return dist.Normal(z, 1.0).log_prob(jnp.asarray(X)[None])


def failed(*parts, **options):
    report = gdregs.check_model(*parts, key=KEY, **options)
    assert report.ok == (not any(row.ok is False for row in report.rows))
    assert all(row.remedy or "Error" in row.found for row in report.rows if row.ok is False)
    return {row.check for row in report.rows if row.ok is False}, report


@pytest.mark.slow
def test_a_sound_model_has_no_fault():
    masked = P.mask(jnp.array([True, False]))
    found, report = failed(Q, masked, seen, num_draws=500)
    assert not found
    rows = {row.check: row.found for row in report.rows}
    assert rows["masks and scales"] == "prior of z: 50% masked"
    assert rows["estimators of the posterior"] == "naive, stl, dregs, rws, rws-dregs"
    assert "standard errors" in rows["agreement"]
    assert all(row.check in str(report) for row in report.rows)


def test_shapes_that_do_not_fit():
    found, report = failed(Q, OF_THREE, seen)
    assert found == {"shapes"}
    assert len(report.rows) == 1


COUPLED = {
    "over samples": lambda z: seen(z - jnp.mean(z, 0, keepdims=True)),
    "the key of another": lambda z, keys: seen(z) * jax.random.uniform(keys[0]),
}


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", COUPLED.values(), ids=COUPLED)
def test_samples_that_depend_on_each_other(likelihood):
    assert failed(Q, P, likelihood)[0] - {"gradient"} == {"samples are independent"}


@pytest.mark.slow
def test_noise_that_comes_from_no_key():
    found, _ = failed(Q, P, lambda z: seen(z) + np.random.default_rng().normal())
    assert "deterministic" in found


@pytest.mark.slow
def test_draws_without_digits_and_estimators_without_a_path():
    posterior = dist.Dirichlet(jnp.full(3, 0.01))
    found, _ = failed(posterior, dist.Dirichlet(jnp.ones(3)), lambda z: z[..., 0])
    assert found == {"precision"}
    angle = dist.VonMises(0.1, 1.0)
    _, report = failed(angle, dist.VonMises(jnp.array(0.0), 1.0), jnp.cos)
    rows = {row.check: row for row in report.rows}
    assert rows["estimators of the prior"].found == "naive"
    assert "no re-expression rule" in rows["estimators of the prior"].remedy


@pytest.mark.slow
def test_an_estimator_with_another_mean():
    loose = dist.Normal(1.0 + X, 0.3)
    found, _ = failed(loose, P, seen, posterior_estimator="stl", num_draws=4000)
    assert found == {"agreement"}


def test_weights_are_described():
    alike = row_of_weights(np.zeros((1000, 2)))
    assert alike.ok
    assert "1e+03 to 1e+03 of 1000" in alike.found
    heavy = row_of_weights(5 * np.random.default_rng(0).normal(size=(1000, 1)))
    assert heavy.ok is None
    assert heavy.remedy
    assert row_of_weights(np.full((9, 1), -np.inf)).ok is False
    assert "NaN" in row_of_weights(np.array([[0.0], [np.nan]])).found


def test_a_report_is_read_as_a_table():
    report = Report((Row("a", "all is well"), Row("bc", "x " * 60, False, "Mend it.")))
    assert not report.ok
    assert str(report).splitlines()[0] == "ok    a   all is well"
    assert "bc: Mend it." in str(report)
