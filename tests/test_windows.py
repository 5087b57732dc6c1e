"""A window of a key draws the rows that the key itself draws there."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import models
import reference
from gdregs.windows import _multiply, window


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
