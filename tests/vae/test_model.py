"""The VAE of Eq. (20): its graph, its densities, and its networks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdregs
from gdregs.vae import VAE
from gdregs.vae.networks.bernoulli import bernoulli_log_prob
from gdregs.vae.networks.mlp import MLP, add_bias, product, softplus

X = (jax.random.uniform(jax.random.key(0), (3, 6)) < 0.5).astype(jnp.float32)
C = (jax.random.uniform(jax.random.key(1), (3, 4)) < 0.5).astype(jnp.float32)


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


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_densities_are_those_of_equation_20(num_layers, conditional):
    model = VAE(
        6,
        num_context=4 if conditional else 0,
        num_layers=num_layers,
        latent_size=2,
        hidden_size=5,
        key=jax.random.key(2),
    )
    context = C if conditional else None
    known = (C,) if conditional else ()
    posterior, prior = model.posterior(X, context), model.prior(context)
    z = posterior.sample(jax.random.key(3), (7,))
    layers = [z[f"z{layer + 1}"] for layer in range(num_layers)]
    assert all(layer.shape == (7, 3, 2) for layer in layers)

    log_q = normal(layers[0], by_hand(model.posterior_networks[0], X, *known))
    for layer in range(1, num_layers):
        network = model.posterior_networks[layer]
        log_q += normal(layers[layer], by_hand(network, X, *known, layers[layer - 1]))
    np.testing.assert_allclose(posterior.log_prob(z), log_q, rtol=1e-4)

    if conditional:
        log_p = normal(layers[-1], by_hand(model.prior_networks[-1], C))
    else:
        log_p = normal(layers[-1], jnp.array([0.0, 0.0, *[np.log(np.expm1(1 - 1e-5))] * 2]))
    for layer in range(num_layers - 1):
        network = model.prior_networks[layer]
        log_p += normal(layers[layer], by_hand(network, *known, layers[layer + 1]))
    np.testing.assert_allclose(prior.log_prob(z), log_p, rtol=1e-4)
    assert len(model.prior_networks) == num_layers - (not conditional)

    probability = 1 / (1 + jnp.exp(-by_hand(model.decoder, *layers)))
    with jax.numpy_rank_promotion("allow"):
        log_x = jnp.log(jnp.where(X == 1, probability, 1 - probability)).sum(-1)
    np.testing.assert_allclose(model.likelihood(X)(z), log_x, rtol=1e-4)


def test_the_prior_samples_without_data():
    model = VAE(6, num_layers=3, latent_size=2, hidden_size=5, key=jax.random.key(2))
    z = model.prior().sample(jax.random.key(0), (4,))
    assert model.logits(z).shape == (4, 6)
    conditional = VAE(6, num_context=4, latent_size=2, hidden_size=5, key=jax.random.key(2))
    z = conditional.prior(C).sample(jax.random.key(0))
    assert conditional.logits(z).shape == (3, 6)


def test_what_the_datapoint_contributes_is_multiplied_once_per_datapoint():
    """Of a network of [B, big] and [K, B, small], the big product does not grow with K."""
    network = MLP(10_002, 4, 1, key=jax.random.key(0))

    def output(x, z):
        return network.given(x)(z)

    def flops(num_samples):
        shapes = jnp.zeros((2, 10_000)), jnp.zeros((num_samples, 2, 2))
        return jax.jit(output).lower(*shapes).compile().cost_analysis()["flops"]

    assert flops(64) < 1.5 * flops(1)
    x, z = jax.random.normal(jax.random.key(1), (2, 10_000)), jnp.ones((3, 2, 2))
    np.testing.assert_allclose(output(x, z), by_hand(network, x, z), rtol=1e-4)


@pytest.mark.parametrize(("initial_weights", "scale"), [("glorot", 1.0), ("haiku", 0.8796)])
def test_initial_weights(initial_weights, scale):
    """Their standard deviation, to 1% in 90,000 draws; that of a normal cut off at 2 is 0.8796."""
    network = MLP(300, 300, 300, initial_weights=initial_weights, key=jax.random.key(3))
    for weights in (network.first, network.second, network.last):
        assert jnp.std(weights) == pytest.approx(scale * 300**-0.5, rel=0.01)
    limit = {"glorot": 3**0.5, "haiku": 2.0}[initial_weights] * 300**-0.5
    assert 0.99 * limit < jnp.max(jnp.abs(network.second)) <= limit


def test_softplus():
    """Value and derivative, far out and at 0, where its own formula has a kink."""
    values = jnp.array([-100.0, -1.0, 0.0, 1.0, 100.0])
    np.testing.assert_allclose(softplus(values), jax.nn.softplus(values), rtol=1e-6)
    inputs = np.array([-100.0, -20.0, -5.0, -0.1, 0.0, 3.0, 20.0, 100.0, 1000.0])
    values, slopes = jax.vmap(jax.value_and_grad(softplus))(jnp.asarray(inputs, jnp.float32))
    np.testing.assert_allclose(values, np.logaddexp(0, inputs), rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(slopes, 1 / (1 + np.exp(-inputs)), rtol=2e-5, atol=1e-37)


@pytest.mark.parametrize("shapes", [((4,), (5, 4)), ((3, 4), (5, 3, 4)), ((4,), (5, 3, 4))])
def test_products_and_offsets_have_the_derivatives_of_plain_ones(shapes):
    inner, shape = shapes
    keys = jax.random.split(jax.random.key(0), 4)
    values, tangent = (jax.random.normal(key, shape) for key in keys[:2])
    offset, matrix = jax.random.normal(keys[2], inner), jax.random.normal(keys[3], (4, 4))

    def ours(values, matrix, offset):
        return jnp.sum(jnp.sin(add_bias(product(values, matrix), offset)))

    def plain(values, matrix, offset):
        with jax.numpy_rank_promotion("allow"):
            return jnp.sum(jnp.sin(values @ matrix + offset))

    for transform in (
        jax.grad(ours, (0, 1, 2)), jax.jit(jax.grad(ours, (0, 1, 2))),
    ):  # fmt: skip
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            transform(values, matrix, offset),
            jax.grad(plain, (0, 1, 2))(values, matrix, offset),
        )
    forward = [
        jax.jvp(lambda v, f=f: f(v, matrix, offset), (values,), (tangent,))[1]
        for f in (ours, plain)
    ]
    np.testing.assert_allclose(*forward, rtol=1e-4)


@pytest.mark.parametrize("num_pixels", [1, 7, 64, 784])
def test_the_bernoulli_log_probability_is_the_sum_over_pixels(float64, num_pixels):
    """Value and derivatives, logits far out included; the pixels lack an axis, as in the model."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(0, 20, (3, 2, num_pixels)))
    logits = logits.at[0, 0, 0].set(800.0).at[1, 0, 0].set(-800.0)
    pixels = jnp.asarray(rng.random((1, 2, num_pixels)))

    def plain(logits, pixels):
        return jnp.sum(pixels * logits - jnp.logaddexp(logits, 0.0), axis=-1)

    arguments = logits, pixels
    np.testing.assert_allclose(bernoulli_log_prob(*arguments), plain(*arguments), rtol=1e-12)
    for wrt in (0, 1):
        ours, theirs = (
            jax.grad(lambda *a, f=f: jnp.sum(f(*a) ** 2), wrt)(*arguments)
            for f in (bernoulli_log_prob, plain)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-8)


def test_products_in_bfloat16_round_only_the_factors():
    """The sum is float32's: integers up to 256 multiply and add up exactly, forth and back."""
    rng = np.random.default_rng(0)
    left, right, cotangent = (
        jnp.asarray(rng.integers(-16, 17, shape), jnp.float32)
        for shape in ((2, 40, 300), (300, 7), (2, 40, 7))
    )
    values, back = jax.vjp(lambda a, b: product(a, b, "bfloat16"), left, right)
    expected, back_expected = jax.vjp(product, left, right)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, expected)
    for ours, theirs in zip(back(cotangent), back_expected(cotangent), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    rounded = product(left + 1 / 512, right, "bfloat16")
    assert float(jnp.max(jnp.abs(rounded - product(left + 1 / 512, right)))) > 0.01


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32", "bfloat16"])
def test_a_model_of_any_precision_keeps_its_sums_in_float32(precision):
    """Bound and gradients are float32, near those of float32, under vmap too."""
    key = jax.random.key(0)
    images = X[:, :6]

    def make(precision):
        return VAE(6, latent_size=2, hidden_size=5, precision=precision, key=key)

    def loss(model, key):
        parts = model.posterior(images), model.prior(), model.likelihood(images)
        return jnp.mean(gdregs.bound(*parts, key=key, num_samples=4))

    keys = jax.random.split(key, 3)

    @eqx.filter_jit
    def gradient(model, keys):
        return jax.vmap(eqx.filter_value_and_grad(loss), in_axes=(None, 0))(model, keys)

    exact, found = (gradient(make(name), keys) for name in ("float32", precision))
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(found), strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.03 * float(jnp.max(jnp.abs(a))) + 1e-3)
