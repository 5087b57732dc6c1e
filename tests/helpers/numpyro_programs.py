"""Models and guides of numpyro for the tests, each pair with its data."""

import equinox as eqx
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.module import eqx_module, flax_module, nnx_module
from numpyro.infer import autoguide


def initial_parameters(model, guide, *args):
    """What all parameters begin with; for use inside of `jax.jit`, with a guide made there.

    `SVI.init` finds the same, but compiles each operation by itself; so do checks of numbers.
    """
    with numpyro.validation_enabled(False), handlers.seed(rng_seed=1):
        guide_trace = handlers.trace(guide).get_trace(*args)
        model_trace = handlers.trace(handlers.replay(model, guide_trace)).get_trace(*args)
    sites = {**guide_trace, **model_trace}
    return traced({name: site["value"] for name, site in sites.items() if site["type"] == "param"})


def traced(params):
    """Inside of `jax.jit` the same parameters, unknown: what is known numpyro checks at once."""
    return jax.lax.optimization_barrier(jax.tree.map(jnp.asarray, params))


DATA = np.random.default_rng(0).normal(1.0, 1.5, size=20).astype(np.float32)


def local(subsample_size):
    def model(data):
        centre = numpyro.param("centre", 0.5)
        with numpyro.plate("data", len(data), subsample_size=subsample_size):
            x = numpyro.subsample(data, event_dim=0)
            z = numpyro.sample("z", dist.Normal(centre, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(data):
        slope = numpyro.param("slope", 0.3)
        with numpyro.plate("data", len(data), subsample_size=subsample_size):
            x = numpyro.subsample(data, event_dim=0)
            numpyro.sample("z", dist.Normal(slope * x, 0.7))

    return model, guide


def hierarchical():
    """Two layers in one plate, the second with an inner plate, under scale and mask."""

    def model(data):
        a, b = numpyro.param("a", 0.2), numpyro.param("b", 0.8)
        with numpyro.plate("data", len(data), dim=-1), handlers.scale(scale=0.5):
            z2 = numpyro.sample("z2", dist.Normal(a, 1.0))
            with numpyro.plate("inner", 3, dim=-2):
                z1 = numpyro.sample("z1", dist.Normal(b * z2, 1.0))
            with handlers.mask(mask=data > 0):
                numpyro.sample("x", dist.Normal(z1.sum(0), 1.0), obs=data)
            numpyro.factor("soft", -0.1 * z2**2)

    def guide(data):
        c = numpyro.param("c", 0.1)
        scale = numpyro.param("scale", 0.8, constraint=dist.constraints.positive)
        with numpyro.plate("data", len(data), dim=-1), handlers.scale(scale=0.5):
            with numpyro.plate("inner", 3, dim=-2):
                z1 = numpyro.sample("z1", dist.Normal(c * data, scale))
            numpyro.sample("z2", dist.Normal(0.5 * z1.sum(0), 0.9))

    return model, guide


def learned_spread(data):
    """Two layers, of which the second knows the first's scale, and a prior that is learned."""
    spread = numpyro.sample("spread", dist.HalfNormal(numpyro.param("wide", 1.5)))
    with numpyro.plate("groups", 2):
        z = numpyro.sample("z", dist.Normal(numpyro.param("centre", 0.5), spread))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=data[:2])


ERRORS = np.array([15, 10, 16, 11, 9, 11, 10, 18], np.float32)
SCHOOLS = np.array([28, 8, -3, 7, -1, 1, 18, 12], np.float32)


def schools(data):
    mu = numpyro.sample("mu", dist.Normal(numpyro.param("centre", 0.0), 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("x", dist.Normal(theta, ERRORS), obs=data)


class Encoder(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        return jnp.tanh(self.weight * x)


def modules():
    def model(data):
        with numpyro.plate("data", len(data)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            decoder = eqx_module("decoder", Encoder(jnp.array(0.7)))
            numpyro.sample("x", dist.Normal(decoder(z), 1.0), obs=data)

    def guide(data):
        encoder = eqx_module("encoder", Encoder(jnp.array(0.4)))
        with numpyro.plate("data", len(data)):
            numpyro.sample("z", dist.Normal(encoder(data), 0.5))

    return model, guide


def _nnx_module(name, module, input_shape):
    del input_shape
    return nnx_module(name, module)


def networks_of(register, make):
    """Networks of another library: it makes one, `register` is numpyro's contribution for it."""

    def apply(name, x):
        return register(name, make(), input_shape=(1,))(x[:, None])[:, 0]

    def model(data):
        with numpyro.plate("data", len(data)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(apply("decoder", z), 1.0), obs=data)

    def guide(data):
        loc = apply("encoder", data)
        with numpyro.plate("data", len(data)):
            numpyro.sample("z", dist.Normal(loc, 0.5))

    return model, guide


def _written(model, guide):
    """A pair whose guide needs no setting up."""
    return model, lambda: guide, DATA


def _automatic(make_guide):
    return learned_spread, lambda: make_guide(learned_spread), DATA


PROGRAMS = {
    "local": _written(*local(None)),
    "subsampled": _written(*local(5)),
    "hierarchical": _written(*hierarchical()),
    "modules": _written(*modules()),
    "flax": _written(*networks_of(flax_module, lambda: flax.linen.Dense(1))),
    "nnx": _written(
        *networks_of(_nnx_module, lambda: flax.nnx.Linear(1, 1, rngs=flax.nnx.Rngs(0)))
    ),
    **{
        guide.__name__: _automatic(guide)
        for guide in (
            autoguide.AutoNormal,
            autoguide.AutoDiagonalNormal,
            autoguide.AutoLowRankMultivariateNormal,
            autoguide.AutoDelta,
        )
    },
}
"""By name a model, what makes its guide, and the data.

An automatic guide keeps what it has traced: each `jax.jit` makes one for itself.
"""
