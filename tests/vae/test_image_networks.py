"""Networks and likelihoods of images: shapes, normalisation, and right gradients."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
from filled import filled
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
from means import assert_unbiased

KINDS = ("categorical", "discretised-logistic-mixture")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("colours", [1, 3])
def test_discrete_likelihoods_add_up_to_one(kind, colours, float64):
    """Over all values of all colours of a pixel."""
    observation = Observation(kind, levels=3, colours=colours)
    grid = np.stack(np.meshgrid(*[np.arange(4.0)] * colours, indexing="ij"), axis=-1)
    grid = jax.device_put(grid.reshape(-1, colours))
    outputs = np.random.default_rng(0).normal(size=observation.num_outputs(colours))
    outputs = np.tile(outputs, (len(grid), 1))
    total = jax.jit(lambda outputs: jax.nn.logsumexp(observation.log_prob(outputs, grid)))(outputs)
    np.testing.assert_allclose(total, 0, atol=1e-12)


@pytest.mark.parametrize("kind", [*KINDS, "gaussian", "bernoulli"])
def test_means_lie_between_black_and_white(kind):
    observation = Observation(kind, levels=7, colours=3)
    outputs = 5 * np.random.default_rng(0).normal(size=(4, observation.num_outputs(6)))
    mean = np.asarray(jax.jit(observation.mean)(outputs.astype(np.float32)))
    assert mean.shape == (4, 6)
    assert 0 <= mean.min() <= mean.max() <= 1
    if kind == "categorical":
        odds = np.exp(outputs.reshape(4, 6, 8))
        expected = odds @ np.arange(8.0) / 7 / odds.sum(axis=-1)
        np.testing.assert_allclose(mean, expected, rtol=1e-5)


def test_a_narrow_gaussian_in_bits():
    """A density that is 1 over one level is one bit for each halving of the range: none is left."""
    observation = Observation("gaussian", levels=255)
    assert observation.bits_per_dimension(0.0, 10) == pytest.approx(8)
    certain = 10 * np.log(256)
    assert observation.bits_per_dimension(certain, 10) == pytest.approx(0)
    assert Observation("categorical", 255).bits_per_dimension(-certain, 10) == pytest.approx(8)
    assert Observation().bits_per_dimension(-1.0, 10) is None
    observe = jax.jit(lambda seed, images: observation.observe(jax.random.key(seed), images))
    seen = 256 * np.asarray(observe(0, np.full((50, 4), 10, np.uint8)))
    assert 10 <= seen.min() < 10.1
    assert 10.9 < seen.max() <= 11


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (13, 9, 3), (3, 3, 1)])
def test_readers_and_painters_of_any_size(shape):
    def paint(x):
        features = Reader(shape, 4, 6, key=jax.random.key(0))(x)
        assert features.shape == (5, 2, 6)
        return Painter(6, shape[:2], 4, 2, key=jax.random.key(1))(features)

    painted = jax.eval_shape(paint, np.zeros((5, 2, int(np.prod(shape))), np.float32))
    assert painted.shape == (5, 2, shape[0] * shape[1] * 2)


def test_convolutions_in_bfloat16_round_only_the_factors():
    @jax.jit
    def convolve_both(seed):
        image_key, kernel_key = jax.random.split(jax.random.key(seed))
        images = jax.random.normal(image_key, (2, 6, 6, 3))
        kernel = jax.random.normal(kernel_key, (3, 3, 3, 4))
        images, kernel = (a.astype(jnp.bfloat16).astype(jnp.float32) for a in (images, kernel))
        bias = jnp.zeros(4)

        def value_and_pullback(precision):
            return jax.vjp(lambda a, b: convolve(a, b, bias, 2, precision), images, kernel)

        exact, exact_back = value_and_pullback("float32")
        found, back = value_and_pullback("bfloat16")
        # A factor that bfloat16 cannot hold is rounded to one that it can.
        rounded = convolve(images * (1 + 2**-10), kernel, bias, 2, "bfloat16")
        return exact, exact_back(exact), found, back(exact), rounded

    exact, exact_back, found, back, rounded = convolve_both(0)
    np.testing.assert_allclose(found, exact, atol=1e-5)
    for ours, expected in zip(back, exact_back, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, expected, atol=0.01 * np.abs(expected).max())
        assert not np.array_equal(ours, expected)
    np.testing.assert_array_equal(rounded, found)


SMALL = Config(
    networks="conv", prior_estimator="gdregs-mix", num_layers=2, latent_size=2, hidden_size=4,
    channels=4, num_samples=4, gradient_samples=2, epochs=1, batch_size=8, learning_rate=1e-2,
)  # fmt: skip


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 17, (24, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def trained(images):
    """The metrics of an epoch of convolutions, a step at a time."""
    _, (row,) = fit(None, images, images[:11], SMALL, levels=16)
    return row


@pytest.mark.parametrize(
    "networks",
    [
        pytest.param("conv", marks=pytest.mark.slow),
        pytest.param("ladder", marks=pytest.mark.nightly),
    ],
)
def test_convolutions_of_every_precision_learn_a_mix(networks, images, trained):
    """All that the papers' networks can be told holds for images' networks."""
    bounds = {}
    for precision in ("float32", "bfloat16"):
        config = dataclasses.replace(SMALL, networks=networks, precision=precision)
        row = trained
        if config != SMALL:
            _, (row,) = fit(None, images, images[:11], config, levels=16)
        bounds[precision] = row["train_bound"]
        assert set(row["alpha"]) == {"z1", "z2"}
        assert any(alpha != 0.5 for alpha in row["alpha"].values())
    assert bounds["float32"] != bounds["bfloat16"]
    assert abs(bounds["float32"] - bounds["bfloat16"]) < 0.5


@pytest.mark.slow
def test_steps_of_convolutions_run_one_by_one(monkeypatch, images, trained):
    """As in a loop of the compiler's, which runs convolutions four times as slowly."""
    for module in (folders, evaluation):
        assert module.loops_are_slow is loops_are_slow
        monkeypatch.setattr(module, "loops_are_slow", lambda *arguments: False)
    _, (row,) = fit(None, images, images[:11], SMALL, levels=16)
    for name in ("train_bound", "test_bound", "effective_sample_size"):
        np.testing.assert_allclose(trained[name], row[name], rtol=1e-4)


def test_loops_of_convolutions_are_slow_and_others_are_not(images):
    """Those of one's own decoder too, where they are found in what it computes."""
    task = make_task(SMALL, Dataset("digits", images, images[:11], 16))

    def judge(seed):
        key = jax.random.key(seed)
        linear = eqx.nn.Linear(2, 64, key=key)
        assert loops_are_slow(SMALL, task, own(Convolving(linear), key))
        assert not loops_are_slow(SMALL, task, own(Decoder(linear), key))
        assert loops_are_slow(SMALL, task, make_model("ladder"))
        assert not loops_are_slow(SMALL, task, make_model("mlp"))
        return seed

    jax.eval_shape(judge, 0)


def test_doubling_repeats():
    images = np.arange(4, dtype=np.float32).reshape(2, 2, 1)
    doubled = jax.jit(lambda images: double(images, (3, 4))[..., 0])(images)
    assert doubled.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]


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


FAST = (("mlp", "gaussian"), ("conv", "categorical"))
SLOW = (("ladder", "discretised-logistic-mixture"), ("conv", "bernoulli"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *FAST,
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
        *(
            pytest.param(name, kind, marks=pytest.mark.nightly)
            for name in ("mlp", "conv", "ladder")
            for kind in ("bernoulli", *KINDS, "gaussian")
            if (name, kind) not in FAST + SLOW
        ),
    ],
)
def test_every_network_with_every_likelihood(name, kind):
    observation = Observation(kind, levels=7, colours=3)
    grey = jax.device_put(np.random.default_rng(1).integers(0, 8, (4, 8 * 8 * 3), np.uint8))

    def loss(model, key):
        observed_key, bound_key = jax.random.split(key)
        x = observation.observe(observed_key, grey)
        with jax.numpy_rank_promotion("allow"):
            return jnp.mean(
                gdregs.bound(
                    model.posterior(x), model.prior(), model.likelihood(x), key=bound_key,
                    num_samples=2,
                )
            )  # fmt: skip

    @jax.jit
    def compute(model, key):
        bound, gradient = eqx.filter_value_and_grad(loss)(model, key)
        z = model.prior().sample(key, (2,))
        assert tuple(sorted(z)) == tuple(sorted(model.latents))
        groups = {group: jax.tree.leaves(of) for group, of in gradient.groups.items()}
        return bound, groups, model.pixels(z)

    bound, gradient, pixels = compute(
        filled(lambda: make_model(name, observation), scale=0.1), jax.random.key(2)
    )
    assert np.isfinite(bound)
    for group, leaves in gradient.items():
        assert all(np.isfinite(leaf).all() for leaf in leaves), group
        assert any(np.asarray(leaf).any() for leaf in leaves), group
    assert pixels.shape == (2, 8 * 8 * 3)


@pytest.mark.slow
def test_gradients_are_those_of_naive_on_average():
    """Of convolutions; `test_topdown.py` has what a ladder is made of."""
    x = jax.device_put((np.random.default_rng(1).random((2, 16)) > 0.5).astype(np.float32))
    sizes = {"num_layers": 2, "latent_size": 2, "hidden_size": 3, "channels": 2}
    model = filled(lambda: ConvVAE((4, 4, 1), **sizes, key=jax.random.key(0)))

    def gradient(posterior, prior):
        def draw(key):
            def value(model):
                parts = model.posterior(x), model.prior(), model.likelihood(x)
                options = {"posterior_estimator": posterior, "prior_estimator": prior}
                with jax.numpy_rank_promotion("allow"):
                    return jnp.mean(gdregs.bound(*parts, key=key, num_samples=4, **options))

            # Sums over each array: one number a parameter group's leaf.
            return jax.tree.map(jnp.sum, eqx.filter_grad(value)(model))

        return draw

    suspects = {"dregs": gradient("dregs", "gdregs"), "stl": gradient("stl", "gdregs")}
    # STL leaves a term out of the IWAE's gradient.
    assert_unbiased(suspects, gradient("naive", "naive"), jax.random.key(0), biased=("stl",))


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


def own(decoder, key):
    """A model of one's own with this decoder."""
    return OwnVAE(
        Encoder(eqx.nn.Linear(64, 4, key=key)),
        dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        decoder,
        shape=(8, 8, 1),
        observation=Observation(levels=16),
    )


@pytest.mark.slow
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
    run, rows = fit(make(), data.train[:192], data.test[:64], config, **options)
    assert rows[1]["train_bound"] > rows[0]["train_bound"]
    longer = dataclasses.replace(config, epochs=3)
    again, rows = fit(make(), data.train[:192], data.test[:64], longer, **options)
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
