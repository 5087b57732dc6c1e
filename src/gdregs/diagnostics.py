"""Moments of gradient estimators, and a test of whether two of them have one mean."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

from gdregs.shared.checks import positive_integer
from gdregs.shared.statistics import largest_by_chance

GradFn = Callable[[PRNGKeyArray], PyTree]


class GradientMoments(NamedTuple):
    """Entrywise moments of a gradient estimator.

    Attributes:
        mean: Pytree like the gradient.
        variance: The same, of a single draw (unbiased).
        num_draws: How many draws the moments come from.
    """

    mean: PyTree[Float[Array, "..."]]
    variance: PyTree[Float[Array, "..."]]
    num_draws: Int[Array, ""]

    @property
    def standard_error(self) -> PyTree[Float[Array, "..."]]:
        """The standard error of the mean."""
        return jax.tree.map(lambda v: jnp.sqrt(v / self.num_draws), self.variance)

    @property
    def snr(self) -> PyTree[Float[Array, "..."]]:
        """The signal-to-noise ratio of a draw: size of the mean / standard deviation."""
        return jax.tree.map(
            lambda m, v: jnp.abs(m) / jnp.sqrt(jnp.maximum(v, jnp.finfo(v.dtype).tiny)),
            self.mean,
            self.variance,
        )


class _Welford(NamedTuple):
    count: Array
    mean: PyTree
    squares: PyTree


def _merge(a: _Welford, b: _Welford) -> _Welford:
    """Chan et al.'s pairwise update of means and sums of squared deviations."""
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1)

    def mean(m_a, m_b):
        return m_a + (m_b - m_a) * share.astype(m_a.dtype)

    def squares(s_a, s_b, m_a, m_b):
        return s_a + s_b + (m_b - m_a) ** 2 * (a.count * share).astype(m_a.dtype)

    return _Welford(
        count,
        jax.tree.map(mean, a.mean, b.mean),
        jax.tree.map(squares, a.squares, b.squares, a.mean, b.mean),
    )


def _moments_of_block(grad_fn: GradFn, keys: Key[Array, " n"]) -> _Welford:
    draws = jax.vmap(grad_fn)(keys)
    mean = jax.tree.map(lambda d: jnp.mean(d, axis=0), draws)
    squares = jax.tree.map(lambda d, m: jnp.sum((d - m[None]) ** 2, axis=0), draws, mean)
    return _Welford(jnp.asarray(keys.shape[0]), mean, squares)


def gradient_moments(
    grad_fn: GradFn, key: PRNGKeyArray, num_draws: int, *, chunk_size: int = 128
) -> GradientMoments:
    """Mean, variance and signal-to-noise ratio of a gradient estimator, entry by entry.

    Draws are made and merged in chunks under `jit` (Welford's algorithm), so that memory does not
    grow with their number.

    Args:
        grad_fn: Maps a random key to one draw of the gradient, any pytree of arrays.
        key: A JAX random key. Draw i uses `fold_in(key, i)`, whatever the chunks.
        num_draws: How many draws; 2 or more.
        chunk_size: How many draws are held in memory at a time.

    Returns:
        The `GradientMoments`.

    Raises:
        TypeError: If a number is not whole.
        ValueError: If `num_draws` is below 2 or `chunk_size` below 1.

    Example:
        >>> import gdregs, jax
        >>> moments = gdregs.gradient_moments(
        ...     lambda key: 3 + 2 * jax.random.normal(key), jax.random.key(0), 10_000
        ... )
        >>> moments.mean.round(1), moments.variance.round(0), moments.snr.round(1)
        (Array(3., dtype=float32), Array(4., dtype=float32), Array(1.5, dtype=float32))

    Reference:
        Rainforth et al., Tighter Variational Bounds are Not Necessarily Better, 2018.
    """
    if positive_integer("num_draws", num_draws) < 2:
        raise ValueError("num_draws must be at least 2 for a variance; got 1.")
    chunk_size = min(positive_integer("chunk_size", chunk_size), num_draws)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    total = _accumulate(grad_fn, key, num_draws, chunk_size)
    variance = jax.tree.map(lambda s: s / (num_draws - 1), total.squares)
    return GradientMoments(total.mean, variance, total.count)


def _accumulate(grad_fn, key, num_draws, chunk_size):
    num_full, last = divmod(num_draws, chunk_size)

    def block(key, start, size):
        numbers = start + jnp.arange(size)
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
        return _moments_of_block(grad_fn, keys)

    @jax.jit
    def run(key):
        shapes = jax.eval_shape(grad_fn, key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        empty = _Welford(jnp.asarray(0), zeros, zeros)

        def step(index, total):
            return _merge(total, block(key, index * chunk_size, chunk_size))

        total = jax.lax.fori_loop(0, num_full, step, empty)
        if last:
            total = _merge(total, block(key, num_full * chunk_size, last))
        return total

    return run(key)


class UnbiasednessCheck(NamedTuple):
    """What `check_unbiased` found.

    Attributes:
        unbiased: Whether no entry differs by more than chance allows.
        z_scores: Entrywise (mean of the difference) / (its standard error).
        largest: The largest size of a z-score.
        threshold: The largest size that still counts as chance.
        difference: Moments of estimator minus reference.
    """

    unbiased: Bool[Array, ""]
    z_scores: PyTree[Float[Array, "..."]]
    largest: Float[Array, ""]
    threshold: float
    difference: GradientMoments


def check_unbiased(
    estimator: GradFn,
    reference: GradFn,
    key: PRNGKeyArray,
    num_draws: int,
    *,
    chunk_size: int = 128,
    false_alarm: float = 1e-3,
) -> UnbiasednessCheck:
    r"""Test whether two estimators of one gradient have the same mean.

    Both see the same keys, so that what their draws have in common cancels. The mean of the
    difference is compared with its standard error, entry by entry; the threshold is the normal
    quantile at which all entries together raise a false alarm with probability `false_alarm`
    (Bonferroni). Differences at the level of floating-point rounding do not count.

    Args:
        estimator: Maps a random key to one draw of the gradient.
        reference: The same, known to be unbiased; for instance the naive estimator.
        key: A JAX random key.
        num_draws: How many pairs of draws. A bias of b standard deviations of the difference
            takes about $(5/b)^2$ of them to be seen.
        chunk_size: How many draws are held in memory at a time.
        false_alarm: Probability of rejecting an unbiased estimator.

    Returns:
        The `UnbiasednessCheck`, whose `unbiased` is the verdict.

    Raises:
        ValueError: If the two gradients have different structures or shapes.

    Example:
        >>> import gdregs, jax
        >>> noise = lambda key: jax.random.normal(key)
        >>> key = jax.random.key(0)
        >>> bool(gdregs.check_unbiased(lambda k: 2 * noise(k), noise, key, 10_000).unbiased)
        True
        >>> bool(gdregs.check_unbiased(lambda k: 0.1 + noise(k), noise, key, 10_000).unbiased)
        False
    """
    shapes = [
        jax.tree.map(lambda s: s.shape, jax.eval_shape(f, key)) for f in (estimator, reference)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"The two estimators return different gradients: {shapes[0]} and {shapes[1]}."
        )

    def draw(key: PRNGKeyArray) -> Any:
        a, b = estimator(key), reference(key)
        return jax.tree.map(lambda x, y: (x - y, y), a, b)

    moments = gradient_moments(draw, key, num_draws, chunk_size=chunk_size)
    structure = jax.tree.structure(jax.eval_shape(reference, key))

    def unzip(tree, which):
        pairs = structure.flatten_up_to(tree)
        return structure.unflatten([pair[which] for pair in pairs])

    difference = GradientMoments(
        unzip(moments.mean, 0), unzip(moments.variance, 0), moments.num_draws
    )

    def z_score(mean, error, size, spread):
        rounding = 64 * jnp.finfo(mean.dtype).eps * jnp.sqrt(size**2 + spread)
        rounding = jnp.maximum(rounding, jnp.finfo(mean.dtype).tiny)
        return mean / jnp.maximum(error, rounding)

    z_scores = jax.tree.map(
        z_score,
        difference.mean,
        difference.standard_error,
        unzip(moments.mean, 1),
        unzip(moments.variance, 1),
    )
    leaves = jax.tree.leaves(z_scores)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0) for leaf in leaves]))
    num_entries = max(sum(leaf.size for leaf in leaves), 1)
    threshold = largest_by_chance(num_entries, false_alarm)
    return UnbiasednessCheck(largest <= threshold, z_scores, largest, threshold, difference)
