"""A chain at latents that were drawn from it, whose networks do not run again."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree

from gdregs.reexpression.paths import with_path
from gdregs.reexpression.reexpress import reexpress
from gdregs.sequences.densities import drawer, log_density_along
from gdregs.sequences.memory import Layout, Memory, Recall, remember, trace_conditional
from gdregs.sequences.paths import is_by_loop, path_of
from gdregs.sequences.walk import Walk, after, at, with_first


class Recalled(eqx.Module):
    """A chain with the memory of the draw of some latents; it is of use at these alone."""

    chain: Any
    memory: Memory
    constant: list[Array]
    layout: Layout = eqx.field(static=True)

    def log_prob(self, z: Any, parent_values: Any = None) -> Float[Array, "*shape"]:
        """As of the chain."""
        return log_density_along(self.walk_along(z), z, parent_values)

    def walk_along(self, z: Array) -> Walk:
        """As of the chain, with a transition that recalls."""
        walk = self.chain.walk_along(z)
        recall = Recall(walk.transition, self.constant, self.layout)
        steps = walk.steps._replace(memory=self.memory)
        return dataclasses.replace(walk, transition=recall, steps=steps)


class RecalledSamples(eqx.Module):
    """Recalled samples, whose memories are stacked."""

    stacked: Recalled

    def log_prob(self, z: Any, parent_values: Any = None) -> Float[Array, "K *shape"]:
        """As of the chain."""
        given = z if parent_values is None else parent_values
        return self.of_each(lambda one, z, given: one.log_prob(z, given), z, given)

    def of_each(self, function: Any, *values: Array) -> Array:
        """`function(recalled, *values)` of each sample, with a leading axis of length 1."""

        def one(memory, *values):
            recalled = dataclasses.replace(self.stacked, memory=memory)
            return function(recalled, *(value[None] for value in values))[0]

        return jax.vmap(one)(self.stacked.memory, *values)


def recall_all(draw: Any, keys: Key[Array, " K"]) -> tuple[Array, Array, Any] | None:
    """What `draw_and_recall` returns of one sample, of several.

    Args:
        draw: Maps a key to what `draw_and_recall` returns, with a leading axis of length 1.
        keys: Of the samples.
    """
    layouts = []

    def one(key):
        z, log_posterior, memory, constant, layout = draw(key)
        layouts.append(layout)
        return (z[0], log_posterior[0], memory), constant

    def remembers(key):
        return None if draw(key) is None else key

    if jax.eval_shape(remembers, keys[0]) is None:
        return None
    (z, log_posterior, memory), constant = jax.vmap(one, out_axes=(0, None))(keys)

    def recalled(chain: Any) -> RecalledSamples:
        return RecalledSamples(Recalled(chain, memory, constant, layouts[-1]))

    return z, log_posterior, recalled


def draw_and_recall(
    walk: Walk, start: PyTree, key: PRNGKeyArray, form: str
) -> tuple[Array, Array, Memory, list[Array], Layout] | None:
    """Latents, their log-density, and the memory of their draw.

    None where the path is not a loop over the networks' derivatives: nothing would be gained.

    Args:
        walk: A walk that draws.
        start: What its first conditional sees.
        key: A JAX random key.
        form: How the path is computed.
    """
    length = walk.length
    if length == 1 or walk.advance is not None or walk.saves_memory:
        return None
    if not is_by_loop(walk, jnp.zeros((length, *walk.lead, *walk.event), walk.dtype), form):
        return None
    program = trace_conditional(walk.transition, start, at(walk.steps, -1).input)
    if program is None:
        return None
    draw = drawer(walk.lead, lambda conditional, z: conditional.log_prob(z))
    keys = jax.random.split(key, length)

    def step(context, xs):
        key, now = xs
        conditional, memory, _ = remember(program, context, now.input)
        given = dataclasses.replace(walk, transition=lambda context, step_input: conditional)
        drawn = walk.absent_as(0, given.choose(draw, context, now, key), now)
        return walk.follow(context, drawn[0], now), (drawn, memory)

    xs = (keys, walk.steps)
    if walk.has_own_first:
        first = draw(walk.first(at(walk.steps, 0)), keys[0])
        rest, memory = walk.scan(step, first[0], after(xs, 1))[1]
        z, terms = with_first(first, rest)
        memory = with_first(at(jax.tree.map(jnp.zeros_like, memory), 0), memory)
    else:
        (z, terms), memory = walk.scan(step, walk.start, xs)[1]
    _, _, constant = remember(program, start, at(walk.steps, -1).input)
    return walk.to_value(z), jnp.sum(terms, axis=0), memory, constant, program.layout


@reexpress.register(Recalled)
def _(recalled: Recalled, z: Array) -> Array:
    """As of the chain."""
    z = jax.lax.stop_gradient(z)
    walk = recalled.walk_along(z)
    return with_path(z, walk.to_value(path_of(walk, walk.to_steps(z), "loop")))


@reexpress.register(RecalledSamples)
def _(recalled: RecalledSamples, z: Array) -> Array:
    """As of the chain."""
    return recalled.of_each(reexpress, z)
