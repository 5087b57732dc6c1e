r"""Families whose transform has no closed form: the implicit path.

At fixed probability $F(z; \theta)$ a sample moves by $dz = -\partial_\theta F / p(z) \, d\theta$.
Any other family of one dimension with a differentiable `cdf` is re-expressed from that `cdf`.

Reference:
    Figurnov, Mohamed and Mnih, Implicit Reparameterization Gradients, 2018.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from gdregs.reexpression.families.closed_form import parameters
from gdregs.reexpression.incomplete_beta import logit_beta_derivatives
from gdregs.reexpression.reexpress import finite, move, raise_rank, rule

stop = jax.lax.stop_gradient


@rule(dist.Gamma)
def _gamma(distribution: Any, z: Array) -> Array:
    r"""$z = g / \beta$, where $g \sim \mathrm{Gamma}(\alpha, 1)$ moves implicitly with $\alpha$."""
    concentration, rate = parameters(distribution, z, "concentration", "rate")
    return gamma_path(concentration, stop(z * rate)) / rate


def gamma_path(concentration: Array, g: Array) -> Array:
    r"""The path of $g \sim \mathrm{Gamma}(\alpha, 1)$ by $\alpha$."""
    concentration = jnp.broadcast_to(concentration, g.shape).astype(g.dtype)
    slope = jax.lax.random_gamma_grad(stop(concentration), finite(g, 0.0))  # pyright: ignore
    return move(g, (slope, concentration))


@rule(dist.Beta)
def _beta(distribution: Any, z: Array) -> Array:
    r"""By the logit of z, whose density is log-concave."""
    a, b = parameters(distribution, z, "concentration1", "concentration0")
    inside = finite(z, 0.0, 1.0)
    logit = jnp.log(inside) - jnp.log1p(-inside)
    slope = inside * (1 - inside)
    by_a, by_b = beta_logit_slopes(a, b, logit)
    return move(z, (slope * by_a, a), (slope * by_b, b))


def beta_logit_slopes(a: Any, b: Any, logit: Array) -> tuple[Array, Array]:
    r"""$\partial \ell / \partial a$ and $\partial \ell / \partial b$ for the logit of a Beta."""
    a, b = (stop(jnp.broadcast_to(x, logit.shape).astype(logit.dtype)) for x in (a, b))
    return logit_beta_derivatives(a, b, stop(logit))


@rule(dist.StudentT)
def _student_t(distribution: Any, z: Array) -> Array:
    r"""$z = \mu + \sigma t$, where t moves with the degrees of freedom."""
    df, loc, scale = parameters(distribution, z, "df", "loc", "scale")
    t = stop((z - loc) / scale)
    return loc + scale * t_path(df, t, t**2, 1)


def t_path(df: Array, t: Array, squared_radius: Array, dimension: int) -> Array:
    r"""The path by $\nu$ of Student's t with unit scale, in any number of dimensions.

    $r^2 / (r^2 + \nu) \sim \mathrm{Beta}(d / 2, \nu / 2)$ while the direction stays.
    """
    logit = jnp.log(finite(squared_radius, 0.0) / df)
    _, by_half_df = beta_logit_slopes(dimension / 2, df / 2, logit)
    return move(t, (t * (1 / df + by_half_df / 2) / 2, df))


@rule(dist.Dirichlet)
def _dirichlet(distribution: Any, z: Array) -> Array:
    r"""As $\alpha_j$ grows, $z_j$ moves as a Beta and the rest shrinks in proportion.

    $z_j \sim \mathrm{Beta}(\alpha_j, \sum_{i \neq j} \alpha_i)$ is independent of the proportions
    of the rest, whose distribution does not depend on $\alpha_j$.
    """
    concentration = raise_rank(distribution.concentration, jnp.ndim(z))
    rest = jnp.sum(concentration, axis=-1, keepdims=True) - concentration
    inside = finite(z, 0.0, 1.0)
    by_own, _ = beta_logit_slopes(concentration, rest, jnp.log(inside) - jnp.log1p(-inside))
    growth = stop(inside * by_own) * (concentration - stop(concentration))
    return z + growth - z * jnp.sum(growth, axis=-1, keepdims=True)
