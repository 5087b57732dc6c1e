"""An alpha for each stochastic layer, given or learned."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
import models
import reference
from gdregs.vae import VAE
from means import assert_unbiased

KEY = jax.random.key(0)
ALPHAS = {"a": 0.2, "b": 0.0, "c": 1.0}


def prior_gradient(theta, prior_estimator, parts, **options):
    phi, lam, x = parts
    options |= {"key": jax.random.key(2), "num_samples": 5, "prior_estimator": prior_estimator}
    return jax.grad(lambda theta: models.total_bound(phi, theta, lam, x, **options))(theta)


@pytest.mark.parametrize("num_gradient_samples", [None, pytest.param(3, marks=pytest.mark.nightly)])
def test_each_layer_has_its_own_mix(float64, num_gradient_samples):
    """By numbers, and by traced ones."""
    phi, theta, lam, x = reference.init(1)

    @jax.jit
    def gradients(theta, alphas):
        def mixed(alphas):
            estimator = gdregs.mixed_gdregs(alphas)
            options = {"num_gradient_samples": num_gradient_samples}
            return prior_gradient(theta, estimator, (phi, lam, x), **options)

        return mixed(ALPHAS), jax.vmap(mixed)(alphas)

    rows = {layer: np.array([alpha, 0.0, 1.0]) for layer, alpha in ALPHAS.items()}
    static, traced = jax.device_get(gradients(theta, rows))
    for layer, alpha in ALPHAS.items():
        expected = jax.tree.map(lambda g, a=alpha: (1 - a) * g[1] + a * g[2], traced[layer])
        for mixed in (static[layer], jax.tree.map(lambda leaf: leaf[0], traced[layer])):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), mixed, expected)
    _, naive, full = traced["a"]["bias"]
    assert np.abs(naive - full).max() > 1e-3


def test_alphas_must_be_for_the_latents_of_the_prior():
    phi, theta, lam, x = reference.init(1)
    alphas = gdregs.mixed_gdregs({"a": 1, "z": 1})
    with pytest.raises(ValueError, match=r"alphas are for \['a', 'z'\], .* latents are \['a', 'b'"):
        jax.eval_shape(lambda theta: prior_gradient(theta, alphas, (phi, lam, x)), theta)
    for alpha in ("half", np.ones(3), {"a": [1, 2]}):
        with pytest.raises(TypeError, match="alpha must be a finite number, or a mapping"):
            gdregs.mixed_gdregs(alpha)


# Two independent latents under a constant likelihood: (H.15) holds for each.
SCALES = {"wide": 2.0, "narrow": 0.8}


def two_latents(theta, key, estimator):
    def objective(theta):
        posterior = {name: (dist.Normal(0.3, 1.0), ()) for name in SCALES}
        prior = {name: (dist.Normal(theta[name], scale), ()) for name, scale in SCALES.items()}
        return gdregs.bound(
            gdregs.Hierarchy(posterior),
            gdregs.Hierarchy(prior),
            lambda z: 0 * z["wide"],
            key=key,
            num_samples=1,
            prior_estimator=estimator,
        )

    return jax.value_and_grad(objective)(theta)


def test_learns_the_optimum_of_each_layer_from_the_draws_before():
    learned, numbers = gdregs.LearnedMix(tuple(SCALES)), np.array([0, 3, 29])

    @jax.jit
    def run(theta):
        def step(state, key):
            (_, gradient), after = learned.value_and_grad(
                lambda estimator: two_latents(theta, key, estimator), state
            )
            return after, (gradient, state.alpha)

        keys = jax.random.split(KEY, 400)
        state, (gradients, alphas) = jax.lax.scan(
            step, learned.init(dict.fromkeys(SCALES, 0.0)), keys
        )

        def again(number):
            alpha = {name: values[number] for name, values in alphas.items()}
            return two_latents(theta, keys[number], gdregs.mixed_gdregs(alpha))[1]

        return state, gradients, alphas, jax.vmap(again)(numbers)

    state, gradients, alphas, again = jax.device_get(run(dict.fromkeys(SCALES, 0.0)))
    for name, scale in SCALES.items():
        # (H.15); there the variance is 0 (H.17), which is a property of every draw.
        np.testing.assert_allclose(state.alpha[name], 1 / scale**2, rtol=2e-2)
        np.testing.assert_allclose(gradients[name][-50:], 0.3 / scale**2, rtol=2e-2)
        np.testing.assert_allclose(gradients[name][numbers], again[name], rtol=1e-5)
    assert alphas["wide"][0] == 0.5
    # Another last draw changes nothing that weighs it.
    assert len(np.unique(alphas["wide"][:30])) > 20


def test_every_step_is_unbiased_and_to_look_at_the_draw_first_is_not():
    """A second step's gradient against the naive one of the same draw, over many runs."""
    learned = gdregs.LearnedMix(("z",), patience=1.0)

    def gradient(key, estimator):
        def objective(theta):
            return gdregs.bound(
                gdregs.Hierarchy({"z": (dist.Normal(0.0, 1.0), ())}),
                gdregs.Hierarchy({"z": (dist.Normal(theta, 1.5), ())}),
                lambda z: 0 * z["z"],
                key=key,
                num_samples=1,
                prior_estimator=estimator,
            )

        return jax.value_and_grad(objective)(0.5)

    def draw(key):
        first, second = jax.random.split(key)
        _, state = learned.value_and_grad(lambda e: gradient(first, e), learned.init(0.5))
        estimator = gdregs.mixed_gdregs(state.alpha)
        pairs = {"ours": second, "looking first": first}
        return (
            {name: gradient(one, estimator)[1] for name, one in pairs.items()},
            {name: gradient(one, "naive")[1] for name, one in pairs.items()},
        )

    assert_unbiased(draw, None, jax.random.key(4), biased=["looking first"])


@pytest.mark.slow
def test_learning_costs_no_second_backward_pass():
    """Of a step that has both estimators anyway, the sums for alpha are a few per cent."""
    learned = gdregs.LearnedMix(("z1", "z2"), where=lambda gradient: gradient.prior_networks)

    def gradient(model, key, prior_estimator):
        x = jnp.zeros((16, 64))

        def loss(model):
            return jnp.mean(
                gdregs.bound(
                    model.posterior(x),
                    model.prior(),
                    model.likelihood(x),
                    key=key,
                    num_samples=16,
                    prior_estimator=prior_estimator,
                )
            )

        return jax.value_and_grad(loss)(model)

    def learning(model, key, state):
        return learned.value_and_grad(lambda estimator: gradient(model, key, estimator), state)

    def mixing(model, key, state):
        return gradient(model, key, gdregs.mixed_gdregs(state.alpha))

    def make_model():
        return VAE(64, num_layers=2, latent_size=8, hidden_size=32, key=jax.random.key(0))

    model = jax.tree.map(lambda of: np.zeros(of.shape, of.dtype), jax.eval_shape(make_model))
    state = jax.eval_shape(lambda: learned.init(model))
    arguments = (model, jax.random.key(0), state)
    flops = [
        jax.jit(f).lower(*arguments).compile().cost_analysis()["flops"] for f in (learning, mixing)
    ]
    assert flops[0] < 1.03 * flops[1], flops


def test_only_the_parameters_of_a_layer_depend_on_its_alpha(float64):
    """The derivative by alpha_l is 0 elsewhere, also where a latent has fixed arrays."""

    def gradient_fn(alphas):
        def objective(theta):
            prior = {
                "low": (jax.tree_util.Partial(slope, theta["a"]), ("high",)),
                "high": (dist.Normal(jnp.zeros(()), jnp.ones(())), ()),
                "other": (dist.Normal(theta["b"], 2.0), ()),
            }
            return gdregs.bound(
                gdregs.Hierarchy({name: (dist.Normal(0.5, 1.0), ()) for name in prior}),
                gdregs.Hierarchy(prior),
                lambda z: jnp.sin(z["low"] + z["other"]),
                key=jax.random.key(0),
                num_samples=3,
                prior_estimator=gdregs.mixed_gdregs(dict(zip(names, alphas, strict=True))),
            )

        return jax.grad(objective)({"a": 0.3, "b": 0.2})

    def slope(factor, high):
        return dist.Normal(factor * high, 1.0)

    names = ("low", "high", "other")
    by_alpha = jax.device_get(jax.jit(jax.jacfwd(gradient_fn))(np.full(3, 0.7)))
    by_low, _, by_other = range(3)
    assert by_alpha["a"][by_low] != 0
    assert by_alpha["b"][by_other] != 0
    assert np.count_nonzero(by_alpha["a"]) == np.count_nonzero(by_alpha["b"]) == 1


def test_a_latent_without_parameters_keeps_its_start():
    learned = gdregs.LearnedMix(("z",), start=0.7)

    @jax.jit
    def run(theta):
        def gradient_fn(estimator):
            def objective(theta):
                return gdregs.bound(
                    gdregs.Hierarchy({"z": (dist.Normal(0.5, 1.0), ())}),
                    gdregs.Hierarchy({"z": (dist.Normal(jnp.zeros(()), jnp.ones(())), ())}),
                    lambda z: theta * z["z"],
                    key=jax.random.key(0),
                    num_samples=3,
                    prior_estimator=estimator,
                )

            return jax.value_and_grad(objective)(theta)

        _, state = learned.value_and_grad(gradient_fn, learned.init(1.0))
        return state.alpha["z"]

    assert run(1.0) == np.float32(0.7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latents": "z1"}, "latents must be different names"),
        ({"latents": ()}, "latents must be different names"),
        ({"latents": ("z", "z")}, "latents must be different names"),
        ({"latents": ("z",), "decay": 1.0}, "decay must lie between 0 and 1"),
        ({"latents": ("z",), "patience": 0.0}, "patience must be positive"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        gdregs.LearnedMix(**arguments)
