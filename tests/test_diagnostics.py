"""Moments and the unbiasedness check against known distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdregs


def draw(key):
    a, b = jax.random.split(key)
    return {"normal": 3 + 2 * jax.random.normal(a, (2,)), "uniform": jax.random.uniform(b)}


def test_moments_do_not_depend_on_chunks(float64):
    key, num_draws, chunk_sizes = jax.random.key(0), 100, (7, 100, 5000)

    @jax.jit
    def run(key):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_draws))
        found = [
            gdregs.gradient_moments(draw, key, num_draws, chunk_size=size) for size in chunk_sizes
        ]
        return jax.vmap(draw)(keys), [(of, of.snr, of.standard_error) for of in found]

    draws, found = jax.device_get(run(key))
    for chunk_size, (moments, snr, standard_error) in zip(chunk_sizes, found, strict=True):
        for name, values in draws.items():
            deviation = values.std(0, ddof=1)
            for a, b in (
                (moments.mean, values.mean(0)),
                (moments.variance, deviation**2),
                (snr, np.abs(values.mean(0)) / deviation),
                (standard_error, deviation / 10),
            ):
                np.testing.assert_allclose(a[name], b, rtol=1e-12, err_msg=str(chunk_size))
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


def test_what_is_a_bias_and_what_is_none():
    """A small one is found in the entry that has it; the same draws, and rounding, are none."""

    def biased(bias):
        def of_key(key):
            value = draw(jax.random.fold_in(key, 1))
            return {**value, "normal": value["normal"].at[1].add(bias)}

        return of_key

    def rounded(key):
        return jax.tree.map(lambda leaf: leaf * (1 + 1e-6), draw(key))

    @jax.jit
    def run(biases, key):
        def check(estimator):
            found = gdregs.check_unbiased(estimator, draw, key, 20_000, chunk_size=2000)
            return found._replace(threshold=jnp.asarray(found.threshold))

        return jax.lax.map(lambda bias: check(biased(bias)), biases), check(draw), check(rounded)

    biases = np.array([0.2, -0.2], np.float32)
    found, same, rounding = jax.device_get(run(biases, jax.random.key(0)))
    assert same.unbiased
    assert same.largest == 0
    assert rounding.unbiased
    assert not found.unbiased.any()
    z_scores = found.z_scores["normal"]
    assert (np.abs(z_scores[:, 1]) > found.threshold).all()
    assert (np.sign(z_scores[:, 1]) == np.sign(biases)).all()
    assert (np.abs(z_scores[:, 0]) < found.threshold).all()
    np.testing.assert_allclose(found.difference.mean["normal"][:, 1], biases, atol=0.1)


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

    alarms = jax.jit(lambda seeds: jax.vmap(raises_alarm)(seeds))(np.arange(300))
    rate = float(np.mean(alarms))
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
