"""Fearnhead-Clifford resampling: probabilities, exact counts, and unbiased weights."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

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


@pytest.mark.parametrize("num_kept", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES.keys())
def test_probabilities_solve_the_threshold_equation(float64, scores, num_kept):
    scores = np.array(scores)
    pi = np.array(resampling.inclusion_probabilities(jnp.array(scores), num_kept))
    positive = scores > 0
    np.testing.assert_allclose(pi.sum(), min(num_kept, positive.sum()), atol=1e-12)
    assert ((pi >= 0) & (pi <= 1 + 1e-12)).all()
    assert (pi[~positive] == 0).all()
    if positive.sum() <= num_kept:
        np.testing.assert_allclose(pi[positive], 1)
    else:
        uncertain = positive & (pi < 1 - 1e-9)
        slopes = pi[uncertain] / scores[uncertain]
        if uncertain.any():  # pi = min(1, c s): one c, and every certain score reaches 1 under it
            np.testing.assert_allclose(slopes, slopes[0], rtol=1e-9)
            assert (slopes[0] * scores[pi > 1 - 1e-9] >= 1 - 1e-9).all()


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    st.lists(st.sampled_from([0.0, 1e-12, 0.01, 0.5, 0.5, 3.0, 1e6]), min_size=12, max_size=12),
    st.integers(1, 12),
    st.integers(0, 10_000),
)
def test_exactly_m_different_samples_are_kept(scores, num_kept, seed):
    scores = jnp.array(scores)
    num_full = min(num_kept, int(jnp.sum(scores > 0)))
    pi = resampling.inclusion_probabilities(scores, num_kept)
    np.testing.assert_allclose(jnp.sum(pi), num_full, rtol=1e-5)
    kept = resampling.resample(jax.random.key(seed), scores, num_kept)
    assert (kept.probabilities[:num_full] > 0).all()
    assert (kept.probabilities[num_full:] == 0).all()
    index = kept.index[:num_full]
    assert len(set(index.tolist())) == num_full
    assert (jnp.diff(scores[index]) <= 0).all()
    np.testing.assert_array_equal(kept.probabilities[:num_full], pi[index])


@pytest.mark.parametrize("num_kept", [1, 2, 3])
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES.keys())
def test_expected_weights_are_the_scores(float64, scores, num_kept):
    """The choice is a step function of one uniform number: sum over its steps, exactly."""
    scores = jnp.array(scores)
    threshold = resampling.find_threshold(resampling.merge_scores(None, scores, num_kept))
    pi = resampling.block_probabilities(threshold, scores)

    def weights(offset):
        sweep = resampling.start_sweep(threshold, offset)
        _, kept, pi = resampling.sweep_block(sweep, scores)
        slots = resampling.fill_slots(None, kept, scores, (jnp.arange(5), pi), num_kept)
        index, pi = slots.contents
        return jnp.zeros(5).at[index].add(slots.scores / jnp.where(slots.scores > 0, pi, 1))

    mass = np.cumsum(np.where(scores >= threshold.certain, 0, pi))
    edges = np.unique(np.concatenate([[0.0, 1.0], mass % 1]))
    steps = jax.vmap(weights)(jnp.array((edges[1:] + edges[:-1]) / 2))
    expected = jnp.sum(jnp.array(np.diff(edges))[:, None] * steps, axis=0)
    np.testing.assert_allclose(expected, scores, atol=1e-13, rtol=1e-7)


def test_blocks_choose_what_one_block_chooses(float64):
    scores = jax.random.dirichlet(jax.random.key(0), jnp.full(20, 0.3), (50,)).T
    offset = jax.random.uniform(jax.random.key(1), (50,), scores.dtype)
    num_kept = 6

    def choose(size):
        largest = resampling.no_scores(num_kept, (50,), scores.dtype)
        blocks = [scores[i : i + size] for i in range(0, 20, size)]
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

    np.testing.assert_array_equal(choose(20), choose(7))
    np.testing.assert_array_equal(choose(20), choose(1))


@pytest.mark.parametrize("offset", [0.0, 1e-7, 0.5, 1 - 2**-24])
def test_every_offset_keeps_m(offset):
    """In float32, where the last point falls on the end of the mass up to rounding."""
    num_kept, num_samples = 16, 512
    scores = jax.random.dirichlet(jax.random.key(0), jnp.full(num_samples, 0.2), (400,)).T
    threshold = resampling.find_threshold(resampling.merge_scores(None, scores, num_kept))
    sweep = resampling.start_sweep(threshold, jnp.full(400, offset, scores.dtype))
    _, kept, _ = resampling.sweep_block(sweep, scores)
    np.testing.assert_array_equal(jnp.sum(kept, axis=0), num_kept)


def test_resampling_frequencies_match_the_probabilities():
    """20,000 draws; every frequency within 5 standard errors, and the kept number is exact."""
    draws = 20_000
    scores = jnp.array([0.05, 0.4, 0.1, 0.02, 0.2, 0.03, 0.15, 0.05])
    pi = resampling.inclusion_probabilities(scores, 3)
    keys = jax.random.split(jax.random.key(3), draws)
    index = jax.vmap(lambda key: resampling.resample(key, scores, 3).index)(keys)
    frequency = jnp.bincount(index.ravel(), length=8) / draws
    error = jnp.sqrt(pi * (1 - pi) / draws)
    assert (jnp.abs(frequency - pi) <= 5 * error + 1e-6).all()


@pytest.mark.parametrize("num_positive", [0, 2, 5, 16])
def test_devices_keep_together_what_one_keeps(float64, num_positive):
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

    def draw(key):
        scores_key, place_key, key = jax.random.split(key, 3)
        scores = jax.random.exponential(scores_key, (16,)) ** 4
        scores = jnp.where(jax.random.permutation(place_key, 16) < num_positive, scores, 0)
        expected = resampling.resample(key, scores, num_kept)
        offset = jax.random.uniform(key, (), scores.dtype)
        spread = jax.vmap(on_device, in_axes=(0, None), axis_name="devices")
        place, found = spread(scores.reshape(num_devices, -1), offset)
        order = jnp.argsort(-found[0])  # of the heaviest first, as on one device
        return expected, place[0][order], found[0][order], scores

    expected, place, found, scores = jax.vmap(draw)(jax.random.split(jax.random.key(0), 200))
    full = expected.probabilities > 0
    assert (jnp.sum(full, axis=1) == min(num_positive, num_kept)).all()
    np.testing.assert_array_equal(place[full], expected.index[full])
    np.testing.assert_array_equal(found[full], jnp.take_along_axis(scores, place, axis=1)[full])
    assert (found[~full] == 0).all()
