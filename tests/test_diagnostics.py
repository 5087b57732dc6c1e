"""Moments and the unbiasedness check against known distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdregs


def draw(key):
    a, b = jax.random.split(key)
    return {"normal": 3 + 2 * jax.random.normal(a, (2,)), "uniform": jax.random.uniform(b)}


@pytest.mark.parametrize("chunk_size", [1, 7, 100, 5000])
def test_moments_do_not_depend_on_chunks(float64, chunk_size):
    key, num_draws = jax.random.key(0), 100
    draws = jax.vmap(draw)(jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_draws)))
    moments = gdregs.gradient_moments(draw, key, num_draws, chunk_size=chunk_size)
    for name, values in draws.items():
        np.testing.assert_allclose(moments.mean[name], values.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.variance[name], values.var(0, ddof=1), rtol=1e-12)
        np.testing.assert_allclose(
            moments.snr[name], np.abs(values.mean(0)) / values.std(0, ddof=1), rtol=1e-12
        )
        np.testing.assert_allclose(
            moments.standard_error[name], values.std(0, ddof=1) / 10, rtol=1e-12
        )
    assert int(moments.num_draws) == num_draws


def test_moments_are_right_far_from_zero():
    """Welford's update keeps a variance of 1 at a mean of 10^5 in float32."""
    moments = gdregs.gradient_moments(
        lambda key: 1e5 + jax.random.normal(key), jax.random.key(0), 40_000
    )
    np.testing.assert_allclose(moments.variance, 1, rtol=0.05)


def test_memory_does_not_grow_with_draws():
    from gdregs.diagnostics import _accumulate

    def temporary(num_draws):
        program = jax.jit(lambda key: _accumulate(draw, key, num_draws, 64))
        return program.lower(jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes

    assert temporary(640_000) <= 1.1 * temporary(6_400)


def test_a_zero_difference_is_unbiased():
    check = gdregs.check_unbiased(draw, draw, jax.random.key(0), 1000)
    assert check.unbiased
    assert check.largest == 0


def test_rounding_is_no_bias():
    def rounded(key):
        return jax.tree.map(lambda leaf: leaf * (1 + 1e-6), draw(key))

    assert gdregs.check_unbiased(rounded, draw, jax.random.key(0), 10_000).unbiased


@pytest.mark.parametrize("bias", [0.2, -0.2])
def test_a_small_bias_is_found_in_the_entry_that_has_it(bias):
    def biased(key):
        value = draw(jax.random.fold_in(key, 1))
        return {**value, "normal": value["normal"].at[1].add(bias)}

    check = gdregs.check_unbiased(biased, draw, jax.random.key(0), 20_000)
    assert not check.unbiased
    assert jnp.abs(check.z_scores["normal"][1]) > check.threshold
    assert jnp.sign(check.z_scores["normal"][1]) == jnp.sign(bias)
    assert jnp.abs(check.z_scores["normal"][0]) < check.threshold
    assert jnp.abs(check.difference.mean["normal"][1] - bias) < 0.1


def test_false_alarms_are_as_rare_as_promised():
    """300 checks of an unbiased pair at a rate of 10%: 30 alarms within 4 standard errors."""

    def estimator(key):
        return jax.random.normal(key, (3,))

    def raises_alarm(seed):
        key, num_draws = jax.random.key(seed), 200
        check = gdregs.check_unbiased(
            estimator, lambda k: -estimator(k), key, num_draws, false_alarm=0.1
        )
        return ~check.unbiased

    rate = float(jnp.mean(jax.lax.map(raises_alarm, jnp.arange(300))))
    assert abs(rate - 0.1) < 4 * (0.1 * 0.9 / 300) ** 0.5


def test_wrong_arguments():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="num_draws must be at least 2"):
        gdregs.gradient_moments(draw, key, 1)
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        gdregs.gradient_moments(draw, key, 10, chunk_size=0)
    with pytest.raises(ValueError, match="return different gradients"):
        gdregs.check_unbiased(draw, lambda key: draw(key)["normal"], key, 10)


def test_legacy_keys():
    moments = gdregs.gradient_moments(draw, jax.random.PRNGKey(0), 100)
    assert moments.mean["normal"].shape == (2,)
