"""`gdregs.numpyro.SVI`: numpyro's own, with estimators that are learned."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import infer
from numpyro.distributions import constraints
from numpyro.infer import RenyiELBO, Trace_ELBO, autoguide
from numpyro.primitives import mutable

from gdregs.numpyro import SVI, Bound
from gdregs.numpyro.svi import STATE
from numpyro_programs import DATA, PROGRAMS


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


MODEL, GUIDE, _ = PROGRAMS["local"]


def make(loss, cls=SVI, guide=GUIDE):
    return cls(MODEL, guide, optax.adam(0.02), loss)


def test_the_first_step_is_the_naive_one_and_later_ones_are_not():
    ours, theirs = make(Bound(4)), make(Bound(4), infer.SVI)
    states = [svi.init(jax.random.key(0), DATA) for svi in (ours, theirs)]
    after = [svi.update(state, DATA) for svi, state in zip((ours, theirs), states, strict=True)]
    params = [ours.get_params(after[0][0]), theirs.get_params(after[1][0])]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *params)
    assert after[0][1] == pytest.approx(float(after[1][1]))
    run = ours.run(jax.random.key(0), 50, DATA, progress_bar=False)
    assert jnp.any(run.state.mutable_state[STATE].strengths != 0)
    assert jnp.all(jnp.isfinite(run.losses))


@pytest.mark.slow
def test_everything_that_numpyros_does():
    svi = make(Bound(4))
    state = svi.init(jax.random.key(0), DATA)
    scanned, _ = jax.lax.scan(lambda state, _: svi.update(state, DATA), state, None, length=3)
    stable, _ = jax.jit(svi.stable_update)(scanned, DATA)
    assert jax.tree.structure(stable) == jax.tree.structure(state)
    assert jnp.isfinite(svi.evaluate(stable, DATA))
    run = svi.run(jax.random.key(0), 3, DATA, progress_bar=False, stable_update=True)
    again = svi.run(jax.random.key(1), 2, DATA, progress_bar=False, init_state=run.state)
    assert again.state.mutable_state[STATE].learned.count == 5
    predictive = infer.Predictive(GUIDE, params=again.params, num_samples=3)
    assert predictive(jax.random.key(2), DATA)["z"].shape[0] == 3


def test_other_losses_and_named_estimators_are_left_alone():
    named = Bound(2, posterior_estimator="naive", prior_estimator="gdregs")
    for loss in (Trace_ELBO(2), RenyiELBO(0, 2), named):
        ours, theirs = (
            make(loss, cls).run(jax.random.key(0), 5, DATA, progress_bar=False)
            for cls in (SVI, infer.SVI)
        )
        np.testing.assert_array_equal(ours.losses, theirs.losses)
        assert jax.tree.structure(ours.state) == jax.tree.structure(theirs.state)


def test_one_named_estimator_stays():
    bound = Bound(4, posterior_estimator="dregs").with_estimators("a", "b")
    assert bound.settings.posterior_estimator == "dregs"
    assert bound.settings.prior_estimator == "b"
    run = make(Bound(4, prior_estimator="naive")).run(
        jax.random.key(0), 30, DATA, progress_bar=False
    )
    strengths = run.state.mutable_state[STATE].strengths
    assert jnp.any(strengths[:, 0] != 0)
    assert jnp.all(strengths[:, 1] == 0)


@pytest.mark.filterwarnings("ignore:mutable state is that of the first of 4 particles")
def test_the_state_of_the_user_is_kept():
    def guide(data):
        state = mutable("count", {"value": 0.0})
        state["value"] = state["value"] + 1.0
        return GUIDE(data)

    run = make(Bound(4), guide=guide).run(jax.random.key(0), 7, DATA, progress_bar=False)
    assert run.state.mutable_state["count"]["value"] == 8
    assert run.state.mutable_state[STATE].learned.count == 7


def test_what_cannot_be_mixed_stays_naive_and_says_so():
    def model():
        numpyro.sample("z", dist.VonMises(numpyro.param("centre", 0.5), 2.0))

    def guide():
        numpyro.sample("z", dist.Normal(numpyro.param("q", 0.1), 0.5))

    svi = SVI(model, guide, optax.adam(0.01), Bound(4))
    with pytest.warns(UserWarning, match=r"prior's estimator stays naive: .*'z': VonMises"):
        run = svi.run(jax.random.key(0), 30, progress_bar=False)
    strengths = run.state.mutable_state[STATE].strengths
    assert jnp.any(strengths[:, 0] != 0)
    assert jnp.all(strengths[:, 1] == 0)


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


def total_variance(gradient, keys):
    """A program that sums the variances over so many draws."""

    @jax.jit
    def of(*arguments):
        draws = jax.lax.map(lambda key: gradient(*arguments, key), keys, batch_size=32)
        return sum(jnp.sum(jnp.var(g, axis=0)) for g in jax.tree.leaves(draws))

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pinned", "logistic"])
def test_never_worse_than_naive_and_in_the_end_better(name):
    """Total variance over 600 draws, from the first step on; each alone is worse somewhere."""
    if name == "pinned":
        x = 2 + 0.5 * jax.random.normal(jax.random.key(9), (200,))
        model, arguments, num_particles = pinned, (x, 0.05), 4
    else:
        x = jax.random.normal(jax.random.key(1), (100, 5))
        arguments = (x, (x @ jnp.arange(5.0) - 3 > 0).astype(float))
        model, num_particles = logistic, 8
    guide = autoguide.AutoNormal(model)
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), Bound(num_particles))
    state = svi.init(jax.random.key(0), *arguments)
    keys = jax.random.split(jax.random.key(77), 600)
    update = jax.jit(lambda state: svi.update(state, *arguments))

    def of(pair):
        bound = Bound(num_particles, posterior_estimator=pair[0], prior_estimator=pair[1])

        def loss(params, key):
            return bound.loss(key, svi.constrain_fn(params), model, guide, *arguments)

        return jax.grad(loss)

    def learned(params, learned, key):
        mixed = svi._mixed_loss(key, None, learned, arguments, {})
        return jax.grad(mixed, has_aux=True)(params)[0]

    variance_of_ours = total_variance(learned, keys)
    variance_of_naive, variance_of_papers = (
        total_variance(of(pair), keys) for pair in (("naive", "naive"), ("dregs", "gdregs"))
    )
    worst_of_the_papers = 0.0
    for number in range(1501):
        if number in (0, 20, 60, 100, 300, 1500):
            params = svi.optim.get_params(state.optim_state)
            naive, papers = variance_of_naive(params), variance_of_papers(params)
            ours = variance_of_ours(params, state.mutable_state[STATE])
            assert ours <= 1.05 * naive, number
            worst_of_the_papers = max(worst_of_the_papers, papers / naive)
        state, _ = update(state)
    assert worst_of_the_papers > 2
    assert ours < 0.9 * naive
    assert ours < 1.05 * papers


@pytest.mark.parametrize("options", [{}, {"prior_estimator": "gdregs"}])
def test_a_second_derivative_is_refused(options):
    """It was 0, silently."""
    model, guide, data = PROGRAMS["local"]
    params = {"centre": jnp.asarray(0.5), "slope": jnp.asarray(0.3)}

    def loss(params):
        return Bound(3, **options).loss(jax.random.key(0), params, model, guide, data)

    assert jax.jit(jax.grad(loss))(params)["centre"] != 0
    for second in (jax.hessian(loss), jax.jacrev(jax.grad(loss)), jax.hessian(jax.jit(loss))):
        with pytest.raises(NotImplementedError, match="has no second derivative"):
            second(params)
