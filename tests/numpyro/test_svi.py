"""`gdregs.numpyro.SVI`: numpyro's own, with estimators that are learned."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import infer
from numpyro.distributions import constraints
from numpyro.infer import Trace_ELBO, autoguide
from numpyro.primitives import mutable

from gdregs.numpyro import SVI, Bound
from gdregs.numpyro.svi import STATE
from means import assert_unbiased
from numpyro_programs import DATA, PROGRAMS


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


MODEL, MAKE_GUIDE, _ = PROGRAMS["local"]
GUIDE = MAKE_GUIDE()
KEY = jax.random.key(0)


def counting_guide(data):
    """A guide with a state of the user's."""
    state = mutable("count", {"value": 0.0})
    state["value"] = state["value"] + 1.0
    return GUIDE(data)


def make(loss, cls=SVI, guide=GUIDE):
    return cls(MODEL, guide, optax.sgd(0.02), loss)


def begin(svi, *arguments):
    """`SVI.init`, which compiles each of its operations by itself: tests have it as a fixture."""
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return svi.init(KEY, *arguments), [str(one.message) for one in caught]


@pytest.fixture(scope="module")
def begun():
    svi = make(Bound(4), guide=counting_guide)
    return svi, begin(svi, DATA)[0]


@pytest.mark.filterwarnings("ignore:mutable state is that of the first of 4 particles")
def test_the_first_step_is_the_naive_one_and_later_ones_are_not(begun):
    """Beside what is learned the state of the user is kept."""
    svi, state = begun
    theirs = make(Bound(4), infer.SVI, counting_guide)
    theirs.constrain_fn = svi.constrain_fn

    @jax.jit
    def run(state):
        def step(state, _):
            state, loss = svi.update(state, DATA)
            return state, (svi.get_params(state), loss)

        last, found = jax.lax.scan(step, state, None, length=41)
        of_the_user = {"count": state.mutable_state["count"]}
        naive, loss = theirs.update(state._replace(mutable_state=of_the_user), DATA)
        learned = last.mutable_state[STATE].strengths
        count = last.mutable_state["count"]["value"]
        return found, (svi.get_params(naive), loss), learned, count

    before = np.asarray(state.mutable_state["count"]["value"])
    found, naive, strengths, count = jax.device_get(run(state))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-5), found, naive)
    assert naive[0]["slope"] != np.float32(0.3)
    assert np.any(strengths != 0)
    assert np.all(np.isfinite(found[1]))
    assert count == before + 41


@pytest.mark.slow
def test_every_step_is_unbiased():
    """Whatever was learned: the step after 60 others, against a naive one with the same samples."""
    svi, theirs = make(Bound(4)), make(Bound(4), infer.SVI)
    stl = make(Bound(4, posterior_estimator="stl", prior_estimator="naive"), infer.SVI)
    state, _ = begin(svi, DATA)
    theirs.constrain_fn = stl.constrain_fn = svi.constrain_fn

    @jax.jit
    def later(state):
        return jax.lax.scan(lambda s, _: svi.update(s, DATA), state, None, length=60)[0]

    state = later(state)
    assert np.any(np.asarray(state.mutable_state[STATE].strengths) != 0)

    def after(svi, mutable_state):
        def of(key):
            start = state._replace(rng_key=key, mutable_state=mutable_state)
            return svi.get_params(svi.update(start, DATA)[0])

        return of

    suspects = {"learned": after(svi, state.mutable_state), "stl": after(stl, None)}
    assert_unbiased(suspects, after(theirs, None), KEY, biased=("stl",))


@pytest.mark.slow
def test_everything_that_numpyros_does():
    svi = make(Bound(4))
    state = svi.init(KEY, DATA)
    stable, _ = jax.jit(svi.stable_update)(state, DATA)
    assert jax.tree.structure(stable) == jax.tree.structure(state)
    assert jnp.isfinite(svi.evaluate(stable, DATA))
    run = svi.run(KEY, 3, DATA, progress_bar=False, stable_update=True)
    again = svi.run(KEY, 2, DATA, progress_bar=False, init_state=run.state)
    assert again.state.mutable_state[STATE].learned.count == 5
    predictive = infer.Predictive(GUIDE, params=again.params, num_samples=3)
    assert predictive(KEY, DATA)["z"].shape[0] == 3


def test_other_losses_and_named_estimators_are_left_alone():
    """The step is numpyro's, operation by operation."""

    def step_of(cls, loss):
        svi = make(loss, cls)
        program = jax.make_jaxpr(lambda key: svi.update(svi.init(key, DATA), DATA))(KEY)
        return re.sub("0x[0-9a-f]+", "", str(program))

    named = Bound(2, posterior_estimator="naive", prior_estimator="gdregs")
    for loss in (Trace_ELBO(2), named):
        assert step_of(SVI, loss) == step_of(infer.SVI, loss)


def test_one_named_estimator_stays():
    bound = Bound(4, posterior_estimator="dregs").with_estimators("a", "b")
    assert bound.settings.posterior_estimator == "dregs"
    assert bound.settings.prior_estimator == "b"
    bound = Bound(4, prior_estimator="naive").with_estimators("a", "b")
    assert bound.settings.posterior_estimator == "a"
    assert bound.settings.prior_estimator == "naive"


def _angle():
    numpyro.sample("z", dist.VonMises(numpyro.param("centre", 0.5), 2.0))


def _normal():
    numpyro.sample("z", dist.Normal(numpyro.param("q", 0.1), 0.5))


def _normal_with_a_factor():
    _normal()
    numpyro.factor("chain", 0.1)


@pytest.fixture(scope="module", params=["prior", "both"])
def unmixable(request):
    """What cannot be mixed, and what `init` makes of it: its SVI, its state and its warnings."""
    guide = _normal_with_a_factor if request.param == "both" else _normal
    svi = SVI(_angle, guide, optax.sgd(0.01), Bound(4))
    return request.param, svi, *begin(svi)


def test_what_cannot_be_mixed_stays_naive_and_says_so(unmixable):
    what, svi, state, messages = unmixable
    if what == "prior":
        assert "The prior's estimator stays naive: " in messages[0]
        assert "'z': VonMises" in messages[0]
        assert not svi.auto.prior
        assert STATE in jax.eval_shape(svi.update, state)[0].mutable_state
    else:
        assert "Both estimators stay naive: The guide adds the factor" in messages[0]
        assert not state.mutable_state


def _two_kinds():
    share = numpyro.sample("share", dist.Beta(1.0, 1.0))
    kind = numpyro.sample("kind", dist.Bernoulli(share), infer={"enumerate": "parallel"})
    numpyro.sample("x", dist.Normal(1.0 * kind, 1.0), obs=0.3)


def _two_latents():
    numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


@pytest.mark.many_programs("SVI.init compiles each of its operations by itself")
@pytest.mark.parametrize(
    ("model", "make_guide"),
    [
        (
            _two_kinds,
            lambda: autoguide.AutoNormal(numpyro.handlers.block(_two_kinds, hide=["kind"])),
        ),
        (_two_latents, lambda: autoguide.AutoIAFNormal(_two_latents)),
    ],
    ids=["enumerated", "flow"],
)
def test_what_would_take_far_longer_stays_naive(model, make_guide):
    svi = SVI(model, make_guide(), optax.sgd(0.01), Bound(4))
    state, messages = begin(svi)
    assert not state.mutable_state
    assert not messages


def pinned(x, width):
    m = numpyro.param("m", 0.0)
    t = numpyro.param("t", 1.0, constraint=constraints.positive)
    with numpyro.plate("n", len(x)):
        z = numpyro.sample("z", dist.Normal(m, t))
        numpyro.sample("x", dist.Normal(z, width), obs=x)


def logistic(x, y):
    weights = numpyro.sample("w", dist.Normal(0, 1).expand([x.shape[1]]).to_event(1))
    offset = numpyro.sample("c", dist.Normal(0, 3))
    numpyro.sample("y", dist.Bernoulli(logits=x @ weights + offset), obs=y)


@pytest.mark.many_programs("SVI.init compiles each of its operations by itself")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("pinned", marks=pytest.mark.slow),
        pytest.param("logistic", marks=pytest.mark.nightly),
    ],
)
def test_never_worse_than_naive_and_in_the_end_better(name):
    """Total variance over 400 draws, from the first step on; each alone is worse somewhere."""
    random = np.random.default_rng(1)
    if name == "pinned":
        arguments = ((2 + 0.5 * random.normal(size=100)).astype(np.float32), 0.05)
        model, num_particles = pinned, 4
    else:
        x = random.normal(size=(100, 5)).astype(np.float32)
        arguments = (x, (x @ np.arange(5.0) - 3 > 0).astype(np.float32))
        model, num_particles = logistic, 8
    guide = autoguide.AutoNormal(model)
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), Bound(num_particles))
    state, _ = begin(svi, *arguments)

    def of(*pair):
        bound = Bound(num_particles, posterior_estimator=pair[0], prior_estimator=pair[1])

        def loss(params, key):
            return bound.loss(key, svi.constrain_fn(params), model, guide, *arguments)

        return jax.grad(loss)

    @jax.jit
    def variances(state):
        params = svi.optim.get_params(state.optim_state)

        def learned(params, key):
            mixed = svi._mixed_loss(key, None, state.mutable_state[STATE], arguments, {})
            return jax.grad(mixed, has_aux=True)(params)[0]

        def draw(key):
            each = (of("naive", "naive"), of("dregs", "gdregs"), learned)
            return [gradient(params, key) for gradient in each]

        draws = jax.lax.map(draw, jax.random.split(jax.random.key(77), 400), batch_size=40)
        return [sum(jnp.sum(jnp.var(g, axis=0)) for g in jax.tree.leaves(one)) for one in draws]

    @jax.jit
    def train(state, num_steps):
        return jax.lax.fori_loop(0, num_steps, lambda _, s: svi.update(s, *arguments)[0], state)

    worst_of_the_papers, before = 0.0, 0
    for number in (0, 20, 60, 100, 300, 1500):
        state, before = train(state, number - before), number
        naive, papers, ours = map(float, variances(state))
        assert ours <= 1.05 * naive, number
        worst_of_the_papers = max(worst_of_the_papers, papers / naive)
    assert worst_of_the_papers > 2
    assert ours < 0.9 * naive
    assert ours < 1.05 * papers


def test_a_second_derivative_is_refused():
    """It was 0, silently."""

    def loss(params, **options):
        bound = Bound(3, **options)
        return bound.loss(KEY, params, MODEL, GUIDE, DATA)

    def loss_of_papers(params):
        return loss(params, prior_estimator="gdregs")

    for second in (
        jax.hessian(loss), jax.jacrev(jax.grad(loss)), jax.hessian(jax.jit(loss)),
        jax.hessian(loss_of_papers),
    ):  # fmt: skip
        with pytest.raises(NotImplementedError, match="has no second derivative"):
            jax.eval_shape(second, {"centre": np.float32(0.5), "slope": np.float32(0.3)})
