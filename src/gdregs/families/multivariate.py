"""Families of vectors and matrices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from gdregs.families.implicit import beta_logit_slopes, gamma_path, t_path
from gdregs.reexpress import finite, move, raise_rank, rule

stop = jax.lax.stop_gradient


@functools.partial(jnp.vectorize, signature="(d,d),(d,n)->(d,n)")
def _solve_matrix(lower: Float[Array, "d d"], right: Float[Array, "d n"]) -> Float[Array, "d n"]:
    return jax.scipy.linalg.solve_triangular(lower, right, lower=True)


@functools.partial(jnp.vectorize, signature="(m,d),(d,n)->(m,n)")
def _product(left: Float[Array, "m d"], right: Float[Array, "d n"]) -> Float[Array, "m n"]:
    return left @ right


def solve(lower: Float[Array, "*b d d"], vector: Float[Array, "*c d"]) -> Float[Array, "*e d"]:
    """The solution of L x = vector."""
    return _solve_matrix(lower, vector[..., None])[..., 0]


def _multiply(lower: Float[Array, "*b d d"], vector: Float[Array, "*c d"]) -> Float[Array, "*e d"]:
    return _product(lower, vector[..., None])[..., 0]


@rule(dist.MultivariateNormal)
def _multivariate_normal(distribution: Any, z: Array) -> Array:
    r"""$z = \mu + L\epsilon$."""
    return _affine(distribution.loc, distribution.scale_tril, z)


@rule(dist.LowRankMultivariateNormal)
def _low_rank_multivariate_normal(distribution: Any, z: Array) -> Array:
    r"""$z = \mu + L\epsilon$ with $LL^T = WW^T + D$."""
    return _affine(distribution.loc, jnp.linalg.cholesky(distribution.covariance_matrix), z)


def _affine(loc: Array, lower: Array, z: Array) -> Array:
    loc, lower = raise_rank(loc, jnp.ndim(z)), raise_rank(jnp.tril(lower), jnp.ndim(z) + 1)
    return loc + _multiply(lower, stop(solve(lower, z - loc)))


@rule(dist.MultivariateStudentT)
def _multivariate_student_t(distribution: Any, z: Array) -> Array:
    r"""$z = \mu + L t$, where the radius of t moves with the degrees of freedom."""
    df = raise_rank(distribution.df, jnp.ndim(z) - 1)[..., None]
    loc = raise_rank(distribution.loc, jnp.ndim(z))
    lower = raise_rank(jnp.tril(distribution.scale_tril), jnp.ndim(z) + 1)
    t = stop(solve(lower, z - loc))
    squared_radius = jnp.sum(t**2, axis=-1, keepdims=True)
    return loc + _multiply(lower, t_path(df, t, squared_radius, t.shape[-1]))


@rule(dist.MatrixNormal)
def _matrix_normal(distribution: Any, z: Array) -> Array:
    r"""$z = M + A \epsilon B^T$."""
    loc = raise_rank(distribution.loc, jnp.ndim(z))
    row = raise_rank(jnp.tril(distribution.scale_tril_row), jnp.ndim(z))
    column = raise_rank(jnp.tril(distribution.scale_tril_column), jnp.ndim(z))
    noise = _solve_matrix(row, z - loc)
    noise = stop(_solve_matrix(column, noise.mT).mT)
    return loc + _product(_product(row, noise), column.mT)


@rule(dist.WishartCholesky)
def _wishart_cholesky(distribution: Any, z: Array) -> Array:
    r"""Bartlett: $z = LA$ with $A_{ii}^2 \sim \chi^2(\nu - i)$ and $A_{ij}$ standard normal."""
    lower = raise_rank(jnp.tril(distribution.scale_tril), jnp.ndim(z))
    df = raise_rank(distribution.concentration, jnp.ndim(z) - 2)[..., None]
    noise = stop(_solve_matrix(lower, z))
    diagonal = jnp.diagonal(noise, axis1=-2, axis2=-1)
    size = diagonal.shape[-1]
    concentration = (df - raise_rank(jnp.arange(size, dtype=df.dtype), df.ndim)) / 2
    path = jnp.sqrt(2 * gamma_path(concentration, diagonal**2 / 2))
    eye = raise_rank(jnp.eye(size, dtype=noise.dtype), noise.ndim)
    return _product(lower, noise + eye * (path - stop(path))[..., None])


@rule(dist.LKJCholesky)
def _lkj_cholesky(distribution: Any, z: Array) -> Array:
    r"""Row i is a uniform direction of squared length $\mathrm{Beta}(i/2, \eta + (D-1-i)/2)$."""
    size = z.shape[-1]
    eta = raise_rank(distribution.concentration, jnp.ndim(z) - 2)[..., None]
    diagonal = finite(jnp.diagonal(z, axis1=-2, axis2=-1)[..., 1:], 0.0)
    row = raise_rank(jnp.arange(1, size, dtype=z.dtype), eta.ndim)
    strictly_lower = jnp.tril(z, -1)[..., 1:, :]
    squared_length = finite(jnp.sum(strictly_lower**2, axis=-1), 0.0)
    logit = jnp.log(squared_length) - 2 * jnp.log(diagonal)
    _, by_eta = beta_logit_slopes(row / 2, eta + (size - 1 - row) / 2, logit)
    shrink, grow = diagonal**2 * by_eta / 2, -squared_length * by_eta / 2
    eye = raise_rank(jnp.eye(size, dtype=z.dtype)[1:], z.ndim)
    rows = move(
        z[..., 1:, :],
        (strictly_lower * shrink[..., None], eta[..., None]),
        (eye * (diagonal * grow)[..., None], eta[..., None]),
    )
    return jnp.concatenate([z[..., :1, :], rows], axis=-2)
