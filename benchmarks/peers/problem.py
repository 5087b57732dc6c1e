"""The model on which all libraries are compared.

z ~ Normal(theta), x | z ~ Normal(z, 0.8), q = Normal(phi): two dimensions, one datapoint. phi and
theta are each a location and a log-scale, so that every library can hold them as plain arrays.
"""

import jax.numpy as jnp
import numpyro.distributions as dist

import gdregs

X = (1.2, -0.5)
NOISE = 0.8
PHI = {"loc": (0.3, 0.2), "log_scale": (-0.2, 0.1)}
THETA = {"loc": (0.1, -0.2), "log_scale": (0.0, 0.2)}
NUM_SAMPLES = 8


def parameters():
    """phi and theta as arrays."""
    return tuple({name: jnp.asarray(v) for name, v in part.items()} for part in (PHI, THETA))


def normal(part):
    return dist.Normal(part["loc"], jnp.exp(part["log_scale"])).to_event(1)


def likelihood(z):
    return dist.Normal(z, NOISE).to_event(1).log_prob(jnp.asarray(X))


def bound(phi, theta, key, **options):
    return gdregs.bound(normal(phi), normal(theta), likelihood, key=key, **options)
