"""Re-expression: value bit for bit, derivative that of the family's own sampler at fixed noise."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms

import gdregs
import models
import reference

LOC = jnp.array([[0.3, -1.2, 2.0], [0.1, 0.0, -0.7]])
SCALE = jnp.array([[0.5, 1.5, 0.8], [2.0, 0.3, 1.1]])
TRIL = jnp.array([[1.0, 0.0, 0.0], [0.4, 0.7, 0.0], [-0.3, 0.2, 1.3]])

CONSTRUCTORS = {
    **{
        family.__name__: (family, (LOC, SCALE))
        for family in (
            dist.Cauchy,
            dist.Gumbel,
            dist.Laplace,
            dist.Logistic,
            dist.Normal,
            dist.SoftLaplace,
            dist.LogNormal,
        )
    },
    "HalfNormal": (dist.HalfNormal, (SCALE,)),
    "HalfCauchy": (dist.HalfCauchy, (SCALE,)),
    "Exponential": (dist.Exponential, (SCALE,)),
    "MultivariateNormal": (
        lambda loc, tril: dist.MultivariateNormal(loc, scale_tril=jnp.tril(tril)),
        (LOC, TRIL),
    ),
    "MultivariateNormal, batch of scales": (
        lambda loc, tril: dist.MultivariateNormal(loc, scale_tril=jnp.tril(tril)),
        (LOC, jnp.stack([TRIL, 2 * TRIL])),
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
    parameters = [jnp.asarray(p, jnp.float64) for p in parameters]
    key = jax.random.key(0)
    z = make(*parameters).sample(key, (6,))
    again, derivative = jax.vjp(lambda *p: gdregs.reexpress(make(*p), z), *parameters)
    np.testing.assert_array_equal(again.view(jnp.uint64), z.view(jnp.uint64))
    _, expected = jax.vjp(lambda *p: make(*p).sample(key, (6,)), *parameters)
    cotangent = jax.random.normal(jax.random.key(1), z.shape, z.dtype)
    for a, b in zip(derivative(cotangent), expected(cotangent), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)
        assert jnp.any(b != 0)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-38, 3.4e38, jnp.inf, -jnp.inf, jnp.nan])
def test_extreme_values_stay_bitwise(value):
    z = jnp.array([value], jnp.float32)
    for compile_ in (jax.jit, lambda f: f):
        again = compile_(lambda loc: gdregs.reexpress(dist.Normal(loc, 3.0), z))(0.7)
        np.testing.assert_array_equal(again.view(jnp.uint32), z.view(jnp.uint32))


def test_no_gradient_flows_into_the_sample():
    gradient = jax.grad(lambda z: gdregs.reexpress(dist.Normal(1.0, z[0] * 0 + 2.0), z)[0])
    np.testing.assert_array_equal(gradient(jnp.ones(2)), 0)


def test_hierarchy_moves_children_along_with_their_parents(float64):
    _, theta, _, _ = reference.init(jax.random.key(3))
    prior = models.prior(theta)
    z = prior.sample(jax.random.key(1), (4, 3))

    def total(path):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(path))

    actual = jax.grad(lambda t: total(gdregs.reexpress(models.prior(t), z)))(theta)
    expected = jax.grad(lambda t: total(reference.path(t, reference.PRIOR, z)))(theta)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), actual, expected)
    again = gdregs.reexpress(prior, z)
    jax.tree.map(np.testing.assert_array_equal, again, z)


@pytest.mark.parametrize(
    "distribution",
    [
        dist.Poisson(jnp.array(2.0)),
        dist.VonMises(jnp.array(2.0), 1.0),
        dist.Poisson(jnp.ones(2)).to_event(1),
        dist.TransformedDistribution(
            dist.VonMises(jnp.ones(2), 1.0), transforms.AffineTransform(0.0, 2.0)
        ),
    ],
    ids=lambda d: type(d).__name__,
)
def test_other_families_are_refused_by_name(distribution):
    with pytest.raises(TypeError, match=r"has no re-expression rule\. Rules exist for .*Normal"):
        gdregs.reexpress(distribution, jnp.ones((3, *distribution.shape())))


@pytest.mark.parametrize(
    "distribution",
    [
        dist.MixtureSameFamily(
            dist.Categorical(logits=jnp.ones(2)), dist.Wishart(jnp.ones(2) * 4, jnp.eye(2))
        ),
        dist.MixtureSameFamily(
            dist.Categorical(logits=jnp.ones(2)), dist.Dirichlet(jnp.ones((2, 3)))
        ),
        dist.MixtureGeneral(
            dist.Categorical(logits=jnp.ones(2)), [dist.Normal(0, jnp.ones(2)).to_event(1)] * 2
        ),
        dist.MixtureSameFamily(dist.Categorical(logits=jnp.ones(2)), dist.Poisson(jnp.ones(2))),
    ],
    ids=["matrices", "Dirichlet", "general", "discrete"],
)
def test_other_mixtures_are_refused(distribution):
    with pytest.raises(TypeError, match="has no re-expression rule"):
        gdregs.reexpress(distribution, jnp.ones((5, *distribution.shape())))


def test_a_transform_without_inverse_is_refused():
    folded = dist.TransformedDistribution(dist.Normal(jnp.zeros(2), 1.0), transforms.AbsTransform())
    with pytest.raises(TypeError, match="its transform AbsTransform is not invertible"):
        gdregs.reexpress(folded, jnp.ones((3, 2)))


def test_a_distribution_without_parameters_needs_no_rule():
    z = jnp.array([0.3, 0.4])
    np.testing.assert_array_equal(gdregs.reexpress(dist.Gamma(2.0, 1.0), z), z)
    np.testing.assert_array_equal(gdregs.reexpress(dist.Uniform(), z), z)


def test_a_parameter_hidden_in_a_distribution_without_leaves_is_refused():
    class Hidden:
        def __init__(self, loc):
            self.loc = loc

        def log_prob(self, z):
            return -((z - self.loc) ** 2)

    with pytest.raises(ValueError, match="Hidden uses a parameter that is being differentiated"):
        jax.grad(lambda loc: gdregs.reexpress(Hidden(loc), jnp.ones(3))[0])(1.0)
    assert gdregs.reexpress(Hidden(1.0), jnp.ones(3)).shape == (3,)


def test_the_shape_must_be_that_of_samples():
    for distribution in (
        dist.Normal(jnp.zeros((4, 2)), 1.0),
        dist.Normal(jnp.zeros((4, 2)), 1.0).to_event(1),
        dist.Normal(jnp.zeros(2), 1.0).expand([4, 2]),
    ):
        with pytest.raises(ValueError, match="is not a batch of samples"):
            gdregs.reexpress(distribution, jnp.zeros((5, 2)))


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

    gradient = jax.grad(lambda loc: gdregs.reexpress(Shifted(loc), jnp.array(3.0)))(1.0)
    assert gradient == 1
