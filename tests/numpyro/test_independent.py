"""Guides whose latents are independent run once for their density and their path."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

from gdregs.numpyro import independent
from gdregs.numpyro.bound import Bound

DATA = jnp.linspace(-1.0, 2.0, 6)
ESTIMATORS = [("naive", "naive"), ("dregs", "gdregs"), ("stl", "gdregs")]


def model(x):
    shape = numpyro.param("shape", 2.0)
    with numpyro.plate("data", len(DATA)):
        z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.3), 1.0))
        rate = numpyro.sample("rate", dist.Gamma(shape, 1.0))
        numpyro.sample("x", dist.Normal(z, rate), obs=x)


def amortised(x):
    weights = numpyro.param("weights", jnp.array([[0.4, -0.3], [0.2, 0.6]]))
    hidden = jnp.tanh(x[:, None] @ numpyro.param("first", jnp.array([[0.7, -0.2]])))
    centre, scale = (hidden @ weights).T
    with numpyro.plate("data", len(DATA)):
        numpyro.sample("z", dist.Normal(centre, jnp.exp(scale)))
        numpyro.sample("rate", dist.Gamma(numpyro.param("k", 3.0), 2.0))


def structured(x):
    with numpyro.plate("data", len(DATA)):
        z = numpyro.sample("z", dist.Normal(numpyro.param("slope", 0.5) * x, 1.0))
        numpyro.sample("rate", dist.Gamma(jnp.exp(numpyro.param("k", 0.1) * z) + 1.0, 2.0))


def with_delta(x):
    with numpyro.plate("data", len(DATA)):
        numpyro.sample("z", dist.Normal(numpyro.param("slope", 0.5) * x, 1.0))
        numpyro.sample("rate", dist.Delta(jnp.exp(numpyro.param("k", 0.1)) + 0 * x))


def in_a_loop(x):
    def step(carry, x):
        numpyro.sample("z", dist.Normal(numpyro.param("slope", 0.5) * x, 1.0))
        return carry, None

    scan(step, 0.0, x)


def in_a_loop_model(x):
    def step(carry, x):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        return carry, None

    scan(step, 0.0, x)


@pytest.fixture
def found(monkeypatch):
    """How many guides have been read as independent."""
    made, original = [], independent.Independent

    def make(*parts):
        made.append(parts)
        return original(*parts)

    monkeypatch.setattr(independent, "Independent", make)
    return made


def gradient(bound, guide, model=model, x=DATA):
    with numpyro.handlers.seed(rng_seed=0):
        traces = [numpyro.handlers.trace(one).get_trace(x) for one in (guide, model)]
    params = {
        name: site["value"]
        for trace in traces
        for name, site in trace.items()
        if site["type"] == "param"
    }

    def loss(params):
        return bound.loss(jax.random.key(1), params, model, guide, x)

    return jax.value_and_grad(loss), params


def run_anew(*_):
    raise independent._OtherSitesError


@pytest.mark.parametrize(("posterior", "prior"), ESTIMATORS)
def test_the_gradient_is_that_of_a_guide_that_runs_anew(
    float64, found, monkeypatch, posterior, prior
):
    bound = Bound(5, posterior_estimator=posterior, prior_estimator=prior)
    function, params = gradient(bound, amortised)
    one = function(params)
    assert len(found) == 1
    monkeypatch.setattr(independent, "_distributions", run_anew)
    other = function(params)
    assert len(found) == 1
    for leaf, expected in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-10)


def test_its_networks_are_run_through_once(monkeypatch):
    def products():
        function, params = gradient(
            Bound(5, posterior_estimator="naive", prior_estimator="naive"), amortised
        )
        return jax.jit(function).lower(params).compile().as_text().count(" dot(")

    once = products()
    monkeypatch.setattr(independent, "_distributions", run_anew)
    assert once < products()


@pytest.mark.parametrize("guide", [structured, with_delta])
def test_other_guides_are_run_at_their_values(found, guide):
    function, params = gradient(Bound(4, posterior_estimator="dregs"), guide)
    value, slopes = function(params)
    assert not found
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, slopes)))


def test_a_loop_is_run_as_a_loop(found):
    function, params = gradient(Bound(4), in_a_loop, in_a_loop_model)
    value, _ = function(params)
    assert not found
    assert np.isfinite(value)
