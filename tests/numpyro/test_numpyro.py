"""The front-end for numpyro, against numpyro's own objective and against exact gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, autoguide
from numpyro.primitives import mutable

import gdregs
from gdregs.numpyro.bound import Bound
from means import largest_z
from numpyro_programs import DATA, PROGRAMS, SCHOOLS, schools

PAPERS = {"posterior_estimator": "dregs", "prior_estimator": "gdregs"}


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


def parameters(model, guide, data):
    svi = SVI(model, guide, optax.adam(0.1), Trace_ELBO())
    state = svi.init(jax.random.key(1), data)
    return svi.get_params(svi.update(state, data)[0])


SLOW = ("AutoLowRankMultivariateNormal",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in PROGRAMS],
)
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
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-3), actual, expected
    )
    np.testing.assert_allclose(run(Bound(6))[0], expected[0], rtol=1e-5)


@pytest.mark.slow
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

    suspects = {
        "whole": gradient(Bound(4)),
        "M = 2": gradient(Bound(4, num_gradient_samples=2)),
        "stl": gradient(Bound(4, posterior_estimator="stl")),
    }
    reference = gradient(RenyiELBO(alpha=0, num_particles=4))
    largest = largest_z(suspects, reference, jax.random.key(0), 2000)
    assert largest.pop("stl") > 1
    assert max(largest.values()) < 1, largest


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


def test_discrete_latents_are_named():
    coin = lambda: numpyro.sample("coin", dist.Bernoulli(0.5))  # noqa: E731
    with pytest.raises(ValueError, match="'coin' is a discrete latent"):
        _loss(coin, coin)


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
        _loss(model, lambda: _normal(), **PAPERS)
    for options in (PAPERS | {"objective": gdregs.ELBO()}, {}):
        assert jnp.isfinite(_loss(model, lambda: _normal(), **options)["q"])


def test_a_prior_without_a_path_is_an_obstacle_only_if_it_is_learned():
    angle = lambda loc: numpyro.sample("z", dist.VonMises(loc, 2.0))  # noqa: E731
    assert jnp.isfinite(_loss(lambda: angle(0.0), lambda: _normal(), **PAPERS)["q"])
    learned = lambda: angle(numpyro.param("q", 0.5))  # noqa: E731
    with pytest.raises(TypeError, match="site 'z': VonMises has no re-expression rule"):
        _loss(learned, lambda: _normal(), **PAPERS)
    assert jnp.isfinite(_loss(learned, lambda: _normal(), prior_estimator="naive")["q"])
    with pytest.raises(TypeError, match="posterior: site 'z': VonMises"):
        _loss(lambda: _normal(), learned, **PAPERS)
    assert jnp.isfinite(_loss(lambda: _normal(), learned, posterior_estimator="rws")["q"])


def test_a_guide_outside_of_the_support_has_finite_gradients():
    positive = lambda: numpyro.sample("z", dist.Gamma(numpyro.param("q", 0.5), 1.0))  # noqa: E731
    assert jnp.isfinite(_loss(positive, lambda: numpyro.sample("z", dist.Normal(0.1, 1.0)))["q"])


@pytest.mark.filterwarnings("ignore:mutable state is that of the first of 4 particles")
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


@pytest.mark.slow
def test_gradients_of_eight_schools_vary_less_than_numpyros():
    """K = 8, 1,000 draws, at parameters that 1,000 steps have trained; every part of the guide."""
    guide = autoguide.AutoNormal(schools)
    svi = SVI(schools, guide, optax.adam(0.02), Bound(8, prior_estimator="naive"))
    params = svi.run(jax.random.key(0), 1000, SCHOOLS, progress_bar=False).params

    def variances(objective):
        def draw(key):
            return jax.grad(lambda p: objective.loss(key, p, schools, guide, SCHOOLS))(params)

        draws = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(4), 1000))
        return {name: float(jnp.sum(jnp.var(g, axis=0))) for name, g in draws.items()}

    ours, theirs = variances(Bound(8, **PAPERS)), variances(RenyiELBO(0, 8))
    ratios = {name: ours[name] / theirs[name] for name in ours if name != "centre"}
    assert max(ratios.values()) < 1, ratios


def test_a_model_without_latents_is_its_density():
    def model(data):
        centre = numpyro.param("q", 0.5)
        with numpyro.plate("data", 10, subsample_size=4):
            numpyro.sample("x", dist.Normal(centre, 1.0), obs=data[:4])
        numpyro.factor("prior", -(centre**2))

    def nothing(data):
        pass

    def observing(data):
        numpyro.sample("y", dist.Normal(numpyro.param("q", 0.5), 2.0), obs=data[0])

    def only_parameters(data):
        numpyro.param("q", 0.5)

    for program, guide in (
        (model, nothing), (only_parameters, nothing), (only_parameters, observing),
    ):  # fmt: skip
        found, expected = (
            jax.value_and_grad(
                lambda q, loss=loss, program=program, guide=guide: loss.loss(
                    jax.random.key(0), {"q": q}, program, guide, DATA
                )
            )(0.7)
            for loss in (Bound(4, gdregs.ELBO()), Trace_ELBO(4))
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_plate_without_an_observed_site():
    def program():
        with numpyro.plate("n", 5):
            numpyro.sample("z", dist.Normal(numpyro.param("q", 0.5), 1.0))

    assert _loss(program, program, **PAPERS)["q"] == 0


def test_particles_of_the_elbo_have_subsamples_of_their_own():
    """As numpyro's: the variance of the gradient falls with K. One for all: 7 times as much."""
    data = jnp.linspace(-3.0, 4.0, 50)

    def model():
        with numpyro.plate("data", 50, subsample_size=2):
            x = numpyro.subsample(data, event_dim=0)
            z = numpyro.sample("z", dist.Normal(numpyro.param("centre", 0.0), 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        with numpyro.plate("data", 50, subsample_size=2):
            x = numpyro.subsample(data, event_dim=0)
            numpyro.sample("z", dist.Normal(numpyro.param("slope", 0.5) * x, 0.7))

    params = {"centre": jnp.asarray(0.2), "slope": jnp.asarray(0.4)}

    def draws(loss):
        def draw(key):
            return jax.grad(lambda p: loss.loss(key, p, model, guide))(params)["centre"]

        return jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(5), 2000))

    theirs = draws(Trace_ELBO(8))
    for options in ({}, PAPERS):
        ours = draws(Bound(8, gdregs.ELBO(), **options))
        error = (jnp.var(ours) + jnp.var(theirs)) ** 0.5 / 2000**0.5
        assert abs(jnp.mean(ours) - jnp.mean(theirs)) < 4 * error
        assert jnp.var(ours) < (1.15 if not options else 3) * jnp.var(theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sum_sites": False}, "a bound is not a sum over sites"),
        ({"multi_sample_guide": True}, "a bound draws its particles itself"),
        ({"vectorize_particles": jax.pmap}, "must be True or False"),
    ],
)
def test_options_of_numpyros_objectives_are_refused_clearly(options, message):
    with pytest.raises(ValueError, match=message):
        Bound(4, **options)


def test_particles_one_after_another():
    model, guide, data = PROGRAMS["local"]
    params = parameters(model, guide, data)
    values = [
        Bound(4, vectorize_particles=one).loss(jax.random.key(0), params, model, guide, data)
        for one in (True, False)
    ]
    assert abs(values[0] - values[1]) < 0.3 * abs(values[0])


def test_mutable_state_of_several_particles_is_warned_of():
    def guide(data):
        mutable("count", {"value": 0.0})
        return PROGRAMS["local"][1](data)

    model, data = PROGRAMS["local"][0], DATA
    params = parameters(model, PROGRAMS["local"][1], data)
    with pytest.warns(UserWarning, match="mutable state is that of the first of 2 particles"):
        Bound(2).loss(jax.random.key(0), params, model, guide, data)


def _three():
    z = numpyro.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
    numpyro.sample("x", dist.Normal(jnp.sum(z), 1), obs=1.0)


def test_a_guide_without_an_inverse_is_named():
    guide = autoguide.AutoBNAFNormal(_three)
    svi = SVI(_three, guide, optax.adam(0.01), Bound(2))
    state = svi.init(jax.random.key(0))
    message = "Site '_auto_latent': the density of its TransformedDistribution is known only along"
    with pytest.raises(ValueError, match=message):
        svi.update(state)


@pytest.mark.slow
def test_a_guide_with_a_factor_is_naive():
    """What it draws is not what its density says: DReGs would be biased, silently."""
    guide = autoguide.AutoDAIS(_three, K=2)
    svi = gdregs.numpyro.SVI(_three, guide, optax.adam(0.01), Bound(2))
    with pytest.warns(UserWarning, match="Both estimators stay naive: The guide adds the factor"):
        run = svi.run(jax.random.key(0), 3, progress_bar=False)
    assert jnp.all(jnp.isfinite(run.losses))
    svi = SVI(_three, guide, optax.adam(0.01), Bound(2, **PAPERS))
    with pytest.raises(ValueError, match="only the estimators 'naive' are unbiased"):
        svi.update(svi.init(jax.random.key(0)))
