"""Log-probabilities of intervals, to full precision in both tails."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy import stats
from jax.scipy.special import log_ndtr
from jaxtyping import Array

from gdregs.reexpression.families.closed_form import parameters
from gdregs.reexpression.reexpress import raise_rank

# The log of the cdf at x <= 0 of families that are symmetric, in units of their scale.
_SYMMETRIC = {
    dist.Cauchy: lambda x: jnp.log(jnp.arctan2(jnp.ones_like(x), -x) / jnp.pi),
    dist.Laplace: lambda x: x - jnp.log(jnp.asarray(2, x.dtype)),
    dist.Logistic: jax.nn.log_sigmoid,
    dist.Normal: log_ndtr,
    dist.SoftLaplace: lambda x: jnp.log(2 / jnp.pi) + jnp.log(jnp.arctan(jnp.exp(x))),
}


def log_tails(distribution: Any, z: Array) -> tuple[Array, Array]:
    r"""$\log F(z)$ and $\log(1 - F(z))$ of a scalar family."""
    while isinstance(distribution, (dist.ExpandedDistribution, dist.MaskedDistribution)):
        distribution = distribution.base_dist
    if isinstance(distribution, (*_SYMMETRIC, dist.StudentT)):
        loc, scale = parameters(distribution, z, "loc", "scale")
        x = (z - loc) / scale
        near = _log_near_tail(distribution, -jnp.abs(x))
        far = jax.nn.log1mexp(-near)
        return jnp.where(x < 0, near, far), jnp.where(x < 0, far, near)
    if isinstance(distribution, dist.Gamma):
        concentration, rate = parameters(distribution, z, "concentration", "rate")
        x = jnp.maximum(z * rate, 0)
        return stats.gamma.logcdf(x, concentration), stats.gamma.logsf(x, concentration)
    probability = distribution.cdf(z)
    return jnp.log(probability), jnp.log1p(-probability)


def _log_near_tail(distribution: Any, x: Array) -> Array:
    if isinstance(distribution, dist.StudentT):
        df = raise_rank(distribution.df, x.ndim)
        return jnp.log(jax.scipy.special.betainc(df / 2, 1 / 2, df / (df + x**2)) / 2)
    (log_cdf,) = (log_cdf for cls, log_cdf in _SYMMETRIC.items() if isinstance(distribution, cls))
    return log_cdf(x)


def log_between(low: tuple[Array, Array], high: tuple[Array, Array]) -> Array:
    """The log-probability between two points, given their `log_tails`."""
    in_upper_tail = low[1] < low[0]
    larger = jnp.where(in_upper_tail, low[1], high[0])
    smaller = jnp.where(in_upper_tail, high[1], low[0])
    difference = jnp.where(smaller > -jnp.inf, larger - smaller, jnp.inf)
    return larger + jax.nn.log1mexp(jnp.maximum(difference, 0))
