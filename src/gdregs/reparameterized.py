"""Whether a sampler passes gradients to its parameters."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PRNGKeyArray

from gdregs.hierarchy import Hierarchy


def is_reparameterized(posterior: Any, key: PRNGKeyArray, num_samples: int) -> bool:
    """Whether every latent of `posterior.sample` is differentiable by its parameters.

    numpyro distributions say so themselves. The sampler of anything else is traced: it counts as
    reparameterized if the derivative of each latent depends on a parameter's.
    """
    if isinstance(posterior, dist.Distribution):
        return bool(posterior.has_rsample)
    if isinstance(posterior, Hierarchy):
        return _is_hierarchy_reparameterized(posterior, key, num_samples)
    return _has_derivative(posterior, key, num_samples)


def _is_hierarchy_reparameterized(posterior, key, num_samples):
    verdicts = []

    def walk(z):
        for name, parents in posterior.parents:
            conditional = posterior._conditional(name, parents, z)
            verdicts.append(is_reparameterized(conditional, key, num_samples))
        return 0

    jax.eval_shape(walk, jax.eval_shape(lambda: posterior.sample(key, (num_samples,))))
    return all(verdicts)


def _has_derivative(posterior, key, num_samples):
    parameters, rest = eqx.partition(posterior, eqx.is_inexact_array)

    def draw(parameters):
        return eqx.combine(parameters, rest).sample(key, (num_samples,))

    def derivative(tangents):
        return jax.jvp(draw, (parameters,), (tangents,))[1]

    jaxpr = jax.make_jaxpr(derivative)(jax.tree.map(jnp.zeros_like, parameters)).jaxpr
    reached = {id(var) for var in jaxpr.invars}
    for equation in jaxpr.eqns:
        if any(id(var) in reached for var in equation.invars):
            reached.update(id(var) for var in equation.outvars)
    return all(id(var) in reached for var in jaxpr.outvars)
