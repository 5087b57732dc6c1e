r"""Factors on densities: masks, scales and annealing.

A density may enter the log-weight with a factor,
$\ell = \log p(x|z) + \sum_i a_i \log p_i - \sum_j b_j \log q_j$. A mask is the factor 0 or 1.
Samples are drawn from the distribution itself, whatever its factor.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from gdregs.reexpression.paths import align, with_path
from gdregs.reexpression.reexpress import raise_rank, reexpress
from gdregs.reexpression.reparameterized import is_reparameterized
from gdregs.reexpression.support import move_into_support

_WRAPPERS = (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)


class WithFactor(eqx.Module):
    """A distribution whose log-density is multiplied by a factor; see `with_factor`."""

    base_dist: Any
    factor: Any

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> PyTree:
        """Draw from the distribution itself."""
        return self.base_dist.sample(key, sample_shape)

    def log_prob(self, z: PyTree) -> Float[Array, "*shape"]:
        """The log-density times the factor; 0 where the factor is 0."""
        return times(jax.lax.stop_gradient(self.factor), self.base_dist.log_prob(z))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """That of the distribution."""
        return self.base_dist.batch_shape

    @property
    def event_shape(self) -> tuple[int, ...]:
        """That of the distribution."""
        return self.base_dist.event_shape

    @property
    def support(self) -> Any:
        """That of the distribution."""
        return self.base_dist.support


def with_factor(distribution: Any, factor: Any) -> WithFactor:
    r"""Let a density enter the log-weight with a factor: masks and annealing.

    `gdregs.bound` draws from the distribution as it is, and multiplies its log-density by the
    factor. Every estimator accounts for that. For 0 and 1, numpyro's `distribution.mask(...)` does
    the same.

    Args:
        distribution: A distribution: a posterior, a prior, or what a conditional of a
            `gdregs.Hierarchy` returns.
        factor: A number, or an array that broadcasts against the log-density, `[*batch]`. It is a
            constant: it must not depend on latents or parameters.

    Returns:
        A distribution.

    Example:
        An ELBO whose KL divergence counts half:

        >>> import gdregs, jax, numpyro.distributions as dist
        >>> posterior = gdregs.with_factor(dist.Normal(1.0, 0.8), 0.5)
        >>> prior = gdregs.with_factor(dist.Normal(0.0, 1.0), 0.5)
        >>> float(prior.log_prob(0.0)) == 0.5 * float(dist.Normal(0.0, 1.0).log_prob(0.0))
        True

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, Eq. (13), for
        the score of a density times any function.
    """
    return WithFactor(distribution, factor)


def times(factor: Any, log_prob: Array) -> Array:
    """A log-density times a factor; 0 where the factor is 0, whatever the density is."""
    factor = raise_rank(factor, max(jnp.ndim(factor), jnp.ndim(log_prob)))
    is_zero = factor == 0
    return jnp.where(is_zero, 0, factor * jnp.where(is_zero, 0, log_prob))


def has_factor(distribution: Any) -> bool:
    """Whether the density of a single distribution has a factor other than 1."""
    if isinstance(distribution, WithFactor):
        return True
    if isinstance(distribution, dist.MaskedDistribution):
        return distribution._mask is not True
    return isinstance(distribution, _WRAPPERS) and has_factor(distribution.base_dist)


def is_point(distribution: Any) -> bool:
    """Whether a distribution has one value; that has no score, as if the factor were 0."""
    while has_factor(distribution) or isinstance(distribution, _WRAPPERS):
        distribution = distribution.base_dist
    return isinstance(distribution, dist.Delta)


class Found(NamedTuple):
    """What is special about the densities of a posterior or prior.

    Attributes:
        factors: Whether one has a factor other than 1.
        points: Whether one has a single value.
    """

    factors: bool
    points: bool


@functools.singledispatch
def find_factors(part: Any, z: PyTree) -> Found:
    """Whether any density of a posterior or prior at z has a factor, or is a point."""
    del z
    return Found(has_factor(part), is_point(part))


@functools.singledispatch
def strip(part: Any, kinds: tuple[type, ...]) -> Any:
    """A posterior, a prior or a distribution without the factors of these kinds."""
    if not has_factor(part):
        return part
    base = strip(part.base_dist, kinds)
    if isinstance(part, kinds):
        return base
    if isinstance(part, WithFactor):
        return WithFactor(base, part.factor)
    if isinstance(part, dist.Independent):
        return dist.Independent(base, part.reinterpreted_batch_ndims)
    if isinstance(part, dist.MaskedDistribution):
        return dist.MaskedDistribution(base, part._mask)
    return base.expand(part.batch_shape)


def without_factors(part: Any) -> Any:
    """The distribution that samples are drawn from."""
    return strip(part, (WithFactor, dist.MaskedDistribution))


def without_scales(part: Any) -> Any:
    """The distribution with its masks, and no other factor: what is masked is no part of it."""
    return strip(part, (WithFactor,))


def factor_of(distribution: Any, z: Array) -> Any:
    """The factor of each element of a sample: a number, or an array that broadcasts against z."""
    if isinstance(distribution, WithFactor):
        axes = jnp.ndim(z) - len(distribution.event_shape)
        outer = raise_rank(jax.lax.stop_gradient(distribution.factor), axes)
        return align(outer, z) * factor_of(distribution.base_dist, z)
    if isinstance(distribution, dist.MaskedDistribution):
        inner = factor_of(distribution.base_dist, z)
        mask = distribution._mask
        if isinstance(mask, bool):
            return inner if mask else 0.0
        mask = jnp.reshape(mask, jnp.shape(mask) + (1,) * distribution.event_dim)
        mask = raise_rank(mask, jnp.ndim(z))
        return jnp.where(mask, inner, 0.0)
    return factor_of(distribution.base_dist, z) if isinstance(distribution, _WRAPPERS) else 1.0


def _counts(distribution: Any, z: Array) -> Array:
    """Which elements of a sample have a factor other than 0."""
    factor = raise_rank(factor_of(distribution, z), jnp.ndim(z))
    return jnp.broadcast_to(factor != 0, jnp.shape(z))


def own_path(
    distribution: Any,
    z: PyTree,
    scale: Any = 1.0,
    path_of: Callable[[Any, Any], Any] = reexpress,
) -> PyTree:
    """The path of a sample, whose derivative is multiplied by the density's factor and a scale."""
    if is_point(distribution):
        return z
    path = path_of(without_factors(distribution), z)
    factor = factor_of(distribution, z) * raise_rank(scale, jnp.ndim(z))
    return with_path(z, factor * path)


def path_by_parents(
    distribution: Any,
    z: Array,
    *,
    drops_masked: bool,
    path_of: Callable[[Any, Any], Any] = reexpress,
) -> Array:
    """The path of a sample that is drawn whatever its factor; with its masked elements or not."""
    path = path_of(without_factors(distribution), z)
    masked = without_scales(distribution)
    if not drops_masked or not has_factor(masked):
        return path
    return with_path(z, jnp.where(_counts(masked, z), path, z))


@functools.singledispatch
def path_with_factors(part: Any, z: PyTree, *, drops_masked: bool) -> PyTree:
    r"""The path of samples whose derivative by each node's parameters has that node's factor.

    Args:
        part: A posterior or prior.
        z: Samples, leaves `[K, *batch, *event]`.
        drops_masked: Whether what is masked does not move, as it is no part of a prior.
    """
    if isinstance(part, WithFactor) and not isinstance(z, jax.Array):
        path = path_with_factors(part.base_dist, z, drops_masked=drops_masked)
        shape = jnp.shape(jax.eval_shape(part.base_dist.log_prob, z))
        factor = jnp.broadcast_to(jax.lax.stop_gradient(part.factor), shape)
        return jax.tree.map(lambda leaf, p: with_path(leaf, align(factor, p) * p), z, path)
    return own_path(part, z)


@reexpress.register(WithFactor)
def _(distribution: WithFactor, z: PyTree) -> PyTree:
    """A factor changes no path."""
    return reexpress(distribution.base_dist, z)


@is_reparameterized.register(WithFactor)
def _(posterior: WithFactor, key: PRNGKeyArray, num_samples: int) -> bool:
    return is_reparameterized(posterior.base_dist, key, num_samples)


@move_into_support.register(WithFactor)
def _(distribution: WithFactor, z: PyTree) -> tuple[PyTree, Array | None]:
    moved, inside = move_into_support(distribution.base_dist, z)
    if inside is None:
        return z, None
    counts = raise_rank(distribution.factor, jnp.ndim(inside)) != 0
    return jax.tree.map(lambda old, new: jnp.where(align(counts, new), new, old), z, moved), (
        inside | ~counts
    )


@move_into_support.register(dist.MaskedDistribution)
@move_into_support.register(dist.Independent)
@move_into_support.register(dist.ExpandedDistribution)
def _(distribution: Any, z: Array) -> tuple[Array, Array | None]:
    """A masked element may lie anywhere."""
    bare = without_factors(distribution)
    plain = move_into_support.dispatch(object)
    if bare is distribution:
        return plain(bare, z)
    counts = _counts(distribution, z)
    if plain(bare, z)[1] is None:
        return z, None
    looked_at = jnp.where(counts, z, bare.support.feasible_like(z))
    moved, inside = plain(bare, looked_at)
    return jnp.where(counts, moved, z), inside
