"""Networks and likelihoods of images: shapes, normalisation, and right gradients."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
from gdregs.vae import (
    VAE,
    Config,
    ConvVAE,
    LadderVAE,
    Observation,
    OwnVAE,
    fit,
    make_task,
)
from gdregs.vae.data.datasets import Dataset
from gdregs.vae.networks.convolutions import Painter, Reader, convolve, double
from gdregs.vae.runs import folders
from gdregs.vae.training import evaluation
from gdregs.vae.training.loops import loops_are_slow

KINDS = ("categorical", "discretised-logistic-mixture")
FAST = (("mlp", "gaussian"), ("conv", "categorical"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("colours", [1, 3])
def test_discrete_likelihoods_add_up_to_one(kind, colours, float64):
    """Over all values of all colours of a pixel."""
    observation = Observation(kind, levels=3, colours=colours)
    outputs = jax.random.normal(jax.random.key(0), (observation.num_outputs(colours),))
    grid = jnp.stack(jnp.meshgrid(*[jnp.arange(4.0)] * colours, indexing="ij"), axis=-1)
    grid = grid.reshape(-1, colours)
    everywhere = jnp.broadcast_to(outputs, (len(grid), outputs.size))
    total = jax.nn.logsumexp(observation.log_prob(everywhere, grid))
    np.testing.assert_allclose(total, 0, atol=1e-12)


@pytest.mark.parametrize("kind", [*KINDS, "gaussian", "bernoulli"])
def test_means_lie_between_black_and_white(kind):
    observation = Observation(kind, levels=7, colours=3)
    outputs = 5 * jax.random.normal(jax.random.key(0), (4, observation.num_outputs(6)))
    mean = observation.mean(outputs)
    assert mean.shape == (4, 6)
    assert 0 <= mean.min() <= mean.max() <= 1
    if kind == "categorical":
        logits = outputs.reshape(4, 6, 8)
        expected = jax.nn.softmax(logits) @ jnp.arange(8.0) / 7
        np.testing.assert_allclose(mean, expected, rtol=1e-5)


def test_a_narrow_gaussian_in_bits():
    """A density that is 1 over one level is one bit for each halving of the range: none is left."""
    observation = Observation("gaussian", levels=255)
    assert observation.bits_per_dimension(0.0, 10) == pytest.approx(8)
    certain = 10 * np.log(256)
    assert observation.bits_per_dimension(certain, 10) == pytest.approx(0)
    assert Observation("categorical", 255).bits_per_dimension(-certain, 10) == pytest.approx(8)
    assert Observation().bits_per_dimension(-1.0, 10) is None
    images = jnp.full((50, 4), 10, jnp.uint8)
    seen = observation.observe(jax.random.key(0), images) * 256
    assert 10 <= seen.min() < 10.1
    assert 10.9 < seen.max() <= 11


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (13, 9, 3), (3, 3, 1)])
def test_readers_and_painters_of_any_size(shape):
    reader = Reader(shape, 4, 6, key=jax.random.key(0))
    painter = Painter(6, shape[:2], 4, 2, key=jax.random.key(1))
    x = jax.random.uniform(jax.random.key(2), (5, 2, int(np.prod(shape))))
    features = reader(x)
    assert features.shape == (5, 2, 6)
    assert painter(features).shape == (5, 2, shape[0] * shape[1] * 2)


def test_convolutions_in_bfloat16_round_only_the_factors():
    images = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    images, kernel = (a.astype(jnp.bfloat16).astype(jnp.float32) for a in (images, kernel))
    bias = jnp.zeros(4)

    def value_and_pullback(precision):
        return jax.vjp(lambda a, b: convolve(a, b, bias, 2, precision), images, kernel)

    exact, exact_back = value_and_pullback("float32")
    found, back = value_and_pullback("bfloat16")
    np.testing.assert_allclose(found, exact, atol=1e-5)
    for ours, expected in zip(back(exact), exact_back(exact), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, expected, atol=0.01 * np.abs(expected).max())
        assert not np.array_equal(ours, expected)
    # A factor that bfloat16 cannot hold is rounded to one that it can.
    np.testing.assert_array_equal(
        convolve(images * (1 + 2**-10), kernel, bias, 2, "bfloat16"), found
    )


@pytest.mark.parametrize("networks", ["conv", pytest.param("ladder", marks=pytest.mark.slow)])
def test_convolutions_of_every_precision_learn_a_mix(networks):
    """All that the papers' networks can be told holds for images' networks."""
    images = np.random.default_rng(0).integers(0, 17, (32, 8, 8), dtype=np.uint8)
    bounds = {}
    for precision in ("float32", "bfloat16"):
        config = Config(
            networks=networks, precision=precision, prior_estimator="gdregs-mix", num_layers=3,
            latent_size=2, hidden_size=4, channels=4, num_samples=4, gradient_samples=2, epochs=2,
            batch_size=8,
        )  # fmt: skip
        _, rows = fit(None, images, images[:8], config, levels=16)
        bounds[precision] = rows[-1]["train_bound"]
        assert set(rows[-1]["alpha"]) == {"z1", "z2", "z3"}
        assert any(alpha != 0.5 for alpha in rows[-1]["alpha"].values())
    assert bounds["float32"] != bounds["bfloat16"]
    assert abs(bounds["float32"] - bounds["bfloat16"]) < 0.5


@pytest.mark.slow
def test_steps_of_convolutions_run_one_by_one(monkeypatch, tmp_path):
    """As in a loop of the compiler's, which runs convolutions four times as slowly."""
    images = np.random.default_rng(0).integers(0, 17, (40, 8, 8), dtype=np.uint8)
    config = Config(
        networks="conv", num_layers=1, latent_size=2, hidden_size=4, channels=4, num_samples=4,
        gradient_samples=2, epochs=2, batch_size=8, learning_rate=1e-2,
    )  # fmt: skip
    found = {}
    for module in (folders, evaluation):
        assert module.loops_are_slow is loops_are_slow
    for kind in ("steps", "loop"):
        _, found[kind] = fit(None, images, images[:11], config, levels=16)
        for module in (folders, evaluation):
            monkeypatch.setattr(module, "loops_are_slow", lambda *arguments: False)
    for one, other in zip(found["steps"], found["loop"], strict=True):
        for name in ("train_bound", "test_bound", "effective_sample_size"):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4)
    task = make_task(config, Dataset("digits", images, images[:11], 16))
    assert loops_are_slow(
        config, task, own(Convolving(eqx.nn.Linear(2, 64, key=jax.random.key(0))))
    )
    assert not loops_are_slow(
        config, task, own(Decoder(eqx.nn.Linear(2, 64, key=jax.random.key(0))))
    )
    assert loops_are_slow(config, task, make_model("ladder"))
    assert not loops_are_slow(config, task, make_model("mlp"))


def test_doubling_repeats():
    images = jnp.arange(4.0).reshape(2, 2, 1)
    assert double(images, (3, 4))[..., 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]


def make_model(name, observation=Observation(levels=7)):
    shape = (8, 8, observation.colours)
    small = {
        "num_layers": 2, "latent_size": 3, "observation": observation, "key": jax.random.key(0)
    }  # fmt: skip
    if name == "mlp":
        return VAE(int(np.prod(shape)), hidden_size=6, **small)
    if name == "conv":
        return ConvVAE(shape, hidden_size=6, channels=2, **small)
    return LadderVAE(shape, channels=3, **small | {"num_layers": 5})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if (name, kind) in FAST else pytest.mark.slow)
        for name in ("mlp", "conv", "ladder")
        for kind in ("bernoulli", *KINDS, "gaussian")
    ],
)
def test_every_network_with_every_likelihood(name, kind):
    observation = Observation(kind, levels=7, colours=3)
    model = make_model(name, observation)
    grey = jax.random.randint(jax.random.key(1), (4, 8 * 8 * 3), 0, 8).astype(jnp.uint8)
    x = observation.observe(jax.random.key(2), grey)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def value(model):
        with jax.numpy_rank_promotion("allow"):
            return jnp.mean(
                gdregs.bound(
                    model.posterior(x), model.prior(), model.likelihood(x), key=jax.random.key(3),
                    num_samples=4, num_gradient_samples=2,
                )
            )  # fmt: skip

    bound, gradient = value(model)
    assert jnp.isfinite(bound)
    for group, part in gradient.groups.items():
        leaves = jax.tree.leaves(part)
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves), group
        assert any(bool(jnp.any(leaf != 0)) for leaf in leaves), group
    z = model.prior().sample(jax.random.key(4), (2,))
    assert tuple(sorted(z)) == tuple(sorted(model.latents))
    assert model.pixels(z).shape == (2, 8 * 8 * 3)


@pytest.mark.slow
def test_gradients_are_those_of_naive_on_average():
    """Of convolutions; `test_topdown.py` has what a ladder is made of."""
    model = make_model("conv")
    x = (jax.random.uniform(jax.random.key(1), (2, 64)) > 0.5).astype(jnp.float32)

    def gradient(posterior, prior):
        def draw(key):
            def value(model):
                with jax.numpy_rank_promotion("allow"):
                    return jnp.mean(
                        gdregs.bound(
                            model.posterior(x), model.prior(), model.likelihood(x), key=key,
                            num_samples=4, posterior_estimator=posterior, prior_estimator=prior,
                        )
                    )  # fmt: skip

            # Sums over each array: one number a parameter group's leaf.
            return jax.tree.map(jnp.sum, eqx.filter_grad(value)(model))

        return draw

    def check(posterior):
        return gdregs.check_unbiased(
            gradient(posterior, "gdregs"), gradient("naive", "naive"), jax.random.key(0), 1500
        )

    assert check("dregs").unbiased


class Encoder(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, images):
        flat = images.reshape(len(images), -1)
        loc, raw = jnp.split(jax.vmap(self.linear)(flat), 2, axis=-1)
        return dist.Normal(loc, jax.nn.softplus(raw)).to_event(1)


class Decoder(eqx.Module):
    linear: eqx.nn.MLP

    def __call__(self, z):
        return jax.vmap(jax.vmap(self.linear))(z) if z.ndim == 3 else jax.vmap(self.linear)(z)


class Convolving(eqx.Module):
    linear: eqx.nn.Linear

    def __call__(self, z):
        images = (z @ self.linear.weight.T).reshape(-1, 8, 8, 1)
        painted = convolve(images, jnp.ones((3, 3, 1, 1)), jnp.zeros(1))
        return painted.reshape(*z.shape[:-1], 64)


def own(decoder):
    """A model of one's own with this decoder."""
    return OwnVAE(
        Encoder(eqx.nn.Linear(64, 4, key=jax.random.key(0))),
        dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        decoder,
        shape=(8, 8, 1),
        observation=Observation(levels=16),
    )


def test_own_networks_are_trained_saved_and_continued(tmp_path):
    keys = jax.random.split(jax.random.key(0), 2)

    def make(outputs=64):
        return OwnVAE(
            Encoder(eqx.nn.Linear(64, 6, key=keys[0])),
            dist.Normal(jnp.zeros(3), 1.0).to_event(1),
            Decoder(eqx.nn.MLP(3, outputs, 8, 1, activation=jnp.tanh, key=keys[1])),
            shape=(8, 8, 1),
            observation=Observation(levels=16),
        )

    data = gdregs.vae.load_dataset("digits")
    config = Config(epochs=2, num_samples=4, gradient_samples=2, learning_rate=1e-2)
    options = {"folder": tmp_path / "run", "levels": 16}
    run, rows = fit(make(), data.train[:256], data.test[:64], config, **options)
    assert rows[1]["train_bound"] > rows[0]["train_bound"]
    longer = dataclasses.replace(config, epochs=3)
    again, rows = fit(make(), data.train[:256], data.test[:64], longer, **options)
    assert (run.epoch, again.epoch, len(rows)) == (2, 3, 3)
    assert again.sample(jax.random.key(0), 4).shape == (4, 8, 8, 1)
    assert again.encode(data.test[:5])["z"].shape == (5, 3)
    loaded = gdregs.vae.load(tmp_path / "run", make())
    np.testing.assert_array_equal(
        loaded.encode(data.test[:5])["z"], again.encode(data.test[:5])["z"]
    )
    with pytest.raises(gdregs.vae.UserError, match="was trained on other images"):
        fit(make(), data.train[:128], data.test[:64], longer, **options)
    with pytest.raises(ValueError, match="behind \\[K, batch\\] it must have 64 numbers"):
        make(5).logits({"z": jnp.zeros((2, 3, 3))})
