"""A window of a key draws the rows that the key itself draws there."""

import jax
import jax.extend.random as jer
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
from gdregs.evaluation.windows import (
    _multiply,
    _threefry,
    is_window,
    split_rows,
    whole,
    window,
)


def test_the_hash_is_that_of_jax():
    @jax.jit
    def hashes():
        words = jax.random.bits(jax.random.key(0), (2, 1000))
        key = jax.random.key_data(jax.random.key(12345678901))
        return jnp.concatenate(_threefry(key, *words)), jer.threefry_2x32(key, words.reshape(-1))

    np.testing.assert_array_equal(*hashes())


def test_the_whole_has_the_numbers_of_the_key(float64):
    draws = (
        *(lambda k, d=d: jax.random.bits(k, (7, 3), d) for d in ("uint8", "uint16", "uint64")),
        lambda k: jax.random.normal(k, (7, 3)),
        lambda k: jax.random.uniform(k, (7,), "float32"),
        lambda k: jax.random.normal(jax.random.split(k, 3)[1]),
        lambda k: jax.random.normal(jax.random.fold_in(k, 9), (2,)),
    )

    @jax.jit
    def both(key):
        assert whole(key).dtype != key.dtype
        for other in (jax.random.key(5, impl="rbg"), window(key, 3)):
            assert whole(other) is other
        return [(draw(whole(key)), draw(key)) for draw in draws]

    for ours, theirs in both(jax.random.key(5)):
        np.testing.assert_array_equal(ours, theirs)


def test_a_window_on_a_window_counts_on():
    @jax.jit
    def draws(key):
        assert not is_window(key)
        assert is_window(window(key, 2))
        outer = window(key, 2, 1, 2)  # rows from 2 on, columns 6 to 11
        inner = window(outer, 3, 2, 3)  # of those, columns 4 and 5
        return (
            jax.random.normal(key, (9, 12)),
            jax.random.normal(window(outer, 3), (4, 6)),
            jax.random.normal(inner, (4, 2)),
        )

    draw, outer, inner = map(np.asarray, draws(jax.random.key(5)))
    np.testing.assert_array_equal(outer, draw[5:, 6:])
    np.testing.assert_array_equal(inner, draw[5:, 10:])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_windows_are_rows_and_columns_of_the_whole(float64, dtype):
    @jax.jit
    def draws(key):
        return jax.random.normal(key, (12, 6, 5), dtype), [
            (
                jax.random.normal(window(key, start), (4, 6, 5), dtype),
                jax.random.normal(window(key, start, part, 3), (4, 2, 5), dtype),
            )
            for part, start in enumerate((0, 3, 8))
        ]

    all_rows, parts = jax.tree.map(np.asarray, draws(jax.random.key(1)))
    for part, (start, (rows, piece)) in enumerate(zip((0, 3, 8), parts, strict=True)):
        expected = all_rows[start : start + 4]
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_array_equal(piece, expected[:, 2 * part : 2 * part + 2])


def test_windows_of_distributions():
    @jax.jit
    def draws(key):
        first = dist.Laplace(jnp.zeros((3, 2)), 2.0).to_event(1)
        distributions = (
            dist.LogNormal(jnp.zeros(2), 1.0),
            gdregs.Hierarchy(
                {"a": (first, ()), "b": (lambda a: dist.Normal(a, 1.0).to_event(1), ("a",))}
            ),
        )
        return [(d.sample(window(key, 5), (2,)), d.sample(key, (9,))) for d in distributions]

    for part, all_rows in jax.device_get(draws(jax.random.key(2))):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[5:7], atol=1e-5), part, all_rows)


def test_windows_of_other_samplers_and_generators_differ_from_each_other():
    @jax.jit
    def draws():
        gamma, other = dist.Gamma(2.0, 1.0), jax.random.key(0, impl="rbg")
        return [
            [gamma.sample(window(jax.random.key(0), start), (4,)) for start in (0, 4, 8)],
            [jax.random.normal(window(other, start), (3,)) for start in (0, 3)],
        ]

    for found, number in zip(draws(), (12, 6), strict=True):
        assert len(np.unique(np.concatenate(found))) == number


def test_legacy_keys():
    @jax.jit
    def draws(key):
        return jax.random.normal(window(key, 2), (3,)), jax.random.normal(key, (6,))[2:5]

    np.testing.assert_array_equal(*draws(jax.random.PRNGKey(4)))


def test_products_of_32_bit_numbers():
    a = np.array([2**32 - 1, 123456789, 7], np.uint32)
    b = np.array([2**32 - 1, 987654321, 0], np.uint32)
    high, low = (np.asarray(part, np.uint64) for part in jax.jit(_multiply)(a, b))
    np.testing.assert_array_equal((high << np.uint64(32)) + low, a.astype(np.uint64) * b)


def test_each_sample_of_a_window_has_the_key_that_it_has_in_the_whole():
    """And devices that share the datapoints draw other columns of it."""

    @jax.jit
    def draws(key):
        def rows(key, count, size):
            each = split_rows(key, count)
            return jax.vmap(lambda key: jax.random.normal(key, (size,)))(each)

        parts = [rows(window(key, 1, part, 2), 3, 2) for part in (0, 1)]
        return rows(key, 4, 4), rows(window(key, 1), 3, 4), parts

    all_rows, later, parts = jax.device_get(draws(jax.random.key(0)))
    np.testing.assert_array_equal(later, all_rows[1:])
    assert len(np.unique(parts)) == 12
