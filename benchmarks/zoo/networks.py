"""Models of the zoo whose parameters are those of networks."""

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from entry import Entry, generator
from numpyro.contrib.module import flax_module, nnx_module
from numpyro.handlers import block
from numpyro.infer import autoguide


def deep_kernel():
    rng = generator(10)
    x = rng.uniform(-2, 2, size=(30, 2))
    y = np.sin(2 * x[:, 0]) * x[:, 1] + rng.normal(0, 0.1, 30)

    class Features(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x):
            return flax.linen.Dense(2)(jnp.tanh(flax.linen.Dense(8)(x)))

    def model(x, y):
        features = flax_module("features", Features(), input_shape=(2,))(x)
        amplitude = numpyro.sample("amplitude", dist.LogNormal(0.0, 1.0))
        noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0))
        distances = jnp.sum((features[:, None] - features[None]) ** 2, -1)
        covariance = amplitude**2 * jnp.exp(-0.5 * distances)
        covariance = covariance + (noise**2 + 1e-3) * jnp.eye(len(x))
        numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=y)

    args = (jnp.array(x, jnp.float32), jnp.array(y, jnp.float32))
    hidden = block(model, hide_fn=lambda site: site["type"] == "param")
    return Entry("deep kernel", model, autoguide.AutoNormal(hidden), args, 0.005)


def _images():
    rng = generator(11)
    centres = rng.random((4, 25)) < 0.5
    pixels = np.where(rng.random((64, 25)) < 0.9, centres[np.arange(64) % 4], 0.5)
    return jnp.array(rng.random((64, 25)) < pixels, jnp.float32)


def _vae(about, encode, decode):
    def model(x):
        decoder = decode()
        with numpyro.plate("data", len(x)):
            logits = numpyro.param("shares", jnp.zeros(3))
            centres = numpyro.param(
                "centres", jnp.array(generator(12).normal(size=(3, 2)), jnp.float32)
            )
            prior = dist.MixtureSameFamily(
                dist.Categorical(logits=logits), dist.Normal(centres, 1.0).to_event(1)
            )
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        out = encode()(x)
        with numpyro.plate("data", len(x)):
            scale = 0.01 + jax.nn.softplus(out[:, 2:])
            numpyro.sample("z", dist.Normal(out[:, :2], scale).to_event(1))

    return Entry(about, model, guide, (_images(),), 0.003)


def vae_flax():
    class Network(flax.linen.Module):
        size: int

        @flax.linen.compact
        def __call__(self, x):
            return flax.linen.Dense(self.size)(jnp.tanh(flax.linen.Dense(32)(x)))

    return _vae(
        "VAE with a mixture prior, flax",
        lambda: flax_module("encoder", Network(4), input_shape=(25,)),
        lambda: flax_module("decoder", Network(25), input_shape=(2,)),
    )


def vae_nnx():
    class Network(flax.nnx.Module):
        def __init__(self, size, out):
            rngs = flax.nnx.Rngs(0)
            self.first = flax.nnx.Linear(size, 32, rngs=rngs)
            self.second = flax.nnx.Linear(32, out, rngs=rngs)

        def __call__(self, x):
            return self.second(jnp.tanh(self.first(x)))

    return _vae(
        "VAE with a mixture prior, nnx",
        lambda: nnx_module("encoder", Network(25, 4)),
        lambda: nnx_module("decoder", Network(2, 25)),
    )
