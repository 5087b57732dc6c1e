r"""What drawing a chain leaves behind, so that its networks do not run again at the same latents.

A draw evaluates each conditional $q(z_t \mid z_{t-1}, u_t)$, one after another. Density and path at
these latents need the same distributions and their derivatives by $(\theta, z_{t-1}, u_t)$: the
loop that draws hands on both, the second as what the networks' evaluation has left for a backward
pass.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.extend
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from gdregs.reexpression.paths import with_path
from gdregs.reexpression.reparameterized import depends

stop = jax.lax.stop_gradient


@dataclasses.dataclass(frozen=True)
class Layout:
    """What of a conditional and its derivative is not an array.

    Attributes:
        conditional: The structure of the distribution.
        pullback: The structure of its pullback.
        varies: Of each array of the pullback, whether it differs from step to step.
    """

    conditional: Any
    pullback: Any
    varies: tuple[bool, ...]


class Memory(NamedTuple):
    """Of one step, or of all on a leading axis.

    Attributes:
        parameters: The arrays of the distributions.
        varying: What is left of their evaluation and differs from step to step.
    """

    parameters: list[Array]
    varying: list[Array]


class Program(NamedTuple):
    """The evaluation of a conditional, traced once.

    Attributes:
        run: Maps the leaves of (context, input) to the arrays of the distribution and, after them,
            of its pullback.
        layout: What these stand for.
    """

    run: Any
    layout: Layout


def trace_conditional(transition: Any, context: Array, step_input: PyTree) -> Program | None:
    """The program that remembers.

    None if a distribution has more than real numbers, or if the transition has parameters in a
    closure: their derivatives would be forgotten.
    """
    found: list[Any] = []

    def arrays(context, step_input):
        conditional, pullback = _evaluate(transition, context, step_input)
        real, rest = eqx.partition(conditional, eqx.is_inexact_array)
        leaves, structure = jax.tree.flatten(pullback)
        found[:] = [jax.tree.structure(real), structure, jax.tree.leaves(rest)]
        return jax.tree.leaves(real), leaves

    traced = jax.make_jaxpr(arrays)(context, step_input)
    conditional, pullback, rest = found
    if rest or _hides_parameters(transition, context, step_input):
        return None
    varies = depends(traced)[conditional.num_leaves :]
    return Program(
        jax.extend.core.jaxpr_as_fun(traced), Layout(conditional, pullback, tuple(varies))
    )


def _hides_parameters(transition: Any, context: Array, step_input: PyTree) -> bool:
    live, fixed = eqx.partition((transition, step_input), eqx.is_inexact_array)

    def parameters(live, context):
        transition, step_input = eqx.combine(live, fixed)
        return eqx.filter(transition(context, step_input), eqx.is_inexact_array)

    _, hidden = jax.closure_convert(parameters, live, context)
    return bool(hidden)


def remember(
    program: Program, context: Array, step_input: PyTree
) -> tuple[Any, Memory, list[Array]]:
    """The conditional of a step, what it leaves behind, and what is left by any step alike."""
    layout = program.layout
    found = [jnp.asarray(one) for one in program.run(*jax.tree.leaves((context, step_input)))]
    count = layout.conditional.num_leaves
    parameters, leaves = found[:count], found[count:]
    varying = [leaf for leaf, varies in zip(leaves, layout.varies, strict=True) if varies]
    constant = [leaf for leaf, varies in zip(leaves, layout.varies, strict=True) if not varies]
    conditional = jax.tree.unflatten(layout.conditional, parameters)
    return conditional, Memory(parameters, varying), constant


def _evaluate(transition: Any, context: Array, step_input: PyTree) -> tuple[Any, Any]:
    """A conditional, and the pullback from its arrays to parameters, context and input."""
    live, fixed = eqx.partition(transition, eqx.is_inexact_array)
    live_input, fixed_input = eqx.partition(step_input, eqx.is_inexact_array)
    rest = None

    def parameters(live, context, live_input):
        nonlocal rest
        step_input = eqx.combine(live_input, fixed_input)
        conditional = eqx.combine(live, fixed)(context, step_input)
        real, rest = eqx.partition(conditional, eqx.is_inexact_array)
        return real

    real, pullback = jax.vjp(parameters, live, context, live_input)
    return eqx.combine(real, rest), pullback


class Recall(eqx.Module):
    """A transition at latents that were drawn from it, from memory.

    It has the derivatives of the transition by parameters, context and input, to first order.
    """

    transition: Any
    constant: list[Array]
    layout: Layout = eqx.field(static=True)

    def __call__(self, context: Array, step_input: PyTree, memory: Memory) -> Any:
        """The distribution that was drawn from."""
        memory, constant = stop((memory, self.constant))
        varying, constant = iter(memory.varying), iter(constant)
        leaves = [next(varying if varies else constant) for varies in self.layout.varies]
        pullback = jax.tree.unflatten(self.layout.pullback, leaves)
        value = jax.tree.unflatten(self.layout.conditional, memory.parameters)
        live, _ = eqx.partition(self.transition, eqx.is_inexact_array)
        live_input, _ = eqx.partition(step_input, eqx.is_inexact_array)
        push = jax.linear_transpose(pullback, value)
        primals = (live, context, live_input)
        (moved,) = push(jax.tree.map(lambda leaf: leaf - stop(leaf), primals))
        return with_path(value, moved)
