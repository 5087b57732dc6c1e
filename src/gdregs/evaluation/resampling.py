r"""Optimal resampling (Fearnhead and Clifford, 2003): keep M of K weights without bias.

Sample k is kept with probability $\pi_k = \min(1, c|v_k|)$, where c makes the probabilities sum
to M; systematic sampling keeps exactly M. A kept weight becomes $v_k/\pi_k$, so that its
expectation is $v_k$. Among all unbiased schemes that keep M, this one has the least variance of
the weights. Where no more than M weights differ from 0, those are kept and nothing else.

Reference:
    Fearnhead and Clifford, On-line Inference for Hidden Markov Models via Particle Filters, 2003.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gdregs.reexpression.paths import align


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


def find_threshold(scores: Float[Array, "K *batch"], num_kept: int) -> Threshold:
    r"""Solve $\sum_k \min(1, c\,s_k) = M$ for c, exactly, from the M largest scores."""
    largest, _ = _largest_first(scores, num_kept)
    last = largest[-1]
    below = jnp.sum(jnp.where(scores < last[None], scores, 0), axis=0)
    num_equal_left = jnp.sum((scores >= last[None]).astype(scores.dtype), axis=0) - num_kept
    rest = below + num_equal_left * last
    tails = jnp.cumsum(jnp.concatenate([rest[None], largest[::-1]]), axis=0)[:0:-1]
    # With the n largest certain, c = (M - n) / tail_n must leave the next score below 1. Once it
    # does, it does so for every larger n.
    places_left = num_kept - jax.lax.broadcasted_iota(scores.dtype, largest.shape, 0)
    is_certain = places_left * largest >= tails
    certain = jnp.min(jnp.where(is_certain & (largest > 0), largest, jnp.inf), axis=0)
    return Threshold(
        # Scores that are equal up to rounding are certain together.
        certain=certain * (1 - 16 * jnp.finfo(scores.dtype).eps),
        num_drawn=num_kept - jnp.sum(is_certain.astype(scores.dtype), axis=0),
        tail=rest + jnp.sum(jnp.where(is_certain, 0, largest), axis=0),
    )


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
    return _probabilities(find_threshold(scores, num_kept), scores)


def _probabilities(threshold: Threshold, scores: Float[Array, "K *batch"]) -> Array:
    certain, num_drawn, tail = jax.tree.map(lambda values: values[None], threshold)
    share = scores / jnp.where(tail > 0, tail, 1)
    return jnp.where(scores >= certain, 1, jnp.minimum(num_drawn * share, 1))


class Kept(NamedTuple):
    """M of K samples.

    Attributes:
        index: Which samples, `[M, *batch]`, those with the largest scores first.
        probabilities: With what probability each of them was kept, `[M, *batch]`; 0 for a slot
            that is empty. Its index is then that of the first slot, so that nothing that is
            computed from it is special.
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
    return keep(jax.random.uniform(key, scores.shape[1:], scores.dtype), scores, num_kept)


def keep(offset: Float[Array, "*batch"], scores: Float[Array, "K *batch"], num_kept: int) -> Kept:
    r"""Systematic sampling: which scores the points $u, u + 1, u + 2, \dots$ fall on.

    The scores that are not certain lie side by side, each as long as its probability.

    Args:
        offset: u, uniform on [0, 1), one for each datapoint.
        scores: Non-negative, `[K, *batch]`.
        num_kept: M, between 1 and K.
    """
    threshold = find_threshold(scores, num_kept)
    probabilities = _probabilities(threshold, scores)
    is_certain = scores >= threshold.certain[None]
    num_drawn = threshold.num_drawn[None]
    mass = jnp.cumsum(jnp.where(is_certain, 0, probabilities), axis=0)
    passed = jnp.clip(jnp.ceil(mass - offset[None]), 0, num_drawn)
    # All points have been passed at the end of the mass, which is rounded.
    is_inside = mass < num_drawn * (1 - 8 * jnp.finfo(mass.dtype).eps)
    passed = jnp.where(is_inside, passed, num_drawn)
    before = jnp.concatenate([jnp.zeros_like(passed[:1]), passed[:-1]])
    is_kept = is_certain | (passed > before)
    chosen, index = _largest_first(jnp.where(is_kept, scores, 0), num_kept)
    index = jnp.where(chosen > 0, index, index[:1])
    return Kept(index, jnp.where(chosen > 0, take_rows(probabilities, index), 0))


def _largest_first(
    scores: Float[Array, "K *batch"], count: int
) -> tuple[Float[Array, "M *batch"], Int[Array, "M *batch"]]:
    """The largest scores in descending order, and their positions."""
    values, index = jax.lax.top_k(jnp.moveaxis(scores, 0, -1), count)
    return jnp.moveaxis(values, -1, 0), jnp.moveaxis(index, -1, 0)


def take_rows(values: Array, index: Int[Array, "M *batch"]) -> Array:
    """For each slot the entry of `values` (`[K, *batch, *event]`) at its position."""
    return jnp.take_along_axis(values, align(index, values), axis=0, mode="promise_in_bounds")
