"""Look at all samples, without gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gdregs.evaluation import resampling
from gdregs.evaluation.gates import gated
from gdregs.evaluation.streams import Shape, extend_logsumexp
from gdregs.evaluation.weights import Block, Model


class Weighed(NamedTuple):
    """Samples for the backward pass, with the constants that weigh them."""

    z: PyTree
    v: Float[Array, "M *batch"]
    r: Float[Array, "M *batch"]


class Look:
    """All log-weights, without gradient, and what the objective makes of them.

    Args:
        model: The model.
        shape: What is known of its shapes.
        objective: The objective.
        remembers: Whether all samples will be pulled through, as they were drawn.

    Attributes:
        recall: Makes of the posterior one that recalls the samples that were looked at.
    """

    def __init__(self, model: Model, shape: Shape, objective: Any, *, remembers: bool = False):
        # Stopped here already, so that no time is spent on tracing derivatives.
        model = model._replace(posterior=gated(model.posterior, 0), prior=gated(model.prior, 0))
        self.model = model
        self.shape = shape
        self.objective = objective
        self._whole, self.recall = None, lambda posterior: posterior
        if model.chunk_size is None and remembers:
            self._whole, self.recall = model.look_and_remember()
        elif model.chunk_size is None:
            self._whole = model.look(0, model.num_samples)
        self.summary = objective.summarize(self._fold_log_weights, shape)

    def block(self, start, size) -> Block:
        """A block of samples; if all are one block, it is looked at once."""
        return self.model.look(start, size) if self._whole is None else self._whole

    def no_scores(self, num_kept: int) -> resampling.Largest | None:
        """The largest scores before those of several blocks; None if there is only one."""
        if self._whole is not None:
            return None
        return resampling.no_scores(num_kept, self.shape.batch, self.shape.dtype)

    def empty_slots(self, num_slots: int) -> resampling.Slots | None:
        """Slots for samples of several blocks; None if there is only one."""
        if self._whole is not None:
            return None
        _, batch, dtype, _ = self.shape
        zeros = jnp.zeros((num_slots, *batch), dtype)
        z = jax.eval_shape(lambda: self.model.draw(0, 1))
        z = jax.tree.map(lambda leaf: jnp.zeros((num_slots, *leaf.shape[1:]), leaf.dtype), z)
        return resampling.Slots(zeros, Weighed(z, zeros, zeros))

    def fold(self, update: Callable[[Any, Block], Any], carry: Any) -> Any:
        """Pass every block to `update(carry, block)`.

        They are the blocks of the pull: most samplers draw others in blocks of another size.
        """
        return self.model.fold(
            lambda carry, *span: update(carry, self.block(*span)), carry, self.model.chunk_size
        )

    def _fold_log_weights(self, update, carry):
        return self.fold(lambda carry, b: update(carry, b.log_weights, b.start), carry)

    def value(self) -> Float[Array, "*batch"]:
        """F, with -inf for a datapoint without weight."""
        return jax.lax.stop_gradient(self.objective.value(self.summary))

    def coefficients(self, block: Block) -> tuple[Array, Array]:
        """The coefficients v and r of a block; 0 where a sample has no weight."""
        v, c = self.objective.coefficients(self.summary, block.log_weights, block.start)
        alive = (block.log_weights > -jnp.inf) & jnp.isfinite(v) & jnp.isfinite(c) & (v != 0)
        r = jnp.where(alive, c / jnp.where(alive, v, 1), 0)
        return jax.lax.stop_gradient((jnp.where(alive, v, 0), r))

    def effective_sample_size(self) -> Float[Array, "*batch"]:
        r"""$1 / \sum_k \tilde w_k^2$; 0 for a datapoint without weight."""

        def add(carry, log_weights, start):
            return tuple(
                extend_logsumexp(total, power * log_weights)
                for power, total in zip((1, 2), carry, strict=True)
            )

        nothing = jnp.full(self.shape.batch, -jnp.inf, self.shape.dtype)
        totals = jnp.stack(self._fold_log_weights(add, (nothing, nothing)))
        total, total_of_squares = self.model.samples.log_total(totals)
        alive = total > -jnp.inf
        return jnp.where(alive, jnp.exp(jnp.where(alive, 2 * total - total_of_squares, 0)), 0)
