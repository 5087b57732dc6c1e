"""Conformance of every re-expression rule, driven by the table in `families`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro.distributions import constraints, transforms

import gdregs
from families import FAMILIES, SCALARS, VECTORS, draw_parameters, jitted, reexpressed

# Those whose path is more than a closed form; the exact test above covers all.
SOME_SCALARS = ("Gamma", "Beta", "StudentT", "Pareto", "Normal truncated", "Mixture of Normals")

compiled = functools.cache(lambda name: jitted(FAMILIES[name]))
by_name = pytest.mark.parametrize("name", FAMILIES)


def seeds():
    return st.integers(0, 2**16)


@by_name
@settings(deadline=None, max_examples=8, derandomize=True)
@given(seed=st.integers(0, 2**16))
def test_value_is_bitwise_and_tangent_the_implicit_one(name, seed):
    """p(z) dz/dtheta = -dF/dtheta by central differences of the cdf, where there is one."""
    family, step = FAMILIES[name], 1e-5
    with jax.enable_x64(True):
        parameters = draw_parameters(family, seed)
        rng = np.random.default_rng(seed)
        # A relative change of every parameter at once, in a random direction.
        tangents = tuple(jnp.asarray(rng.uniform(-1, 1, p.shape)) * p for p in parameters)
        z, value, tangent = compiled(name)(jax.random.key(seed), parameters, tangents)
        np.testing.assert_array_equal(value.view(jnp.uint64), z.view(jnp.uint64))
        assert jnp.all(jnp.isfinite(tangent))
        if name not in SCALARS:
            return
        density, below, above = compiled_cdf(name)(z, parameters, tangents, step)
        np.testing.assert_allclose(
            density * tangent, -(above - below) / (2 * step), atol=1e-6, rtol=1e-6
        )


@functools.cache
def compiled_cdf(name):
    family = FAMILIES[name]

    def run(z, parameters, tangents, step):
        def cdf(sign):
            moved = (p + sign * step * t for p, t in zip(parameters, tangents, strict=True))
            return family.cdf(family.make(*moved), z)

        return jnp.exp(family.make(*parameters).log_prob(z)), cdf(-1), cdf(1)

    return jax.jit(run)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*VECTORS, *SOME_SCALARS])
def test_gdregs_has_the_mean_of_the_score_function(float64, name):
    """Eq. (19) against the naive gradient of the prior, which needs no path; 3,000 x 8 draws."""
    family, num_draws = FAMILIES[name], 3000
    theta, phi = (_around(family, centre) for centre in (0.44, 0.56))
    posterior = family.make(*phi)

    def draw(key):
        z = posterior.sample(key, (8,))
        axes = tuple(range(1, z.ndim))

        def objective(theta, estimator):
            return gdregs.bound(
                posterior,
                family.make(*theta),
                lambda z: -3 * jnp.sum(jnp.arctan(z - 0.3) ** 2, axis=axes),
                key=key,
                num_samples=8,
                posterior_estimator="rws",
                prior_estimator=estimator,
            )

        by_score, by_path = (jax.grad(objective)(theta, e) for e in ("naive", "gdregs"))
        return jax.tree.map(jnp.ravel, (by_score, by_path))

    # In small batches: XLA for CPU can hang on large batches of triangular solves.
    draws = jax.jit(lambda keys: jax.lax.map(draw, keys, batch_size=100))
    by_score, by_path = draws(jax.random.split(jax.random.key(3), num_draws))
    scores = _z_scores(by_score, by_path)
    assert np.max(np.abs(scores)) < 4.5, scores
    # What must be caught: a path of half the length.
    short = jax.tree.map(lambda g: g / 2, by_path)
    caught = _z_scores(by_score, short)
    assert np.max(np.abs(caught)) > 4.5, caught


def _around(family, centre):
    """Parameters around a fraction of their ranges, so that two densities differ but overlap."""
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(parameter(centre + 0.1 * (rng.uniform(size=parameter.shape) - 0.5)))
        for parameter in family.parameters
    )


def _z_scores(a, b):
    difference = np.concatenate(jax.tree.leaves(jax.tree.map(lambda x, y: x - y, a, b)), axis=-1)
    errors = difference.std(axis=0) / np.sqrt(len(difference))
    return difference.mean(axis=0)[errors > 0] / errors[errors > 0]


REALS = np.array([0.0, 1e-30, -1e-30, 1e-5, -1.0, 3.0, -40.0, 1e4, -1e15], np.float32)
POSITIVES = np.array([2e-38, 1e-30, 1e-6, 0.3, 1.0, 40.0, 1e4, 1e15], np.float32)
FRACTIONS = np.array([2e-38, 1e-20, 1e-6, 0.5, 0.9, 1 - 6e-8], np.float32)


@pytest.mark.parametrize("name", SCALARS)
def test_derivatives_are_finite_over_the_support_in_float32(name):
    family = FAMILIES[name]
    run = jax.jit(lambda z, p: jax.jvp(reexpressed(family, z), p, p))
    for seed in range(3):
        parameters = jax.tree.map(jnp.float32, draw_parameters(family, seed))
        support = family.make(*parameters).support
        if support is constraints.unit_interval:
            z = FRACTIONS
        elif support is constraints.real:
            z = REALS
        elif hasattr(support, "upper_bound") and not hasattr(support, "lower_bound"):
            z = support.upper_bound - POSITIVES
        else:
            z = support.lower_bound + POSITIVES
            z = np.minimum(z, getattr(support, "upper_bound", np.inf))
        if name in ("InverseGamma", "Transformed Gamma"):  # whose transforms overflow at the ends
            z = z[(z > 1e-15) & (z < 1e15)]
        z = jnp.asarray(z, jnp.float32)
        value, tangent = run(z, parameters)
        np.testing.assert_array_equal(value, z)
        assert jnp.all(jnp.isfinite(tangent)), (z, tangent)


@pytest.mark.parametrize(
    ("make", "bounds"),
    {
        "Uniform": (lambda low, high: dist.Uniform(low, high), (0.0, 2.0)),
        "Pareto": (lambda low: dist.Pareto(low, 2.0), (0.5,)),
        "Levy": (lambda low: dist.Levy(low, 1.0), (0.0,)),
        "LowerTruncatedPowerLaw": (lambda low: dist.LowerTruncatedPowerLaw(-2.0, low), (0.5,)),
        "DoublyTruncatedPowerLaw": (
            lambda low, high: dist.DoublyTruncatedPowerLaw(-2.0, low, high),
            (0.5, 2.0),
        ),
        "truncated": (
            lambda low, high: dist.TruncatedDistribution(dist.Normal(0.0, 1.0), low, high),
            (0.5, 2.0),
        ),
        "LogUniform": (lambda low, high: dist.LogUniform(low, high), (0.5, 2.0)),
        "shifted": (
            lambda low: dist.TransformedDistribution(
                dist.Exponential(1.0), transforms.AffineTransform(low, 2.0)
            ),
            (0.5,),
        ),
        "scaled": (
            lambda high: dist.TransformedDistribution(
                dist.Normal(0.0, 1.0),
                [transforms.SigmoidTransform(), transforms.AffineTransform(0.0, high)],
            ),
            (2.0,),
        ),
    }.values(),
)
def test_a_bound_of_the_support_cannot_be_learned(make, bounds):
    bounds = jax.tree.map(jnp.asarray, bounds)
    z = jnp.asarray([1.0, 1.5])
    np.testing.assert_array_equal(gdregs.reexpress(make(*bounds), z), z)
    for index in range(len(bounds)):

        def moved(bound, index=index):
            arguments = [bound if i == index else b for i, b in enumerate(bounds)]
            return jnp.sum(gdregs.reexpress(make(*arguments), z))

        for call in (moved, jax.jit(moved)):
            with pytest.raises(ValueError, match=r"The support of the .* depends on a parameter"):
                jax.grad(call)(bounds[index])


def test_a_beta_is_a_dirichlet_of_two(float64):
    z = jnp.linspace(0.01, 0.99, 9)
    pair = jnp.stack([z, 1 - z], axis=-1)
    by_beta = jax.jacfwd(lambda c: gdregs.reexpress(dist.Beta(c[0], c[1]), z))
    by_dirichlet = jax.jacfwd(lambda c: gdregs.reexpress(dist.Dirichlet(c), pair)[:, 0])
    concentration = jnp.array([0.7, 3.0])
    np.testing.assert_allclose(by_beta(concentration), by_dirichlet(concentration), rtol=1e-9)


def test_a_t_is_a_vector_of_one_t(float64):
    z = jnp.linspace(-3, 3, 7)
    one, vector = jnp.ones(1), z[:, None]
    by_df = jax.jvp(lambda df: gdregs.reexpress(dist.StudentT(df, 0.0, 1.0), z), (3.0,), (1.0,))
    family = lambda df: dist.MultivariateStudentT(df, 0 * one, one[:, None])  # noqa: E731
    by_df_of_vector = jax.jvp(lambda df: gdregs.reexpress(family(df), vector), (3.0,), (1.0,))
    np.testing.assert_allclose(by_df[1], by_df_of_vector[1][:, 0], rtol=1e-12)


def test_a_diffusion_moves_with_its_equation_at_fixed_noise(float64):
    times, key = jnp.array([0.0, 0.1, 0.3, 0.4, 0.8]), jax.random.key(0)

    def process(rate):
        sde = lambda y, t: (-rate * y + t, 0.5 + rate * jnp.tanh(y) ** 2)  # noqa: E731
        return dist.EulerMaruyama(times, sde, dist.Normal(rate * jnp.ones((2, 3)), 1.0))

    def sample(rate):  # what numpyro's sampler differentiates
        return process(rate).sample(key, (7,))

    z, expected = jax.jvp(sample, (0.8,), (1.0,))
    value, moved = jax.jvp(lambda rate: gdregs.reexpress(process(rate), z), (0.8,), (1.0,))
    np.testing.assert_array_equal(value, z)
    np.testing.assert_allclose(moved, expected, rtol=1e-10)
