"""Look at all samples, without gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gdregs.evaluation.gates import gated
from gdregs.evaluation.meshes import gather_samples
from gdregs.evaluation.weights import Model, draw_and_remember


class Look(NamedTuple):
    r"""All log-weights, and what the objective makes of them.

    Attributes:
        z: All samples; None if they are streamed.
        value: F, with -inf for a datapoint without weight.
        v: The coefficients of the naive gradient; 0 where a sample has no weight.
        r: c / v; 0 where v is.
        effective_sample_size: $1 / \sum_k \tilde w_k^2$; 0 for a datapoint without weight.
        posterior: The posterior; where that is cheaper, one that recalls the samples.
    """

    z: PyTree
    value: Float[Array, "*batch"]
    v: Float[Array, "K *batch"]
    r: Float[Array, "K *batch"]
    effective_sample_size: Float[Array, "*batch"]
    posterior: Any


def look(model: Model, objective: Any, *, remembers: bool) -> Look:
    """Look at all samples.

    Args:
        model: The model.
        objective: The objective.
        remembers: Whether all samples will be pulled through, as they were drawn.
    """
    # Stopped here already, so that no time is spent on tracing derivatives.
    stopped = model._replace(posterior=gated(model.posterior, 0), prior=gated(model.prior, 0))
    posterior, found = model.posterior, None
    if remembers and model.chunk_size is None:
        keys = model.sample_keys(0, model.num_samples)
        found = draw_and_remember(stopped.posterior, keys)
    if found is not None:
        z, log_posterior, recalled = found
        z, log_weights = stopped.look_at(0, z, log_posterior)
        posterior = recalled(posterior)
    elif model.chunk_size is None:
        z, log_weights = stopped.look(0, model.num_samples)
    else:
        z, log_weights = None, stopped.in_blocks(lambda *block: stopped.look(*block)[1])

    log_weights = gather_samples(log_weights)  # all that devices have to tell each other
    is_weightless = jnp.max(log_weights, axis=0) == -jnp.inf
    value = jnp.where(is_weightless, -jnp.inf, objective(log_weights))
    v, c = objective.coefficients(log_weights)
    alive = (log_weights > -jnp.inf) & jnp.isfinite(v) & jnp.isfinite(c) & (v != 0)
    v = jnp.where(alive, v, 0)
    r = jnp.where(alive, c / jnp.where(alive, v, 1), 0)
    weights = jnp.where(is_weightless[None], 0, jax.nn.softmax(log_weights, axis=0))
    squares = jnp.sum(weights**2, axis=0)
    size = jnp.where(is_weightless, 0, 1 / jnp.where(is_weightless, 1, squares))
    value, v, r, size = jax.lax.stop_gradient((value, v, r, size))
    return Look(z, value, v, r, size, posterior)
