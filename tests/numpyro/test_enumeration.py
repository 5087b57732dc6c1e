"""Discrete latents that are summed out, held against the same models with the sum by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import TraceEnum_ELBO, autoguide

import gdregs
from gdregs.numpyro.bound import Bound
from means import assert_unbiased
from numpyro_programs import initial_parameters, traced

PAPERS = {"posterior_estimator": "dregs", "prior_estimator": "gdregs"}
SUMMED = {"enumerate": "parallel"}
KEY = jax.random.key(5)
DATA = np.random.default_rng(0).normal(size=12) + np.repeat([-2.0, 0.0, 2.0], 4)
DATA = DATA.astype(np.float32)  # JAX mixes up programs of float64 data, in and out of enable_x64


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


def weights_and_means():
    logits = numpyro.sample("logits", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    weights = jax.nn.softmax(logits)
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


def mixture_guide(data, size=None):
    centre = numpyro.param("centre", jnp.array([0.3, -0.2, 0.1]))
    numpyro.sample("logits", dist.Normal(centre, 0.5).to_event(1))
    with numpyro.plate("components", 3):
        numpyro.sample("means", dist.Normal(numpyro.param("m", 0.2), 0.6))


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


def switching_guide(data):
    numpyro.sample("z", dist.Normal(numpyro.param("slope", 0.5) * data, 0.4).to_event(1))


CASES = {
    "mixture": (mixture, mixture_by_hand, mixture_guide, (DATA[:4],), PAPERS),
    "mixture, subsampled": (
        mixture, mixture_by_hand, mixture_guide, (DATA, 5), PAPERS | {"objective": gdregs.ELBO()},
    ),
    "chain": (chain, chain_by_hand, None, (DATA[:4],), PAPERS),
    "switching": (
        switching, switching_by_hand, switching_guide, (DATA[:3],),
        {"posterior_estimator": "dregs"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "mixture",
        "switching",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mixture, subsampled", "chain")),
    ],
)
def test_sums_are_those_by_hand(float64, name):
    summed, by_hand, its_guide, data, options = CASES[name]

    @jax.jit
    def found_and_expected(key):
        guide = its_guide or autoguide.AutoNormal(by_hand, init_scale=0.3)
        params = initial_parameters(by_hand, guide, *data)
        return [
            jax.value_and_grad(
                lambda p, model=model: Bound(4, **options).loss(key, p, model, guide, *data)
            )(params)
            for model in (summed, by_hand)
        ]

    found, expected = jax.device_get(found_and_expected(KEY))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8), found, expected
    )
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(expected))


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
    loss = Bound(4, **options)
    return lambda key: jax.grad(lambda p: loss.loss(key, p, local, local_guide, DATA[:4]))(
        traced(PARAMS)
    )


def test_what_does_not_depend_on_a_discrete_latent_has_the_papers_path(float64):
    """The rest stays naive, as a part of the sum. (The naive gradient is the live one.)"""

    @jax.jit
    def naive_and_papers(key, params):
        return [
            jax.grad(
                lambda p, options=options: Bound(4, **options).loss(
                    key, p, local, local_guide, DATA[:2]
                )
            )(params)
            for options in ({}, PAPERS)
        ]

    naive, papers = jax.device_get(naive_and_papers(KEY, PARAMS))
    np.testing.assert_allclose(naive["noise"], papers["noise"], rtol=1e-10)
    assert abs(naive["width"] - papers["width"]) > 1e-3


@pytest.mark.slow
def test_gradients_around_a_sum_are_unbiased_and_stls_are_not():
    suspects = {
        "papers": draws(**PAPERS),
        "stl": draws(posterior_estimator="stl", prior_estimator="naive"),
    }
    assert_unbiased(suspects, draws(), jax.random.key(0), biased=("stl",))


def test_a_model_of_discrete_latents_alone(float64):
    def model(data):
        weight, centre = numpyro.param("weight"), numpyro.param("centre")
        with numpyro.plate("data", len(data)):
            c = numpyro.sample("c", dist.Bernoulli(weight), infer=SUMMED)
            numpyro.sample("x", dist.Normal(centre * c, 1.0), obs=data)

    @jax.jit
    def found_and_expected(key, params):
        return [
            jax.value_and_grad(
                lambda p, loss=loss: loss.loss(key, p, model, lambda data: None, DATA)
            )(params)
            for loss in (Bound(2), TraceEnum_ELBO(max_plate_nesting=1))
        ]

    found, expected = jax.device_get(found_and_expected(KEY, {"weight": 0.3, "centre": 1.5}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, expected)


def _trace(model, guide):
    """Where refusals are; nothing is computed."""
    jax.eval_shape(lambda key: Bound(2).loss(key, {}, model, guide, DATA), KEY)


def test_a_discrete_latent_that_is_not_summed_says_how():
    def model(data):
        numpyro.sample("c", dist.Bernoulli(0.5))

    def guide(data):
        numpyro.sample("c", dist.Bernoulli(0.5), infer=SUMMED)

    def nothing(data):
        pass

    def count(data):
        numpyro.sample("n", dist.Poisson(3.0))

    def drawn(data):
        numpyro.sample("c", dist.Bernoulli(0.5))

    for program, its_guide, message in (
        (model, nothing, "Site 'c' is a discrete latent.*infer={'enumerate': 'parallel'}"),
        (model, guide, "The guide enumerates site 'c'"),
        (count, nothing, "Site 'n' is a discrete latent.*marginalise it by hand"),
        (drawn, drawn, "Site 'c' is a discrete latent"),
    ):
        with pytest.raises(ValueError, match=message):
            _trace(program, its_guide)


def test_scales_within_a_sum_must_be_one():
    def model(data):
        c = numpyro.sample("c", dist.Bernoulli(0.5), infer=SUMMED)
        with numpyro.handlers.scale(scale=0.5):
            numpyro.sample("x", dist.Normal(c, 1.0), obs=1.0)

    with pytest.raises(ValueError, match=r"The sites \['c', 'x'\] are summed over"):
        _trace(model, lambda data: None)
