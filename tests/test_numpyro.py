"""The front-end for numpyro, against numpyro's own objective and against exact gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.scipy.special import betaln, digamma, gammaln
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, autoguide
from numpyro.primitives import mutable

import gdregs
from gdregs.numpyro import Bound

DATA = jnp.array(np.random.default_rng(0).normal(1.0, 1.5, size=20), jnp.float32)


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


# --- programs: each a model, a guide, and parameters -------------------------------------------


def local(subsample_size):
    def model(data):
        centre = numpyro.param("centre", 0.5)
        with numpyro.plate("data", len(data), subsample_size=subsample_size):
            x = numpyro.subsample(data, event_dim=0)
            z = numpyro.sample("z", dist.Normal(centre, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(data):
        slope = numpyro.param("slope", 0.3)
        with numpyro.plate("data", len(data), subsample_size=subsample_size):
            x = numpyro.subsample(data, event_dim=0)
            numpyro.sample("z", dist.Normal(slope * x, 0.7))

    return model, guide


def hierarchical():
    """Two layers in one plate, the second with an inner plate, under scale and mask."""

    def model(data):
        a, b = numpyro.param("a", 0.2), numpyro.param("b", 0.8)
        with numpyro.plate("data", len(data), dim=-1), handlers.scale(scale=0.5):
            z2 = numpyro.sample("z2", dist.Normal(a, 1.0))
            with numpyro.plate("inner", 3, dim=-2):
                z1 = numpyro.sample("z1", dist.Normal(b * z2, 1.0))
            with handlers.mask(mask=data > 0):
                numpyro.sample("x", dist.Normal(z1.sum(0), 1.0), obs=data)
            numpyro.factor("soft", -0.1 * z2**2)

    def guide(data):
        c = numpyro.param("c", 0.1)
        scale = numpyro.param("scale", 0.8, constraint=dist.constraints.positive)
        with numpyro.plate("data", len(data), dim=-1), handlers.scale(scale=0.5):
            with numpyro.plate("inner", 3, dim=-2):
                z1 = numpyro.sample("z1", dist.Normal(c * data, scale))
            numpyro.sample("z2", dist.Normal(0.5 * z1.sum(0), 0.9))

    return model, guide


ERRORS = jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18])
SCHOOLS = jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])


def schools(data):
    mu = numpyro.sample("mu", dist.Normal(numpyro.param("centre", 0.0), 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("x", dist.Normal(theta, ERRORS), obs=data)


class Encoder(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        return jnp.tanh(self.weight * x)


def modules():
    def model(data):
        with numpyro.plate("data", len(data)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            decoder = eqx_module("decoder", Encoder(jnp.array(0.7)))
            numpyro.sample("x", dist.Normal(decoder(z), 1.0), obs=data)

    def guide(data):
        encoder = eqx_module("encoder", Encoder(jnp.array(0.4)))
        with numpyro.plate("data", len(data)):
            numpyro.sample("z", dist.Normal(encoder(data), 0.5))

    return model, guide


PROGRAMS = {
    "local": (*local(None), DATA),
    "subsampled": (*local(5), DATA),
    "hierarchical": (*hierarchical(), DATA),
    "modules": (*modules(), DATA),
    **{
        guide.__name__: (schools, guide(schools), SCHOOLS)
        for guide in (
            autoguide.AutoNormal,
            autoguide.AutoDiagonalNormal,
            autoguide.AutoLowRankMultivariateNormal,
            autoguide.AutoDelta,
        )
    },
}


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


# --- conjugate models: exact gradients ---------------------------------------------------------


def gamma_poisson(size):
    counts = jnp.array([3.0, 5, 2, 8, 0, 4, 1, 6])

    def model(subsample_size):
        with numpyro.plate("data", 8, subsample_size=subsample_size) as index:
            rate = numpyro.sample("z", dist.Gamma(numpyro.param("a", 2.0), numpyro.param("b", 0.7)))
            numpyro.sample("x", dist.Poisson(rate), obs=counts[index])

    def guide(subsample_size):
        with numpyro.plate("data", 8, subsample_size=subsample_size) as index:
            shape = numpyro.param("shape", 1.5) + 0.9 * counts[index]
            numpyro.sample("z", dist.Gamma(shape, numpyro.param("rate", 1.6)))

    def elbo(params):
        a, b, rate = params["a"], params["b"], params["rate"]
        shape = params["shape"] + 0.9 * counts
        mean, log_mean = shape / rate, digamma(shape) - jnp.log(rate)
        likelihood = counts * log_mean - mean - gammaln(counts + 1)
        prior = a * jnp.log(b) - gammaln(a) + (a - 1) * log_mean - b * mean
        entropy = shape - jnp.log(rate) + gammaln(shape) + (1 - shape) * digamma(shape)
        return jnp.sum(likelihood + prior + entropy)

    params = {"a": 2.0, "b": 0.7, "shape": 1.5, "rate": 1.6}
    return model, guide, size, params, elbo


def beta_bernoulli():
    flips = jnp.array([1.0, 1, 0, 1, 1, 0, 1, 1])

    def model(_):
        p = numpyro.sample("p", dist.Beta(numpyro.param("a", 2.0), numpyro.param("b", 3.0)))
        with numpyro.plate("data", 8):
            numpyro.sample("x", dist.Bernoulli(p), obs=flips)

    def guide(_):
        numpyro.sample("p", dist.Beta(numpyro.param("c", 4.0), numpyro.param("d", 2.5)))

    def elbo(params):
        a, b, c, d = (params[name] for name in "abcd")
        log_p, log_not = digamma(c) - digamma(c + d), digamma(d) - digamma(c + d)
        joint = (a + 5) * log_p + (b + 1) * log_not - betaln(a, b)
        return joint - (c - 1) * log_p - (d - 1) * log_not + betaln(c, d)

    return model, guide, None, {"a": 2.0, "b": 3.0, "c": 4.0, "d": 2.5}, elbo


def normal_normal(size):
    x = DATA[:8]

    def model(subsample_size):
        with numpyro.plate("data", 8, subsample_size=subsample_size) as index:
            top = numpyro.sample("top", dist.Normal(numpyro.param("m", 0.3), 1.0))
            z = numpyro.sample("z", dist.Normal(numpyro.param("w", 0.8) * top, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def guide(subsample_size):
        with numpyro.plate("data", 8, subsample_size=subsample_size) as index:
            z = numpyro.sample("z", dist.Normal(numpyro.param("k", 0.4) * x[index], 0.6))
            numpyro.sample("top", dist.Normal(numpyro.param("c", 0.2) * z, 0.8))

    def elbo(params):
        m, w, k, c = (params[name] for name in "mwkc")
        mean, variance = k * x, 0.6**2
        top, top_variance = c * mean, (c**2) * variance + 0.8**2
        residual = (mean - w * top) ** 2 + (1 - w * c) ** 2 * variance + (w * 0.8) ** 2
        squares = (x - mean) ** 2 + variance + residual + (top - m) ** 2 + top_variance
        return jnp.sum(-squares / 2)  # up to a constant: the entropies do not depend on anything

    return model, guide, size, {"m": 0.3, "w": 0.8, "k": 0.4, "c": 0.2}, elbo


CONJUGATE = {
    "Gamma-Poisson": gamma_poisson(None),
    "Gamma-Poisson, subsampled": gamma_poisson(3),
    "Beta-Bernoulli": beta_bernoulli(),
    "Normal-Normal": normal_normal(None),
    "Normal-Normal, subsampled": normal_normal(3),
}


@pytest.mark.parametrize("name", CONJUGATE)
def test_gradients_of_conjugate_models_are_exact(name):
    """2,000 draws of the ELBO with K = 4; the wake-phase gradient is another one: caught."""
    model, guide, size, params, elbo = CONJUGATE[name]
    params = jax.tree.map(jnp.asarray, params)
    exact = jax.grad(lambda p: -elbo(p))(params)

    def scores(**options):
        objective = Bound(4, gdregs.ELBO(), **options)

        def draw(key):
            return jax.grad(lambda p: objective.loss(key, p, model, guide, size))(params)

        draws = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(2), 2000))
        return {
            n: float((g.mean() - exact[n]) / (g.std() / len(g) ** 0.5 + 1e-6))
            for n, g in draws.items()
        }

    found = scores()
    assert max(map(abs, found.values())) < 4.5, found
    assert max(map(abs, scores(posterior_estimator="rws").values())) > 4.5


# --- errors ------------------------------------------------------------------------------------


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
