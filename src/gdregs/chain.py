r"""Joint distributions over sequences, whose conditionals share one function and its parameters.

$$q(z_{1:T}) = q(z_1) \prod_{t=2}^T q(z_t \mid z_{t-1}, u_t)$$

is a hierarchy of T latents, and everything that holds for a graph of latents holds for it (App. C).
Only the program is another one: sampling is one loop over time; at known values the densities of
all steps are evaluated at once; and the path (C.11) is the linear recurrence

$$\delta_t = A_t \, \delta_{t-1} + B_t \, d\theta , \qquad
A_t = \frac{\partial T_t}{\partial z_{t-1}}, \quad B_t = \frac{\partial T_t}{\partial \theta}$$

of the derivatives of each step's own transform $z_t = T(\epsilon_t; \theta, z_{t-1}, u_t)$.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree

from gdregs.evaluation.gates import log_density_without_indirect
from gdregs.evaluation.weights import draw_and_remember
from gdregs.reexpression.paths import with_path
from gdregs.reexpression.reexpress import reexpress
from gdregs.reexpression.reparameterized import is_reparameterized
from gdregs.reexpression.support import move_into_support
from gdregs.sequences.densities import drawer, log_density_along
from gdregs.sequences.paths import PATHS, path_of
from gdregs.sequences.recalled import RecalledSamples, draw_and_recall, recall_all
from gdregs.sequences.walk import Walk, after, at, lay_out, with_first
from gdregs.shared.checks import positive_integer

stop = jax.lax.stop_gradient


class Chain(eqx.Module):
    r"""A joint distribution over $z_1, \dots, z_T$, each given the one before.

    A state-space model's prior, a smoother, a deep Markov model, a recurrent posterior: all are
    chains. A chain is a distribution as any other: posterior or prior of `gdregs.bound`, by itself
    or as a node of a `gdregs.Hierarchy`, with parents or without. Posterior and prior may run in
    different directions. Trace, compilation and program do not grow with T.

    Args:
        initial: The distribution of the first latent, or a function of its input that returns it.
            None where a `state` is given: then `transition` gives the first latent too.
        transition: `transition(previous, input)` returns the distribution of a latent given the
            value of the one before, `[K, *batch, *event]`, or given the state before, if there
            is one. Like `initial`, a pytree whose array leaves are all its parameters.
        length: T.
        inputs: What is known at each step, a pytree with leaves `[T, *batch, ...]`; None gives
            None to each step. Features of a recurrent encoder belong here: they are computed once
            for all K samples. So do parameters that differ from step to step.
        reverse: Run from $z_T$ down to $z_1$; the first latent is then $z_T$.
        mask: Which steps there are, `[T, *batch]`, where sequences differ in length. A step that
            is not there has the value 0 and no density, and the next one follows the last that is.
        state: The deterministic state before the first step, a pytree, where each conditional
            depends on all latents before it through `advance`.
        advance: `advance(state, z, input)` returns the state after a step. A recurrent network.
        path: What the loop of the sampling path multiplies by: `matrices`, the derivatives of the
            steps written out, or the networks themselves (`loop`); `auto` takes matrices where
            each number of a latent moves by itself, or a latent has one or two.
        checkpoint: Keep only every $\sqrt T$-th step in memory for the backward pass.

    Raises:
        TypeError: If T is not whole, or the parts do not fit together.
        ValueError: If T < 1, an input or the mask does not have T steps, or a name is unknown.

    Example:
        >>> import equinox as eqx, gdregs, jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> class Decay(eqx.Module):
        ...     factor: jax.Array
        ...     def __call__(self, previous, u):
        ...         return dist.Normal(self.factor * previous, 0.5)
        >>> prior = gdregs.Chain(dist.Normal(0.0, 1.0), Decay(jnp.array(0.9)), length=100)
        >>> z = jax.jit(lambda key: prior.sample(key, (10,)))(jax.random.key(0))
        >>> z.shape, jax.jit(lambda z: prior.log_prob(z))(z).shape
        ((10, 100), (10,))

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, App. C.
    """

    initial: Any
    transition: Any
    inputs: PyTree
    mask: Any
    state: PyTree
    advance: Any
    length: int = eqx.field(static=True)
    reverse: bool = eqx.field(static=True)
    path: str = eqx.field(static=True)
    checkpoint: bool = eqx.field(static=True)

    def __init__(
        self,
        initial: Any,
        transition: Any,
        *,
        length: Any,
        inputs: PyTree = None,
        reverse: bool = False,
        mask: Any = None,
        state: PyTree = None,
        advance: Any = None,
        path: str = "auto",
        checkpoint: bool = False,
    ):
        self.initial, self.transition = initial, transition
        self.inputs, self.mask = inputs, mask
        self.state, self.advance = state, advance
        self.length = positive_integer("length", length)
        self.reverse, self.path, self.checkpoint = bool(reverse), path, bool(checkpoint)
        if not callable(transition):
            raise TypeError(
                "transition must be a function (previous, input) -> distribution; got"
                f" {type(transition).__name__}."
            )
        if (state is None) != (advance is None):
            raise TypeError("state and advance belong together: give both of a Chain, or neither.")
        if initial is None and state is None:
            raise TypeError("initial must be a distribution, or a function of the first input.")
        if path not in PATHS:
            raise ValueError(f"path must be one of {', '.join(map(repr, PATHS))}; got {path!r}.")
        for name, leaves in (("inputs", jax.tree.leaves(inputs)), ("mask", jax.tree.leaves(mask))):
            for leaf in leaves:
                if jnp.shape(leaf)[:1] != (self.length,):
                    raise ValueError(
                        f"{name} must have the leading axis T = {self.length}; got an array of"
                        f" shape {jnp.shape(leaf)}."
                    )

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw the latents, one after another.

        Args:
            key: A JAX random key.
            sample_shape: Leading axes of the sample, usually `(K,)`.

        Returns:
            `[*sample_shape, *batch, T, *event]`, reparameterized where the conditionals are.
        """
        return self._draw(key, sample_shape, lambda conditional, z: None)[0]

    def sample_and_log_prob(
        self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, Float[Array, "*shape"]]:
        r"""The same latents, and $\log q$ of them, from one evaluation of the conditionals.

        Args:
            key: A JAX random key.
            sample_shape: Leading axes of the sample, usually `(K,)`.

        Returns:
            `[*sample_shape, *batch, T, *event]` and `[*sample_shape, *batch]`, in nats.
        """
        z, terms = self._draw(key, sample_shape, lambda conditional, z: conditional.log_prob(z))
        return z, jnp.sum(terms, axis=0)

    def _draw(
        self, key: PRNGKeyArray, sample_shape: tuple[int, ...], note: Callable[..., Any]
    ) -> tuple[Array, Any]:
        """The latents, and what `note(conditional, z)` returns of each, `[T, ...]`."""
        walk, _ = self.walk_from(key, sample_shape)
        keys, draw = jax.random.split(key, self.length), drawer(walk.lead, note)

        def step(context, xs):
            key, now = xs
            drawn = walk.absent_as(0, walk.choose(draw, context, now, key), now)
            return walk.follow(context, drawn[0], now), drawn

        if walk.is_memoryless():
            nothing = jnp.zeros((self.length, *walk.lead, *walk.event), walk.dtype)
            drawn = walk.on_all(draw, walk.contexts(nothing), keys)
            z, noted = walk.absent_as(0, drawn, walk.steps)
        elif walk.has_own_first:
            first = draw(walk.first(at(walk.steps, 0)), keys[0])
            context = walk.follow(walk.start, first[0], at(walk.steps, 0))
            _, rest = walk.scan(step, context, (keys[1:], after(walk.steps, 1)))
            z, noted = with_first(first, rest)
        else:
            z, noted = walk.scan(step, walk.start, (keys, walk.steps))[1]
        return walk.to_value(z), noted

    def walk_from(self, key: PRNGKeyArray, sample_shape: tuple[int, ...]) -> tuple[Walk, PyTree]:
        """A walk that draws, and what its first conditional sees."""
        batch, event = self._shapes()
        lead = (*sample_shape, *batch)
        u = at(self.inputs, -1 if self.reverse else 0)
        draw = drawer(lead, lambda conditional, z: None)
        dtype = jax.eval_shape(lambda: draw(self._first(u), key))[0].dtype
        walk = self._walk(lead, event, dtype)
        return walk, walk.start

    def log_prob(self, z: Any, parent_values: Any = None) -> Float[Array, "*shape"]:
        r"""$\log q(z_1) + \sum_t \log q(z_t \mid z_{t-1}, u_t)$, in nats, all steps at once.

        Args:
            z: `[K, *batch, T, *event]`.
            parent_values: What each conditional sees of the latents before it; z itself unless
                given.

        Returns:
            `[K, *batch]`.
        """
        return log_density_along(self.walk_along(z), z, parent_values)

    def _first(self, u: PyTree) -> Any:
        """The distribution of the first latent."""
        if self.initial is None:
            return self.transition(self.state, u)
        return self.initial if hasattr(self.initial, "log_prob") else self.initial(u)

    def _walk(self, lead: tuple[int, ...], event: tuple[int, ...], dtype: Any) -> Walk:
        steps = lay_out(
            self.inputs, self.mask, self.length, lead, reverse=self.reverse,
            has_initial=self.initial is not None,
        )  # fmt: skip
        return Walk(
            self.initial, self.transition, self.advance, self.state, steps, lead, event, dtype,
            self.length, self.reverse, self.checkpoint,
        )  # fmt: skip

    def walk_along(self, z: Array) -> Walk:
        """A walk along a value."""
        _, event = self._shapes()
        place = jnp.ndim(z) - len(event) - 1
        if place < 0 or jnp.shape(z)[place] != self.length:
            raise ValueError(
                f"A Chain of T = {self.length} latents was given an array of shape {jnp.shape(z)};"
                f" values are [K, *batch, T, *event], with the event shape {event}."
            )
        return self._walk(jnp.shape(z)[:place], event, z.dtype)

    def _shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """`*batch` and `*event` of a latent."""
        u = at(self.inputs, 0)

        def shapes_of(make: Callable[[], Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
            found = []
            with jax.numpy_rank_promotion("allow"):
                jax.eval_shape(lambda: found.append(_shapes_of(make())))
            return found[0]

        batch, event = shapes_of(lambda: self._first(u))
        if self.mask is not None:
            batch = jnp.broadcast_shapes(batch, jnp.shape(self.mask)[1:])
        while True:

            def next_conditional(shape=(1, *batch, *event)):
                z = jnp.zeros(shape)
                context = z if self.advance is None else self.advance(self.state, z, u)
                return self.transition(context, u)

            found, event = shapes_of(next_conditional)
            wider = jnp.broadcast_shapes((1, *batch), found)[1:]
            if wider == batch:
                return batch, event
            batch = wider


def _shapes_of(conditional: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if not (hasattr(conditional, "batch_shape") and hasattr(conditional, "event_shape")):
        raise TypeError(
            "The conditionals of a Chain must be distributions with a batch_shape and an"
            f" event_shape, as numpyro's are; got {type(conditional).__name__}."
        )
    return tuple(conditional.batch_shape), tuple(conditional.event_shape)


@reexpress.register(Chain)
def _(chain: Chain, z: Array) -> Array:
    """Every latent given its re-expressed predecessors: (C.11)."""
    z = jax.lax.stop_gradient(z)
    walk = chain.walk_along(z)
    return with_path(z, walk.to_value(path_of(walk, walk.to_steps(z), chain.path)))


@is_reparameterized.register(Chain)
def _(posterior: Chain, key: PRNGKeyArray, num_samples: int) -> bool:
    """Whether the conditionals are."""
    answers = []

    def look():
        z = posterior.sample(key, (num_samples,))
        walk = posterior.walk_along(z)

        def ask(conditional, z):
            answers.append(is_reparameterized(conditional, key, num_samples))
            return z

        walk.on_all(ask, walk.contexts(walk.to_steps(z)), walk.to_steps(z))

    jax.eval_shape(look)
    return all(answers)


@move_into_support.register(Chain)
def _(chain: Chain, z: PyTree) -> tuple[PyTree, Array | None]:
    """Every latent given its moved predecessors."""
    walk = chain.walk_along(z)
    has_support = []

    def ask(conditional, z):
        has_support.append(move_into_support(conditional, z)[1] is not None)
        return z

    steps = walk.to_steps(z)
    jax.eval_shape(lambda: walk.on_all(ask, walk.contexts(steps), steps))
    if not any(has_support):
        return z, None

    def move(conditional, z):
        z, inside = move_into_support(conditional, z)
        inside = jnp.ones((), bool) if inside is None else inside
        return z, jnp.broadcast_to(inside, walk.lead)

    def step(context, xs):
        z, now = xs
        z, inside = walk.choose(move, context, now, z)
        if now.present is not None:
            z, inside = walk.absent_as(0, z, now), inside | ~now.present
        return walk.follow(context, z, now), (z, inside)

    context, xs = walk.start, (steps, walk.steps)
    if walk.has_own_first:
        now = at(walk.steps, 0)
        first = move(walk.first(now), steps[0])
        context = walk.follow(context, first[0], now)
        moved, inside = with_first(first, walk.scan(step, context, after(xs, 1))[1])
    else:
        moved, inside = walk.scan(step, context, xs)[1]
    return walk.to_value(moved), jnp.all(inside, axis=0)


@log_density_without_indirect.register(Chain)
def _(part: Chain, z: PyTree) -> Array:
    """No gradient passes to the latents before by way of the distribution's parameters."""
    return part.log_prob(z, parent_values=jax.lax.stop_gradient(z))


@log_density_without_indirect.register(RecalledSamples)
def _(part: RecalledSamples, z: PyTree) -> Array:
    """As of the chain."""
    return part.log_prob(z, parent_values=jax.lax.stop_gradient(z))


@draw_and_remember.register(Chain)
def _(
    posterior: Chain, keys: Key[Array, " K"]
) -> tuple[PyTree, Array, Callable[[Any], Any]] | None:
    """The networks run once, where the path is a loop over their derivatives."""

    def draw(key: PRNGKeyArray) -> Any:
        return draw_and_recall(*posterior.walk_from(key, (1,)), key, posterior.path)

    return recall_all(draw, keys)
