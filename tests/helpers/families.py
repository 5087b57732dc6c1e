"""One table of families: what the conformance tests are driven by.

Each family has a constructor of its parameters, and for each parameter the range that hypothesis
draws from. A parameter that moves the support is a constant of the constructor.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import transforms

import gdregs


class Real(NamedTuple):
    """A real parameter in [-size, size]."""

    size: float = 5.0
    shape: tuple[int, ...] = ()

    def __call__(self, u):
        return self.size * (2 * u - 1)


class Positive(NamedTuple):
    """A positive parameter, uniform in its logarithm."""

    low: float = 0.01
    high: float = 100.0
    shape: tuple[int, ...] = ()

    def __call__(self, u):
        return self.low * (self.high / self.low) ** u


class Unit(NamedTuple):
    """A parameter between 0 and 1."""

    shape: tuple[int, ...] = ()

    def __call__(self, u):
        return 0.02 + 0.96 * u


class Tril(NamedTuple):
    """A lower triangular matrix with a positive diagonal."""

    shape: tuple[int, ...] = (3, 3)

    def __call__(self, u):
        return np.tril(u - 0.5, -1) + np.eye(self.shape[-1]) * (0.3 + u)


class Family(NamedTuple):
    make: Callable
    parameters: tuple
    cdf: Callable = lambda distribution, z: distribution.cdf(z)  # where numpyro's does not do
    sample: Callable = lambda distribution, key: distribution.sample(key, (64,))
    """Any values of the support will do."""


SCALE = Positive(0.1, 10)
SHAPE = Positive(0.05, 100)


def _gamma(key, concentration):
    """64 numbers near a gamma's: the compiler takes seconds for the loop that rejects."""
    normal, uniform = jax.random.split(key)
    a = concentration + 1
    cube = 1 - 1 / (9 * a) + jax.random.normal(normal, (64,)) / (3 * jnp.sqrt(a))
    larger = a * jnp.maximum(cube, 0.1) ** 3
    return larger * jax.random.uniform(uniform, (64,), minval=1e-3) ** (1 / concentration)


def _beta(key, one, other):
    """64 numbers near a beta's, as `_gamma`."""
    one, other = (_gamma(k, c) for k, c in zip(jax.random.split(key), (one, other), strict=True))
    return one / (one + other)


def _t(key, df):
    """64 numbers near a t's, as `_gamma`."""
    noise, spread = jax.random.split(key)
    return jax.random.normal(noise, (64,)) / jnp.sqrt(2 * _gamma(spread, df / 2) / df)


def _each(parameter):
    """A component of a mixture for each of 64 numbers."""
    return parameter[np.arange(64) % len(parameter)]


def _mixture(component):
    return lambda logits, *parameters: dist.MixtureSameFamily(
        dist.Categorical(logits=logits), component(*parameters)
    )


def _truncated(base, low, high):
    """A truncated family, whose cdf is taken in that tail of the base where it is precise."""

    def cdf(truncated, z):
        base = truncated.base_dist
        ends = [-jnp.inf if low is None else low, jnp.inf if high is None else high]
        a, x, b = ((end - base.loc) / base.scale for end in (ends[0], z, ends[1]))
        lower = [base.cdf(base.loc + base.scale * t) for t in (a, x, b)]
        upper = [base.cdf(base.loc - base.scale * t) for t in (a, x, b)]
        below, total = (jnp.where(a > 0, upper[0] - upper[i], lower[i] - lower[0]) for i in (1, 2))
        return below / total

    return Family(
        lambda loc, scale: dist.TruncatedDistribution(
            base(jnp.zeros(()) + loc, scale), low=low, high=high
        ),
        (Real(2.0), Positive(0.5, 10)),
        cdf,
    )


SCALARS = {
    "Normal": Family(dist.Normal, (Real(), SCALE)),
    "Laplace": Family(dist.Laplace, (Real(), SCALE)),
    "Cauchy": Family(dist.Cauchy, (Real(), SCALE)),
    "Gumbel": Family(dist.Gumbel, (Real(), SCALE)),
    "Logistic": Family(dist.Logistic, (Real(), SCALE)),
    "SoftLaplace": Family(lambda a, b: dist.SoftLaplace(jnp.zeros(()) + a, b), (Real(), SCALE)),
    "AsymmetricLaplace": Family(dist.AsymmetricLaplace, (Real(), SCALE, Positive(0.2, 5))),
    "AsymmetricLaplaceQuantile": Family(dist.AsymmetricLaplaceQuantile, (Real(), SCALE, Unit())),
    "HalfNormal": Family(dist.HalfNormal, (SCALE,)),
    "HalfCauchy": Family(dist.HalfCauchy, (SCALE,)),
    "Exponential": Family(dist.Exponential, (SCALE,)),
    "Levy": Family(lambda scale: dist.Levy(-1.0, scale), (SCALE,)),
    "Weibull": Family(dist.Weibull, (SCALE, Positive(0.3, 10))),
    "Gompertz": Family(dist.Gompertz, (SCALE, SCALE)),
    "Dagum": Family(dist.Dagum, (Positive(0.2, 5), Positive(0.5, 10), SCALE)),
    "Kumaraswamy": Family(
        dist.Kumaraswamy,
        (Positive(0.2, 10), Positive(0.2, 10)),
        lambda p, z: -jnp.expm1(p.concentration0 * jax.nn.log1mexp(-p.concentration1 * jnp.log(z))),
    ),
    "LowerTruncatedPowerLaw": Family(
        lambda a: dist.LowerTruncatedPowerLaw(-1 - a, 0.5), (Positive(0.2, 5),)
    ),
    "DoublyTruncatedPowerLaw": Family(
        lambda a: dist.DoublyTruncatedPowerLaw(a, 0.5, 4.0), (Real(3.0),)
    ),
    "Pareto": Family(lambda a: dist.Pareto(2.0, a), (Positive(0.2, 5),)),
    "Gamma": Family(
        dist.Gamma,
        (SHAPE, SCALE),
        sample=lambda p, key: _gamma(key, p.concentration) / p.rate,
    ),
    "InverseGamma": Family(
        dist.InverseGamma,
        (Positive(0.3, 30), SCALE),
        sample=lambda p, key: p.rate / _gamma(key, p.concentration),
    ),
    "Chi2": Family(
        dist.Chi2, (Positive(0.3, 100),), sample=lambda p, key: 2 * _gamma(key, p.df / 2)
    ),
    "Beta": Family(
        dist.Beta,
        (SHAPE, SHAPE),
        sample=lambda p, key: _beta(key, p.concentration1, p.concentration0),
    ),
    "BetaProportion": Family(
        dist.BetaProportion,
        (Unit(), Positive(1, 100)),
        sample=lambda p, key: _beta(key, p.concentration1, p.concentration0),
    ),
    "StudentT": Family(
        dist.StudentT,
        (Positive(0.5, 50), Real(), SCALE),
        sample=lambda p, key: p.loc + p.scale * _t(key, p.df),
    ),
    "LogNormal": Family(dist.LogNormal, (Real(2.0), Positive(0.1, 2))),
    "RelaxedBernoulli": Family(
        lambda a, b: dist.RelaxedBernoulliLogits(a, b), (Positive(0.3, 3), Real(2.0))
    ),
    "Normal truncated left": _truncated(dist.Normal, 0.5, None),
    "Normal truncated right": _truncated(dist.Normal, None, 0.5),
    "Normal truncated": _truncated(dist.Normal, -1.0, 2.0),
    "Cauchy truncated": _truncated(dist.Cauchy, -1.0, 2.0),
    "Laplace truncated": _truncated(dist.Laplace, -1.0, None),
    "Logistic truncated": _truncated(dist.Logistic, None, 2.0),
    "SoftLaplace truncated": _truncated(dist.SoftLaplace, -1.0, 2.0),
    "StudentT truncated": Family(
        lambda df, a, b: dist.TruncatedDistribution(dist.StudentT(df, a, b), low=-1.0),
        (Positive(1, 30), Real(1.0), Positive(0.3, 5)),
        sample=lambda _, key: jax.random.exponential(key, (64,)) - 1,  # numpyro's needs more
    ),
    "Gamma truncated": Family(
        lambda a, b: dist.TwoSidedTruncatedGamma(dist.Gamma(a, b), low=0.5, high=3.0),
        (Positive(0.3, 10), Positive(0.3, 5)),
        sample=lambda _, key: jax.random.uniform(key, (64,), minval=0.5, maxval=3.0),
    ),
    "Mixture of Normals": Family(
        _mixture(dist.Normal), (Real(2.0, (3,)), Real(2.0, (3,)), Positive(0.3, 3, (3,)))
    ),
    "Mixture of Gammas": Family(
        _mixture(dist.Gamma),
        (Real(2.0, (2,)), Positive(0.3, 30, (2,)), Positive(0.3, 3, (2,))),
        sample=lambda p, key: (
            _gamma(key, _each(p.component_distribution.concentration))
            / _each(p.component_distribution.rate)
        ),
    ),
    "Mixture of Betas": Family(
        _mixture(dist.Beta),
        (Real(2.0, (2,)), Positive(0.3, 30, (2,)), Positive(0.3, 30, (2,))),
        sample=lambda p, key: _beta(
            key,
            _each(p.component_distribution.concentration1),
            _each(p.component_distribution.concentration0),
        ),
    ),
    "Mixture of families": Family(
        lambda logits, a, b: dist.MixtureGeneral(
            dist.Categorical(logits=logits), [dist.Normal(a, b), dist.StudentT(3.0, b, b)]
        ),
        (Real(2.0, (2,)), Real(), Positive(0.5, 3)),
        sample=lambda _, key: 3 * _t(key, 3.0),
    ),
    "Folded Normal": Family(
        lambda a, b: dist.FoldedDistribution(dist.Normal(a, b)),
        (Real(2.0), Positive(0.5, 2)),
        lambda p, z: p.base_dist.cdf(z) - p.base_dist.cdf(-z),
    ),
    "Transformed Normal": Family(
        lambda a, b: dist.TransformedDistribution(
            dist.Normal(a, 1.0),
            [transforms.AffineTransform(0.5, b), transforms.SigmoidTransform()],
        ),
        (Real(1.0), Positive(0.5, 2)),
    ),
    "Transformed Gamma": Family(
        lambda a, b, c: dist.TransformedDistribution(
            dist.Gamma(a, 1.0),
            [
                transforms.AffineTransform(0.0, b, domain=dist.constraints.positive),
                transforms.PowerTransform(c),
            ],
        ),
        (Positive(0.5, 10), SCALE, Positive(0.5, 2)),
        sample=lambda p, key: p.transforms[1](
            p.transforms[0](_gamma(key, p.base_dist.concentration))
        ),
    ),
}

PATH_OF_FOUR = np.diag(np.ones(3), 1) + np.diag(np.ones(3), -1)
TIMES = np.array([0.0, 0.1, 0.3, 0.4, 0.8])

VECTORS = {
    "MultivariateNormal": Family(
        lambda a, tril: dist.MultivariateNormal(a, scale_tril=tril), (Real(2.0, (3,)), Tril())
    ),
    "LowRankMultivariateNormal": Family(
        dist.LowRankMultivariateNormal,
        (Real(2.0, (3,)), Real(1.0, (3, 1)), Positive(0.3, 3, (3,))),
    ),
    "MultivariateStudentT": Family(
        dist.MultivariateStudentT, (Positive(2, 20), Real(2.0, (3,)), Tril())
    ),
    "MatrixNormal": Family(dist.MatrixNormal, (Real(1.0, (2, 3)), Tril((2, 2)), Tril((3, 3)))),
    "Dirichlet": Family(dist.Dirichlet, (Positive(0.3, 30, (4,)),)),
    "GaussianRandomWalk": Family(lambda a: dist.GaussianRandomWalk(a, 4), (SCALE,)),
    "LKJCholesky": Family(lambda a: dist.LKJCholesky(3, a), (Positive(0.3, 10),)),
    "LKJ": Family(lambda a: dist.LKJ(3, a), (Positive(0.3, 10),)),
    "WishartCholesky": Family(
        lambda df, tril: dist.WishartCholesky(df, scale_tril=tril), (Positive(3, 20), Tril())
    ),
    "Wishart": Family(
        lambda df, tril: dist.Wishart(df, scale_tril=tril), (Positive(3, 20), Tril())
    ),
    "InverseWishartCholesky": Family(
        lambda df, tril: dist.InverseWishartCholesky(df, scale_tril=jnp.tril(tril)),
        (Positive(8, 20), Tril()),
    ),
    "CAR": Family(
        lambda a, correlation, precision: dist.CAR(a, correlation, precision, PATH_OF_FOUR),
        (Real(1.0, (4,)), Unit(), Positive(0.5, 2)),
    ),
    "GaussianCopula": Family(
        lambda a, b, r: dist.GaussianCopula(dist.Laplace(a, b), jnp.eye(2) + r * (1 - jnp.eye(2))),
        (Real(1.0, (2,)), Positive(0.5, 2, (2,)), Unit()),
    ),
    "EulerMaruyama": Family(
        lambda start, scale: dist.EulerMaruyama(
            TIMES, lambda y, _: (-y, 1 + jnp.tanh(y) ** 2), dist.Normal(start, scale)
        ),
        (Real(1.0), Positive(0.3, 3)),
    ),
    "Independent Gammas": Family(
        lambda a, b: dist.Gamma(a, b).to_event(1), (Positive(0.3, 30, (3,)), SCALE)
    ),
    "Mixture of MultivariateNormals": Family(
        lambda logits, a, tril: dist.MixtureSameFamily(
            dist.Categorical(logits=logits),
            dist.MultivariateNormal(a, scale_tril=jnp.stack([tril, 2 * tril])),
        ),
        (Real(1.0, (2,)), Real(1.0, (2, 3)), Tril()),
    ),
    "Mixture of independent Gammas": Family(
        lambda logits, a, b: dist.MixtureSameFamily(
            dist.Categorical(logits=logits), dist.Gamma(a, b).to_event(1)
        ),
        (Real(1.0, (2,)), Positive(0.5, 10, (2, 3)), Positive(0.5, 2, (2, 3))),
    ),
    "Logistic-normal": Family(
        lambda a, tril: dist.TransformedDistribution(
            dist.MultivariateNormal(a, scale_tril=tril), transforms.StickBreakingTransform()
        ),
        (Real(1.0, (3,)), Tril()),
    ),
}

FAMILIES = SCALARS | VECTORS


def draw_parameters(family: Family, seed: int):
    """Parameters in their ranges, float64 of numpy."""
    rng = np.random.default_rng(seed)
    return tuple(
        np.asarray(parameter(rng.uniform(size=parameter.shape))) for parameter in family.parameters
    )


def reexpressed(family: Family, z):
    """The map from the parameters to z re-expressed."""
    return lambda *parameters: gdregs.reexpress(family.make(*parameters), z)
