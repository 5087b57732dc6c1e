"""Discrete latents that are summed out, held against the same models with the sum by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, autoguide

import gdregs
from gdregs.numpyro import bound
from gdregs.numpyro.bound import Bound
from means import largest_z

PAPERS = {"posterior_estimator": "dregs", "prior_estimator": "gdregs"}
SUMMED = {"enumerate": "parallel"}
DATA = np.random.default_rng(0).normal(size=12) + np.repeat([-2.0, 0.0, 2.0], 4)
DATA = DATA.astype(np.float32)  # JAX mixes up programs of float64 data, in and out of enable_x64


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


def weights_and_means():
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    spread = numpyro.param("spread", 2.0, constraint=dist.constraints.positive)
    with numpyro.plate("components", 3):
        return weights, numpyro.sample("means", dist.Normal(0.0, spread))


def mixture(data, size=None):
    weights, means = weights_and_means()
    with numpyro.plate("data", len(data), size):
        x = numpyro.subsample(data, event_dim=0)
        c = numpyro.sample("c", dist.Categorical(weights), infer=SUMMED)
        numpyro.sample("x", dist.Normal(means[c], 0.7), obs=x)


def mixture_by_hand(data, size=None):
    weights, means = weights_and_means()
    components = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(means, 0.7))
    with numpyro.plate("data", len(data), size):
        x = numpyro.subsample(data, event_dim=0)
        numpyro.sample("x", components, obs=x)


def chain(data):
    """A hidden Markov model."""
    stay = numpyro.sample("stay", dist.Beta(2.0, 2.0))
    means = numpyro.sample("means", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    def step(before, x):
        c = numpyro.sample(
            "c", dist.Bernoulli(jnp.where(before == 1, stay, 1 - stay)), infer=SUMMED
        )
        numpyro.sample("x", dist.Normal(means[c], 0.5), obs=x)
        return c, None

    scan(step, 0, data)


def chain_by_hand(data):
    stay = numpyro.sample("stay", dist.Beta(2.0, 2.0))
    means = numpyro.sample("means", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    transition = jnp.log(jnp.array([[stay, 1 - stay], [1 - stay, stay]]))
    forward = transition[0]
    for t, x in enumerate(data):
        if t:
            forward = jax.nn.logsumexp(forward[:, None] + transition, axis=0)
        forward += dist.Normal(means, 0.5).log_prob(x)
    numpyro.factor("x", jax.nn.logsumexp(forward))


def switching(data):
    """A continuous chain whose noise is switched by a hidden discrete one."""
    stay = numpyro.param("stay", 0.8)

    def step(before, x):
        c, z = before
        c = numpyro.sample("c", dist.Bernoulli(jnp.where(c == 1, stay, 1 - stay)), infer=SUMMED)
        z = numpyro.sample("z", dist.Normal(z, jnp.where(c == 1, 1.0, 0.1)))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)
        return (c, z), None

    scan(step, (0, 0.0), data)


def switching_by_hand(data):
    stay = numpyro.param("stay", 0.8)
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([len(data)]).to_event(1).mask(False))
    before = jnp.concatenate([jnp.zeros(1), z[:-1]])
    steps = jnp.stack([dist.Normal(before, s).log_prob(z) for s in (0.1, 1.0)], axis=-1)
    transition = jnp.log(jnp.array([[stay, 1 - stay], [1 - stay, stay]]))
    forward = transition[0] + steps[0]
    for step in steps[1:]:
        forward = jax.nn.logsumexp(forward[:, None] + transition, axis=0) + step
    numpyro.factor("path", jax.nn.logsumexp(forward))
    numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=data)


def loss_and_gradient(model, guide, data, params, loss):
    def function(params):
        return loss.loss(jax.random.key(5), params, model, guide, *data)

    return jax.jit(jax.value_and_grad(function))(params)


@pytest.mark.parametrize(
    ("summed", "by_hand", "data", "options"),
    [
        (mixture, mixture_by_hand, (DATA,), {}),
        (mixture, mixture_by_hand, (DATA,), PAPERS),
        pytest.param(
            mixture,
            mixture_by_hand,
            (DATA, 5),
            {**PAPERS, "objective": gdregs.ELBO()},
            marks=pytest.mark.slow,
        ),
        pytest.param(chain, chain_by_hand, (DATA[:6],), PAPERS, marks=pytest.mark.slow),
        (switching, switching_by_hand, (DATA[:5],), {"posterior_estimator": "dregs"}),
    ],
    ids=["mixture", "mixture, papers", "mixture, subsampled", "chain", "switching"],
)
def test_sums_are_those_by_hand(float64, summed, by_hand, data, options):
    guide = autoguide.AutoNormal(by_hand, init_scale=0.3)
    svi = SVI(by_hand, guide, optax.adam(0.1), Trace_ELBO())
    params = svi.get_params(svi.init(jax.random.key(0), *data))
    found, expected = (
        loss_and_gradient(model, guide, data, params, Bound(4, **options))
        for model in (summed, by_hand)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8), found, expected
    )


def local(data):
    """A mixture in the middle: h, which has the papers' path, c, which is summed out, and z."""
    centre, width = numpyro.param("centre"), numpyro.param("width")
    with numpyro.plate("data", len(data)):
        h = numpyro.sample("h", dist.Normal(centre, width))
        c = numpyro.sample("c", dist.Bernoulli(logits=h), infer=SUMMED)
        z = numpyro.sample("z", dist.Normal(2.0 * c - 1.0, numpyro.param("noise")))
        numpyro.sample("x", dist.Normal(z + h, 0.7), obs=data)


def local_guide(data):
    with numpyro.plate("data", len(data)):
        numpyro.sample("h", dist.Normal(numpyro.param("slope") * data, 0.6))
        numpyro.sample("z", dist.Normal(0.3 * data, numpyro.param("spread")))


PARAMS = {"centre": 0.3, "width": 0.8, "noise": 0.5, "slope": 0.5, "spread": 0.4}


def draws(**options):
    params = {name: jnp.asarray(value) for name, value in PARAMS.items()}
    loss = Bound(4, **options)
    return lambda key: jax.grad(lambda p: loss.loss(key, p, local, local_guide, DATA))(params)


@pytest.mark.slow
def test_what_does_not_depend_on_a_discrete_latent_has_the_papers_path(monkeypatch):
    monkeypatch.setattr(bound, "pays", lambda *parts: False)  # both the same way, to the last bit
    params = {name: jnp.asarray(value) for name, value in PARAMS.items()}
    _, _, prior, _, _ = Bound(4)._read(jax.random.key(0), params, local, local_guide, (DATA,), {})
    assert prior.free == ("h",)
    naive, mixed = (draws(**options)(jax.random.key(0)) for options in ({}, PAPERS))
    assert naive["noise"] == mixed["noise"]  # as part of the sum it stays naive
    assert naive["width"] != mixed["width"]


@pytest.mark.slow
def test_gradients_around_a_sum_are_unbiased_and_stls_are_not():
    suspects = {
        "papers": draws(**PAPERS),
        "stl": draws(posterior_estimator="stl", prior_estimator="naive"),
    }
    largest = largest_z(suspects, draws(), jax.random.key(0), 4000)
    assert largest["papers"] < 1 < largest["stl"], largest


def test_a_model_of_discrete_latents_alone(float64):
    def model(data):
        weight, centre = numpyro.param("weight"), numpyro.param("centre")
        with numpyro.plate("data", len(data)):
            c = numpyro.sample("c", dist.Bernoulli(weight), infer=SUMMED)
            numpyro.sample("x", dist.Normal(centre * c, 1.0), obs=data)

    params = {"weight": jnp.asarray(0.3), "centre": jnp.asarray(1.5)}
    found, expected = (
        loss_and_gradient(model, lambda data: None, (DATA,), params, loss)
        for loss in (Bound(2), TraceEnum_ELBO(max_plate_nesting=1))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, expected)


def test_a_discrete_latent_that_is_not_summed_says_how():
    def model(data):
        numpyro.sample("c", dist.Bernoulli(0.5))

    def guide(data):
        numpyro.sample("c", dist.Bernoulli(0.5), infer=SUMMED)

    def nothing(data):
        pass

    def count(data):
        numpyro.sample("n", dist.Poisson(3.0))

    loss = Bound(2)
    for program, its_guide, message in (
        (model, nothing, "Site 'c' is a discrete latent.*infer={'enumerate': 'parallel'}"),
        (model, guide, "The guide enumerates site 'c'"),
        (count, nothing, "Site 'n' is a discrete latent.*marginalise it by hand"),
    ):
        with pytest.raises(ValueError, match=message):
            loss.loss(jax.random.key(0), {}, program, its_guide, DATA)


def test_scales_within_a_sum_must_be_one():
    def model(data):
        c = numpyro.sample("c", dist.Bernoulli(0.5), infer=SUMMED)
        with numpyro.handlers.scale(scale=0.5):
            numpyro.sample("x", dist.Normal(c, 1.0), obs=1.0)

    with pytest.raises(ValueError, match=r"The sites \['c', 'x'\] are summed over"):
        Bound(2).loss(jax.random.key(0), {}, model, lambda data: None, DATA)
