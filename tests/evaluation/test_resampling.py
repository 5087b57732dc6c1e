"""Fearnhead-Clifford resampling: probabilities, exact counts, and unbiased weights."""

import jax
import jax.numpy as jnp
import numpy as np

from gdregs.evaluation import resampling

SCORES = {
    "ordinary": [0.1, 0.5, 0.02, 0.3, 0.08],
    "one dominates": [1.0, 1e-9, 1e-8, 1e-9, 3e-9],
    "ties": [0.25, 0.25, 0.25, 0.25, 0.0],
    "ties at the threshold": [0.3, 0.3, 0.2, 0.1, 0.1],
    "zeros": [0.0, 0.7, 0.0, 0.0, 0.3],
    "all zero": [0.0] * 5,
    "all equal": [0.2] * 5,
}
COLUMNS = np.array(list(SCORES.values())).T  # [K, batch]


def test_probabilities_solve_the_threshold_equation(float64):
    numbers = (1, 2, 3, 4, 5)

    @jax.jit
    def probabilities(scores):
        return [resampling.inclusion_probabilities(scores, number) for number in numbers]

    for num_kept, found in zip(numbers, probabilities(COLUMNS), strict=True):
        for name, scores, pi in zip(SCORES, COLUMNS.T, np.asarray(found).T, strict=True):
            case = f"{name}, M = {num_kept}"
            positive = scores > 0
            np.testing.assert_allclose(
                pi.sum(), min(num_kept, positive.sum()), atol=1e-12, err_msg=case
            )
            assert ((pi >= 0) & (pi <= 1 + 1e-12)).all(), case
            assert (pi[~positive] == 0).all(), case
            if positive.sum() <= num_kept:
                np.testing.assert_allclose(pi[positive], 1, err_msg=case)
                continue
            uncertain = positive & (pi < 1 - 1e-9)
            slopes = pi[uncertain] / scores[uncertain]
            if uncertain.any():  # pi = min(1, c s): one c, and every certain score reaches 1
                np.testing.assert_allclose(slopes, slopes[0], rtol=1e-9, err_msg=case)
                assert (slopes[0] * scores[pi > 1 - 1e-9] >= 1 - 1e-9).all(), case


def test_exactly_m_different_samples_are_kept():
    """Of 300 vectors of 12 scores, with zeros, ties, and twelve orders of magnitude."""
    numbers = (1, 2, 5, 11, 12)
    scores = np.random.default_rng(0).choice(
        np.float32([0.0, 1e-12, 0.01, 0.5, 0.5, 3.0, 1e6]), (12, 300)
    )

    @jax.jit
    def keep(scores):
        return [
            (
                resampling.inclusion_probabilities(scores, number),
                resampling.resample(jax.random.key(number), scores, number),
            )
            for number in numbers
        ]

    for num_kept, found in zip(numbers, keep(scores), strict=True):
        pi, (index, probabilities) = jax.tree.map(np.asarray, found)
        num_full = np.minimum(num_kept, (scores > 0).sum(axis=0))
        np.testing.assert_allclose(pi.sum(axis=0), num_full, rtol=1e-5)
        is_full = np.arange(num_kept)[:, None] < num_full
        np.testing.assert_array_equal(probabilities > 0, is_full)
        for column, size in enumerate(num_full):
            kept = index[:size, column]
            assert len(set(kept.tolist())) == size
            assert (np.diff(scores[kept, column]) <= 0).all()
            np.testing.assert_array_equal(probabilities[:size, column], pi[kept, column])


def test_expected_weights_are_the_scores(float64):
    """The choice is a step function of one uniform number: sum over its steps, exactly."""

    def expected(scores, num_kept):
        threshold = resampling.find_threshold(scores, num_kept)
        pi = resampling.inclusion_probabilities(scores, num_kept)

        def weights(offset):
            index, kept = resampling.keep(offset, scores, num_kept)
            found = jnp.where(kept > 0, scores[index] / jnp.where(kept > 0, kept, 1), 0)
            return jnp.zeros(5).at[index].add(found)

        mass = jnp.cumsum(jnp.where(scores >= threshold.certain, 0, pi))
        edges = jnp.sort(jnp.concatenate([jnp.array([0.0, 1.0]), mass % 1]))
        steps = jax.vmap(weights)((edges[1:] + edges[:-1]) / 2)
        return jnp.diff(edges) @ steps

    @jax.jit
    def of_all(columns):
        return [jax.vmap(lambda scores, m=m: expected(scores, m))(columns.T) for m in (1, 2, 3)]

    for num_kept, found in enumerate(of_all(COLUMNS), 1):
        np.testing.assert_allclose(
            found, COLUMNS.T, atol=1e-13, rtol=1e-7, err_msg=f"{num_kept} of {list(SCORES)}"
        )


def test_every_offset_keeps_m():
    """In float32, where the last point falls on the end of the mass up to rounding."""
    num_kept, offsets = 16, np.float32([0.0, 1e-7, 0.5, 1 - 2**-24])
    scores = np.random.default_rng(0).dirichlet(np.full(512, 0.2), 400).T.astype(np.float32)

    @jax.jit
    def count(scores, offsets):
        def at(offset):
            offset = jnp.full(400, offset, scores.dtype)
            return jnp.sum(resampling.keep(offset, scores, num_kept).probabilities > 0, axis=0)

        return jax.vmap(at)(offsets)

    np.testing.assert_array_equal(count(scores, offsets), num_kept)


def test_resampling_frequencies_match_the_probabilities():
    """5,000 draws; every frequency within 5 standard errors, and the kept number is exact."""
    draws = 5000
    scores = np.float32([0.05, 0.4, 0.1, 0.02, 0.2, 0.03, 0.15, 0.05])[:, None]
    scores = np.repeat(scores, draws, axis=1)

    @jax.jit
    def keep(scores):
        index = resampling.resample(jax.random.key(3), scores, 3).index
        return index, resampling.inclusion_probabilities(scores[:, 0], 3)

    index, pi = map(np.asarray, keep(scores))
    frequency = np.bincount(index.ravel(), minlength=8) / draws
    error = np.sqrt(pi * (1 - pi) / draws)
    assert (np.abs(frequency - pi) <= 5 * error + 1e-6).all()
