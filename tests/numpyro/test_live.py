"""The naive gradient from one run of guide and model, against `gdregs.bound`'s own way."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.infer import SVI, autoguide

import gdregs
from gdregs.numpyro import bound as module
from gdregs.numpyro.bound import Bound


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


DATA = jnp.array([0.3, -1.2, 0.8, 2.1])


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


@pytest.fixture
def always(monkeypatch):
    """Live wherever it can be, whether it pays or not."""
    monkeypatch.setattr(module, "pays", lambda *parts: True)


def value_and_gradient(model, guide, bound, *args, run=lambda f, params: jax.jit(f)(params)):
    svi = SVI(model, guide, optax.sgd(0.1), bound)
    params = svi.get_params(svi.init(jax.random.key(0), *args))

    def loss(params):
        return bound.loss(jax.random.key(1), params, svi.model, svi.guide, *args)

    return run(jax.value_and_grad(loss), params)


def guarded(monkeypatch):
    monkeypatch.setattr(Bound, "_is_live", lambda *parts: False)


@pytest.mark.parametrize(
    "objective",
    [gdregs.IWAE(), pytest.param(gdregs.ELBO(), marks=pytest.mark.slow)],
    ids=["IWAE", "ELBO"],
)
@pytest.mark.parametrize(
    ("model", "make_guide"),
    [
        (local, autoguide.AutoNormal),
        pytest.param(of_all, autoguide.AutoIAFNormal, marks=pytest.mark.slow),
        (mixture, lambda model: autoguide.AutoNormal(numpyro.handlers.block(model, hide=["kind"]))),
    ],
    ids=["local", "flow", "enumerated"],
)
def test_equals_the_guarded_way(model, make_guide, objective, float64, always, monkeypatch):
    live = value_and_gradient(model, make_guide(model), Bound(5, objective))
    guarded(monkeypatch)
    other = value_and_gradient(model, make_guide(model), Bound(5, objective))
    for one, two in zip(jax.tree.leaves(live), jax.tree.leaves(other), strict=True):
        assert jnp.allclose(one, two, rtol=1e-10, atol=1e-12)
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(live[1]))


def of_roots():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.factor("root", jnp.where(z > 0, jnp.sqrt(z), -jnp.inf))


def around_zero():
    loc = numpyro.param("loc", 0.1)
    numpyro.sample("z", dist.Normal(loc, numpyro.param("scale", 1.0)))


def test_samples_without_weight_do_no_harm(float64, always, monkeypatch):
    """Some z are below 0, where the derivative of the root is not a number."""
    loss, gradient = value_and_gradient(of_roots, around_zero, Bound(8))
    assert all(jnp.isfinite(leaf) and leaf != 0 for leaf in gradient.values())
    guarded(monkeypatch)
    other_loss, other = value_and_gradient(of_roots, around_zero, Bound(8))
    assert jnp.allclose(loss, other_loss)
    assert all(jnp.allclose(gradient[name], other[name]) for name in other)


def test_a_gradient_that_is_not_finite_is_shown(always):
    """It is not one of samples without weight: all of them have it."""

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("root", jnp.sqrt(0 * numpyro.param("a", 1.0)) + 0 * z)

    _, gradient = value_and_gradient(model, around_zero, Bound(4))
    assert not jnp.isfinite(gradient["a"])


def test_differentiable_by_arguments(always):
    def model(shift):
        z = numpyro.sample("z", dist.Normal(shift, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=jnp.array(2.0))

    def guide(shift):
        numpyro.sample("z", dist.Normal(0.5 * shift, 1.0))

    def loss(shift, **estimators):
        return Bound(4, **estimators).loss(jax.random.key(0), {}, model, guide, shift)

    other = jax.grad(lambda shift: loss(shift, chunk_size=1))(0.7)  # not live
    assert jnp.allclose(jax.grad(loss)(0.7), other, rtol=1e-5)


def test_no_second_derivative(always):
    bound = Bound(4)
    svi = SVI(of_roots, around_zero, optax.sgd(0.1), bound)
    params = svi.get_params(svi.init(jax.random.key(0)))

    def loss(params):
        return bound.loss(jax.random.key(1), params, svi.model, svi.guide)

    with pytest.raises(NotImplementedError, match="no second derivative"):
        jax.hessian(loss)(params)


@pytest.mark.slow
def test_a_loop_that_only_forward_mode_can_differentiate(always):
    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        doubled = jax.lax.while_loop(lambda x: jnp.abs(x) < 8, lambda x: 2 * x, z)
        numpyro.sample("x", dist.Normal(doubled, 1.0), obs=jnp.array(9.0))

    bound = Bound(3)
    svi = SVI(model, around_zero, optax.sgd(0.1), bound)
    params = svi.get_params(svi.init(jax.random.key(0)))

    def loss(params):
        return bound.loss(jax.random.key(1), params, svi.model, svi.guide)

    gradient = jax.jacfwd(loss)(params)
    assert all(jnp.isfinite(leaf) and leaf != 0 for leaf in gradient.values())
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.grad(loss)(params)


@pytest.mark.slow
def test_a_flow_is_not_inverted(monkeypatch):
    bound = Bound(4)
    svi = SVI(of_all, autoguide.AutoIAFNormal(of_all), optax.sgd(0.1), bound)
    params = svi.get_params(svi.init(jax.random.key(0)))
    inverse, inverted = InverseAutoregressiveTransform._inverse, []
    monkeypatch.setattr(
        InverseAutoregressiveTransform,
        "_inverse",
        lambda self, y: inverted.append(self) or inverse(self, y),
    )

    def trace():
        def loss(params):
            return bound.loss(jax.random.key(1), params, svi.model, svi.guide)

        jax.make_jaxpr(jax.grad(loss))(params)

    trace()
    assert inverted  # by the guarded way, which runs where it must
    inverted.clear()
    monkeypatch.setattr(module, "evaluate", lambda *parts: (jnp.zeros(()), None))
    trace()
    assert not inverted


@pytest.mark.parametrize(
    ("model", "make_guide", "is_live"),
    [
        (local, autoguide.AutoNormal, False),
        (of_all, autoguide.AutoMultivariateNormal, False),
        (of_all, autoguide.AutoLowRankMultivariateNormal, True),
        pytest.param(of_all, autoguide.AutoIAFNormal, True, marks=pytest.mark.slow),
        (mixture, lambda model: autoguide.AutoNormal(numpyro.handlers.block(model, hide=["kind"])),
         True),
    ],
    ids=["small", "dense", "low-rank", "flow", "enumerated"],
)  # fmt: skip
def test_where_it_pays(model, make_guide, is_live, monkeypatch):
    calls, before = [], module.sum_of_bounds
    monkeypatch.setattr(
        module, "sum_of_bounds", lambda *parts: calls.append(parts) or before(*parts)
    )
    value_and_gradient(model, make_guide(model), Bound(3), run=jax.eval_shape)
    assert bool(calls) == is_live
