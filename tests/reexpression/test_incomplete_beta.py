"""How a Beta variate moves with its concentrations, against scipy's special functions."""

import itertools

import jax
import numpy as np
from scipy import special, stats

from gdregs.reexpression.incomplete_beta import digamma_difference, logit_beta_derivatives

CONCENTRATIONS = (0.03, 0.7, 2.5, 40.0, 3000.0)
LEVELS = (1e-4, 0.2, 0.5, 0.9, 1 - 1e-4)


def _cases():
    """Concentrations and points of a Beta that are neither 0 nor 1 to float64 accuracy."""
    for a, b, level in itertools.product(CONCENTRATIONS, CONCENTRATIONS, LEVELS):
        z = stats.beta.ppf(level, a, b)
        if 1e-12 < z < 1 - 1e-12:
            yield a, b, z


def _implicit(a, b, z):
    """-dF / p by a, over z (1 - z), by a central difference of Richardson's order."""
    step = 1e-3 * a

    def slope(h):
        return (special.betainc(a + h, b, z) - special.betainc(a - h, b, z)) / (2 * h)

    derivative = (4 * slope(step) - slope(2 * step)) / 3
    return -derivative / (stats.beta.pdf(z, a, b) * z * (1 - z))


def test_derivatives_are_the_implicit_ones(float64):
    a, b, z = map(np.array, zip(*_cases(), strict=True))
    by_a, by_b = jax.jit(logit_beta_derivatives)(a, b, np.log(z) - np.log1p(-z))
    np.testing.assert_allclose(by_a, [_implicit(*case) for case in _cases()], rtol=1e-4)
    mirrored = [-_implicit(b, a, 1 - z) for a, b, z in _cases()]
    np.testing.assert_allclose(by_b, mirrored, rtol=1e-4)


def test_float32_agrees_with_float64_far_into_the_tails():
    grid = np.meshgrid(CONCENTRATIONS, CONCENTRATIONS, [-400.0, -20.0, 0.0, 20.0, 400.0])
    narrow = [np.ravel(values).astype(np.float32) for values in grid]
    single = jax.jit(logit_beta_derivatives)(*narrow)
    with jax.enable_x64(True):
        double = jax.jit(logit_beta_derivatives)(*(x.astype(np.float64) for x in narrow))
    np.testing.assert_allclose(single, double, rtol=2e-3)


def test_digamma_difference_loses_no_digits(float64):
    x, d = map(np.ravel, np.meshgrid(np.logspace(-3, 5, 9), np.logspace(-1, 4, 6)))
    expected = special.digamma(x + d) - special.digamma(x)
    found = jax.jit(digamma_difference)
    np.testing.assert_allclose(found(x, d), expected, rtol=1e-9)
    tiny = found(np.float32(3e4), np.float32(1e-3))
    np.testing.assert_allclose(tiny, special.polygamma(1, 3e4) * 1e-3, rtol=1e-5)
