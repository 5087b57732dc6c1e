"""The mix that is measured: rows of the table, unbiased steps, strengths of least variance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
import models
import reference
from gdregs.auto import SETTLING, _best

KEY = jax.random.key(5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"num_gradient_samples": 3}, marks=pytest.mark.slow),
        pytest.param({"chunk_size": 4}, marks=pytest.mark.slow),
    ],
    ids=["all", "M = 3", "chunks"],
)
def test_a_mix_is_the_mix_of_the_two_draw_by_draw(float64, options):
    phi, theta, lam, x = reference.init(jax.random.key(1))

    def gradient(posterior_estimator):
        def total(phi, theta, lam):
            return models.total_bound(
                phi,
                theta,
                lam,
                x,
                key=KEY,
                num_samples=9,
                posterior_estimator=posterior_estimator,
                **options,
            )

        return jax.grad(total, argnums=(0, 1, 2))(phi, theta, lam)

    @jax.jit
    def run(beta):
        mixed = gradient(gdregs.mixed_dregs(beta))
        return mixed, gradient(gdregs.mixed_dregs(0.3)), gradient("naive"), gradient("dregs")

    traced, number, naive, dregs = run(0.3)
    expected = jax.tree.map(lambda a, b: 0.7 * a + 0.3 * b, naive, dregs)
    for found in (traced, number):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10, rtol=1e-10), found, expected
        )


def test_a_mix_on_a_posteriors_own_path(float64):
    """Without a re-expression rule the sampler is the path, of both halves."""
    x = jnp.array([0.3, -0.5])

    def gradient(estimator):
        def total(phi):
            posterior = models.OwnSampler(phi * jnp.ones(2), 0.8 * jnp.ones(2))
            prior, likelihood = dist.Normal(jnp.zeros(2), 1.0), dist.Normal(x, 1.0)
            return jnp.sum(
                gdregs.bound(
                    posterior,
                    prior,
                    lambda z: likelihood.log_prob(z),
                    key=KEY,
                    num_samples=4,
                    posterior_estimator=estimator,
                )
            )

        return jax.grad(total)(0.4)

    mixed, naive, dregs = map(gradient, (gdregs.mixed_dregs(0.3), "naive", "dregs"))
    np.testing.assert_allclose(mixed, 0.7 * naive + 0.3 * dregs, rtol=1e-10)


def test_beta_must_be_a_number():
    with pytest.raises(TypeError, match="beta must be a number; got 'half'"):
        gdregs.mixed_dregs("half")
    with pytest.raises(ValueError, match="decay must lie between 0 and 1"):
        gdregs.Auto(decay=1.0)
    with pytest.raises(ValueError, match="patience must be positive"):
        gdregs.Auto(patience=0.0)
    with pytest.raises(ValueError, match="most_work must be 1 or more"):
        gdregs.Auto(most_work=0.5)


X = jnp.array([0.4, -1.0, 2.0])
PARAMETERS = {"phi": jnp.array([0.1, 0.2, -0.3]), "theta": jnp.asarray(0.5), "lam": jnp.ones(3)}


def gradient(parameters, key, posterior_estimator="naive", prior_estimator="naive"):
    def loss(p):
        posterior, prior = (
            dist.Normal(p["phi"], 0.6),
            dist.Normal(p["theta"] * jnp.ones(3), jnp.full(3, 1.1)),
        )
        return -jnp.sum(
            gdregs.bound(
                posterior,
                prior,
                lambda z: dist.Normal(p["lam"][None] * z, 0.5).log_prob(X[None]),
                key=key,
                num_samples=4,
                posterior_estimator=posterior_estimator,
                prior_estimator=prior_estimator,
            )
        )

    return jax.value_and_grad(loss)(parameters)


@functools.partial(jax.jit, static_argnums=0)
def step(auto, state, key):
    return auto.value_and_grad(lambda *pair: gradient(PARAMETERS, key, *pair), state)


@pytest.mark.slow
def test_every_step_is_unbiased_and_to_look_at_the_draw_first_is_not():
    """The step after four others against the naive one of the same draw, over 20,000 runs."""
    auto = gdregs.Auto(patience=1.0)

    def draw(key):
        *earlier, last = jax.random.split(key, SETTLING + 2)
        state = auto.init(PARAMETERS)
        for one in earlier:
            _, state = step(auto, state, one)
        (_, ours), after = step(auto, state, last)
        (_, looking), _ = step(auto, after, last)
        return {"ours": ours, "looking first": looking}

    def naive(key):
        last = jax.random.split(key, SETTLING + 2)[-1]
        _, exact = gradient(PARAMETERS, last)
        return {"ours": exact, "looking first": exact}

    check = gdregs.check_unbiased(draw, naive, jax.random.key(4), 20_000, chunk_size=2000)
    largest = {
        name: max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(scores))
        for name, scores in check.z_scores.items()
    }
    assert largest["ours"] < check.threshold
    assert largest["looking first"] > 2 * check.threshold


def test_strengths_approach_those_of_least_variance(monkeypatch):
    """Against the regression of the naive gradient on the differences, over 20,000 draws."""
    monkeypatch.setattr("gdregs.auto.MARGINS", (-1e9,) * 3)  # whatever time it takes
    auto = gdregs.Auto(decay=0.999, patience=1.0, most_work=float("inf"))
    keys = jax.random.split(KEY, 64 * 3000)
    state, _ = jax.lax.scan(
        lambda state, key: (step(auto, state, key)[1], None), auto.init(PARAMETERS), keys
    )

    def draw(key):
        naive, by_q, by_p = (
            gradient(PARAMETERS, key, *pair)[1]
            for pair in (("naive", "naive"), ("dregs", "naive"), ("naive", "gdregs"))
        )
        return naive, by_q["phi"] - naive["phi"], by_p["theta"] - naive["theta"]

    naive, by_q, by_p = jax.lax.map(draw, jax.random.split(jax.random.key(9), 20_000))
    centred = jax.tree.map(lambda leaf: leaf - leaf.mean(0, keepdims=True), naive)
    beta = -jnp.sum(centred["phi"] * by_q) / jnp.sum(by_q**2)
    alpha = -jnp.sum(centred["theta"] * by_p) / jnp.sum(by_p**2)
    lam, phi, theta = state.strengths
    assert float(phi[0]) == pytest.approx(float(beta), abs=0.1)
    assert float(theta[1]) == pytest.approx(float(alpha), abs=0.1)
    assert phi[1] == theta[0] == 0
    np.testing.assert_array_equal(lam, 0)


def quadratic(seed, number):
    """Moments of so many parameters, of draws that were made up."""
    draws = np.random.default_rng(seed).normal(size=(number, 3, 50))
    by_q, by_p, noise = np.moveaxis(draws, 1, 0)
    noise = noise - 0.8 * by_q - 0.5 * by_p
    dots = [(by_q, by_q), (by_p, by_p), (by_q, by_p), (by_q, noise), (by_p, noise), (noise, noise)]
    return jnp.array(np.stack([np.sum(a * b, axis=1) for a, b in dots], axis=1))


def total(moments, strengths):
    qq, pp, qp, q, p, variance = np.asarray(moments).T
    beta, alpha = np.asarray(strengths).T
    changes = beta**2 * qq + alpha**2 * pp + 2 * (beta * alpha * qp + beta * q + alpha * p)
    return (variance + changes).sum()


@pytest.mark.parametrize("way", [0, 1, 2, 3])
def test_each_way_has_the_strengths_of_least_variance(float64, way):
    """Of its kind: neighbours of it have more."""
    moments = quadratic(way, 3)
    work = jnp.where(jnp.arange(4) == way, 1.0, jnp.inf).at[0].set(1.0 if way == 0 else 1e9)
    strengths, chosen = _best(moments, work)
    assert int(chosen) == way
    least = total(moments, strengths)
    free = {0: [], 1: [(slice(None), 0)], 2: [(slice(None), 0), (slice(None), 1)]}
    free[3] = [(row, column) for row in range(3) for column in range(2)]
    for where in free[way]:
        assert np.all(strengths[where] != 0)
        for step in (0.05, -0.05):
            assert total(moments, strengths.at[where].add(step)) > least
    if way in (1, 2):
        np.testing.assert_array_equal(strengths, jnp.broadcast_to(strengths[:1], (3, 2)))
    np.testing.assert_array_equal(strengths[:, way:], 0)  # the columns that it has not


def test_one_strength_each_is_the_mix_of_all_three_gradients():
    """The way that takes one backward pass against the one that takes three, draw by draw."""
    auto = gdregs.Auto(most_work=float("inf"))
    state = auto.init(PARAMETERS)
    strengths = jnp.array([[0.0, 0.0], [0.7, 0.0], [0.0, 0.4]])
    state = state._replace(step=jnp.array(101, jnp.int32))
    state = state.relearned(strengths=strengths, common=jnp.array([0.7, 0.4]))
    (_, common), (_, own) = (
        step(auto, state.relearned(way=jnp.array(way)), KEY)[0] for way in (2, 3)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), common, own)
    (_, only_posterior), _ = step(auto, state.relearned(way=jnp.array(1)), KEY)
    np.testing.assert_allclose(only_posterior["phi"], own["phi"], rtol=1e-5)
    _, naive = gradient(PARAMETERS, KEY)
    np.testing.assert_allclose(only_posterior["theta"], naive["theta"], rtol=1e-5)
    assert abs(float(own["theta"] - naive["theta"])) > 1e-3


@pytest.mark.slow
def test_strengths_of_more_digits_than_the_parameters(float64):
    """Where 64 bits are enabled and the parameters have 32."""
    auto = gdregs.Auto()
    state = auto.init(PARAMETERS)
    assert state.strengths.dtype == jnp.float64
    for way in range(4):
        at = state._replace(step=jnp.array(101, jnp.int32)).relearned(
            way=jnp.array(way), strengths=jnp.full((3, 2), 0.5), common=jnp.full(2, 0.5)
        )
        (_, found), _ = step(auto, at, KEY)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("begin", "steps", "taught"), [(0, 100, 100), (100, 64, 4), (4000, 128, 2)]
)
def test_later_steps_teach_less_often(begin, steps, taught):
    auto = gdregs.Auto()
    state = auto.init(PARAMETERS)._replace(step=jnp.array(begin, jnp.int32))
    keys = jax.random.split(KEY, steps)
    state, _ = jax.lax.scan(lambda state, key: (step(auto, state, key)[1], None), state, keys)
    assert int(state.step) == begin + steps
    assert float(state.learned.count) == taught


@pytest.mark.parametrize(
    ("rounds", "most_work", "way"),
    [(0, 1.2, 1), (3, 1.2, 0), (3, float("inf"), 1), (300, float("inf"), 0)],
    ids=["cheap", "longer than asked", "worth it", "not worth it"],
)
def test_what_takes_more_time_than_it_is_worth_is_left(rounds, most_work, way):
    """A path that makes a step many times as long must take away as much of the variance."""

    def slow(value):
        def turn(matrix, _):
            return jnp.tanh(matrix @ matrix), None

        matrix = jnp.full((4, 4), value)
        return jax.lax.scan(turn, matrix, None, length=rounds)[0][0, 0]

    def function(key, *pair):
        value, found = gradient(PARAMETERS, key, *pair)
        if pair[0] is not gdregs.POSTERIOR_ESTIMATORS["naive"]:
            found = jax.tree.map(lambda leaf: leaf + 0 * slow(jnp.sum(leaf)), found)
        return value, found

    auto = gdregs.Auto(most_work=most_work)

    def teach(state, key):
        return auto.value_and_grad(lambda *pair: function(key, *pair), state)[1], None

    keys = jax.random.split(KEY, 90)
    state, _ = jax.jit(lambda state: jax.lax.scan(teach, state, keys))(auto.init(PARAMETERS))
    assert int(state.learned.way) == way
    assert bool(jnp.any(state.strengths != 0)) == (way > 0)


def test_the_mean_is_that_of_the_gradients_of_all_steps():
    auto = gdregs.Auto()
    scalars = {"a": 0.1, "b": jnp.array([1.0, 2.0]), "c": jnp.array(0.3), "d": jnp.ones((2, 2))}
    state = auto.init(scalars)
    gradients = []
    for draw in range(1, 5):

        def function(posterior_estimator, prior_estimator, draw=draw):
            strength = 0.0 * prior_estimator.mix
            return 0.0, jax.tree.map(lambda leaf: draw * jnp.asarray(leaf) + strength, scalars)

        (_, found), state = auto.value_and_grad(function, state)
        gradients.append(found)
    expected = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *gradients)
    numbers, others = state.mean
    np.testing.assert_allclose(numbers, [expected["a"], expected["c"]], rtol=1e-6)
    found = [leaf for leaf in others if leaf is not None]
    for one, name in zip(found, "bd", strict=True):
        np.testing.assert_allclose(one, expected[name], rtol=1e-6)


@pytest.mark.slow
def test_a_draw_that_is_not_finite_teaches_nothing():
    auto = gdregs.Auto()
    state = auto.init(PARAMETERS)
    for key in jax.random.split(KEY, 10):
        _, state = step(auto, state, key)

    def broken(*pair):
        value, found = gradient(PARAMETERS, KEY, *pair)
        return value, jax.tree.map(lambda leaf: leaf * jnp.nan, found)

    _, after = auto.value_and_grad(broken, state)
    old, new = state.learned, after.learned
    for before, now in ((old.way, new.way), (old.moments, new.moments), (state.mean, after.mean)):
        jax.tree.map(np.testing.assert_array_equal, before, now)
    assert jnp.all(jnp.isfinite(after.strengths))


@pytest.mark.slow
def test_the_prior_can_be_left_naive():
    auto = gdregs.Auto(prior=False)
    state = auto.init(PARAMETERS)
    for key in jax.random.split(KEY, 10):
        _, state = step(auto, state, key)
    assert jnp.all(state.strengths[:, 1] == 0)
    assert state.strengths[1, 0] != 0


@pytest.mark.slow
def test_the_name_is_the_naive_estimator_until_something_is_learned():
    phi, theta, lam, x = reference.init(jax.random.key(1))

    def gradient(**names):
        return jax.grad(models.total_bound, argnums=(0, 1))(
            phi, theta, lam, x, key=KEY, num_samples=4, **names
        )

    names = ("posterior_estimator", "prior_estimator")
    auto, naive = (gradient(**dict.fromkeys(names, name)) for name in ("auto", "naive"))
    jax.tree.map(np.testing.assert_array_equal, auto, naive)
