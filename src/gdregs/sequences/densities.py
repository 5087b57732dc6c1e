"""Draws and log-densities along a chain."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from gdregs.sequences.walk import Walk


def drawer(lead: tuple[int, ...], note: Callable[..., Any]) -> Callable[..., tuple[Array, Any]]:
    """Draws from a conditional by a key, `[*lead, *event]`, and notes something, `[*lead]`."""

    def draw(conditional: Any, key: PRNGKeyArray) -> tuple[Array, Any]:
        is_whole = conditional.batch_shape == lead
        z = (conditional if is_whole else conditional.expand(lead)).sample(key)
        return z, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, lead), note(conditional, z))

    return draw


def log_density_along(walk: Walk, z: Any, parent_values: Any = None) -> Float[Array, "*shape"]:
    """The log-density of a value, all steps at once."""
    z = walk.to_steps(z)
    given = z if parent_values is None else walk.to_steps(parent_values)

    def density(conditional: Any, z: Array) -> Array:
        return jnp.broadcast_to(conditional.log_prob(z), walk.lead)

    terms = walk.on_all(density, walk.contexts(given), walk.absent_as_feasible(z))
    present = walk.steps.present
    return jnp.sum(terms if present is None else jnp.where(present, terms, 0), axis=0)
