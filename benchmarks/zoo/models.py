"""Models as users of numpyro write them: each with a guide, its data, and what it is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import flax_module, nnx_module
from numpyro.distributions import constraints
from numpyro.handlers import block, mask
from numpyro.infer import autoguide, init_to_median


class Entry(NamedTuple):
    """A model of the zoo.

    Attributes:
        about: What it is, in a few words.
        model: The numpyro program.
        guide: The guide.
        args: What both are called with.
        learning_rate: Of Adam.
    """

    about: str
    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    learning_rate: float = 0.01


def _rng(seed):
    return np.random.default_rng(seed)


def _positive(name, value):
    return numpyro.param(name, value, constraint=constraints.positive)


def horseshoe():
    rng = _rng(0)
    x = rng.normal(size=(100, 10))
    y = rng.random(100) < 1 / (1 + np.exp(-(2 * x[:, 0] - x[:, 1])))

    def model(x, y):
        overall = numpyro.sample("overall", dist.HalfCauchy(1.0))
        with numpyro.plate("features", x.shape[1]):
            local = numpyro.sample("local", dist.HalfCauchy(1.0))
            weights = numpyro.sample("weights", dist.Normal(0.0, overall * local))
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Bernoulli(logits=x @ weights), obs=y)

    args = (jnp.array(x, jnp.float32), jnp.array(y, jnp.float32))
    return Entry("logistic regression, horseshoe prior", model, autoguide.AutoNormal(model), args)


def _groups(centred):
    rng = _rng(1)
    group = np.repeat(np.arange(8), 6)
    x = rng.normal(size=48)
    y = 1.0 + rng.normal(0, 0.7, 8)[group] + 0.5 * x + rng.normal(0, 0.5, 48)

    def model(x, y):
        centre = numpyro.sample("centre", dist.Normal(0.0, 5.0))
        spread = numpyro.sample("spread", dist.HalfNormal(2.0))
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        with numpyro.plate("groups", 8):
            if centred:
                effect = numpyro.sample("effect", dist.Normal(centre, spread))
            else:
                effect = centre + spread * numpyro.sample("raw", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 48):
            numpyro.sample("y", dist.Normal(effect[group] + slope * x, noise), obs=y)

    args = (jnp.array(x, jnp.float32), jnp.array(y, jnp.float32))
    about = f"mixed effects, {'centred' if centred else 'not centred'}"
    return Entry(about, model, autoguide.AutoNormal(model), args)


def gamma_poisson():
    rng = _rng(2)
    counts = rng.poisson(rng.gamma(2.0, 1.5, size=60))

    def model(counts):
        shape, rate = _positive("shape", 1.0), _positive("rate", 1.0)
        with numpyro.plate("data", len(counts)):
            intensity = numpyro.sample("intensity", dist.Gamma(shape, rate))
            numpyro.sample("counts", dist.Poisson(intensity), obs=counts)

    def guide(counts):
        with numpyro.plate("data", len(counts)):
            a = _positive("a", jnp.full(len(counts), 2.0))
            b = _positive("b", jnp.full(len(counts), 1.0))
            numpyro.sample("intensity", dist.Gamma(a, b))

    return Entry("Gamma-Poisson counts", model, guide, (jnp.array(counts, jnp.float32),))


def _kernel(x, amplitude, length):
    return amplitude**2 * jnp.exp(-0.5 * ((x[:, None] - x[None]) / length) ** 2)


def gaussian_process():
    x = np.linspace(-2, 2, 30)
    y = np.sin(3 * x) + _rng(3).normal(0, 0.2, 30)

    def model(x, y):
        amplitude = numpyro.sample("amplitude", dist.LogNormal(0.0, 1.0))
        length = numpyro.sample("length", dist.LogNormal(0.0, 1.0))
        noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0))
        covariance = _kernel(x, amplitude, length) + (noise**2 + 1e-4) * jnp.eye(len(x))
        numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=y)

    args = (jnp.array(x, jnp.float32), jnp.array(y, jnp.float32))
    guide = autoguide.AutoMultivariateNormal(model)
    return Entry("Gaussian-process hyperparameters", model, guide, args)


def _missing(imputed):
    rng = _rng(4)
    x = rng.normal(1.0, 1.5, size=60)
    y = 0.8 * x + rng.normal(0, 0.5, size=60)
    seen = rng.random(60) < 0.7

    def model(x, y):
        centre, spread = numpyro.param("centre", 0.0), _positive("spread", 1.0)
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        if imputed:
            absent = numpyro.sample(
                "absent", dist.Normal(centre, spread).expand([int((~seen).sum())]).to_event(1)
            )
            x = x.at[np.flatnonzero(~seen)].set(absent)
            numpyro.sample("x", dist.Normal(centre, spread).mask(seen), obs=x)
            numpyro.sample("y", dist.Normal(slope * x, noise).to_event(1), obs=y)
        else:
            with numpyro.plate("data", 60), mask(mask=jnp.array(seen)):
                numpyro.sample("x", dist.Normal(centre, spread), obs=x)
                numpyro.sample("y", dist.Normal(slope * x, noise), obs=y)

    args = (jnp.array(np.where(seen, x, 0.0), jnp.float32), jnp.array(y, jnp.float32))
    about = f"regression, missing data {'imputed' if imputed else 'masked'}"
    return Entry(about, model, autoguide.AutoNormal(model), args)


def factorisation():
    rng = _rng(5)
    table = rng.normal(size=(15, 3)) @ rng.normal(size=(3, 12)) + rng.normal(0, 0.3, (15, 12))
    seen = rng.random((15, 12)) < 0.6

    def model(table):
        spread = _positive("spread", 1.0)
        rows = numpyro.sample("rows", dist.Normal(0.0, spread).expand([15, 3]).to_event(2))
        columns = numpyro.sample("columns", dist.Normal(0.0, 1.0).expand([12, 3]).to_event(2))
        entries = dist.Normal(rows @ columns.T, 0.5).mask(jnp.array(seen)).to_event(2)
        numpyro.sample("table", entries, obs=table)

    guide = autoguide.AutoNormal(model)
    return Entry("matrix factorisation", model, guide, (jnp.array(table, jnp.float32),))


def topics():
    rng = _rng(6)
    words = rng.dirichlet(np.full(20, 0.3), size=3)
    counts = np.stack([rng.multinomial(40, p @ words) for p in rng.dirichlet(np.ones(3), 25)])

    def model(counts):
        topics = numpyro.param("topics", jnp.array(rng_start), constraint=constraints.simplex)
        concentration = _positive("concentration", jnp.ones(3))
        with numpyro.plate("documents", len(counts)):
            shares = numpyro.sample("shares", dist.Dirichlet(concentration))
            numpyro.sample("counts", dist.Multinomial(40, shares @ topics), obs=counts)

    def guide(counts):
        with numpyro.plate("documents", len(counts)):
            own = _positive("own", jnp.ones((len(counts), 3)) + counts[:, :3] / 10)
            numpyro.sample("shares", dist.Dirichlet(own))

    rng_start = _rng(7).dirichlet(np.ones(20), size=3).astype(np.float32)
    return Entry("topics, Dirichlet shares", model, guide, (jnp.array(counts, jnp.float32),))


def state_space():
    rng = _rng(8)
    z = np.zeros(50)
    for t in range(1, 50):
        z[t] = 0.9 * z[t - 1] + 0.5 * rng.normal()
    x = z + 0.3 * rng.normal(size=50)

    def model(x):
        decay, spread = numpyro.param("decay", 0.5), _positive("spread", 1.0)

        def step(before, x_t):
            z_t = numpyro.sample("z", dist.Normal(decay * before, spread))
            numpyro.sample("x", dist.Normal(z_t, 0.3), obs=x_t)
            return z_t, None

        scan(step, 0.0, x)

    def guide(x):
        gain, carry = numpyro.param("gain", 0.5), numpyro.param("carry", 0.3)
        width = _positive("width", 0.5)

        def step(after, x_t):
            z_t = numpyro.sample("z", dist.Normal(carry * after + gain * x_t, width))
            return z_t, None

        scan(step, 0.0, x, reverse=True)

    return Entry("state-space model by scan", model, guide, (jnp.array(x, jnp.float32),))


def volatility():
    rng = _rng(9)
    log_scale = np.cumsum(0.2 * rng.normal(size=60)) - 1.0
    returns = np.exp(log_scale) * rng.standard_t(5, size=60)

    def model(returns):
        step_size = numpyro.sample("step_size", dist.LogNormal(-1.5, 0.5))
        freedom = numpyro.sample("freedom", dist.LogNormal(2.0, 0.5))

        def step(before, x):
            s = numpyro.sample("s", dist.Normal(before, step_size))
            numpyro.sample("x", dist.StudentT(freedom, 0.0, jnp.exp(s)), obs=x)
            return s, None

        scan(step, -1.0, returns)

    guide = autoguide.AutoNormal(model)
    return Entry("stochastic volatility", model, guide, (jnp.array(returns, jnp.float32),))


def deep_kernel():
    rng = _rng(10)
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
    rng = _rng(11)
    centres = rng.random((4, 25)) < 0.5
    pixels = np.where(rng.random((64, 25)) < 0.9, centres[np.arange(64) % 4], 0.5)
    return jnp.array(rng.random((64, 25)) < pixels, jnp.float32)


def _vae(about, encode, decode):
    def model(x):
        decoder = decode()
        with numpyro.plate("data", len(x)):
            logits = numpyro.param("shares", jnp.zeros(3))
            centres = numpyro.param("centres", jnp.array(_rng(12).normal(size=(3, 2)), jnp.float32))
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


def enumerated_mixture():
    rng = _rng(13)
    x = np.concatenate([rng.normal(-3, 1, 20), rng.normal(0, 1, 20), rng.normal(3, 1, 40)])

    def model(x):
        shares = numpyro.sample("shares", dist.Dirichlet(jnp.ones(3)))
        spread = _positive("spread", 3.0)
        with numpyro.plate("components", 3):
            means = numpyro.sample("means", dist.Normal(0.0, spread))
        with numpyro.plate("data", len(x)):
            c = numpyro.sample("c", dist.Categorical(shares), infer={"enumerate": "parallel"})
            numpyro.sample("x", dist.Normal(means[c], 1.0), obs=x)

    guide = autoguide.AutoNormal(block(model, hide=["c"]))
    return Entry("mixture, components summed out", model, guide, (jnp.array(x, jnp.float32),))


def _banana(guide_of, about):
    def model(y):
        spread = _positive("spread", 1.0)
        a = numpyro.sample("a", dist.Normal(0.0, spread))
        b = numpyro.sample("b", dist.Normal(0.3 * a**2, 0.5).expand([3]).to_event(1))
        numpyro.sample("y", dist.Normal(a + b.sum(), 0.5).expand([10]).to_event(1), obs=y)

    y = jnp.array(_rng(14).normal(2.0, 0.5, size=10), jnp.float32)
    return Entry(about, model, guide_of(model), (y,))


def flow():
    def guide_of(model):
        return autoguide.AutoIAFNormal(model, num_flows=1, hidden_dims=[8])

    return _banana(guide_of, "banana, flow guide")


def low_rank():
    def guide_of(model):
        return autoguide.AutoLowRankMultivariateNormal(model, rank=2)

    return _banana(guide_of, "banana, low-rank guide")


def structured():
    def guide_of(model):
        def guide(y):
            a = numpyro.sample("a", dist.Normal(numpyro.param("loc", 0.0), _positive("width", 0.5)))
            slope, centre = (
                numpyro.param("slope", jnp.zeros(3)),
                numpyro.param("b_loc", jnp.zeros(3)),
            )
            spread = _positive("b_width", jnp.full(3, 0.5))
            numpyro.sample("b", dist.Normal(centre + slope * a, spread).to_event(1))

        return guide

    return _banana(guide_of, "banana, structured guide")


def pinned():
    rng = _rng(15)
    x = rng.normal(2.0, 1.0, 200) + rng.normal(0, 0.05, 200)

    def model(x):
        centre, spread = numpyro.param("centre", 0.0), _positive("spread", 2.0)
        z = numpyro.sample("z", dist.Normal(centre, spread).expand([200]).to_event(1))
        numpyro.sample("x", dist.Normal(z, 0.05).to_event(1), obs=x)

    guide = autoguide.AutoNormal(model, init_loc_fn=init_to_median)
    return Entry("latents that data pin down", model, guide, (jnp.array(x, jnp.float32),))


ZOO: dict[str, Callable[[], Entry]] = {
    "horseshoe": horseshoe,
    "centred": lambda: _groups(True),
    "not-centred": lambda: _groups(False),
    "gamma-poisson": gamma_poisson,
    "gaussian-process": gaussian_process,
    "imputed": lambda: _missing(True),
    "masked": lambda: _missing(False),
    "factorisation": factorisation,
    "topics": topics,
    "state-space": state_space,
    "volatility": volatility,
    "deep-kernel": deep_kernel,
    "vae-flax": vae_flax,
    "vae-nnx": vae_nnx,
    "enumerated": enumerated_mixture,
    "flow": flow,
    "low-rank": low_rank,
    "structured": structured,
    "pinned": pinned,
}
