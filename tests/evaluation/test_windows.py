"""A window of a key draws the rows that the key itself draws there."""

import jax
import jax.extend.random as jer
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import models
import reference
from gdregs.evaluation.windows import _multiply, _threefry, is_window, whole, window


def test_the_hash_is_that_of_jax():
    words = jax.random.bits(jax.random.key(0), (2, 1000))
    key = jax.random.key_data(jax.random.key(12345678901))
    ours = jnp.concatenate(_threefry(key, *words))
    np.testing.assert_array_equal(ours, jer.threefry_2x32(key, words.reshape(-1)))


def test_the_whole_has_the_numbers_of_the_key(float64):
    key = jax.random.key(5)
    assert whole(key).dtype != key.dtype
    for draw in (
        *(lambda k, d=d: jax.random.bits(k, (7, 3), d) for d in ("uint8", "uint16", "uint64")),
        lambda k: jax.random.normal(k, (7, 3)),
        lambda k: jax.random.uniform(k, (7,), "float32"),
        lambda k: jax.random.normal(jax.random.split(k, 3)[1]),
        lambda k: jax.random.normal(jax.random.fold_in(k, 9), (2,)),
    ):
        np.testing.assert_array_equal(draw(whole(key)), draw(key))
    for other in (jax.random.key(5, impl="rbg"), window(key, 3)):
        assert whole(other) is other


def test_a_window_on_a_window_counts_on():
    key = jax.random.key(5)
    draw = jax.random.normal(key, (9, 12))
    assert not is_window(key)
    assert is_window(window(key, 2))
    outer = window(key, 2, 1, 2)  # rows from 2 on, columns 6 to 11
    np.testing.assert_array_equal(jax.random.normal(window(outer, 3), (4, 6)), draw[5:, 6:])
    inner = window(outer, 3, 2, 3)  # of those, columns 4 and 5
    np.testing.assert_array_equal(jax.random.normal(inner, (4, 2)), draw[5:, 10:])


@pytest.mark.parametrize("start", [0, 3, 8])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_windows_are_rows_of_the_whole(float64, start, dtype):
    key = jax.random.key(1)
    whole = jax.random.normal(key, (12, 3, 5), dtype)
    part = jax.random.normal(window(key, start), (4, 3, 5), dtype)
    np.testing.assert_array_equal(part, whole[start : start + 4])


@pytest.mark.parametrize(("start", "part"), [(0, 0), (3, 1), (8, 2)])
def test_parts_are_columns_of_the_whole(float64, start, part):
    key = jax.random.key(1)
    whole = jax.random.normal(key, (12, 6, 5))
    piece = jax.random.normal(window(key, start, part, 3), (4, 2, 5))
    np.testing.assert_array_equal(piece, whole[start : start + 4, 2 * part : 2 * part + 2])


def test_windows_of_distributions():
    key = jax.random.key(2)
    phi, _, _, x = reference.init(jax.random.key(0))
    for distribution in (
        dist.Laplace(jnp.zeros((3, 2)), 2.0).to_event(1),
        dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
        dist.LogNormal(jnp.zeros(3), 1.0),
        models.posterior(phi, x),
    ):
        whole = distribution.sample(key, (9,))
        part = jax.jit(lambda start, d=distribution: d.sample(window(key, start), (2,)))(5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[5:7], atol=1e-5), part, whole)


def test_windows_of_other_samplers_differ_from_each_other():
    gamma = dist.Gamma(2.0, 1.0)
    draws = [gamma.sample(window(jax.random.key(0), start), (4,)) for start in (0, 4, 8)]
    assert len(np.unique(np.concatenate(draws))) == 12


def test_other_generators_get_a_key_per_window():
    key = jax.random.key(0, impl="rbg")
    draws = [jax.random.normal(window(key, start), (3,)) for start in (0, 3)]
    assert len(np.unique(np.concatenate(draws))) == 6


def test_legacy_keys():
    whole = jax.random.normal(jax.random.PRNGKey(4), (6,))
    part = jax.random.normal(window(jax.random.PRNGKey(4), 2), (3,))
    np.testing.assert_array_equal(part, whole[2:5])


@pytest.mark.parametrize(("a", "b"), [(2**32 - 1, 2**32 - 1), (123456789, 987654321), (7, 0)])
def test_products_of_32_bit_numbers(a, b):
    high, low = _multiply(jnp.uint32(a), jnp.uint32(b))
    assert int(high) * 2**32 + int(low) == a * b
