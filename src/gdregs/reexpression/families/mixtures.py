r"""Continuous mixtures: implicit paths, coordinate by coordinate.

In one dimension the mixture's cdf is $\sum_k \pi_k F_k$, so that a sample moves by

$$dz = \sum_k r_k \, v_k(z) - \sum_k \frac{\pi_k F_k(z)}{p(z)} \, d\log\pi_k ,$$

with $v_k$ the path of component k and $r_k$ its posterior probability. A vector moves by its
sequential conditionals: given the coordinates before, each is a mixture of one dimension whose
weights and components have moved along with them.

Reference:
    Graves, Stochastic Backpropagation through Mixture Density Distributions, 2016.
    Figurnov, Mohamed and Mnih, Implicit Reparameterization Gradients, 2018.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jaxtyping import Array

from gdregs.reexpression.families.multivariate import solve
from gdregs.reexpression.families.tails import log_tails
from gdregs.reexpression.reexpress import NoReexpressionError, raise_rank, reexpress, rule

stop = jax.lax.stop_gradient


@rule(dist.MixtureSameFamily)
def _mixture_same_family(distribution: Any, z: Array) -> Array:
    component = distribution.component_distribution
    logits = jax.nn.log_softmax(distribution.mixing_distribution.logits)
    if distribution.event_dim == 0:
        return _scalar_mixture(raise_rank(logits, z.ndim + 1), [component], z)
    if distribution.event_dim == 1:
        return _vector_mixture(raise_rank(logits, z.ndim), component, z)
    raise NoReexpressionError(
        "MixtureSameFamily has no re-expression rule where its components are matrices."
    )


@rule(dist.MixtureGeneral)
def _mixture_general(distribution: Any, z: Array) -> Array:
    if distribution.event_dim > 0:
        raise NoReexpressionError(
            "MixtureGeneral has no re-expression rule where its components are vectors; a"
            " MixtureSameFamily has."
        )
    logits = jax.nn.log_softmax(distribution.mixing_distribution.logits)
    return _scalar_mixture(raise_rank(logits, z.ndim + 1), distribution.component_distributions, z)


def _scalar_mixture(log_weights: Array, components: Any, z: Array) -> Array:
    """A mixture over the last axis of one distribution, or over a list of distributions."""

    def on_all(function):
        """`function(component, z)` for all components, along a new last axis."""
        if len(components) == 1:
            size = log_weights.shape[-1]
            return function(components[0], jnp.broadcast_to(z[..., None], (*z.shape, size)))
        return jnp.stack([function(component, z) for component in components], axis=-1)

    log_densities = on_all(lambda component, z: component.log_prob(z))
    log_joint = stop(log_weights + log_densities)
    log_density = logsumexp(log_joint, axis=-1, keepdims=True)
    paths = on_all(reexpress)
    moved = jnp.sum(stop(jnp.exp(log_joint - log_density)) * (paths - stop(paths)), axis=-1)

    below = on_all(lambda component, z: log_tails(stop(component), z)[0])
    above = on_all(lambda component, z: log_tails(stop(component), z)[1])
    in_lower_tail = logsumexp(log_weights + below, axis=-1) < jnp.log(1 / 2)
    log_tail = jnp.where(in_lower_tail[..., None], below, above)
    largest = np.log(float(jnp.finfo(z.dtype).max)) - 1
    slopes = stop(jnp.exp(jnp.minimum(log_weights + log_tail - log_density, largest)))
    by_weights = jnp.sum(slopes * (log_weights - stop(log_weights)), axis=-1)
    return z + moved + jnp.where(in_lower_tail, -by_weights, by_weights)


def _vector_mixture(log_weights: Array, component: Any, z: Array) -> Array:
    """A mixture of vectors, one coordinate after another."""
    conditionals = _Conditionals(component, z.ndim)
    path: list[Array] = []
    for index in range(z.shape[-1]):
        factor = conditionals.given(path)
        path.append(_scalar_mixture(log_weights, [factor], z[..., index]))
        log_weights = jax.nn.log_softmax(log_weights + factor.log_prob(path[-1][..., None]))
    return jnp.stack(path, axis=-1)


class _Conditionals:
    """The components' distribution of one coordinate given those before it."""

    def __init__(self, component: Any, ndim: int):
        self.component = component
        self.ndim = ndim  # axes of the scalar components: those of z, the mixture's instead of its

    def given(self, path: list[Array]) -> Any:
        index, component = len(path), self.component
        while isinstance(component, (dist.ExpandedDistribution, dist.Independent)):
            component = component.base_dist
        if isinstance(component, dist.MultivariateNormal):
            return self._normal(component, path)
        if component.event_shape != ():
            raise NoReexpressionError(
                f"MixtureSameFamily has no re-expression rule where its components are of the"
                f" family {type(component).__name__}: vectors must be MultivariateNormal or have"
                f" independent coordinates."
            )
        shape = (*self.component.batch_shape, *self.component.event_shape)
        chosen = {
            name: raise_rank(
                jnp.broadcast_to(getattr(component, name), shape)[..., index], self.ndim
            )
            for name in component.arg_constraints
        }
        return type(component)(**chosen)

    def _normal(self, component: Any, path: list[Array]) -> dist.Normal:
        index = len(path)
        size = component.event_shape[0]
        shape = component.batch_shape
        loc = raise_rank(jnp.broadcast_to(component.loc, (*shape, size)), self.ndim + 1)
        lower = raise_rank(
            jnp.broadcast_to(jnp.tril(component.scale_tril), (*shape, size, size)), self.ndim + 2
        )
        row = lower[..., index, :]
        centre = loc[..., index]
        if path:
            before = jnp.stack(path, axis=-1)[..., None, :] - loc[..., :index]
            noise = solve(lower[..., :index, :index], before)
            centre = centre + jnp.sum(row[..., :index] * noise, axis=-1)
        return dist.Normal(centre, row[..., index])
