"""Walks along a chain: what each conditional is given, step by step or on all steps at once."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from gdregs.reexpression.factors import has_factor
from gdregs.reexpression.paths import align
from gdregs.reexpression.reparameterized import depend
from gdregs.reexpression.support import feasible
from gdregs.sequences.recurrences import scan_in_segments

T = TypeVar("T")


class Step(NamedTuple):
    """What is known of a step before its latent, or of all steps, on a leading axis.

    Attributes:
        input: The chain's own input.
        present: Whether there is such a step, `[K, *batch]`; None where all are.
        started: Whether there is one before it; None where that needs no asking.
        memory: What the draw of its latent has left behind, for a transition that recalls it.
    """

    input: PyTree
    present: Array | None
    started: Array | None
    memory: PyTree = None


@dataclasses.dataclass(frozen=True)
class Walk:
    """A chain, laid out for its values, in the order in which it runs.

    Attributes:
        initial: The distribution of the first latent, or a function of its input, or None.
        transition: Maps (context, input) to the distribution of a latent.
        advance: Maps (context, latent, input) to the next context; None where that is the latent.
        state: The context before the first step, where there is `advance`.
        steps: What is known of all steps.
        lead: `[K, *batch]`.
        event: The shape of a latent.
        dtype: Of the latents.
        length: T.
        reverse: Whether the chain runs from the last value to the first.
        saves_memory: Whether only every root-of-T-th step is kept for the backward pass.
    """

    initial: Any
    transition: Any
    advance: Any
    state: PyTree
    steps: Step
    lead: tuple[int, ...]
    event: tuple[int, ...]
    dtype: Any
    length: int
    reverse: bool
    saves_memory: bool

    @property
    def has_own_first(self) -> bool:
        """Whether the first latent is known to be the one that `initial` gives."""
        return self.initial is not None and self.steps.present is None

    @property
    def start(self) -> PyTree:
        """What the first conditional sees, `[K, *batch, ...]`: the state, or nothing yet."""
        nothing = jnp.zeros((*self.lead, *self.event), self.dtype)
        state, first = self.state, at(self.steps, 0)
        if self.advance is None:
            return nothing
        while True:
            with jax.numpy_rank_promotion("allow"):
                new = jax.eval_shape(self.advance, state, nothing, first.input)
            wider = jax.tree.map(lambda old, new: jnp.broadcast_to(old, new.shape), state, new)
            if jax.tree.map(jnp.shape, wider) == jax.tree.map(jnp.shape, state):
                return jax.tree.map(lambda old, new: jnp.asarray(old, new.dtype), wider, new)
            state = wider

    def is_memoryless(self) -> bool:
        """Whether no conditional depends on the latents before it."""
        if self.advance is not None:
            return False
        first = at(self.steps, 0)

        def parameters(previous):
            return jax.tree.leaves(self.conditional(previous, first))

        return not any(depend(parameters, jnp.zeros((*self.lead, *self.event), self.dtype)))

    def conditional(self, context: PyTree, step: Step) -> Any:
        """The distribution of a latent that has one before it, or a state."""
        memory = () if step.memory is None else (step.memory,)
        return checked(self.transition(context, step.input, *memory))

    def first(self, step: Step) -> Any:
        """The distribution of a latent that has none before it."""
        initial = self.initial
        first = initial if hasattr(initial, "log_prob") else initial(step.input)
        return checked(first)

    def follow(self, context: PyTree, z: Array, step: Step) -> PyTree:
        """What the conditional after a step is given."""
        advance = self.advance
        new = z if advance is None else advance(context, z, step.input)
        present = step.present
        if present is None:
            return new
        return jax.tree.map(lambda new, old: jnp.where(align(present, new), new, old), new, context)

    def choose(self, function: Callable[..., T], context: PyTree, step: Step, *values: Any) -> T:
        """`function(conditional, *values)` with the conditional of a step."""
        result = function(self.conditional(context, step), *values)
        started = step.started
        if started is None:
            return result
        first = function(self.first(step), *values)
        return jax.tree.map(
            lambda later, first: jnp.where(align(started, later), later, first), result, first
        )

    def absent_as(self, value: Any, values: T, step: Step) -> T:
        """`values`, with `value` where there is no step."""
        present = step.present
        if present is None:
            return values
        return jax.tree.map(lambda leaf: jnp.where(align(present, leaf), leaf, value), values)

    def absent_as_feasible(self, z: Array) -> Array:
        """All of z, with values of the support where there is no step: their density is finite."""
        if self.steps.present is None:
            return z
        first = at(self.steps, 0)
        conditional = self.conditional(self.start, first)
        return self.absent_as(feasible(conditional, z), z, self.steps)

    def contexts(self, z: Array) -> PyTree:
        """What each conditional is given, of all steps whose conditional is the transition."""
        if self.has_own_first and self.advance is None:
            return z[:-1]

        def step(context, xs):
            z, step = xs
            return self.follow(context, z, step), context

        contexts = self.scan(step, self.start, (z, self.steps))[1]
        return after(contexts, 1) if self.has_own_first else contexts

    def on_all(self, function: Callable[..., T], contexts: PyTree, *values: Array) -> T:
        """`function(conditional, *values)` of all steps at once.

        Args:
            function: Returns arrays `[K, *batch, ...]`.
            contexts: As `contexts` returns them.
            values: `[T, ...]`.
        """
        if not self.has_own_first:
            return self._map(function, contexts, self.steps, *values)
        first = function(self.first(at(self.steps, 0)), *at(values, 0))
        rest = (contexts, after(self.steps, 1), *after(values, 1))
        return with_first(first, self._map(function, *rest) if self.length > 1 else None)

    def _map(self, function, *xs):
        def one(context, step, *values):
            return self.choose(function, context, step, *values)

        if not self.saves_memory:
            return jax.vmap(one)(*xs)
        return self.scan(lambda carry, xs: (carry, one(*xs)), None, xs)[1]

    def scan(self, step: Callable[..., Any], carry: Any, xs: PyTree) -> Any:
        """A loop over steps."""
        length = jax.tree.leaves(xs)[0].shape[0]
        if self.saves_memory and length > 1:
            return scan_in_segments(step, carry, xs, length)
        return jax.lax.scan(step, carry, xs)

    def to_steps(self, z: Array) -> Array:
        """A value, `[K, *batch, T, *event]`, by steps."""
        z = jnp.moveaxis(z, len(self.lead), 0)
        return jnp.flip(z, 0) if self.reverse else z

    def to_value(self, z: Array) -> Array:
        """Undo `to_steps`."""
        z = jnp.flip(z, 0) if self.reverse else z
        return jnp.moveaxis(z, 0, len(self.lead))


def checked(conditional: Any) -> Any:
    """The distribution of a step; an error if its density has a factor."""
    if has_factor(conditional):
        raise ValueError(
            "A step of a gdregs.Chain or layer of a TopDown has a factor on its density (.mask or"
            " gdregs.with_factor), which those cannot weigh. Use the argument mask of gdregs.Chain"
            " for sequences of different lengths, or make the latent a node of a gdregs.Hierarchy."
        )
    return conditional


def with_first(first: T, rest: Any) -> T:
    """The first step and all others, if there are any."""
    if rest is None:
        return jax.tree.map(lambda leaf: leaf[None], first)
    return jax.tree.map(lambda one, others: jnp.concatenate([one[None], others]), first, rest)


def at(tree: PyTree, index: int) -> PyTree:
    """One step."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def after(tree: PyTree, index: int) -> PyTree:
    """All steps from one on."""
    return jax.tree.map(lambda leaf: leaf[index:], tree)


def lay_out(
    inputs: PyTree,
    mask: Any,
    length: int,
    lead: tuple[int, ...],
    *,
    reverse: bool,
    has_initial: bool,
) -> Step:
    """What is known of all steps of a chain, `[T, ...]`."""
    if reverse:
        inputs, mask = jax.tree.map(lambda leaf: jnp.flip(leaf, 0), (inputs, mask))
    if mask is None:
        return Step(inputs, None, None)
    mask = jnp.asarray(mask, bool)
    missing = len(lead) + 1 - mask.ndim
    mask = jnp.reshape(mask, (length, *(1,) * missing, *mask.shape[1:]))
    present = jnp.broadcast_to(mask, (length, *lead))
    started = jnp.cumsum(present, axis=0) > present if has_initial else None
    return Step(inputs, present, started)
