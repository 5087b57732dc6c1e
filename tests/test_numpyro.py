"""The front-end for numpyro, against numpyro's own objective and against exact gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, autoguide
from numpyro.primitives import mutable

import gdregs
from gdregs.numpyro import Bound
from numpyro_programs import DATA, PROGRAMS, SCHOOLS, schools


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


def parameters(model, guide, data):
    svi = SVI(model, guide, optax.adam(0.1), Trace_ELBO())
    state = svi.init(jax.random.key(1), data)
    return svi.get_params(svi.update(state, data)[0])


@pytest.mark.parametrize("name", PROGRAMS)
def test_value_and_naive_gradient_are_those_of_numpyro(name):
    model, guide, data = PROGRAMS[name]
    params = parameters(model, guide, data)

    def run(objective):
        def loss(params):
            return objective.loss(jax.random.key(3), params, model, guide, data)

        return jax.jit(jax.value_and_grad(loss))(params)

    expected = run(RenyiELBO(alpha=0, num_particles=6))
    actual = run(Bound(6, posterior_estimator="naive", prior_estimator="naive"))
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5)
    if name == "AutoLowRankMultivariateNormal":
        return  # its gradient is another draw: by the Cholesky factor, not by two noises
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-3), actual, expected
    )
    np.testing.assert_allclose(run(Bound(6))[0], expected[0], rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["local", "subsampled", "hierarchical", "AutoNormal", "AutoDiagonalNormal"]
)
def test_gradients_have_the_mean_of_numpyros(name):
    """Against RenyiELBO over 2,000 draws of K = 4; STL must be caught."""
    model, guide, data = PROGRAMS[name]
    params = parameters(model, guide, data)

    def gradient(objective):
        return lambda key: jax.grad(lambda params: objective.loss(key, params, model, guide, data))(
            params
        )

    def is_unbiased(**options):
        return bool(
            gdregs.check_unbiased(
                gradient(Bound(4, **options)),
                gradient(RenyiELBO(alpha=0, num_particles=4)),
                jax.random.key(0),
                2000,
            ).unbiased
        )

    assert is_unbiased()
    assert is_unbiased(num_gradient_samples=2)
    assert not is_unbiased(posterior_estimator="stl")


def test_streaming_changes_nothing_but_the_draws():
    model, guide, data = PROGRAMS["local"]
    params = parameters(model, guide, data)
    values = [
        Bound(512, chunk_size=size).loss(jax.random.key(0), params, model, guide, data)
        for size in (None, 32)
    ]
    np.testing.assert_allclose(*values, rtol=5e-3)


def _loss(model, guide, *args, **options):
    objective = Bound(4, **options)
    params = {"q": jnp.array(0.5)}
    return jax.grad(lambda p: objective.loss(jax.random.key(0), p, model, guide, *args))(params)


def _normal(name="z"):
    return numpyro.sample(name, dist.Normal(numpyro.param("q", 0.5), 1.0))


def test_sites_that_do_not_match_are_named():
    with pytest.raises(ValueError, match="guide's site 'extra' is missing in the model"):
        _loss(lambda: _normal(), lambda: (_normal(), _normal("extra")))
    with pytest.raises(ValueError, match="latent site 'other' is missing in the guide"):
        _loss(lambda: (_normal(), _normal("other")), lambda: _normal())
    wide = lambda: numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0))  # noqa: E731
    with pytest.raises(ValueError, match=r"'z' has shape \(3,\) in the guide and \(\) in the"):
        _loss(lambda: _normal(), wide)


def test_discrete_latents_and_scans_are_named():
    coin = lambda: numpyro.sample("coin", dist.Bernoulli(0.5))  # noqa: E731
    with pytest.raises(ValueError, match="'coin' is a discrete latent"):
        _loss(coin, coin)

    def walk():
        def step(previous, _):
            z = numpyro.sample("z", dist.Normal(previous, 1.0))
            return z, None

        scan(step, 0.0, jnp.arange(3))

    with pytest.raises(ValueError, match="'z' is a latent in a control_flow"):
        _loss(walk, lambda: numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0)))


def test_a_subsampled_plate_must_enclose_every_site():
    def model():
        z = _normal()
        with numpyro.plate("data", 20, subsample_size=5) as index:
            numpyro.sample("x", dist.Normal(z, 1.0), obs=DATA[index])

    with pytest.raises(ValueError, match="plate 'data' is subsampled but does not enclose"):
        _loss(model, lambda: _normal())
    assert jnp.isfinite(_loss(model, lambda: _normal(), objective=gdregs.ELBO())["q"])


def test_latents_of_different_scales_need_a_linear_objective():
    def model():
        with handlers.scale(scale=0.3):
            _normal()

    with pytest.raises(ValueError, match=r"The latents \['z'\] have different scales"):
        _loss(model, lambda: _normal())
    for options in (
        {"objective": gdregs.ELBO()},
        {"posterior_estimator": "naive", "prior_estimator": "naive"},
    ):
        assert jnp.isfinite(_loss(model, lambda: _normal(), **options)["q"])


def test_a_prior_without_a_path_is_an_obstacle_only_if_it_is_learned():
    angle = lambda loc: numpyro.sample("z", dist.VonMises(loc, 2.0))  # noqa: E731
    assert jnp.isfinite(_loss(lambda: angle(0.0), lambda: _normal())["q"])
    learned = lambda: angle(numpyro.param("q", 0.5))  # noqa: E731
    with pytest.raises(TypeError, match="site 'z': VonMises has no re-expression rule"):
        _loss(learned, lambda: _normal())
    assert jnp.isfinite(_loss(learned, lambda: _normal(), prior_estimator="naive")["q"])
    with pytest.raises(TypeError, match="posterior: site 'z': VonMises"):
        _loss(lambda: _normal(), learned)
    assert jnp.isfinite(_loss(lambda: _normal(), learned, posterior_estimator="rws")["q"])


def test_a_guide_outside_of_the_support_has_finite_gradients():
    positive = lambda: numpyro.sample("z", dist.Gamma(numpyro.param("q", 0.5), 1.0))  # noqa: E731
    assert jnp.isfinite(_loss(positive, lambda: numpyro.sample("z", dist.Normal(0.1, 1.0)))["q"])


def test_mutable_state_is_kept_and_evaluate_is_minus_the_bound():
    def guide(data):
        state = mutable("count", {"value": 0.0})
        state["value"] = state["value"] + 1.0
        return PROGRAMS["local"][1](data)

    model = PROGRAMS["local"][0]
    svi = SVI(model, guide, optax.adam(0.01), Bound(4))
    state = svi.init(jax.random.key(0), DATA)
    for expected in (1.0, 2.0):
        state, _ = svi.update(state, DATA)
        assert state.mutable_state["count"]["value"] >= expected
    assert svi.evaluate(state, DATA) > 0


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="num_particles must be at least 1"):
        Bound(0)


def test_gradients_of_eight_schools_vary_less_than_numpyros(optimised):
    """K = 8, 1,000 draws, at parameters that 1,000 steps have trained; every part of the guide."""
    guide = autoguide.AutoNormal(schools)
    svi = SVI(schools, guide, optax.adam(0.02), Bound(8, prior_estimator="naive"))
    params = svi.run(jax.random.key(0), 1000, SCHOOLS, progress_bar=False).params

    def variances(objective):
        def draw(key):
            return jax.grad(lambda p: objective.loss(key, p, schools, guide, SCHOOLS))(params)

        draws = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(4), 1000))
        return {name: float(jnp.sum(jnp.var(g, axis=0))) for name, g in draws.items()}

    ours, theirs = variances(Bound(8)), variances(RenyiELBO(0, 8))
    ratios = {name: ours[name] / theirs[name] for name in ours if name != "centre"}
    assert max(ratios.values()) < 1, ratios
