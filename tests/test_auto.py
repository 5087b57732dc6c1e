"""The mix that is measured: rows of the table, unbiased steps, strengths of least variance."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
import models
import reference
from gdregs.auto import SETTLING, _best
from means import assert_unbiased

KEY = jax.random.key(5)


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"num_gradient_samples": 3}, marks=pytest.mark.slow)],
    ids=["all", "M = 3"],
)
def test_a_mix_is_the_mix_of_the_two_draw_by_draw(float64, options):
    *parameters, x = reference.init(1, latents="ab")

    @jax.jit
    def run(beta, rows):
        def gradient(posterior_estimator):
            def total(parameters):
                return models.total_bound(
                    *parameters,
                    x,
                    key=KEY,
                    num_samples=9,
                    posterior_estimator=posterior_estimator,
                    **options,
                )

            return jax.grad(total)(parameters)

        return gradient(gdregs.mixed_dregs(beta)), jax.vmap(gradient)(rows)

    rows, _ = models.rows_of([("naive", "gdregs"), ("dregs", "gdregs")])
    mixed, of_both = jax.device_get(run(0.3, rows))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, 0.7 * b[0] + 0.3 * b[1], atol=1e-10, rtol=1e-10),
        mixed,
        of_both,
    )


def test_a_mix_on_a_posteriors_own_path(float64):
    """Without a re-expression rule the sampler is the path, of both halves."""
    x = np.array([0.3, -0.5])

    @jax.jit
    def run(phi):
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

            return jax.grad(total)(phi)

        return [gradient(one) for one in (gdregs.mixed_dregs(0.3), "naive", "dregs")]

    mixed, naive, dregs = map(float, run(0.4))
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


X = np.array([0.4, -1.0, 2.0], np.float32)
PARAMETERS = {
    "phi": np.array([0.1, 0.2, -0.3], np.float32),
    "theta": jnp.asarray(0.5),  # of no precision of its own
    "lam": np.ones(3, np.float32),
}


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


def step(auto, state, key):
    return auto.value_and_grad(lambda *pair: gradient(PARAMETERS, key, *pair), state)


def follow(auto, state, keys):
    """The state after a step with each key, and what each step returned and had learned by then."""

    def once(state, key):
        (_, found), state = step(auto, state, key)
        return state, (found, state.learned.count)

    return jax.lax.scan(once, state, keys)


@pytest.mark.slow
def test_every_step_is_unbiased_and_to_look_at_the_draw_first_is_not():
    """The step after four others against the naive one of the same draw."""
    auto = gdregs.Auto(patience=1.0)

    def draw(key):
        keys = jax.random.split(key, SETTLING + 2)
        again = jnp.concatenate([keys, keys[-1:]])
        _, (found, _) = follow(auto, auto.init(PARAMETERS), again)
        ours, looking = (jax.tree.map(lambda leaf, i=i: leaf[i], found) for i in (-2, -1))
        _, exact = gradient(PARAMETERS, keys[-1])
        found = {"ours": ours, "looking first": looking}
        return found, dict.fromkeys(found, exact)

    assert_unbiased(draw, None, jax.random.key(4), biased=["looking first"])


@pytest.mark.slow
def test_strengths_approach_those_of_least_variance(monkeypatch):
    """Against the regression of the naive gradient on the differences, over 20,000 draws."""
    monkeypatch.setattr("gdregs.auto.MARGINS", (-1e9,) * 3)  # whatever time it takes
    monkeypatch.setattr("gdregs.auto.PERIODS", (1, 1))  # every step teaches
    auto = gdregs.Auto(decay=0.999, patience=1.0, most_work=float("inf"))

    @jax.jit
    def run(key):
        learning, drawing = jax.random.split(key)
        state, _ = follow(auto, auto.init(PARAMETERS), jax.random.split(learning, 3000))

        def draw(key):
            naive, by_q, by_p = (
                gradient(PARAMETERS, key, *pair)[1]
                for pair in (("naive", "naive"), ("dregs", "naive"), ("naive", "gdregs"))
            )
            return naive, by_q["phi"] - naive["phi"], by_p["theta"] - naive["theta"]

        return state.strengths, jax.vmap(draw)(jax.random.split(drawing, 20_000))

    (lam, phi, theta), (naive, by_q, by_p) = jax.device_get(run(KEY))
    centred = jax.tree.map(lambda leaf: leaf - leaf.mean(0), naive)
    beta = -np.sum(centred["phi"] * by_q) / np.sum(by_q**2)
    alpha = -np.sum(centred["theta"] * by_p) / np.sum(by_p**2)
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
    return np.stack([np.sum(a * b, axis=1) for a, b in dots], axis=1)


def total(moments, strengths):
    qq, pp, qp, q, p, variance = moments.T
    beta, alpha = strengths.T
    changes = beta**2 * qq + alpha**2 * pp + 2 * (beta * alpha * qp + beta * q + alpha * p)
    return (variance + changes).sum()


def test_each_way_has_the_strengths_of_least_variance(float64):
    """Of its kind: neighbours of it have more."""
    best = jax.jit(_best)
    free = {0: [], 1: [(slice(None), 0)], 2: [(slice(None), 0), (slice(None), 1)]}
    free[3] = [(row, column) for row in range(3) for column in range(2)]
    for way, entries in free.items():
        moments = quadratic(way, 3)
        work = np.where(np.arange(4) == way, 1.0, np.inf)
        work[0] = 1.0 if way == 0 else 1e9
        strengths, chosen = jax.device_get(best(moments, work))
        assert int(chosen) == way
        least = total(moments, strengths)
        for where in entries:
            assert np.all(strengths[where] != 0)
            for distance in (0.05, -0.05):
                other = strengths.copy()
                other[where] += distance
                assert total(moments, other) > least
        if way in (1, 2):
            np.testing.assert_array_equal(strengths, np.repeat(strengths[:1], 3, axis=0))
        np.testing.assert_array_equal(strengths[:, way:], 0)  # the columns that it has not


def test_one_strength_each_is_the_mix_of_all_three_gradients():
    """The way that takes one backward pass against the one that takes three, draw by draw."""
    auto = gdregs.Auto(most_work=float("inf"))
    strengths = np.array([[0.0, 0.0], [0.7, 0.0], [0.0, 0.4]], np.float32)

    @jax.jit
    def run(ways):
        state = auto.init(PARAMETERS)._replace(step=jnp.array(101, jnp.int32))
        state = state.relearned(strengths=strengths, common=jnp.array([0.7, 0.4]))
        gradients = jax.vmap(lambda way: step(auto, state.relearned(way=way), KEY)[0][1])(ways)
        return gradients, gradient(PARAMETERS, KEY)[1]

    gradients, naive = jax.device_get(run(np.array([1, 2, 3], np.int32)))
    only_posterior, common, own = (
        jax.tree.map(lambda leaf, i=i: leaf[i], gradients) for i in range(3)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), common, own)
    np.testing.assert_allclose(only_posterior["phi"], own["phi"], rtol=1e-5)
    np.testing.assert_allclose(only_posterior["theta"], naive["theta"], rtol=1e-5)
    assert abs(float(own["theta"] - naive["theta"])) > 1e-3


def test_strengths_of_more_digits_than_the_parameters(float64):
    """Where 64 bits are enabled and the parameters have 32."""
    auto = gdregs.Auto()
    state = jax.eval_shape(lambda: auto.init(PARAMETERS))
    assert state.packed.dtype == "float64"
    (_, found), after = jax.eval_shape(lambda state: step(auto, state, KEY), state)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}
    assert after.packed.dtype == "float64"


def test_later_steps_teach_less_often():
    auto = gdregs.Auto()

    @jax.jit
    @jax.vmap
    def run(begin):
        state = auto.init(PARAMETERS)._replace(step=begin)
        state, (_, taught) = follow(auto, state, jax.random.split(KEY, 128))
        return state.step, taught

    begin = np.array([0, 100, 4000], np.int32)
    steps, taught = jax.device_get(run(begin))
    np.testing.assert_array_equal(steps, begin + 128)
    assert taught[0, 99] == 100  # all of the first ones
    assert taught[1, 63] == 4
    assert taught[2, 127] == 2


@pytest.mark.parametrize(
    ("rounds", "most_work", "way"),
    [
        pytest.param(0, 1.2, 1, id="cheap", marks=pytest.mark.slow),
        pytest.param(3, 1.2, 0, id="longer than asked"),
        pytest.param(3, float("inf"), 1, id="worth it", marks=pytest.mark.slow),
        pytest.param(300, float("inf"), 0, id="not worth it", marks=pytest.mark.slow),
    ],
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

    @jax.jit
    def run(key):
        return jax.lax.scan(teach, auto.init(PARAMETERS), jax.random.split(key, 90))[0].learned

    learned = jax.device_get(run(KEY))
    assert int(learned.way) == way
    assert np.any(learned.strengths != 0) == (way > 0)


def test_the_mean_is_that_of_the_gradients_of_all_steps():
    auto = gdregs.Auto()
    parameters = {"a": 0.1, "b": np.array([1.0, 2.0]), "c": np.array(0.3), "d": np.ones((2, 2))}

    @jax.jit
    def run(draws):
        def once(state, draw):
            def function(posterior_estimator, prior_estimator):
                strength = 0.0 * prior_estimator.mix
                return 0.0, jax.tree.map(lambda leaf: draw * leaf + strength, parameters)

            (_, found), state = auto.value_and_grad(function, state)
            return state, found

        state, gradients = jax.lax.scan(once, auto.init(parameters), draws)
        return state.mean, jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), gradients)

    (numbers, others), expected = jax.device_get(run(np.arange(1.0, 5.0)))
    np.testing.assert_allclose(numbers, [expected["a"], expected["c"]], rtol=1e-6)
    found = [leaf for leaf in others if leaf is not None]
    for one, name in zip(found, "bd", strict=True):
        np.testing.assert_allclose(one, expected[name], rtol=1e-6)


@pytest.mark.slow
def test_a_draw_that_is_not_finite_teaches_nothing():
    auto = gdregs.Auto()

    @jax.jit
    def run(key):
        state, _ = follow(auto, auto.init(PARAMETERS), jax.random.split(key, 10))

        def broken(*pair):
            value, found = gradient(PARAMETERS, key, *pair)
            return value, jax.tree.map(lambda leaf: leaf * jnp.nan, found)

        _, after = auto.value_and_grad(broken, state)
        return [
            (of.learned.way, of.learned.moments, of.mean, of.strengths) for of in (state, after)
        ]

    before, after = jax.device_get(run(KEY))
    jax.tree.map(np.testing.assert_array_equal, before[:-1], after[:-1])
    assert np.isfinite(after[-1]).all()


@pytest.mark.slow
def test_the_prior_can_be_left_naive():
    auto = gdregs.Auto(prior=False)

    @jax.jit
    def run(key):
        return follow(auto, auto.init(PARAMETERS), jax.random.split(key, 10))[0].strengths

    strengths = np.asarray(run(KEY))
    assert (strengths[:, 1] == 0).all()
    assert strengths[1, 0] != 0


def test_the_name_is_the_naive_estimator_until_something_is_learned():
    @jax.jit
    def run(parameters):
        auto, naive = (gradient(parameters, KEY, name, name) for name in ("auto", "naive"))
        return auto, naive, gradient(parameters, KEY, "dregs", "gdregs")

    auto, naive, other = jax.device_get(run(PARAMETERS))
    jax.tree.map(np.testing.assert_array_equal, auto, naive)
    assert (auto[1]["phi"] != other[1]["phi"]).all()
