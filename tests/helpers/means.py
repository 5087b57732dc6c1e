"""The means of several estimators against those of their references, until it is decided."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gdregs.shared.statistics import largest_by_chance


class Undecided(AssertionError):
    """A variant that is known to be biased was not found."""


def assert_unbiased(
    suspects, references, key, *, biased, block=2000, most_draws=64_000, false_alarm=1e-3,
    chunk_size=1000,
):  # fmt: skip
    """Suspects have the means of their references, and those named in `biased` do not.

    `suspects` are gradients as functions of a key, by name, and `references` one for all of them
    or one for each. If `references` is None, `suspects` is one function of a key that returns the
    gradients and their references, both by name. All run in one program, as most of the time goes
    to compiling.

    The test is group-sequential: it looks after `block` draws, after twice as many, and so on. At
    each look a suspect is biased whose largest z-score is beyond what chance allows; all looks, all
    suspects and all entries together raise a false alarm with probability `false_alarm` at most
    (Bonferroni). It ends at the look where each of the biased ones is beyond twice that, so that
    half of the least of their biases would have been found as well, at even odds.

    Returns:
        The number of draws, and the largest z-score of each suspect as a multiple of what chance
        allows.

    Raises:
        AssertionError: If a suspect is biased that should not be.
        Undecided: If a biased one was not found in `most_draws`.
    """
    assert biased, "a test that catches nothing proves nothing"
    if callable(references):
        references = dict.fromkeys(suspects, references)
    chunk_size = min(chunk_size, block)
    num_chunks = -(-block // chunk_size)
    block = num_chunks * chunk_size

    def draw_each(key):
        once = {of: of(key) for of in dict.fromkeys(references.values())}
        gradients = {name: of(key) for name, of in suspects.items()}
        return gradients, {name: once[references[name]] for name in suspects}

    def draw(key):
        gradients, means = (suspects if references is None else draw_each)(key)
        return jax.tree.map(jnp.subtract, gradients, means), means

    @jax.jit
    def moments_of_block(key, number):
        keys = jax.random.split(jax.random.fold_in(key, number), (num_chunks, chunk_size))
        draws = jax.lax.map(jax.vmap(draw), keys)
        draws = jax.tree.map(lambda leaf: leaf.reshape(block, *leaf.shape[2:]), draws)
        mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), draws)
        return mean, jax.tree.map(lambda leaf: jnp.var(leaf, axis=0, ddof=1), draws)

    num_looks = (most_draws // block).bit_length()
    blocks, largest = [], {}
    for look in range(num_looks):
        while len(blocks) < 2**look:
            number = len(blocks)
            blocks.append(jax.device_get(moments_of_block(key, number)))
        largest = _largest(blocks, block, false_alarm / num_looks)
        found = {name for name, multiple in largest.items() if multiple > 1}
        assert set(biased) <= set(largest), f"no such suspect: {set(biased) - set(largest)}"
        assert found <= set(biased), f"biased after {len(blocks) * block} draws: {largest}"
        if all(largest[name] > 2 for name in biased):
            return len(blocks) * block, largest
    raise Undecided(f"not found in {len(blocks) * block} draws: {largest}")


def _largest(blocks, block, false_alarm):
    """Each suspect's largest z-score as a multiple of what chance allows at one look."""
    average = functools.partial(np.mean, axis=0, dtype=np.float64)
    (mean, size), (variance, spread) = jax.tree.map(lambda *of: average(np.stack(of)), *blocks)
    count = len(blocks) * block
    rounding = 64 * float(jnp.finfo(jax.tree.leaves(blocks[0])[0].dtype).eps)

    def z_scores(mean, variance, size, spread):
        floor = np.maximum(rounding * np.sqrt(size**2 + spread), np.finfo(np.float32).tiny)
        scores = np.abs(mean) / np.maximum(np.sqrt(variance / count), floor)
        return np.nan_to_num(scores, nan=np.inf)  # what is not a number has no mean

    scores = jax.tree.map(z_scores, mean, variance, size, spread)
    threshold = largest_by_chance(sum(map(np.size, jax.tree.leaves(scores))), false_alarm)
    return {name: max(map(np.max, jax.tree.leaves(of))) / threshold for name, of in scores.items()}
