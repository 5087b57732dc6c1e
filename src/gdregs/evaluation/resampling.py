r"""Optimal resampling (Fearnhead and Clifford, 2003): keep M of K weights without bias.

Sample k is kept with probability $\pi_k = \min(1, c|v_k|)$, where c makes the probabilities sum
to M; systematic sampling keeps exactly M. A kept weight becomes $v_k/\pi_k$, so that its
expectation is $v_k$. Among all unbiased schemes that keep M, this one has the least variance of
the weights. Where no more than M weights differ from 0, those are kept and nothing else.
Everything works block by block, for `gdregs.bound` to stream.

Reference:
    Fearnhead and Clifford, On-line Inference for Hidden Markov Models via Particle Filters, 2003.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from gdregs.evaluation.meshes import ALONE, Axis
from gdregs.reexpression.paths import align


class Largest(NamedTuple):
    """The M largest scores, in descending order, and the sum of all others."""

    scores: Float[Array, "M *batch"]
    rest: Float[Array, "*batch"]


def no_scores(num_kept: int, batch: tuple[int, ...], dtype) -> Largest:
    """`Largest` before any score has been seen, for a loop over blocks."""
    return Largest(jnp.zeros((num_kept, *batch), dtype), jnp.zeros(batch, dtype))


def merge_scores(
    largest: Largest | None, scores: Float[Array, "k *batch"], num_kept: int
) -> Largest:
    """`Largest` after one more block of scores; None before the first."""
    if largest is not None:
        scores = jnp.concatenate([largest.scores, scores])
    ordered, _ = _largest_first(scores, num_kept)
    last = ordered[-1]
    below = jnp.sum(jnp.where(scores < last[None], scores, 0), axis=0)
    num_equal_left = jnp.sum((scores >= last[None]).astype(jnp.int32), axis=0) - num_kept
    equal = jnp.where(last > 0, num_equal_left.astype(scores.dtype) * last, 0)
    rest = below + equal if largest is None else largest.rest + below + equal
    return Largest(ordered, rest)


def largest_of_all(largest: Largest, devices: Axis) -> Largest:
    """`Largest` of the scores of all devices, from that of each."""
    if devices == ALONE:
        return largest
    num_kept = largest.scores.shape[0]
    parts = devices.stacked(jnp.concatenate([largest.scores, largest.rest[None]]))
    scores = parts[:, :-1].reshape(-1, *largest.rest.shape)
    merged = merge_scores(None, scores, num_kept)
    return Largest(merged.scores, merged.rest + jnp.sum(parts[:, -1], axis=0))


class Threshold(NamedTuple):
    r"""What decides every inclusion probability.

    Attributes:
        certain: Scores of at least this much are kept with probability 1.
        num_drawn: How many of the others are drawn.
        tail: The sum of the others, so that $c$ is `num_drawn / tail`.
    """

    certain: Float[Array, "*batch"]
    num_drawn: Float[Array, "*batch"]
    tail: Float[Array, "*batch"]


def find_threshold(largest: Largest) -> Threshold:
    r"""Solve $\sum_k \min(1, c\,s_k) = M$ for c, exactly, from the M largest scores."""
    scores, rest = largest
    num_kept = scores.shape[0]
    tails = jnp.cumsum(jnp.concatenate([rest[None], scores[::-1]]), axis=0)[:0:-1]
    # With the n largest certain, c = (M - n) / tail_n must leave the next score below 1. Once it
    # does, it does so for every larger n.
    places_left = num_kept - jax.lax.broadcasted_iota(scores.dtype, scores.shape, 0)
    is_certain = places_left * scores >= tails
    certain = jnp.min(jnp.where(is_certain & (scores > 0), scores, jnp.inf), axis=0)
    return Threshold(
        # Scores that are equal up to rounding are certain together: a stream computes them anew.
        certain=certain * (1 - 16 * jnp.finfo(scores.dtype).eps),
        num_drawn=num_kept - jnp.sum(is_certain.astype(scores.dtype), axis=0),
        tail=rest + jnp.sum(jnp.where(is_certain, 0, scores), axis=0),
    )


def block_probabilities(
    threshold: Threshold, scores: Float[Array, "k *batch"]
) -> Float[Array, "k *batch"]:
    """The inclusion probability of every score in a block."""
    certain, num_drawn, tail = jax.tree.map(lambda values: values[None], threshold)
    share = scores / jnp.where(tail > 0, tail, 1)
    return jnp.where(scores >= certain, 1, jnp.minimum(num_drawn * share, 1))


def inclusion_probabilities(
    scores: Float[Array, "K *batch"], num_kept: int
) -> Float[Array, "K *batch"]:
    r"""$\pi_k = \min(1, c s_k)$ with $\sum_k \pi_k = M$.

    Args:
        scores: Non-negative, `[K, *batch]`; here $|v_k|$.
        num_kept: M, between 1 and K.

    Returns:
        `[K, *batch]`. Where fewer than M scores are positive, those have probability 1 and the
        zeros have 0.

    Example:
        >>> import jax.numpy as jnp
        >>> inclusion_probabilities(jnp.array([0.7, 0.1, 0.1, 0.1]), 2).tolist()
        [1.0, 0.3333333432674408, 0.3333333432674408, 0.3333333432674408]
    """
    return block_probabilities(find_threshold(merge_scores(None, scores, num_kept)), scores)


class Sweep(NamedTuple):
    r"""Systematic sampling: which scores the points $u, u + 1, u + 2, \dots$ fall on.

    The scores that are not certain lie side by side, each as long as its probability.

    Attributes:
        threshold: From all scores.
        offset: u, uniform on [0, 1), one for each datapoint.
        mass: How far the blocks before have come.
    """

    threshold: Threshold
    offset: Float[Array, "*batch"]
    mass: Float[Array, "*batch"]

    def num_passed(self, mass: Float[Array, "*lead_and_batch"]) -> Float[Array, "*lead_and_batch"]:
        """How many of the points lie before this mass; all, at its end up to rounding."""
        lead = (1,) * (mass.ndim - self.offset.ndim)
        offset, num_drawn = (
            jnp.reshape(values, (*lead, *values.shape))
            for values in (self.offset, self.threshold.num_drawn)
        )
        passed = jnp.clip(jnp.ceil(mass - offset), 0, num_drawn)
        return jnp.where(mass < num_drawn * (1 - 8 * jnp.finfo(mass.dtype).eps), passed, num_drawn)


def start_sweep(threshold: Threshold, offset: Float[Array, "*batch"]) -> Sweep:
    """The sweep before the first block."""
    return Sweep(threshold, offset, jnp.zeros_like(offset))


def sweep_block(
    sweep: Sweep, scores: Float[Array, "k *batch"]
) -> tuple[Sweep, Bool[Array, "k *batch"], Float[Array, "k *batch"]]:
    """Systematic sampling of one block.

    Args:
        sweep: Where the blocks before this one have left off.
        scores: Those of this block, `[k, *batch]`.

    Returns:
        The sweep after this block; which of its samples are kept; and their inclusion
        probabilities.
    """
    probabilities = block_probabilities(sweep.threshold, scores)
    certain = scores >= sweep.threshold.certain[None]
    mass = sweep.mass[None] + jnp.cumsum(jnp.where(certain, 0, probabilities), axis=0)
    passed = sweep.num_passed(jnp.concatenate([sweep.mass[None], mass]))
    return sweep._replace(mass=mass[-1]), certain | (passed[1:] > passed[:-1]), probabilities


class Share(NamedTuple):
    """The slots that one of several devices fills: from `first` to before `after`."""

    first: Int[Array, "*batch"]
    after: Int[Array, "*batch"]


def share_of_slots(sweep: Sweep, own: Largest, devices: Axis) -> tuple[Sweep, Share | None]:
    """Where the sweep of a device begins, after those of all before it.

    Args:
        sweep: The sweep that all devices share, at its start.
        own: The largest scores of this device.
        devices: Those that share the scores.

    Returns:
        The sweep of this device; and which of the M slots it has to fill, None for all. Both are
        computed from what all devices have said, in the same order on each: every slot falls to
        one device.
    """
    if devices == ALONE:
        return sweep, None
    scores, rest = own
    _, num_drawn, tail = sweep.threshold
    is_certain = scores >= sweep.threshold.certain[None]
    uncertain = jnp.sum(jnp.where(is_certain, 0, scores), axis=0) + rest
    mass = num_drawn * (uncertain / jnp.where(tail > 0, tail, 1))
    num_certain = jnp.sum(is_certain, axis=0).astype(scores.dtype)
    ends = jnp.cumsum(devices.stacked(jnp.stack([mass, num_certain])), axis=0)
    starts = jnp.concatenate([jnp.zeros_like(ends[:1]), ends])
    slots = (starts[:, 1] + sweep.num_passed(starts[:, 0])).astype(jnp.int32)
    # The last device goes to the end, whatever its sum of masses has been rounded to.
    slots = slots.at[-1].set(len(scores))

    def of_device(values, index):
        return jax.lax.dynamic_index_in_dim(values, index, keepdims=False)

    index = devices.index()
    share = Share(of_device(slots, index), of_device(slots, index + 1))
    return sweep._replace(mass=of_device(starts[:, 0], index)), share


class Slots(NamedTuple):
    """Up to M samples that are kept, those with the largest scores first.

    Attributes:
        scores: `[M, *batch]`; 0 where a slot is empty. What else it holds is then that of the
            first slot, so that nothing that is computed from it is special.
        contents: What is kept of the samples, a pytree of `[M, *batch, *event]`.
    """

    scores: Float[Array, "M *batch"]
    contents: PyTree


def fill_slots(
    slots: Slots | None,
    kept: Bool[Array, "k *batch"],
    scores: Float[Array, "k *batch"],
    contents: PyTree,
    num_slots: int,
) -> Slots:
    """Add the samples of a block that are kept.

    Args:
        slots: What has been kept of the blocks before; None for the first.
        kept: Which samples of the block are kept.
        scores: Their scores.
        contents: What to keep of them, a pytree of `[k, *batch, *event]`.
        num_slots: M.
    """
    scores = jnp.where(kept, scores, 0)
    if slots is not None:
        scores, contents = jax.tree.map(
            lambda old, new: jnp.concatenate([old, new]), tuple(slots), (scores, contents)
        )
    scores, index = _largest_first(scores, num_slots)
    index = jnp.where(scores > 0, index, index[:1])
    return Slots(scores, jax.tree.map(lambda values: take_rows(values, index), contents))


def put_together(slots: Slots, share: Share | None, devices: Axis) -> Slots:
    """The slots of all devices, from those that each has found for its share of them."""
    if share is None:
        return slots
    place = jax.lax.broadcasted_iota(jnp.int32, slots.scores.shape, 0)
    is_own = (place >= share.first[None]) & (place < share.after[None])
    source = (place - share.first[None]) % len(place)
    own = jax.tree.map(lambda values: take_rows(values, source), slots)

    def only_own(values):
        return jnp.where(align(is_own, values), values, 0)

    scores, contents = devices.total(jax.tree.map(only_own, own))
    heaviest = jnp.argmax(scores, axis=0).astype(jnp.int32)
    index = jnp.where(scores > 0, place, heaviest[None])
    return Slots(scores, jax.tree.map(lambda values: take_rows(values, index), contents))


def _largest_first(
    scores: Float[Array, "k *batch"], count: int
) -> tuple[Float[Array, "M *batch"], Int[Array, "M *batch"]]:
    """The largest scores in descending order, and their positions; 0 where there are too few."""
    if len(scores) < count:
        missing = jnp.zeros((count - len(scores), *scores.shape[1:]), scores.dtype)
        scores = jnp.concatenate([scores, missing])
    values, index = jax.lax.top_k(jnp.moveaxis(scores, 0, -1), count)
    return jnp.moveaxis(values, -1, 0), jnp.moveaxis(index, -1, 0)


def take_rows(values: Array, index: Int[Array, "M *batch"]) -> Array:
    """For each slot the entry of `values` (`[k, *batch, *event]`) at its position."""
    return jnp.take_along_axis(values, align(index, values), axis=0, mode="promise_in_bounds")


class Kept(NamedTuple):
    """M of K samples.

    Attributes:
        index: Which samples, `[M, *batch]`, those with the largest scores first.
        probabilities: With what probability each of them was kept, `[M, *batch]`; 0 for a slot
            that is empty.
    """

    index: Int[Array, "M *batch"]
    probabilities: Float[Array, "M *batch"]


def resample(key: PRNGKeyArray, scores: Float[Array, "K *batch"], num_kept: int) -> Kept:
    r"""Keep M of K samples, with probability $\pi_k = \min(1, c s_k)$ each.

    Args:
        key: For one uniform number per datapoint.
        scores: Non-negative, `[K, *batch]`.
        num_kept: M, between 1 and K.

    Returns:
        The positions of M different samples and their inclusion probabilities. Where fewer than M
        scores are positive, a slot is empty for each that is missing. (So is one in about a
        million draws, by rounding.)

    Example:
        >>> import jax, jax.numpy as jnp
        >>> kept = resample(jax.random.key(0), jnp.array([0.0, 0.6, 0.0, 0.4]), 2)
        >>> kept.index.tolist(), kept.probabilities.tolist()
        ([1, 3], [1.0, 1.0])
    """
    threshold = find_threshold(merge_scores(None, scores, num_kept))
    offset = jax.random.uniform(key, scores.shape[1:], scores.dtype)
    _, kept, probabilities = sweep_block(start_sweep(threshold, offset), scores)
    positions = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    slots = fill_slots(None, kept, scores, (positions, probabilities), num_kept)
    index, probabilities = slots.contents
    return Kept(index, jnp.where(slots.scores > 0, probabilities, 0))
