r"""The path of a chain: every latent given its re-expressed predecessors (C.11).

At known values each step has a transform of its own, $z_t = T(\epsilon_t; \theta, z_{t-1}, u_t)$.
Derivatives pass from step to step by the recurrence
$\delta_t = A_t \delta_{t-1} + B_t \, d\theta$ alone, so that the networks of all steps are
evaluated at once. What is left to a loop is the product with $A_t$: as a matrix that was written
out before, or through the networks, from what their evaluation has left behind.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.extend
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from gdregs.reexpression.reexpress import reexpress
from gdregs.reexpression.reparameterized import depends
from gdregs.sequences.dependence import is_elementwise
from gdregs.sequences.memory import Memory
from gdregs.sequences.recurrences import solve_dense, solve_diagonal
from gdregs.sequences.walk import Walk, after, at

stop = jax.lax.stop_gradient

PATHS = ("auto", "matrices", "loop")

LARGEST_MATRIX = 2
"""How many numbers a latent may have for the derivative of its step to be written out."""


def path_of(walk: Walk, z: Array, form: str) -> Array:
    """The path of all latents, `[T, K, *batch, *event]`, in one of the forms of `PATHS`."""
    if walk.is_memoryless():
        path = walk.on_all(reexpress, walk.contexts(z), z)
        return walk.absent_as(0, path, walk.steps)
    is_diagonal = _matrices(walk, z, form)
    if is_diagonal is None:
        return _path_by_loop(walk, z)
    return _path_by_matrices(walk, z, walk.contexts(z), is_diagonal)


def is_by_loop(walk: Walk, z: Array, form: str) -> bool:
    """Whether the path is a loop over the derivatives of the networks."""
    return not walk.is_memoryless() and _matrices(walk, z, form) is None


def _matrices(walk: Walk, z: Array, form: str) -> bool | None:
    """Whether the matrices of the steps are diagonal; None where they are not written out."""
    has_matrices = walk.has_own_first and walk.advance is None and walk.length > 1
    if not has_matrices or walk.saves_memory or form == "loop":
        return None
    is_diagonal = is_elementwise(_mover(walk, z), walk.contexts(z))
    is_small = math.prod(walk.event) <= LARGEST_MATRIX
    return is_diagonal if is_diagonal or is_small or form == "matrices" else None


def _mover(walk: Walk, z: Array) -> Callable[[Array], Array]:
    """All latents but the first as functions of those before them; everything else is constant."""
    transition, steps = stopped(walk.transition), stopped(after(walk.steps, 1))
    fixed = dataclasses.replace(walk, transition=transition)

    def one(context, step, z):
        return fixed.choose(reexpress, context, step, z)

    return lambda contexts: jax.vmap(one)(contexts, steps, z[1:])


def stopped(tree: PyTree) -> PyTree:
    """Everything that could be differentiated, stopped."""
    live, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(stop(live), rest)


def _path_by_matrices(walk: Walk, z: Array, contexts: Array, is_diagonal: bool) -> Array:
    local = walk.on_all(reexpress, contexts, z)
    terms = local - stop(local)
    move = _mover(walk, z)
    associative = jax.default_backend() != "cpu"
    if is_diagonal:
        _, factors = jax.jvp(move, (contexts,), (jnp.ones_like(contexts),))
        return z + solve_diagonal(stop(factors), terms, associative)
    size = math.prod(walk.event)
    basis = jnp.eye(size, dtype=z.dtype).reshape(size, *(1,) * (1 + len(walk.lead)), *walk.event)
    _, derivative = jax.linearize(move, contexts)
    columns = jax.vmap(lambda one: derivative(jnp.broadcast_to(one, contexts.shape)))(basis)
    columns = columns.reshape(size, len(contexts), *walk.lead, size)
    factors = jnp.moveaxis(columns, 0, -2)
    moved = solve_dense(stop(factors), terms.reshape(len(z), *walk.lead, size), associative)
    return z + moved.reshape(z.shape)


def _path_by_loop(walk: Walk, z: Array) -> Array:
    # As the density has them, so that the compiler evaluates the networks of both once.
    contexts = stop(walk.contexts(z))
    steps, start, first = walk.steps, walk.start, None
    if walk.has_own_first:
        first = reexpress(walk.first(at(steps, 0)), z[0])
        start = walk.follow(start, first, at(steps, 0))
        steps, z = after(steps, 1), z[1:]
    if first is not None and len(z) == 0:
        return first[None]
    if walk.saves_memory:
        path = _path_step_by_step(walk, start, steps, z)
    else:
        path = _path_by_linear_steps(walk, start, contexts, steps, z)
    return path if first is None else jnp.concatenate([first[None], path])


def _one_step(walk: Walk, context: PyTree, step: Any, z: Array) -> tuple[PyTree, Array]:
    """What follows a step, and its latent, with their derivatives."""
    path = walk.choose(reexpress, context, step, z)
    path = walk.absent_as(0, path, step)
    return walk.follow(context, path, step), path


def _path_step_by_step(walk: Walk, start: PyTree, steps: Any, z: Array) -> Array:
    """The networks run in the loop, and once more on the way back: little memory."""

    def step(context, xs):
        return _one_step(walk, context, *xs)

    return walk.scan(step, start, (steps, z))[1]


def _can_differ(part: Any) -> bool:
    """Whether a part of the inputs may be differentiated: an array, but not one of a memory."""
    return not isinstance(part, Memory) and eqx.is_inexact_array(part)


def _path_by_linear_steps(
    walk: Walk, start: PyTree, contexts: PyTree, steps: Any, z: Array
) -> Array:
    """The networks run on all steps at once; the loop applies their derivatives.

    Each step's pullback is a pytree of what the backward pass needs, stacked over steps where it
    differs from step to step. The loop runs its transpose, which is linear, so that the way back is
    a loop over the pullbacks themselves.
    """
    parts = {"initial": walk.initial, "transition": walk.transition, "advance": walk.advance}
    parameters, fixed = eqx.partition(parts, eqx.is_inexact_array)
    inputs, other = eqx.partition(steps, _can_differ, is_leaf=lambda part: isinstance(part, Memory))

    def one(parameters, context, inputs, other, z):
        live = dataclasses.replace(walk, **eqx.combine(parameters, fixed))
        return _one_step(live, context, eqx.combine(inputs, other), z)

    # Parameters in closures have a path as well.
    converted, hidden = jax.closure_convert(one, parameters, *at((contexts, inputs, other, z), 0))
    parameters = (parameters, hidden)
    structure = None

    def residuals(context, inputs, other, z):
        nonlocal structure

        def local(parameters, context, inputs):
            known, hidden = parameters
            return converted(known, context, inputs, other, z, *hidden)

        _, pullback = jax.vjp(local, stop(parameters), context, stop(inputs))
        leaves, structure = jax.tree.flatten(pullback)
        return leaves

    xs = (contexts, inputs, other, z)
    program = jax.make_jaxpr(residuals)(*at(xs, 0))
    differs = depends(program)
    on_all = jax.vmap(
        jax.extend.core.jaxpr_as_fun(program), out_axes=[0 if d else None for d in differs]
    )
    stacked = on_all(*jax.tree.leaves(xs))
    constant = [None if d else leaf for d, leaf in zip(differs, stacked, strict=True)]
    varying = [leaf if d else None for d, leaf in zip(differs, stacked, strict=True)]
    difference = jax.tree.map(lambda leaf: leaf - stop(leaf), (parameters, inputs, start))
    d_parameters, d_inputs, d_start = difference
    example = (at(contexts, 0), z[0])

    def step(d_context, xs):
        varying, d_inputs = xs
        leaves = [c if v is None else v for c, v in zip(constant, varying, strict=True)]
        pullback = jax.tree.unflatten(structure, leaves)
        push = jax.linear_transpose(pullback, example)
        d_context, d_z = push((d_parameters, d_context, d_inputs))[0]
        return d_context, d_z

    return z + jax.lax.scan(step, d_start, (varying, d_inputs))[1]
