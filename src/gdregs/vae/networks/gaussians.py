"""Gaussian conditionals whose parameters are networks, and hierarchies of them.

Their density has its derivative written out: what automatic differentiation makes of it takes more
programs, and more passes over memory, for the same numbers.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from equinox import Module
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from gdregs.hierarchy import Hierarchy
from gdregs.reexpression.reexpress import raise_rank
from gdregs.vae.networks.mlp import MLP, softplus


def gaussian(network: MLP, *inputs: Float[Array, "..."]) -> dist.Distribution:
    r"""$\mathcal N(z; \mu, \sigma^2)$, factorised: the network gives $\mu$ and $s^{-1}(\sigma)$.

    With s the softplus. The inputs are `[*batch, in]` each, and the last axis is an event.
    """
    loc, scale = _parameters(network, *inputs)
    # No training step could read the answer of a check of its arguments: it would only be traced
    # and compiled.
    return Gaussian(loc, scale, validate_args=False).to_event(1)


class GaussianConditional(Module):
    r"""$\mathcal N(z; \mu(\mathrm{pa}), \sigma^2(\mathrm{pa}))$: `gaussian` of the parents.

    Attributes:
        network: Maps the parents, `[K, *batch, latent]` each. What is known of the datapoint is
            filled in (`MLP.given`), so that it is computed once for all samples and all terms.
    """

    network: MLP

    def __call__(self, *parents: Float[Array, "..."]) -> dist.Distribution:
        """The distribution given the parents."""
        return gaussian(self.network, *parents)


class GaussianHierarchy(Hierarchy):
    """A `gdregs.Hierarchy` of `GaussianConditional`s with latents of one size, below one root."""

    # As it is inherited; type checkers would take the fields for the arguments.
    def __init__(self, nodes: Mapping[str, Any]):
        super().__init__(nodes)

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> dict[str, Array]:
        """`Hierarchy.sample`, number for number; the noise of all latents comes from one loop.

        So a generator is compiled once and not once for each latent.
        """
        root = self.conditional(*self.parents[0], {}).base_dist.loc
        shape = (*sample_shape, *root.shape)
        noise = _noise(key, len(self.parents), shape, root.dtype)
        z: dict[str, Array] = {}
        for (name, parents), epsilon in zip(self.parents, noise, strict=True):
            given = self.conditional(name, parents, z).base_dist
            loc, scale = (raise_rank(p, epsilon.ndim) for p in (given.loc, given.scale))
            z[name] = loc + scale * epsilon
        return z


def _noise(
    key: PRNGKeyArray, num_latents: int, shape: tuple[int, ...], dtype: DTypeLike
) -> Float[Array, "latents *shape"]:
    """Standard normal numbers: `jax.random.normal` of each key that `key` splits into."""
    keys = jax.random.split(key, num_latents)
    return jax.lax.map(lambda key: jax.random.normal(key, shape, dtype), keys)


class Gaussian(dist.Normal):
    """numpyro's Normal, with the derivative of its log-density written out."""

    def log_prob(self, value: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The log-density of each entry, in nats."""
        loc, scale = (raise_rank(p, value.ndim) for p in (self.loc, self.scale))
        return gaussian_log_prob(value, loc, scale)


@jax.custom_jvp
def gaussian_log_prob(
    z: Float[Array, "*shape"], loc: Float[Array, "*#shape"], scale: Float[Array, "*#shape"]
) -> Float[Array, "*shape"]:
    r"""$\log \mathcal N(z; \mu, \sigma^2) = -t^2/2 - \log \sigma - \log \sqrt{2\pi}$, in nats.

    With $t = (z - \mu) / \sigma$ its derivative is
    $\frac{t}{\sigma} (d\mu - dz) + \frac{t^2 - 1}{\sigma} d\sigma$.
    """
    t = (z - loc) / scale
    return -0.5 * t * t - jnp.log(scale) - 0.5 * math.log(2 * math.pi)


@functools.partial(gaussian_log_prob.defjvp, symbolic_zeros=True)
def _(primals, tangents):
    z, loc, scale = primals
    t = (z - loc) / scale
    slope = t / scale
    total = jnp.zeros_like(z)
    for tangent, by_tangent in zip(tangents, (-slope, slope, t * slope - 1 / scale), strict=True):
        if not isinstance(tangent, SymbolicZero):
            total = total + by_tangent * tangent
    return gaussian_log_prob(z, loc, scale), total


@jax.jit  # A bound evaluates each conditional several times: this way it is traced once.
def _parameters(network: MLP, *inputs: Array) -> tuple[Array, Array]:
    loc, raw = jnp.split(network(*inputs), 2, axis=-1)
    return loc, softplus(raw) + 1e-5
