"""What a posterior's own sampler allows."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PRNGKeyArray, PyTree

from gdregs.reexpression.paths import separate
from gdregs.reexpression.reexpress import MovingSupportError, reexpress


@functools.singledispatch
def is_reparameterized(posterior: Any, key: PRNGKeyArray, num_samples: int) -> bool:
    """Whether every latent of `posterior.sample` is differentiable by its parameters.

    numpyro distributions say so themselves. The sampler of anything else is traced: it counts as
    reparameterized if the derivative of each latent depends on a parameter's.
    """
    parameters, with_parameters = separate(posterior)

    def draw(parameters):
        return with_parameters(parameters).sample(key, (num_samples,))

    def derivative(tangents):
        return jax.jvp(draw, (parameters,), (tangents,))[1]

    return all(depend(derivative, jax.tree.map(jnp.zeros_like, parameters)))


def depend(function: Callable[..., PyTree], *arguments: Any) -> list[bool]:
    """Of each leaf of what a function returns, whether it depends on any argument."""
    return depends(jax.make_jaxpr(function)(*arguments))


def depends(program: jax.extend.core.ClosedJaxpr) -> list[bool]:
    """Of each output of a traced function, whether it depends on any argument."""
    jaxpr = program.jaxpr
    reached = {id(var) for var in jaxpr.invars}
    for equation in jaxpr.eqns:
        if any(id(var) in reached for var in equation.invars):
            reached.update(id(var) for var in equation.outvars)
    return [id(var) in reached for var in jaxpr.outvars]


@is_reparameterized.register(dist.Distribution)
def _(posterior: dist.Distribution, key: PRNGKeyArray, num_samples: int) -> bool:
    del key, num_samples
    return bool(posterior.has_rsample)


def has_moving_support(posterior: Any, z: PyTree) -> bool:
    """Whether re-expression refuses to be differentiated by a parameter of the support.

    Then the expected score is not 0, and an estimator that stops the density is biased.
    """
    parameters, with_parameters = separate(posterior)

    def move(parameters, z):
        def path(parameters):
            return reexpress(with_parameters(parameters), z)

        return jax.jvp(path, (parameters,), (parameters,))

    try:
        jax.eval_shape(move, parameters, z)
    except MovingSupportError:
        return True
    return False
