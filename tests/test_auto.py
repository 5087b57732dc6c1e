"""The mix that is measured: rows of the table, unbiased steps, strengths of least variance."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
import models
import reference
from gdregs import auto as learning
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
    with pytest.raises(TypeError, match="beta must be a finite number; got 'half'"):
        gdregs.mixed_dregs("half")
    with pytest.raises(ValueError, match="decay must lie between 0 and 1"):
        gdregs.Auto(decay=1.0)
    with pytest.raises(ValueError, match="patience must be positive"):
        gdregs.Auto(patience=0.0)


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
@pytest.mark.parametrize("large", [False, True])
def test_strengths_approach_those_of_least_variance(monkeypatch, large):
    """Against the regression of the naive gradient on the differences, over 20,000 draws."""
    monkeypatch.setattr(learning, "MARGINS", (-1e9,) * 3)  # the richest choice
    monkeypatch.setattr(learning, "PERIOD", 1)
    monkeypatch.setattr(learning, "LARGE", 0 if large else 10_000)
    auto = gdregs.Auto(decay=0.999, patience=1.0)

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
    assert float(phi) == pytest.approx(float(beta), abs=0.1)
    assert float(theta) == pytest.approx(float(alpha), abs=0.1)
    assert lam == 0


def quadratic(seed, number):
    """Moments of so many parameters, of draws that were made up."""
    draws = np.random.default_rng(seed).normal(size=(number, 2, 50))
    difference, noise = np.moveaxis(draws, 1, 0)
    noise = noise - np.linspace(0.3, 0.8, number)[:, None] * difference
    dots = [(difference, difference), (difference, noise), (noise, noise)]
    return np.stack([np.sum(a * b, axis=1) for a, b in dots], axis=1)


def total(moments, strengths):
    curvature, slope, variance = moments.T
    return (variance + 2 * slope * strengths + curvature * strengths**2).sum()


@pytest.mark.parametrize("common", [False, True])
def test_each_choice_has_the_strengths_of_least_variance(float64, monkeypatch, common):
    """Of its kind: neighbours of it have more."""
    moments, of_posterior = quadratic(0, 4), np.array([True, True, False, False])
    kinds = {1: [of_posterior], 2: [of_posterior, ~of_posterior]}
    if not common:
        kinds[3] = np.eye(4, dtype=bool)
    for kind, groups in kinds.items():
        # Only what is of this kind is taken, whatever it takes away.
        margins = [1.0] * 3
        margins[kind - 1] = -1e9
        monkeypatch.setattr(learning, "MARGINS", tuple(margins))
        best = jax.jit(lambda *of: _best(*of, common=common))
        strengths, (beta, alpha) = jax.device_get(best(moments, of_posterior))
        least = total(moments, strengths)
        for group in groups:
            for distance in (0.05, -0.05):
                assert total(moments, strengths + distance * group) > least
        assert np.all(strengths[of_posterior] != 0)
        assert np.any(strengths[~of_posterior]) == (kind > 1)
        if kind < 3:
            np.testing.assert_array_equal(strengths, np.where(of_posterior, beta, alpha))


def test_one_strength_each_is_the_mix_of_all_three_gradients(monkeypatch):
    """The rows of the table, which a large model takes, against the program that learns."""
    auto = gdregs.Auto()
    monkeypatch.setattr(learning, "LARGE", 0)

    @jax.jit
    def run():
        state = auto.init(PARAMETERS)
        learned = state.learned._replace(
            strengths=jnp.array([0.0, 0.7, 0.4]), common=jnp.array([0.7, 0.4])
        )
        packed = jax.flatten_util.ravel_pytree(learned)[0]
        steps = [state._replace(packed=packed, step=jnp.array(at, jnp.int32)) for at in (1, 101)]
        return [step(auto, one, KEY)[0][1] for one in steps], gradient(PARAMETERS, KEY)[1]

    (learns, rows), naive = jax.device_get(run())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), learns, rows)
    assert abs(float(learns["theta"] - naive["theta"])) > 1e-3
    np.testing.assert_allclose(learns["lam"], naive["lam"], rtol=1e-5)


def test_strengths_of_more_digits_than_the_parameters(float64):
    """Where 64 bits are enabled and the parameters have 32."""
    auto = gdregs.Auto()
    state = jax.eval_shape(lambda: auto.init(PARAMETERS))
    assert state.packed.dtype == "float64"
    (_, found), after = jax.eval_shape(lambda state: step(auto, state, KEY), state)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}
    assert after.packed.dtype == "float64"


@pytest.mark.parametrize("large", [False, True])
def test_later_steps_of_a_large_model_learn_less_often(monkeypatch, large):
    monkeypatch.setattr(learning, "LARGE", 0 if large else 10_000)
    auto = gdregs.Auto()

    @jax.jit
    @jax.vmap
    def run(begin):
        state = auto.init(PARAMETERS)._replace(step=begin)
        state, (_, learned) = follow(auto, state, jax.random.split(KEY, 128))
        return state.step, learned

    begin = np.array([0, 100], np.int32)
    steps, learned = jax.device_get(run(begin))
    np.testing.assert_array_equal(steps, begin + 128)
    assert learned[0, 99] == 100  # all of the first ones
    assert learned[1, 63] == (4 if large else 64)


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
        return [(of.learned.moments, of.mean, of.strengths) for of in (state, after)]

    before, after = jax.device_get(run(KEY))
    jax.tree.map(np.testing.assert_array_equal, before[:-1], after[:-1])
    assert np.isfinite(after[-1]).all()


@pytest.mark.slow
def test_the_prior_can_be_left_naive():
    auto = gdregs.Auto(prior=False)

    @jax.jit
    def run(key):
        return follow(auto, auto.init(PARAMETERS), jax.random.split(key, 10))[0].strengths

    _, of_phi, of_theta = np.asarray(run(KEY))
    assert of_theta == 0
    assert of_phi != 0


def test_the_name_is_the_naive_estimator_until_something_is_learned():
    @jax.jit
    def run(parameters):
        auto, naive = (gradient(parameters, KEY, name, name) for name in ("auto", "naive"))
        return auto, naive, gradient(parameters, KEY, "dregs", "gdregs")

    auto, naive, other = jax.device_get(run(PARAMETERS))
    jax.tree.map(np.testing.assert_array_equal, auto, naive)
    assert (auto[1]["phi"] != other[1]["phi"]).all()
