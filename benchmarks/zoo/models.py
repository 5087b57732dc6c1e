"""Models as users of numpyro write them: each with a guide, its data, and what it is."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from entry import Entry, generator
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.handlers import block, mask
from numpyro.infer import autoguide, init_to_median

from networks import deep_kernel, vae_flax, vae_nnx


def _positive(name, value):
    return numpyro.param(name, value, constraint=constraints.positive)


def horseshoe():
    rng = generator(0)
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
    rng = generator(1)
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
    rng = generator(2)
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
    y = np.sin(3 * x) + generator(3).normal(0, 0.2, 30)

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
    rng = generator(4)
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
    rng = generator(5)
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
    rng = generator(6)
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

    rng_start = generator(7).dirichlet(np.ones(20), size=3).astype(np.float32)
    return Entry("topics, Dirichlet shares", model, guide, (jnp.array(counts, jnp.float32),))


def state_space():
    rng = generator(8)
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
    rng = generator(9)
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


def enumerated_mixture():
    rng = generator(13)
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

    y = jnp.array(generator(14).normal(2.0, 0.5, size=10), jnp.float32)
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
    rng = generator(15)
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
