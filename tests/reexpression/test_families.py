"""Conformance of every re-expression rule, driven by the table in `families`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro.distributions import constraints, transforms

import gdregs
from families import FAMILIES, SCALARS, VECTORS, draw_parameters, reexpressed
from means import assert_unbiased

# Families with a rule of their own, and quickly compiled: of the others, most are made of these.
LONG = {
    "InverseGamma", "Chi2", "BetaProportion", "Transformed Gamma", "Normal truncated left",
    "Normal truncated right", "SoftLaplace truncated", "StudentT truncated", "Gamma truncated",
    "Mixture of Gammas", "Mixture of Betas", "Mixture of families",
}  # fmt: skip
by_name = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in SCALARS],
)


@pytest.fixture(autouse=True, scope="module")
def unvalidated():
    """numpyro would look at concrete arguments one operation at a time."""
    with numpyro.validation_enabled(False):
        yield


@functools.cache
def compiled(name, step=1e-5):
    """Samples, their tangents along tangents of the parameters, and density and cdf."""
    family = FAMILIES[name]

    def run(key, parameters, tangents):
        z = family.sample(family.make(*parameters), key)
        value, tangent = jax.jvp(reexpressed(family, z), parameters, tangents)

        def cdf(sign):
            moved = (p + sign * step * t for p, t in zip(parameters, tangents, strict=True))
            return family.cdf(family.make(*moved), z)

        density = jnp.exp(family.make(*parameters).log_prob(z))
        below, above = jax.vmap(cdf)(np.array([-1.0, 1.0]))
        return z, value, tangent, density, (above - below) / (2 * step)

    return jax.jit(run)


@by_name
@settings(deadline=None, max_examples=8, derandomize=True)
@given(seed=st.integers(0, 2**16))
def test_value_is_bitwise_and_tangent_the_implicit_one(name, seed):
    """p(z) dz/dtheta = -dF/dtheta by central differences of the cdf."""
    with jax.enable_x64(True):
        parameters = draw_parameters(FAMILIES[name], seed)
        rng = np.random.default_rng(seed)
        # A relative change of every parameter at once, in a random direction.
        tangents = tuple(rng.uniform(-1, 1, p.shape) * p for p in parameters)
        found = compiled(name)(jax.random.key(seed), parameters, tangents)
    z, value, tangent, density, slope = map(np.asarray, found)
    np.testing.assert_array_equal(value.view(np.uint64), z.view(np.uint64))
    assert np.isfinite(tangent).all()
    np.testing.assert_allclose(density * tangent, -slope, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_have_paths_of_their_own_shape(float64, name):
    """Whether it is the right one needs draws, and a slow test."""
    family = FAMILIES[name]
    parameters = draw_parameters(family, 0)

    def run(parameters):
        z = family.make(*parameters).sample(jax.random.key(0), (5,))
        return z, jax.jvp(reexpressed(family, z), parameters, parameters)

    z, (value, tangent) = jax.eval_shape(run, parameters)
    assert z.shape == value.shape == tangent.shape
    assert z.dtype == value.dtype == tangent.dtype


@pytest.mark.slow
@pytest.mark.parametrize("name", VECTORS)
def test_a_path_has_the_mean_of_the_score_function(float64, name):
    """E[df/dz dz/dtheta] = E[f dlog p/dtheta], over draws, and z is the same bit for bit."""
    family = FAMILIES[name]
    num_draws = 16_000 if name.startswith("LKJ") else 4000  # whose concentration moves z little
    rng = np.random.default_rng(0)
    parameters = tuple(
        np.asarray(parameter(0.4 + 0.2 * rng.uniform(size=parameter.shape)))
        for parameter in family.parameters
    )

    @jax.jit
    def run(key, parameters):
        z = family.make(*parameters).sample(key, (num_draws,))

        def value(z):
            return -3 * jnp.sum(jnp.arctan(z - 0.3) ** 2)

        centre = jnp.mean(jax.vmap(value)(z))

        def gradients(z):
            def by_score(parameters):
                return (value(z) - centre) * family.make(*parameters).log_prob(z[None])[0]

            def by_path(parameters):
                moved = reexpressed(family, z[None])(*parameters)[0]
                return value(moved), moved

            path, moved = jax.grad(by_path, has_aux=True)(parameters)
            return jax.tree.map(jnp.ravel, (jax.grad(by_score)(parameters), path)), moved

        # In small batches: XLA for CPU can hang on large batches of triangular solves.
        return z, jax.lax.map(gradients, z, batch_size=100)

    z, ((by_score, by_path), moved) = jax.device_get(run(jax.random.key(3), parameters))
    np.testing.assert_array_equal(moved.view(np.uint64), z.view(np.uint64))
    scores = _z_scores(by_score, by_path)
    assert np.max(np.abs(scores)) < 4.5, scores
    # What must be caught: a path of half the length.
    caught = _z_scores(by_score, jax.tree.map(lambda g: g / 2, by_path))
    assert np.max(np.abs(caught)) > 4.5, caught


def _z_scores(a, b):
    difference = np.concatenate(jax.tree.leaves(jax.tree.map(lambda x, y: x - y, a, b)), axis=-1)
    errors = difference.std(axis=0) / np.sqrt(len(difference))
    return difference.mean(axis=0)[errors > 0] / errors[errors > 0]


@pytest.mark.slow
def test_gdregs_with_gammas_on_both_sides_has_the_mean_of_naive():
    """Eq. (19) with a prior whose path is implicit; STL must be caught."""

    def gradient(posterior_estimator, prior_estimator):
        def bound(phi, theta, key):
            return gdregs.bound(
                dist.Gamma(*phi), dist.Gamma(*theta), lambda z: -3 * jnp.arctan(z - 0.3) ** 2,
                key=key, num_samples=4, posterior_estimator=posterior_estimator,
                prior_estimator=prior_estimator,
            )  # fmt: skip

        return lambda key: jax.grad(bound, (0, 1))((2.5, 1.5), (1.8, 1.2), key)

    suspects = {name: gradient(name, "gdregs") for name in ("dregs", "stl")}
    assert_unbiased(suspects, gradient("naive", "naive"), jax.random.key(0), biased=("stl",))


REALS = np.array([0.0, 1e-30, -1e-30, 1e-5, -1.0, 3.0, -40.0, 1e4, -1e15], np.float32)
POSITIVES = np.array([2e-38, 1e-30, 1e-6, 0.3, 1.0, 40.0, 1e4, 1e15], np.float32)
FRACTIONS = np.array([2e-38, 1e-20, 1e-6, 0.5, 0.9, 1 - 6e-8], np.float32)


@by_name
def test_derivatives_are_finite_over_the_support_in_float32(name):
    family = FAMILIES[name]
    run = jax.jit(lambda z, p: jax.jvp(reexpressed(family, z), p, p))
    for seed in range(3):
        parameters = jax.tree.map(np.float32, draw_parameters(family, seed))
        z = _points_of(family.make(*parameters).support)
        if name in ("InverseGamma", "Transformed Gamma"):  # whose transforms overflow at the ends
            z = z[(z > 1e-15) & (z < 1e15)]
        value, tangent = run(np.float32(z), parameters)
        np.testing.assert_array_equal(value, np.float32(z))
        assert np.isfinite(tangent).all(), (z, tangent)


def _points_of(support):
    """Points over all of a support."""
    if support is constraints.unit_interval:
        return FRACTIONS
    if support is constraints.real:
        return REALS
    if hasattr(support, "upper_bound") and not hasattr(support, "lower_bound"):
        return np.asarray(support.upper_bound) - POSITIVES
    z = np.asarray(support.lower_bound) + POSITIVES
    return np.minimum(z, np.asarray(getattr(support, "upper_bound", np.inf)))


BOUNDED = {
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
}


@pytest.mark.parametrize("name", BOUNDED)
def test_a_bound_of_the_support_cannot_be_learned(name):
    make, bounds = BOUNDED[name]

    def path(*bounds):
        return gdregs.reexpress(make(*bounds), jnp.array([1.0, 1.5]))

    np.testing.assert_array_equal(jax.jit(path)(*bounds), [1.0, 1.5])
    for index in range(len(bounds)):

        def moved(bound, index=index):
            arguments = [bound if i == index else b for i, b in enumerate(bounds)]
            return jnp.sum(path(*arguments))

        for call in (moved, jax.jit(moved)):
            with pytest.raises(ValueError, match=r"The support of the .* depends on a parameter"):
                jax.eval_shape(jax.grad(call), bounds[index])


def test_a_beta_is_a_dirichlet_of_two(float64):
    @jax.jit
    def both(concentration):
        z = jnp.linspace(0.01, 0.99, 9)
        pair = jnp.stack([z, 1 - z], axis=-1)
        return (
            jax.jacfwd(lambda c: gdregs.reexpress(dist.Beta(c[0], c[1]), z))(concentration),
            jax.jacfwd(lambda c: gdregs.reexpress(dist.Dirichlet(c), pair)[:, 0])(concentration),
        )

    np.testing.assert_allclose(*both(np.array([0.7, 3.0])), rtol=1e-9)


def test_a_t_is_a_vector_of_one_t(float64):
    def scalar(df):
        return gdregs.reexpress(dist.StudentT(df, 0.0, 1.0), jnp.linspace(-3, 3, 7))

    def vector(df):
        family = dist.MultivariateStudentT(df, jnp.zeros(1), jnp.ones((1, 1)))
        return gdregs.reexpress(family, jnp.linspace(-3, 3, 7)[:, None])[:, 0]

    @jax.jit
    def both(df):
        return [jax.jvp(of, (df,), (1.0,))[1] for of in (scalar, vector)]

    np.testing.assert_allclose(*both(3.0), rtol=1e-12)


def test_a_diffusion_moves_with_its_equation_at_fixed_noise(float64):
    times = np.array([0.0, 0.1, 0.3, 0.4, 0.8])

    def process(rate):
        sde = lambda y, t: (-rate * y + t, 0.5 + rate * jnp.tanh(y) ** 2)  # noqa: E731
        return dist.EulerMaruyama(times, sde, dist.Normal(rate * jnp.ones((2, 3)), 1.0))

    @jax.jit
    def run(rate):
        def sample(rate):  # what numpyro's sampler differentiates
            return process(rate).sample(jax.random.key(0), (7,))

        z, expected = jax.jvp(sample, (rate,), (1.0,))
        return z, expected, jax.jvp(lambda r: gdregs.reexpress(process(r), z), (rate,), (1.0,))

    z, expected, (value, moved) = run(0.8)
    np.testing.assert_array_equal(value, z)
    np.testing.assert_allclose(moved, expected, rtol=1e-10)
