"""Re-expression: value bit for bit, derivative that of the family's own sampler at fixed noise."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms

import gdregs
import models
import reference

LOC = np.array([[0.3, -1.2, 2.0], [0.1, 0.0, -0.7]])
SCALE = np.array([[0.5, 1.5, 0.8], [2.0, 0.3, 1.1]])
TRIL = np.array([[1.0, 0.0, 0.0], [0.4, 0.7, 0.0], [-0.3, 0.2, 1.3]])


@pytest.fixture(autouse=True, scope="module")
def unvalidated():
    """numpyro would look at concrete arguments one operation at a time."""
    with numpyro.validation_enabled(False):
        yield


CONSTRUCTORS = {
    "Normal": (dist.Normal, (LOC, SCALE)),
    "MultivariateNormal, batch of scales": (
        lambda loc, tril: dist.MultivariateNormal(loc, scale_tril=jnp.tril(tril)),
        (LOC, np.stack([TRIL, 2 * TRIL])),
    ),
    "MultivariateNormal, covariance": (
        lambda loc, tril: dist.MultivariateNormal(loc, covariance_matrix=tril @ tril.T),
        (LOC, TRIL),
    ),
    "Independent": (lambda a, b: dist.Normal(a, b).to_event(1), (LOC, SCALE)),
    "Expanded": (lambda a, b: dist.Normal(a, b).expand([4, 3]), (LOC[:1], SCALE[:1])),
    "Expanded by more axes": (lambda a, b: dist.Laplace(a, b).expand([5, 2, 3]), (LOC, SCALE)),
    "Expanded, event": (
        lambda a, b: dist.Normal(a, b).to_event(1).expand([4]),
        (LOC[0], SCALE[0]),
    ),
    "Masked": (lambda a, b: dist.Normal(a, b).mask(LOC > 0), (LOC, SCALE)),
    "Transformed": (
        lambda a, b: dist.TransformedDistribution(
            dist.Normal(a, 1.0),
            [transforms.AffineTransform(0.5, b), transforms.SigmoidTransform()],
        ),
        (LOC, SCALE),
    ),
    "Transformed by a composition": (
        lambda a, b: dist.TransformedDistribution(
            dist.Laplace(a, 1.0),
            transforms.ComposeTransform(
                [
                    transforms.ComposeTransform(
                        [transforms.AffineTransform(a, b), transforms.SoftplusTransform()]
                    ),
                    transforms.ExpTransform(),
                ]
            ),
        ),
        (LOC / 5, SCALE),
    ),
    "Transformed with events": (
        lambda a, tril: dist.TransformedDistribution(
            dist.Normal(0.0, 1.0).expand([2, 3]).to_event(1),
            [transforms.LowerCholeskyAffine(a[0], tril), transforms.StickBreakingTransform()],
        ),
        (LOC / 5, TRIL),
    ),
}


@pytest.mark.parametrize("build", CONSTRUCTORS.values(), ids=CONSTRUCTORS.keys())
def test_value_is_bitwise_and_derivative_is_the_samplers(float64, build):
    make, parameters = build

    @jax.jit
    def run(parameters):
        key = jax.random.key(0)
        z, expected = jax.vjp(lambda p: make(*p).sample(key, (6,)), parameters)
        again, derivative = jax.vjp(lambda p: gdregs.reexpress(make(*p), z), parameters)
        cotangent = jnp.cos(3 * jnp.arange(z.size, dtype=z.dtype)).reshape(z.shape)
        return z, again, derivative(cotangent), expected(cotangent)

    z, again, derivative, expected = jax.device_get(run(parameters))
    np.testing.assert_array_equal(again.view(np.uint64), z.view(np.uint64))
    for a, b in zip(*map(jax.tree.leaves, (derivative, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)
        assert np.any(b != 0)


def test_extreme_values_stay_bitwise():
    z = np.float32([0.0, -0.0, 1e-38, 3.4e38, np.inf, -np.inf, np.nan])
    again = jax.jit(lambda loc, z: gdregs.reexpress(dist.Normal(loc, 3.0), z))(0.7, z)
    again = np.asarray(again)
    np.testing.assert_array_equal(again.view(np.uint32), z.view(np.uint32))


def test_no_gradient_flows_into_the_sample():
    gradient = jax.grad(lambda z: gdregs.reexpress(dist.Normal(1.0, z[0] * 0 + 2.0), z)[0])
    np.testing.assert_array_equal(jax.jit(gradient)(np.ones(2)), 0)


def test_hierarchy_moves_children_along_with_their_parents(float64):
    def total(path):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(path))

    @jax.jit
    def run(theta):
        z = models.prior(theta).sample(jax.random.key(1), (4, 3))
        actual = jax.grad(lambda t: total(gdregs.reexpress(models.prior(t), z)))(theta)
        expected = jax.grad(lambda t: total(reference.path(t, reference.PRIOR, z)))(theta)
        return actual, expected, z, gdregs.reexpress(models.prior(theta), z)

    actual, expected, z, again = run(reference.init(jax.random.key(3))[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), actual, expected)
    jax.tree.map(np.testing.assert_array_equal, again, z)


def path_of(make):
    """What asks for a path of five samples of a distribution."""

    def run():
        distribution = make()
        return gdregs.reexpress(distribution, jnp.ones((5, *distribution.shape())))

    return run


@pytest.mark.parametrize(
    "make",
    [
        lambda: dist.Poisson(jnp.array(2.0)),
        lambda: dist.VonMises(jnp.array(2.0), 1.0),
        lambda: dist.Poisson(jnp.ones(2)).to_event(1),
        lambda: dist.TransformedDistribution(
            dist.VonMises(jnp.ones(2), 1.0), transforms.AffineTransform(0.0, 2.0)
        ),
    ],
    ids=["Poisson", "VonMises", "Independent", "Transformed"],
)
def test_other_families_are_refused_by_name(make):
    with pytest.raises(TypeError, match=r"has no re-expression rule\. Rules exist for .*Normal"):
        jax.eval_shape(path_of(make))


@pytest.mark.parametrize(
    "make",
    [
        lambda of: dist.MixtureSameFamily(of, dist.Wishart(jnp.ones(2) * 4, jnp.eye(2))),
        lambda of: dist.MixtureSameFamily(of, dist.Dirichlet(jnp.ones((2, 3)))),
        lambda of: dist.MixtureGeneral(of, [dist.Normal(0, jnp.ones(2)).to_event(1)] * 2),
        lambda of: dist.MixtureSameFamily(of, dist.Poisson(jnp.ones(2))),
    ],
    ids=["matrices", "Dirichlet", "general", "discrete"],
)
def test_other_mixtures_are_refused(make):
    with pytest.raises(TypeError, match="has no re-expression rule"):
        jax.eval_shape(path_of(lambda: make(dist.Categorical(logits=jnp.ones(2)))))


def test_a_transform_without_inverse_is_refused():
    def folded():
        return dist.TransformedDistribution(
            dist.Normal(jnp.zeros(2), 1.0), transforms.AbsTransform()
        )

    with pytest.raises(TypeError, match="its transform AbsTransform is not invertible"):
        jax.eval_shape(path_of(folded))


def test_a_distribution_without_parameters_needs_no_rule():
    z = np.float32([0.3, 0.4])
    for distribution in (dist.Gamma(2.0, 1.0), dist.Uniform()):
        found = jax.jit(lambda z, d=distribution: gdregs.reexpress(d, z))(z)
        np.testing.assert_array_equal(found, z)


def test_a_parameter_hidden_in_a_distribution_without_leaves_is_refused():
    class Hidden:
        def __init__(self, loc):
            self.loc = loc

        def log_prob(self, z):
            return -((z - self.loc) ** 2)

    with pytest.raises(ValueError, match="Hidden uses a parameter that is being differentiated"):
        jax.eval_shape(jax.grad(lambda loc: gdregs.reexpress(Hidden(loc), jnp.ones(3))[0]), 1.0)
    path = jax.eval_shape(lambda z: gdregs.reexpress(Hidden(1.0), z), np.ones(3))
    assert path.shape == (3,)


def test_the_shape_must_be_that_of_samples():
    for make in (
        lambda: dist.Normal(jnp.zeros((4, 2)), 1.0),
        lambda: dist.Normal(jnp.zeros((4, 2)), 1.0).to_event(1),
        lambda: dist.Normal(jnp.zeros(2), 1.0).expand([4, 2]),
    ):
        with pytest.raises(ValueError, match="is not a batch of samples"):
            jax.eval_shape(lambda make=make: gdregs.reexpress(make(), jnp.zeros((5, 2))))


def test_users_add_rules_of_their_own(float64):
    class Shifted(dist.Distribution):
        arg_constraints = {}  # noqa: RUF012
        pytree_data_fields = ("loc",)

        def __init__(self, loc):
            self.loc = loc
            super().__init__(jnp.shape(loc), ())

    @gdregs.reexpress.register(Shifted)
    def _(distribution, z):
        return gdregs.with_path(z, distribution.loc + jax.lax.stop_gradient(z - distribution.loc))

    gradient = jax.jit(jax.grad(lambda loc: gdregs.reexpress(Shifted(loc), np.array(3.0))))(1.0)
    assert gradient == 1


def test_ends_of_a_support_may_be_arrays():
    """Inside of a program they are known numbers, whose minimum JAX would trace."""
    low = jnp.array(0.3)
    interval = dist.transforms.biject_to(dist.constraints.interval(low, low + 1.0))

    def path(loc):
        moved = dist.TransformedDistribution(dist.Normal(loc, 1.0), [interval])
        return gdregs.reexpress(moved, jnp.array(0.8))

    np.testing.assert_allclose(jax.jit(jax.grad(path))(0.2), 0.25, rtol=1e-5)
