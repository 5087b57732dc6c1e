"""A normal posterior whose noise has been drawn before, so that several estimators share it."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Key, PRNGKeyArray

from gdregs.evaluation.weights import draw_and_remember
from gdregs.reexpression.reexpress import reexpress


class DrawnNormal(eqx.Module):
    r"""$\mathcal N(\mu, \sigma^2)$, factorised over the last axis, with given standard noise.

    Drawing the noise is the dearest part of a small model's gradient. Estimators that are compared
    on the same samples need it once.
    """

    loc: Float[Array, "*batch dim"]
    scale: Float[Array, "*batch dim"]
    noise: Float[Array, "K *batch dim"]

    def sample(
        self, key: PRNGKeyArray, sample_shape: tuple[int, ...]
    ) -> Float[Array, "K *batch dim"]:
        """The samples of the given noise, whatever the key."""
        del key
        if self.noise.shape[: len(sample_shape)] != tuple(sample_shape):
            raise ValueError(f"There is noise {self.noise.shape} for samples {sample_shape}.")
        return self.loc[None] + self.scale[None] * self.noise

    @property
    def normal(self) -> dist.Distribution:
        """The distribution of a sample, with the axis K."""
        return dist.Normal(self.loc[None], self.scale[None]).to_event(1)

    def log_prob(self, z: Float[Array, "K *batch dim"]) -> Float[Array, "K *batch"]:
        """The log-density, in nats."""
        return jnp.asarray(self.normal.log_prob(z))


@reexpress.register(DrawnNormal)
def _(distribution: DrawnNormal, z: Array) -> Array:
    return reexpress(distribution.normal, z)


@draw_and_remember.register(DrawnNormal)
def _(posterior: DrawnNormal, keys: Key[Array, " K"]) -> Any:
    """The samples of the given noise, all at once: the keys draw nothing."""
    z = posterior.sample(keys[0], keys.shape)
    return z, posterior.log_prob(z), lambda posterior: posterior
