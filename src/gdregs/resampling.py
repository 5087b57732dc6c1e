r"""Optimal resampling (Fearnhead and Clifford, 2003): keep M of K weights without bias.

Sample k is kept with probability $\pi_k = \min(1, c|v_k|)$, where c makes the probabilities sum
to M; systematic sampling keeps exactly M. A kept weight becomes $v_k/\pi_k$, so that its
expectation is $v_k$. Among all unbiased schemes that keep M, this one has the least variance of
the weights. Everything works block by block, for `gdregs.bound` to stream.

Reference:
    Fearnhead and Clifford, On-line Inference for Hidden Markov Models via Particle Filters, 2003.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gdregs.sharding import ALONE, Axis


class Largest(NamedTuple):
    """The M largest scores, in descending order, and the sum of all others."""

    scores: Float[Array, "M *batch"]
    rest: Float[Array, "*batch"]


def no_scores(num_kept: int, batch: tuple[int, ...], dtype) -> Largest:
    """`Largest` before any score has been seen."""
    return Largest(jnp.zeros((num_kept, *batch), dtype), jnp.zeros(batch, dtype))


def merge_scores(largest: Largest, scores: Float[Array, "k *batch"]) -> Largest:
    """`Largest` after one more block of scores."""
    num_kept = largest.scores.shape[0]
    scores = jnp.concatenate([largest.scores, scores])
    ordered = jnp.moveaxis(jax.lax.top_k(jnp.moveaxis(scores, 0, -1), num_kept)[0], -1, 0)
    last = ordered[-1]
    below = jnp.sum(jnp.where(scores < last[None], scores, 0), axis=0)
    num_equal_left = jnp.sum(scores >= last[None], axis=0) - num_kept
    return Largest(ordered, largest.rest + below + num_equal_left.astype(last.dtype) * last)


def largest_of_all(largest: Largest, devices: Axis) -> Largest:
    """`Largest` of the scores of all devices, from that of each."""
    if devices == ALONE:
        return largest
    num_kept = largest.scores.shape[0]
    parts = devices.stacked(jnp.concatenate([largest.scores, largest.rest[None]]))
    scores = parts[:, :-1].reshape(-1, *largest.rest.shape)
    merged = merge_scores(no_scores(num_kept, largest.rest.shape, scores.dtype), scores)
    return Largest(merged.scores, merged.rest + jnp.sum(parts[:, -1], axis=0))


class Threshold(NamedTuple):
    r"""What decides every inclusion probability.

    Attributes:
        certain: Scores of at least this much are kept with probability 1.
        slope: $c$, for the scores below it.
        weightless: The probability of a score of 0 (more than 0 only where fewer than M scores
            are positive: then all of those are certain and zeros fill the slots that are left).
        num_certain: How many scores are certain.
    """

    certain: Float[Array, "*batch"]
    slope: Float[Array, "*batch"]
    weightless: Float[Array, "*batch"]
    num_certain: Int[Array, "*batch"]


def find_threshold(largest: Largest, num_samples: int) -> Threshold:
    r"""Solve $\sum_k \min(1, c\,s_k) = M$ for c, exactly, from the M largest scores."""
    scores, rest = largest
    num_kept = scores.shape[0]
    tails = jnp.cumsum(jnp.concatenate([scores, rest[None]])[::-1], axis=0)[::-1]
    # With the n largest certain, c = (M - n) / tail_n must leave the next score below 1.
    places_left = num_kept - jax.lax.broadcasted_iota(scores.dtype, scores.shape, 0)
    feasible = places_left * scores < tails[:-1]
    num_positive = jnp.sum(scores > 0, axis=0)
    all_fit = rest == 0
    first_feasible = jnp.where(jnp.any(feasible, axis=0), jnp.argmax(feasible, axis=0), num_kept)
    num_certain = jnp.where(all_fit, num_positive, first_feasible)
    last_certain = jnp.maximum(num_certain - 1, 0)[None]
    smallest_certain = jnp.take_along_axis(scores, last_certain, axis=0)[0]
    # Scores that are equal up to rounding are certain together: a stream computes them anew.
    tolerance = 1 - 16 * jnp.finfo(scores.dtype).eps
    smallest_certain = jnp.where(num_certain > 0, tolerance * smallest_certain, jnp.inf)
    num_certain = jnp.sum(scores >= smallest_certain[None], axis=0)
    tail = jnp.take_along_axis(tails, num_certain[None], axis=0)[0]
    left = (num_kept - num_certain).astype(scores.dtype)
    num_zeros = jnp.maximum(num_samples - num_certain, 1).astype(scores.dtype)
    return Threshold(
        certain=smallest_certain,
        slope=jnp.where(all_fit, 0, left / jnp.where(tail > 0, tail, 1)),
        weightless=jnp.where(all_fit, left / num_zeros, 0),
        num_certain=num_certain,
    )


def block_probabilities(
    threshold: Threshold, scores: Float[Array, "k *batch"]
) -> Float[Array, "k *batch"]:
    """The inclusion probability of every score in a block."""
    uncertain = jnp.where(scores == 0, threshold.weightless[None], threshold.slope[None] * scores)
    return jnp.where(scores >= threshold.certain[None], 1, jnp.minimum(uncertain, 1))


def inclusion_probabilities(
    scores: Float[Array, "K *batch"], num_kept: int
) -> Float[Array, "K *batch"]:
    r"""$\pi_k = \min(1, c s_k)$ with $\sum_k \pi_k = M$.

    Args:
        scores: Non-negative, `[K, *batch]`; here $|v_k|$.
        num_kept: M, between 1 and K.

    Returns:
        `[K, *batch]`. Where fewer than M scores are positive, those have probability 1 and the
        zeros share what is left equally.

    Example:
        >>> import jax.numpy as jnp
        >>> inclusion_probabilities(jnp.array([0.7, 0.1, 0.1, 0.1]), 2).tolist()
        [1.0, 0.3333333432674408, 0.3333333432674408, 0.3333333432674408]
    """
    empty = no_scores(num_kept, scores.shape[1:], scores.dtype)
    threshold = find_threshold(merge_scores(empty, scores), scores.shape[0])
    return block_probabilities(threshold, scores)


class Sweep(NamedTuple):
    """How far systematic sampling has come."""

    mass: Float[Array, "*batch"]
    num_certain: Int[Array, "*batch"]


def start_sweep(batch: tuple[int, ...], dtype) -> Sweep:
    """The sweep before the first block."""
    return Sweep(jnp.zeros(batch, dtype), jnp.zeros(batch, jnp.int32))


def sweep_share(
    own: Largest, threshold: Threshold, num_own: int, devices: Axis
) -> tuple[Sweep, Float[Array, "*batch"]]:
    """Where the sweep of a device begins, after those of all before it, and at which mass it ends.

    Both are sums of what all devices have said, in the same order on each: so that every point
    falls to one device.

    Args:
        own: The largest scores of this device.
        threshold: From the scores of all devices.
        num_own: How many scores this device has.
        devices: Those that share the scores.
    """
    scores, rest = own
    certain = scores >= threshold.certain[None]
    num_zeros = num_own - jnp.sum(scores > 0, axis=0)
    mass = threshold.slope * (jnp.sum(jnp.where(certain, 0, scores), axis=0) + rest)
    mass = mass + threshold.weightless * num_zeros.astype(scores.dtype)
    num_certain = jnp.sum(certain, axis=0).astype(scores.dtype)
    ends = jnp.cumsum(devices.stacked(jnp.stack([mass, num_certain])), axis=0)
    ends = jnp.concatenate([jnp.zeros_like(ends[:1]), ends])
    start = jax.lax.dynamic_index_in_dim(ends, devices.index(), keepdims=False)
    end = jax.lax.dynamic_index_in_dim(ends, devices.index() + 1, keepdims=False)
    is_last = devices.index() + 1 == devices.size
    return Sweep(start[0], start[1].astype(jnp.int32)), jnp.where(is_last, jnp.inf, end[0])


def sweep_block(
    sweep: Sweep,
    threshold: Threshold,
    scores: Float[Array, "k *batch"],
    offset: Float[Array, "*batch"],
    num_kept: int,
    end: Any = jnp.inf,
) -> tuple[Sweep, Int[Array, "M *batch"], Float[Array, "k *batch"]]:
    """Systematic sampling of one block: which of its samples fills which of the M slots.

    The certain samples come first, in order; the others are those at which the running sum of
    their probabilities passes `offset`, `offset + 1`, ...

    Args:
        sweep: Where the blocks before this one have left off.
        threshold: From all scores.
        scores: Those of this block, `[k, *batch]`.
        offset: Uniform on [0, 1), one for each datapoint.
        num_kept: M.
        end: The mass at which another device goes on.

    Returns:
        The sweep after this block; for each slot the position in the block of the sample that
        fills it, or k where none does; and the block's inclusion probabilities.
    """
    size = scores.shape[0]
    probabilities = block_probabilities(threshold, scores)
    certain = scores >= threshold.certain[None]
    ranks = sweep.num_certain[None] + jnp.cumsum(certain.astype(jnp.int32), axis=0)
    mass = sweep.mass[None] + jnp.cumsum(jnp.where(certain, 0, probabilities), axis=0)
    slots = jax.lax.broadcasted_iota(jnp.int32, (num_kept, *offset.shape), 0)
    points = (slots - threshold.num_certain[None]).astype(scores.dtype) + offset[None]
    # The total mass is M - num_certain up to rounding; the last point must stay below it.
    total = (num_kept - threshold.num_certain[None]).astype(scores.dtype)
    points = jnp.minimum(points, total * (1 - 8 * jnp.finfo(scores.dtype).eps))

    def first_above(running, values, side):
        search = _search_columns(running, values, side)
        return jnp.minimum(search, size).astype(jnp.int32)

    by_rank = first_above(ranks, slots + 1, "left")
    by_rank = jnp.where(slots < sweep.num_certain[None], size, by_rank)
    by_mass = first_above(mass, points, "right")
    by_mass = jnp.where((points < sweep.mass[None]) | (points >= end), size, by_mass)
    positions = jnp.where(slots < threshold.num_certain[None], by_rank, by_mass)
    return Sweep(mass[-1], ranks[-1]), positions, probabilities


def _search_columns(sorted_values, values, side):
    columns = sorted_values.reshape(sorted_values.shape[0], -1)
    queries = values.reshape(values.shape[0], -1)
    # Comparing all is one small program where a search is a loop; for many, the loop is faster.
    method = "compare_all" if len(columns) * len(queries) <= 2**14 else "scan"
    search = functools.partial(jnp.searchsorted, side=side, method=method)
    return jax.vmap(search, in_axes=1, out_axes=1)(columns, queries).reshape(values.shape)


class Kept(NamedTuple):
    """M of K samples.

    Attributes:
        index: Which samples, `[M, *batch]`.
        probabilities: With what probability each of them was kept, `[M, *batch]`.
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
        The positions of M different samples and their inclusion probabilities. (Once in about a
        million draws, rounding leaves a slot without a sample: its position is then K.)

    Example:
        >>> import jax, jax.numpy as jnp
        >>> kept = resample(jax.random.key(0), jnp.array([0.0, 0.6, 0.0, 0.4]), 2)
        >>> kept.index.tolist(), kept.probabilities.tolist()
        ([1, 3], [1.0, 1.0])
    """
    num_samples, *batch = scores.shape
    empty = no_scores(num_kept, tuple(batch), scores.dtype)
    threshold = find_threshold(merge_scores(empty, scores), num_samples)
    offset = jax.random.uniform(key, tuple(batch), scores.dtype)
    sweep = start_sweep(tuple(batch), scores.dtype)
    _, index, probabilities = sweep_block(sweep, threshold, scores, offset, num_kept)
    return Kept(index, take_filled(probabilities, index, empty=1))


def take_filled(
    values: Array, positions: Int[Array, "M *batch"], empty: Array | float | int
) -> Array:
    """For each slot the entry of `values` (`[k, *batch, *event]`) at its position.

    A slot whose position lies outside of the block keeps `empty`.
    """
    size = values.shape[0]
    filled = positions < size
    extra = (1,) * (values.ndim - positions.ndim)
    index = jnp.minimum(positions, size - 1).reshape(positions.shape + extra)
    taken = jnp.take_along_axis(values, index, axis=0)
    return jnp.where(filled.reshape(positions.shape + extra), taken, empty)
