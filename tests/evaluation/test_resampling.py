"""Fearnhead-Clifford resampling: probabilities, exact counts, and unbiased weights."""

import jax
import jax.numpy as jnp
import numpy as np

from gdregs.evaluation import resampling
from gdregs.evaluation.meshes import Axis

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
        threshold = resampling.find_threshold(resampling.merge_scores(None, scores, num_kept))
        pi = resampling.block_probabilities(threshold, scores)

        def weights(offset):
            sweep = resampling.start_sweep(threshold, offset)
            _, kept, pi = resampling.sweep_block(sweep, scores)
            slots = resampling.fill_slots(None, kept, scores, (jnp.arange(5), pi), num_kept)
            index, pi = slots.contents
            return jnp.zeros(5).at[index].add(slots.scores / jnp.where(slots.scores > 0, pi, 1))

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


def test_blocks_choose_what_one_block_chooses(float64):
    rng = np.random.default_rng(0)
    scores, offset = rng.dirichlet(np.full(8, 0.3), 50).T, rng.uniform(size=50)
    num_kept = 3

    def choose(scores, offset, size):
        largest = resampling.no_scores(num_kept, (50,), scores.dtype)
        blocks = [scores[i : i + size] for i in range(0, 8, size)]
        for block in blocks:
            largest = resampling.merge_scores(largest, block, num_kept)
        threshold = resampling.find_threshold(largest)
        sweep = resampling.start_sweep(threshold, offset)
        slots = None
        for number, block in enumerate(blocks):
            sweep, kept, _ = resampling.sweep_block(sweep, block)
            place = number * size + jnp.arange(len(block))[:, None] + jnp.zeros((1, 50), int)
            slots = resampling.fill_slots(slots, kept, block, place, num_kept)
        assert slots is not None
        return slots.contents

    @jax.jit
    def both(scores, offset):
        return choose(scores, offset, 8), choose(scores, offset, 3), choose(scores, offset, 1)

    whole, *others = both(scores, offset)
    assert len(np.unique(whole, axis=1).T) > 5
    for other in others:
        np.testing.assert_array_equal(other, whole)


def test_every_offset_keeps_m():
    """In float32, where the last point falls on the end of the mass up to rounding."""
    num_kept, offsets = 16, np.float32([0.0, 1e-7, 0.5, 1 - 2**-24])
    scores = np.random.default_rng(0).dirichlet(np.full(512, 0.2), 400).T.astype(np.float32)

    @jax.jit
    def count(scores, offsets):
        threshold = resampling.find_threshold(resampling.merge_scores(None, scores, num_kept))

        def at(offset):
            sweep = resampling.start_sweep(threshold, jnp.full(400, offset, scores.dtype))
            return jnp.sum(resampling.sweep_block(sweep, scores)[1], axis=0)

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


def test_devices_keep_together_what_one_keeps(float64):
    """200 draws of 5 of 16 scores on four devices: the same samples in the same slots."""
    num_kept, num_devices = 5, 4
    devices = Axis(("devices",), num_devices)

    def on_device(scores, offset):
        own = resampling.merge_scores(None, scores, num_kept)
        threshold = resampling.find_threshold(resampling.largest_of_all(own, devices))
        sweep = resampling.start_sweep(threshold, offset)
        sweep, share = resampling.share_of_slots(sweep, own, devices)
        _, kept, _ = resampling.sweep_block(sweep, scores)
        place = devices.index() * len(scores) + jnp.arange(len(scores))
        slots = resampling.fill_slots(None, kept, scores, place, num_kept)
        slots = resampling.put_together(slots, share, devices)
        return slots.contents, slots.scores

    @jax.jit
    @jax.vmap
    def draw(number, scores):
        key = jax.random.key(number)
        expected = resampling.resample(key, scores, num_kept)
        offset = jax.random.uniform(key, (), scores.dtype)
        spread = jax.vmap(on_device, in_axes=(0, None), axis_name="devices")
        place, found = spread(scores.reshape(num_devices, -1), offset)
        order = jnp.argsort(-found[0])  # of the heaviest first, as on one device
        return expected, place[0][order], found[0][order]

    rng = np.random.default_rng(0)
    num_positive = np.repeat([0, 2, 5, 16], 200)
    is_positive = rng.permuted(np.arange(16) < num_positive[:, None], axis=1)
    scores = np.where(is_positive, rng.exponential(size=(800, 16)) ** 4, 0)
    found = draw(np.arange(800), scores)
    (index, probabilities), place, found = jax.tree.map(np.asarray, found)
    full = probabilities > 0
    np.testing.assert_array_equal(full.sum(axis=1), np.minimum(num_positive, num_kept))
    np.testing.assert_array_equal(place[full], index[full])
    np.testing.assert_array_equal(found[full], np.take_along_axis(scores, place, axis=1)[full])
    assert (found[~full] == 0).all()
