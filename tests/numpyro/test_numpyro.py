"""The front-end for numpyro, against numpyro's own objective and against exact gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, autoguide
from numpyro.primitives import mutable

import gdregs
from gdregs.numpyro.bound import Bound
from gdregs.reexpression.reexpress import reexpress
from means import assert_unbiased
from numpyro_programs import DATA, PROGRAMS, SCHOOLS, initial_parameters, schools, traced

PAPERS = {"posterior_estimator": "dregs", "prior_estimator": "gdregs"}
KEY = jax.random.key(3)


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


def values_and_gradients(losses, params, model, guide, *args):
    """Of each objective, from one program."""

    @jax.jit
    def of_each(key, params):
        return [
            jax.value_and_grad(lambda p, loss=loss: loss.loss(key, p, model, guide, *args))(params)
            for loss in losses
        ]

    return jax.device_get(of_each(KEY, params))


FAST = ("subsampled", "hierarchical", "modules", "AutoDiagonalNormal")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in PROGRAMS],
)
def test_value_and_naive_gradient_are_those_of_numpyro(name):
    model, make_guide, data = PROGRAMS[name]

    @jax.jit
    def found_and_expected(key, data):
        guide = make_guide()
        params = initial_parameters(model, guide, data)
        return [
            jax.value_and_grad(lambda p, loss=loss: loss.loss(key, p, model, guide, data))(params)
            for loss in (Bound(6), RenyiELBO(alpha=0, num_particles=6))
        ]

    found, expected = jax.device_get(found_and_expected(KEY, data))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-3), found[1], expected[1]
    )
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(expected[1]))


UNBIASED = {
    "hierarchical": {},
    "subsampled": {"num_gradient_samples": 2},
    "AutoNormal": {"num_gradient_samples": 2},
    "AutoDiagonalNormal": {},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (number > 0))
        for number, name in enumerate(UNBIASED)
    ],
)
def test_the_papers_gradients_have_the_mean_of_numpyros(name):
    """Against RenyiELBO with K = 4, of all particles or of M = 2; STL must be caught."""
    model, make_guide, data = PROGRAMS[name]

    def gradient(objective):
        def draw(key):
            guide = make_guide()
            params = initial_parameters(model, guide, data)
            return jax.grad(lambda p: objective.loss(key, p, model, guide, data))(params)

        return draw

    suspects = {
        "papers": gradient(Bound(4, **PAPERS, **UNBIASED[name])),
        "stl": gradient(Bound(4, posterior_estimator="stl")),
    }
    reference = gradient(RenyiELBO(alpha=0, num_particles=4))
    assert_unbiased(suspects, reference, jax.random.key(0), biased=("stl",))


def test_what_an_automatic_guide_draws_follows_the_path_of_the_latents_computed_from_it():
    """All unconstrained latents in one vector, here the spread's logarithm and z."""
    model, make_guide, data = PROGRAMS["AutoDiagonalNormal"]

    @jax.jit
    def latents_and_paths(key, data):
        guide = make_guide()
        params = initial_parameters(model, guide, data)

        def path(params):
            _, posterior, prior, *_ = Bound(2)._read(key, params, model, guide, (data,), {})
            return reexpress(prior, jax.lax.stop_gradient(posterior.sample(key, (2,))))

        return jax.jvp(path, (params,), (jax.tree.map(jnp.ones_like, params),))

    latents, paths = jax.device_get(latents_and_paths(KEY, data))
    of_the_logarithm = paths["spread"] / latents["spread"]
    expected = np.concatenate([of_the_logarithm[:, None], paths["z"]], axis=1)
    assert np.all(expected != 0)
    np.testing.assert_allclose(paths["_auto_latent"], expected, rtol=1e-5)


def test_particles_in_chunks_and_one_after_another_change_nothing():
    model, make_guide, data = PROGRAMS["local"]
    ways = ({}, {"chunk_size": 32}, {"vectorize_particles": False})

    @jax.jit
    def losses(key):
        params = traced({"centre": 0.5, "slope": 0.3})
        return [Bound(512, **way).loss(key, params, model, make_guide(), data) for way in ways]

    at_once, *others = np.asarray(losses(KEY))
    np.testing.assert_allclose(others, at_once, rtol=1e-5)


def _gradient(model, guide, *args, **options):
    """Traced, which is where refusals are; nothing is computed."""
    objective = Bound(4, **options)
    return jax.eval_shape(
        lambda q, key: jax.grad(lambda q: objective.loss(key, {"q": q}, model, guide, *args))(q),
        np.float32(0.5),
        KEY,
    )


def _normal(name="z"):
    return numpyro.sample(name, dist.Normal(numpyro.param("q", 0.5), 1.0))


def test_sites_that_do_not_match_are_named():
    with pytest.raises(ValueError, match="guide's site 'extra' is missing in the model"):
        _gradient(lambda: _normal(), lambda: (_normal(), _normal("extra")))
    with pytest.raises(ValueError, match="latent site 'other' is missing in the guide"):
        _gradient(lambda: (_normal(), _normal("other")), lambda: _normal())
    wide = lambda: numpyro.sample("z", dist.Normal(np.zeros(3, np.float32), 1.0))  # noqa: E731
    with pytest.raises(ValueError, match=r"'z' has shape \(3,\) in the guide and \(\) in the"):
        _gradient(lambda: _normal(), wide)


def test_a_subsampled_plate_must_enclose_every_site_unless_the_objective_is_the_elbo():
    """Then it stands for the whole: of data that are all the same the loss is that of them all."""

    def model(size):
        z = _normal()
        with numpyro.plate("data", 20, subsample_size=size) as index:
            numpyro.sample("x", dist.Normal(z, 1.0), obs=jnp.ones(len(index)))

    def guide(size):
        _normal()

    with pytest.raises(ValueError, match="plate 'data' is subsampled but does not enclose"):
        _gradient(model, guide, 5)
    _gradient(model, guide, 5, objective=gdregs.ELBO(), **PAPERS)

    @jax.jit
    def losses(key, params):
        return [Bound(1).loss(key, params, model, guide, size) for size in (5, None)]

    found, expected = losses(KEY, {"q": np.float32(0.5)})
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_prior_without_a_path_is_an_obstacle_only_if_it_is_learned():
    angle = lambda loc: numpyro.sample("z", dist.VonMises(loc, 2.0))  # noqa: E731
    _gradient(lambda: angle(0.0), _normal, **PAPERS)
    learned = lambda: angle(numpyro.param("q", 0.5))  # noqa: E731
    with pytest.raises(TypeError, match="site 'z': VonMises has no re-expression rule"):
        _gradient(learned, _normal, **PAPERS)
    _gradient(learned, _normal, prior_estimator="naive")
    with pytest.raises(TypeError, match="posterior: site 'z': VonMises"):
        _gradient(_normal, learned, **PAPERS)
    _gradient(_normal, learned, posterior_estimator="rws")


def test_a_guide_outside_of_the_support_has_finite_gradients():
    def model():
        numpyro.sample("z", dist.Gamma(numpyro.param("q"), 1.0))

    def guide():
        numpyro.sample("z", dist.Normal(numpyro.param("m"), 1.0))

    params = {"q": np.float32(0.5), "m": np.float32(0.1)}
    losses = (Bound(8), Bound(8, **PAPERS))
    for value, gradient in values_and_gradients(losses, params, model, guide):
        assert np.isfinite(value)
        assert all(np.isfinite(leaf) and leaf != 0 for leaf in gradient.values())


def test_mutable_state_is_kept_with_a_warning_and_evaluate_is_minus_the_bound():
    def guide(data):
        state = mutable("count", {"value": 0.0})
        state["value"] = state["value"] + 1.0
        return PROGRAMS["local"][1]()(data)

    model = PROGRAMS["local"][0]
    svi = SVI(model, guide, optax.sgd(0.0), Bound(64))

    @jax.jit
    def run(key):
        states = [svi.init(key, DATA)]
        for _ in range(2):
            states.append(svi.update(states[-1], DATA)[0])
        losses = [svi.evaluate(states[-1], DATA)]
        losses.append(RenyiELBO(0, 64).loss(key, svi.get_params(states[0]), model, guide, DATA))
        return [state.mutable_state["count"]["value"] for state in states], losses

    with pytest.warns(UserWarning, match="mutable state is that of the first of 64 particles"):
        counts, (found, expected) = jax.device_get(run(KEY))
    assert counts[2] - counts[1] == counts[1] - counts[0] == 1
    np.testing.assert_allclose(found, expected, rtol=0.02)
    assert found > 0


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="num_particles must be at least 1"):
        Bound(0)


@pytest.mark.slow
def test_gradients_of_eight_schools_vary_less_than_numpyros():
    """K = 8, 500 draws, at parameters that 300 steps have trained; every part of the guide."""
    guide = autoguide.AutoNormal(schools)
    svi = SVI(schools, guide, optax.adam(0.05), Bound(8))

    def variances(objective, params, keys):
        def draw(key):
            return jax.grad(lambda p: objective.loss(key, p, schools, guide, SCHOOLS))(params)

        draws = jax.lax.map(draw, keys, batch_size=100)
        return {name: jnp.sum(jnp.var(g, axis=0)) for name, g in draws.items()}

    @jax.jit
    def ours_and_theirs(key):
        state = svi.init(key, SCHOOLS)
        state, _ = jax.lax.scan(lambda s, _: svi.update(s, SCHOOLS), state, None, length=300)
        keys = jax.random.split(key, 500)
        return [
            variances(objective, svi.get_params(state), keys)
            for objective in (Bound(8, **PAPERS), RenyiELBO(0, 8))
        ]

    ours, theirs = jax.device_get(ours_and_theirs(KEY))
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

    @jax.jit
    def found_and_expected(key, q):
        return [
            [
                jax.value_and_grad(
                    lambda q, program=program, guide=guide, loss=loss: loss.loss(
                        key, {"q": q}, program, guide, DATA
                    )
                )(q)
                for program, guide in (
                    (model, nothing), (only_parameters, nothing), (only_parameters, observing),
                )
            ]
            for loss in (Bound(4, gdregs.ELBO()), Trace_ELBO(4))
        ]  # fmt: skip

    found, expected = jax.device_get(found_and_expected(KEY, np.float32(0.7)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_plate_without_an_observed_site():
    """The bound is 0 where the guide is the prior, whatever it is; each estimator knows."""

    def program():
        with numpyro.plate("n", 5):
            numpyro.sample("z", dist.Normal(numpyro.param("q", 0.5), 1.0))

    ((value, gradient),) = values_and_gradients(
        (Bound(4, **PAPERS),), {"q": np.float32(0.5)}, program, program
    )
    assert value == gradient["q"] == 0


def test_particles_of_the_elbo_have_subsamples_of_their_own():
    """As numpyro's: the variance of the gradient falls with K. One for all: 7 times as much."""
    data = np.linspace(-3.0, 4.0, 50, dtype=np.float32)

    def model():
        with numpyro.plate("data", 50, subsample_size=2):
            x = numpyro.subsample(data, event_dim=0)
            z = numpyro.sample("z", dist.Normal(numpyro.param("centre", 0.0), 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide():
        with numpyro.plate("data", 50, subsample_size=2):
            x = numpyro.subsample(data, event_dim=0)
            numpyro.sample("z", dist.Normal(numpyro.param("slope", 0.5) * x, 0.7))

    losses = (Trace_ELBO(8), Bound(8, gdregs.ELBO()), Bound(8, gdregs.ELBO(), **PAPERS))

    @jax.jit
    def draws(key):
        params = traced({"centre": 0.2, "slope": 0.4})

        def draw(key):
            return [
                jax.grad(lambda p, loss=loss: loss.loss(key, p, model, guide))(params)["centre"]
                for loss in losses
            ]

        return jax.vmap(draw)(jax.random.split(key, 2000))

    theirs, naive, papers = np.asarray(draws(jax.random.key(5)))
    for ours, most in ((naive, 1.15), (papers, 3)):
        error = (np.var(ours) + np.var(theirs)) ** 0.5 / 2000**0.5
        assert abs(np.mean(ours) - np.mean(theirs)) < 4 * error
        assert np.var(ours) < most * np.var(theirs)


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


def _three():
    z = numpyro.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
    numpyro.sample("x", dist.Normal(jnp.sum(z), 1), obs=1.0)


def _step(svi):
    """Traced: the state after one step."""
    return jax.eval_shape(lambda key: svi.update(svi.init(key))[0], KEY)


def test_a_guide_without_an_inverse_is_named():
    svi = SVI(_three, autoguide.AutoBNAFNormal(_three), optax.adam(0.01), Bound(2))
    message = "Site '_auto_latent': the density of its TransformedDistribution is known only along"
    with pytest.raises(ValueError, match=message):
        _step(svi)


def test_a_guide_with_a_factor_must_be_naive():
    """What it draws is not what its density says: DReGs would be biased, silently."""

    def guide():
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1).expand([3]).to_event(1))
        numpyro.factor("chain", numpyro.param("f", 0.1) * jnp.ones(()))

    _step(SVI(_three, guide, optax.adam(0.01), Bound(2)))
    svi = SVI(_three, guide, optax.adam(0.01), Bound(2, **PAPERS))
    with pytest.raises(ValueError, match="only the estimators 'naive' are unbiased"):
        _step(svi)
