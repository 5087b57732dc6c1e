"""The naive gradient from one run of guide and model, against `gdregs.bound`'s own way."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.infer import autoguide

import gdregs
from gdregs.numpyro import bound as module
from gdregs.numpyro.bound import Bound
from numpyro_programs import initial_parameters


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


DATA = np.array([0.3, -1.2, 0.8, 2.1], np.float32)


def local():
    centre = numpyro.param("centre", 0.3)
    with numpyro.plate("data", len(DATA)):
        z = numpyro.sample("z", dist.Normal(centre, 1.0))
        numpyro.sample("x", dist.Gamma(jnp.exp(z), 1.0), obs=DATA**2)


def of_all():
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    slopes = numpyro.sample("slopes", dist.Normal(0.0, scale).expand([3]).to_event(1))
    with numpyro.plate("data", len(DATA)):
        numpyro.sample("x", dist.Normal(slopes[0] + slopes[1] * DATA, 1.0), obs=DATA)


def mixture():
    centres = numpyro.sample("centres", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with numpyro.plate("data", len(DATA)):
        weights = jnp.array([0.3, 0.7])
        kind = numpyro.sample("kind", dist.Categorical(weights), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Normal(centres[kind], 1.0), obs=DATA)


KEY = jax.random.key(1)


def live_and_guarded(monkeypatch, model, make_guide, bound):
    """Value and gradient of both ways, from one program."""

    @jax.jit
    def both(key):
        guide = make_guide(model)
        params = initial_parameters(model, guide)

        def value_and_gradient(is_live):
            monkeypatch.setattr(Bound, "_is_live", lambda *parts: is_live)
            return jax.value_and_grad(lambda p: bound.loss(key, p, model, guide))(params)

        return value_and_gradient(True), value_and_gradient(False)

    live, guarded = jax.device_get(both(KEY))
    for one, two in zip(jax.tree.leaves(live), jax.tree.leaves(guarded), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-12)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(live[1]))
    return live


@pytest.mark.parametrize(
    ("model", "make_guide", "objective"),
    [
        (local, autoguide.AutoNormal, gdregs.IWAE()),
        pytest.param(of_all, autoguide.AutoIAFNormal, gdregs.ELBO(), marks=pytest.mark.slow),
    ],
    ids=["local", "flow"],
)
def test_equals_the_guarded_way(model, make_guide, objective, float64, monkeypatch):
    """Of an enumerated model it is `test_enumeration` that says so."""
    live_and_guarded(monkeypatch, model, make_guide, Bound(5, objective))


def of_roots():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.factor("root", jnp.where(z > 0, jnp.sqrt(z), -jnp.inf))


def around_zero():
    loc = numpyro.param("loc", 0.1)
    numpyro.sample("z", dist.Normal(loc, numpyro.param("scale", 1.0)))


def test_samples_without_weight_do_no_harm(float64, monkeypatch):
    """Some z are below 0, where the derivative of the root is not a number."""
    _, gradient = live_and_guarded(monkeypatch, of_roots, lambda _: around_zero, Bound(8))
    assert all(np.isfinite(leaf) and leaf != 0 for leaf in gradient.values())


@pytest.fixture
def always(monkeypatch):
    """Live wherever it can be, whether it pays or not."""
    monkeypatch.setattr(module, "pays", lambda *parts: True)


def test_a_gradient_that_is_not_finite_is_shown(always):
    """It is not one of samples without weight: all of them have it."""

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("root", jnp.sqrt(0 * numpyro.param("a")) + 0 * z)

    @jax.jit
    def gradient(key, params):
        return jax.grad(lambda p: Bound(4).loss(key, p, model, around_zero))(params)

    params = {"a": np.float32(1.0), "loc": np.float32(0.1), "scale": np.float32(1.0)}
    assert not np.isfinite(gradient(KEY, params)["a"])


def test_differentiable_by_arguments(monkeypatch):
    def model(shift):
        z = numpyro.sample("z", dist.Normal(shift, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=np.float32(2.0))

    def guide(shift):
        numpyro.sample("z", dist.Normal(0.5 * shift, 1.0))

    @jax.jit
    def live_and_guarded(key, shift):
        def gradient(is_live):
            monkeypatch.setattr(Bound, "_is_live", lambda *parts: is_live)
            return jax.grad(lambda s: Bound(4).loss(key, {}, model, guide, s))(shift)

        return gradient(True), gradient(False)

    live, guarded = jax.device_get(live_and_guarded(KEY, np.float32(0.7)))
    np.testing.assert_allclose(live, guarded, rtol=1e-5)
    assert live != 0


def test_a_loop_that_only_forward_mode_can_differentiate(always):
    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        doubled = jax.lax.while_loop(lambda x: jnp.abs(x) < 8, lambda x: 2 * x, z)
        numpyro.sample("x", dist.Normal(doubled, 1.0), obs=np.float32(9.0))

    def loss(params, key):
        return Bound(3).loss(key, params, model, around_zero)

    params = {"loc": np.float32(0.1), "scale": np.float32(1.0)}
    gradient = jax.device_get(jax.jit(jax.jacfwd(loss))(params, KEY))
    assert all(np.isfinite(leaf) and leaf != 0 for leaf in gradient.values())
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.eval_shape(jax.grad(loss), params, KEY)


@pytest.mark.slow
def test_a_flow_is_not_inverted(monkeypatch):
    inverse, inverted = InverseAutoregressiveTransform._inverse, []
    monkeypatch.setattr(
        InverseAutoregressiveTransform,
        "_inverse",
        lambda self, y: inverted.append(self) or inverse(self, y),
    )

    def trace():
        def gradient(key):
            guide = autoguide.AutoIAFNormal(of_all)
            params = initial_parameters(of_all, guide)
            inverted.clear()
            return jax.grad(lambda p: Bound(4).loss(key, p, of_all, guide))(params)

        jax.eval_shape(gradient, KEY)

    trace()
    assert inverted  # by the guarded way, which runs where it must
    monkeypatch.setattr(module, "evaluate", lambda *parts: (jnp.zeros(()), None))
    trace()
    assert not inverted


def transformed():
    numpyro.sample("z", dist.LogNormal(numpyro.param("loc", 0.1), 1.0))


@pytest.mark.many_programs("numpyro sets some automatic guides up operation by operation")
def test_where_it_pays():
    cases = {
        "small": (local, autoguide.AutoNormal, False),
        "dense": (of_all, autoguide.AutoMultivariateNormal, False),
        "low-rank": (of_all, autoguide.AutoLowRankMultivariateNormal, True),
        "transformed": (of_roots, lambda _: transformed, True),
        "enumerated": (
            mixture,
            lambda model: autoguide.AutoNormal(numpyro.handlers.block(model, hide=["kind"])),
            True,
        ),
    }
    found = {}

    def look(key):
        for name, (model, make_guide, _) in cases.items():
            guide = make_guide(model)
            params = initial_parameters(model, guide)
            _, posterior, prior, *_ = Bound(3)._read(key, params, model, guide, (), {})
            found[name] = Bound(3)._is_live(posterior, prior, key)

    jax.eval_shape(look, KEY)
    assert found == {name: is_live for name, (*_, is_live) in cases.items()}
