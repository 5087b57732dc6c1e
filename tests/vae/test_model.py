"""The VAE of Eq. (20): its graph, its densities, and its networks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from filled import filled
from gdregs.vae import VAE
from gdregs.vae.networks.bernoulli import bernoulli_log_prob
from gdregs.vae.networks.mlp import MLP, add_bias, product, softplus

X = jax.device_put((np.random.default_rng(0).random((3, 6)) < 0.5).astype(np.float32))
C = jax.device_put((np.random.default_rng(1).random((3, 4)) < 0.5).astype(np.float32))


def by_hand(network, *inputs):
    """The network on the concatenation of all inputs, the context repeated for every sample."""
    with jax.numpy_rank_promotion("allow"):
        leading = jnp.broadcast_shapes(*(value.shape[:-1] for value in inputs))
        whole = [jnp.broadcast_to(value, (*leading, value.shape[-1])) for value in inputs]
        hidden = jnp.concatenate(whole, -1) @ network.first + network.first_bias
        hidden = jnp.tanh(jnp.tanh(hidden) @ network.second + network.second_bias)
        return hidden @ network.last + network.last_bias


def normal(z, parameters):
    loc, raw = jnp.split(parameters, 2, axis=-1)
    scale = jnp.log(1 + jnp.exp(raw)) + 1e-5
    with jax.numpy_rank_promotion("allow"):
        terms = -0.5 * ((z - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * np.log(2 * np.pi)
    return terms.sum(-1)


@pytest.mark.parametrize(
    ("num_layers", "conditional"),
    [
        (1, False),
        (3, True),
        *(pytest.param(*case, marks=pytest.mark.nightly) for case in ((2, False), (2, True))),
    ],
)
def test_densities_are_those_of_equation_20(num_layers, conditional):
    context = C if conditional else None
    known = (C,) if conditional else ()

    def densities_by_hand(model, layers):
        log_q = normal(layers[0], by_hand(model.posterior_networks[0], X, *known))
        for layer in range(1, num_layers):
            network = model.posterior_networks[layer]
            log_q += normal(layers[layer], by_hand(network, X, *known, layers[layer - 1]))
        if conditional:
            log_p = normal(layers[-1], by_hand(model.prior_networks[-1], C))
        else:
            log_p = normal(layers[-1], jnp.array([0.0, 0.0, *[np.log(np.expm1(1 - 1e-5))] * 2]))
        for layer in range(num_layers - 1):
            network = model.prior_networks[layer]
            log_p += normal(layers[layer], by_hand(network, *known, layers[layer + 1]))
        probability = 1 / (1 + jnp.exp(-by_hand(model.decoder, *layers)))
        with jax.numpy_rank_promotion("allow"):
            log_x = jnp.log(jnp.where(X == 1, probability, 1 - probability)).sum(-1)
        return log_q, log_p, log_x

    sizes = {"num_context": 4 * conditional, "latent_size": 2, "hidden_size": 5}
    model = filled(lambda: VAE(6, num_layers=num_layers, **sizes, key=jax.random.key(0)))
    assert len(model.prior_networks) == num_layers - (not conditional)

    @jax.jit
    def both(model, key):
        posterior, prior = model.posterior(X, context), model.prior(context)
        z = posterior.sample(key, (7,))
        layers = [z[f"z{layer + 1}"] for layer in range(num_layers)]
        assert all(layer.shape == (7, 3, 2) for layer in layers)
        found = posterior.log_prob(z), prior.log_prob(z), model.likelihood(X)(z)
        return found, densities_by_hand(model, layers)

    for ours, theirs, name in zip(*both(model, jax.random.key(2)), ("q", "p", "x"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, err_msg=name)


def test_the_prior_samples_without_data():
    def sample(key):
        model = VAE(6, num_layers=3, latent_size=2, hidden_size=5, key=key)
        conditional = VAE(6, num_context=4, latent_size=2, hidden_size=5, key=key)
        samples = model.prior().sample(key, (4,)), conditional.prior(C).sample(key)
        return [of.logits(z) for of, z in zip((model, conditional), samples, strict=True)]

    shapes = [logits.shape for logits in jax.eval_shape(sample, jax.random.key(0))]
    assert shapes == [(4, 6), (3, 6)]


def test_what_the_datapoint_contributes_is_multiplied_once_per_datapoint():
    """Of a network of [B, big] and [K, B, small], the big product does not grow with K."""

    network = filled(lambda: MLP(1002, 4, 1, key=jax.random.key(0)))

    def output(x, z):
        return network.given(x)(z), by_hand(network, x, z)

    def flops(num_samples):
        shapes = np.zeros((2, 1000), np.float32), np.zeros((num_samples, 2, 2), np.float32)
        program = jax.jit(lambda *inputs: output(*inputs)[0]).lower(*shapes).compile()
        return program.cost_analysis()["flops"]

    assert flops(16) < 1.5 * flops(1)
    x = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
    np.testing.assert_allclose(*jax.jit(output)(x, np.ones((3, 2, 2), np.float32)), rtol=1e-4)


@pytest.mark.parametrize(("initial_weights", "scale"), [("glorot", 1.0), ("haiku", 0.8796)])
def test_initial_weights(initial_weights, scale):
    """Their standard deviation, to 1% in 90,000 draws; that of a normal cut off at 2 is 0.8796."""

    @jax.jit
    def draw(seed):
        network = MLP(
            300, 300, 300, initial_weights=initial_weights, key=jax.random.key(seed)
        )  # fmt: skip
        return network.first, network.second, network.last

    weights = [np.asarray(weights) for weights in draw(3)]
    for matrix in weights:
        assert matrix.std() == pytest.approx(scale * 300**-0.5, rel=0.01)
    limit = {"glorot": 3**0.5, "haiku": 2.0}[initial_weights] * 300**-0.5
    assert 0.99 * limit < np.abs(weights[1]).max() <= limit


def test_softplus():
    """Value and derivative, far out and at 0, where its own formula has a kink."""
    inputs = np.array([-100.0, -20.0, -5.0, -1.0, -0.1, 0.0, 3.0, 20.0, 100.0, 1000.0])
    evaluate = jax.jit(jax.vmap(jax.value_and_grad(softplus)))
    values, slopes = evaluate(inputs.astype(np.float32))
    np.testing.assert_allclose(values, np.logaddexp(0, inputs), rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(slopes, 1 / (1 + np.exp(-inputs)), rtol=2e-5, atol=1e-37)


@pytest.mark.parametrize("shapes", [((4,), (5, 4)), ((3, 4), (5, 3, 4)), ((4,), (5, 3, 4))])
def test_products_and_offsets_have_the_derivatives_of_plain_ones(shapes):
    inner, shape = shapes
    rng = np.random.default_rng(0)
    sizes = shape, (4, 4), inner, shape
    *arguments, tangent = (rng.normal(size=size).astype(np.float32) for size in sizes)

    def ours(values, matrix, offset):
        return jnp.sum(jnp.sin(add_bias(product(values, matrix), offset)))

    def plain(values, matrix, offset):
        with jax.numpy_rank_promotion("allow"):
            return jnp.sum(jnp.sin(values @ matrix + offset))

    @jax.jit
    def both(arguments, tangent):
        def derivatives(of):
            forward = jax.jvp(lambda values: of(values, *arguments[1:]), arguments[:1], (tangent,))
            return jax.value_and_grad(of, (0, 1, 2))(*arguments), forward

        return derivatives(ours), derivatives(plain)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        *both(tuple(arguments), tangent),
    )


@pytest.mark.parametrize("num_pixels", [1, 7, 64, 784])
def test_the_bernoulli_log_probability_is_the_sum_over_pixels(float64, num_pixels):
    """Value and derivatives, logits far out included; the pixels lack an axis, as in the model."""
    rng = np.random.default_rng(0)
    logits, pixels = rng.normal(0, 20, (3, 2, num_pixels)), rng.random((1, 2, num_pixels))
    logits[0, 0, 0], logits[1, 0, 0] = 800.0, -800.0

    def plain(logits, pixels):
        return jnp.sum(pixels * logits - jnp.logaddexp(logits, 0.0), axis=-1)

    @jax.jit
    def both(logits, pixels):
        def derivatives(of):
            # By one argument, the other is not differentiated at all.
            return [jax.grad(lambda *a: jnp.sum(of(*a) ** 2), by)(logits, pixels) for by in (0, 1)]

        functions = bernoulli_log_prob, plain
        return [(of(logits, pixels), derivatives(of)) for of in functions]

    (ours, our_slopes), (theirs, their_slopes) = both(logits, pixels)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    for a, b in zip(our_slopes, their_slopes, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-8)


def test_products_in_bfloat16_round_only_the_factors():
    """The sum is float32's: integers up to 256 multiply and add up exactly, forth and back."""
    rng = np.random.default_rng(0)
    left, right, cotangent = (
        rng.integers(-16, 17, shape).astype(np.float32)
        for shape in ((2, 40, 300), (300, 7), (2, 40, 7))
    )

    @jax.jit
    def multiply(left, right, cotangent):
        values, back = jax.vjp(lambda a, b: product(a, b, "bfloat16"), left, right)
        exact, exact_back = jax.vjp(product, left, right)
        off = left + 1 / 512
        rounded = product(off, right, "bfloat16") - product(off, right)
        return (values, *back(cotangent)), (exact, *exact_back(cotangent)), rounded

    found, expected, rounded = multiply(left, right, cotangent)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)
    assert np.abs(rounded).max() > 0.01


def test_a_model_of_any_precision_keeps_its_sums_in_float32():
    """Values and gradients are float32, near those of float32, under vmap too."""

    def loss(model, key):
        posterior = model.posterior(X)
        z = posterior.sample(key, (4,))
        return jnp.mean(model.likelihood(X)(z) - posterior.log_prob(z))

    sizes = {"num_layers": 1, "latent_size": 2, "hidden_size": 5}
    models = {
        name: filled(lambda name=name: VAE(6, **sizes, precision=name, key=jax.random.key(0)))
        for name in ("float32", "tensorfloat32", "bfloat16")
    }

    @jax.jit
    def compute(models, key):
        def gradient(model):
            keys = jax.random.split(key, 3)
            return jax.vmap(eqx.filter_value_and_grad(loss), in_axes=(None, 0))(model, keys)

        return {name: jax.tree.leaves(gradient(model)) for name, model in models.items()}

    exact, *others = compute(models, jax.random.key(0)).items()
    for name, found in others:
        for a, b in zip(exact[1], found, strict=True):
            assert b.dtype == np.float32
            atol = 0.03 * np.abs(a).max() + 1e-3
            np.testing.assert_allclose(a, b, atol=atol, err_msg=name)
