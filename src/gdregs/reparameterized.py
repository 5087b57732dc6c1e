"""What a posterior's own sampler allows."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PRNGKeyArray, PyTree

from gdregs.hierarchy import Hierarchy
from gdregs.reexpress import MovingSupportError, reexpress


def is_reparameterized(posterior: Any, key: PRNGKeyArray, num_samples: int) -> bool:
    """Whether every latent of `posterior.sample` is differentiable by its parameters.

    numpyro distributions say so themselves. The sampler of anything else is traced: it counts as
    reparameterized if the derivative of each latent depends on a parameter's.
    """

    def is_leaf_reparameterized(part):
        if isinstance(part, dist.Distribution):
            return bool(part.has_rsample)
        if hasattr(part, "is_reparameterized"):
            return part.is_reparameterized(key)
        return _has_derivative(part, key, num_samples)

    return all(_ask(is_leaf_reparameterized, posterior, key, num_samples))


def has_moving_support(posterior: Any, z: PyTree) -> bool:
    """Whether re-expression refuses to be differentiated by a parameter of the support.

    Then the expected score is not 0, and an estimator that stops the density is biased.
    """
    parameters, rest = eqx.partition(posterior, eqx.is_inexact_array)

    def move(parameters, z):
        def path(parameters):
            return reexpress(eqx.combine(parameters, rest), z)

        return jax.jvp(path, (parameters,), (parameters,))

    try:
        jax.eval_shape(move, parameters, z)
    except MovingSupportError:
        return True
    return False


def _ask(
    question: Callable[[Any], bool], posterior: Any, key: PRNGKeyArray, num_samples: int
) -> list[bool]:
    """The answers of the posterior, or of every conditional of a hierarchy, without computing."""
    if not isinstance(posterior, Hierarchy):
        return [question(posterior)]
    answers = []

    def walk(z):
        for name, parents in posterior.parents:
            answers.append(question(posterior._conditional(name, parents, z)))

    jax.eval_shape(walk, jax.eval_shape(lambda: posterior.sample(key, (num_samples,))))
    return answers


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
