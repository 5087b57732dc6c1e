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
from numpyro_programs import initial_parameters

DATA = np.linspace(-1.0, 2.0, 3, dtype=np.float32)
KEY = jax.random.key(1)
PAPERS = {"posterior_estimator": "dregs", "prior_estimator": "gdregs"}


def model(x):
    with numpyro.plate("data", len(DATA)):
        z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.3), 1.0))
        rate = numpyro.sample("rate", dist.Normal(numpyro.param("r", 0.2), 1.0))
        numpyro.sample("x", dist.Normal(z, jnp.exp(rate)), obs=x)


def amortised(x):
    weights = numpyro.param("weights", jnp.array([[0.4, -0.3], [0.2, 0.6]]))
    hidden = jnp.tanh(x[:, None] @ numpyro.param("first", jnp.array([[0.7, -0.2]])))
    centre, scale = (hidden @ weights).T
    with numpyro.plate("data", len(DATA)):
        numpyro.sample("z", dist.Normal(centre, jnp.exp(scale)))
        numpyro.sample("rate", dist.Normal(numpyro.param("k", 0.4), 0.5))


def structured(x):
    with numpyro.plate("data", len(DATA)):
        z = numpyro.sample("z", dist.Normal(numpyro.param("slope", 0.5) * x, 1.0))
        numpyro.sample("rate", dist.Normal(numpyro.param("k", 0.1) * z, 0.5))


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


def value_and_gradient(key, bound, guide, model=model):
    params = initial_parameters(model, guide, DATA)
    return jax.value_and_grad(lambda p: bound.loss(key, p, model, guide, DATA))(params)


def run_anew(*_):
    raise independent._OtherSitesError


def test_the_gradient_is_that_of_a_guide_that_runs_anew(float64, found, monkeypatch):
    bounds = Bound(5), Bound(5, **PAPERS)

    @jax.jit
    def once_and_anew(key):
        once = [value_and_gradient(key, bound, amortised) for bound in bounds]
        monkeypatch.setattr(independent, "_distributions", run_anew)
        return once, [value_and_gradient(key, bound, amortised) for bound in bounds]

    once, anew = jax.device_get(once_and_anew(KEY))
    assert len(found) == len(bounds)
    for leaf, expected in zip(jax.tree.leaves(once), jax.tree.leaves(anew), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=1e-10)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(anew))


def test_its_networks_are_run_through_once(monkeypatch):
    def products():
        program = jax.make_jaxpr(lambda key: value_and_gradient(key, Bound(5), amortised))(KEY)
        return str(program).count("dot_general")

    once = products()
    monkeypatch.setattr(independent, "_distributions", run_anew)
    assert once < products()


@pytest.mark.parametrize(
    ("guide", "its_model"),
    [(structured, model), (with_delta, model), (in_a_loop, in_a_loop_model)],
)
def test_other_guides_are_run_at_their_values(found, guide, its_model):
    bound = Bound(4, posterior_estimator="dregs")
    jax.eval_shape(lambda key: value_and_gradient(key, bound, guide, its_model), KEY)
    assert not found
