"""Families of vectors and matrices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions.util import clamp_probs

from gdregs.reexpression.families.implicit import beta_logit_slopes, gamma_path, t_path
from gdregs.reexpression.noise import noise_of
from gdregs.reexpression.reexpress import finite, move, raise_rank, reexpress, rule

stop = jax.lax.stop_gradient


@functools.partial(jnp.vectorize, signature="(d,d),(d,n)->(d,n)")
def _solve_matrix(lower: Float[Array, "d d"], right: Float[Array, "d n"]) -> Float[Array, "d n"]:
    return jax.scipy.linalg.solve_triangular(lower, right, lower=True)


@functools.partial(jnp.vectorize, signature="(d,d),(d,n)->(d,n)")
def _solve_transposed(
    lower: Float[Array, "d d"], right: Float[Array, "d n"]
) -> Float[Array, "d n"]:
    return jax.scipy.linalg.solve_triangular(lower, right, lower=True, trans=1)


@functools.partial(jnp.vectorize, signature="(m,d),(d,n)->(m,n)")
def _product(left: Float[Array, "m d"], right: Float[Array, "d n"]) -> Float[Array, "m n"]:
    return left @ right


def solve(lower: Float[Array, "*b d d"], vector: Float[Array, "*c d"]) -> Float[Array, "*e d"]:
    """The solution of L x = vector."""
    return _solve_matrix(lower, vector[..., None])[..., 0]


def _multiply(matrix: Float[Array, "*b m d"], vector: Float[Array, "*c d"]) -> Float[Array, "*e m"]:
    return _product(matrix, vector[..., None])[..., 0]


@rule(dist.MultivariateNormal)
def _multivariate_normal(distribution: Any, z: Array) -> Array:
    r"""$z = \mu + L\epsilon$."""
    return _affine(distribution.loc, distribution.scale_tril, z)


@rule(dist.GaussianRandomWalk)
def _gaussian_random_walk(distribution: Any, z: Array) -> Array:
    r"""$z = \sigma\epsilon$, all steps of a walk by the same factor."""
    scale = raise_rank(distribution.scale, jnp.ndim(z) - 1)[..., None]
    return scale * stop(z / scale)


@rule(dist.LowRankMultivariateNormal)
def _low_rank_multivariate_normal(distribution: Any, z: Array) -> Array:
    r"""$z = \mu + W\epsilon_W + D^{1/2}\epsilon_D$, with both noises of the sampler.

    Given z, $\epsilon_W \sim \mathcal N(C^{-1} W^T D^{-1} (z - \mu), C^{-1})$ with
    $C = I + W^T D^{-1} W$. The path of a single noise, $z = \mu + L\epsilon$ with
    $LL^T = WW^T + D$, has the derivative 0 by W at W = 0, where automatic guides begin: it would
    stay there for ever.
    """
    loc, scale = (raise_rank(p, z.ndim) for p in (distribution.loc, distribution.cov_diag**0.5))
    factor = raise_rank(distribution.cov_factor, z.ndim + 1)
    whitened = factor / scale[..., None]
    across = jnp.swapaxes(whitened, -1, -2)
    capacity = _product(across, whitened) + raise_rank(jnp.eye(factor.shape[-1]), z.ndim + 1)
    lower = jnp.linalg.cholesky(capacity)
    standard = (z - loc) / scale
    # With L_C L_C^T = C the noise is L_C^{-T} (L_C^{-1} W^T D^{-1/2} standard + fresh).
    centred = solve(lower, _multiply(across, standard)) + noise_of(z, factor.shape[-1])
    shared = stop(_solve_transposed(lower, centred[..., None])[..., 0])
    own = stop(standard - _multiply(whitened, shared))
    return loc + _multiply(factor, shared) + scale * own


def _affine(loc: Array, lower: Array, z: Array) -> Array:
    loc, lower = raise_rank(loc, jnp.ndim(z)), raise_rank(jnp.tril(lower), jnp.ndim(z) + 1)
    return loc + _multiply(lower, stop(solve(lower, z - loc)))


@rule(dist.CAR)
def _conditional_autoregressive(distribution: dist.CAR, z: Array) -> Array:
    """A multivariate normal, given by its precision matrix."""
    return reexpress(
        dist.MultivariateNormal(distribution.loc, precision_matrix=distribution.precision_matrix), z
    )


@rule(dist.GaussianCopula)
def _gaussian_copula(distribution: dist.GaussianCopula, z: Array) -> Array:
    r"""$F_i(z_i) = \Phi(u_i)$ with $u = L\epsilon$, where margins F and L move."""
    margin = distribution.marginal_dist
    normal = dist.Normal()
    score = stop(normal.icdf(clamp_probs(margin.cdf(z))))
    moved = _affine(jnp.zeros(z.shape[-1], z.dtype), distribution.base_dist.scale_tril, score)
    slope = stop(jnp.exp(normal.log_prob(score) - margin.log_prob(z)))
    return reexpress(margin, z) + slope * (moved - stop(moved))


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
    degrees = df - raise_rank(jnp.arange(z.shape[-1], dtype=df.dtype), df.ndim)
    return _product(lower, _bartlett(degrees, stop(_solve_matrix(lower, z))))


@rule(dist.InverseWishartCholesky)
def _inverse_wishart_cholesky(distribution: Any, z: Array) -> Array:
    r"""Bartlett: $z = LA^{-1}$ with $A_{ii}^2 \sim \chi^2(\nu - D + 1 + i)$, $A_{ij}$ normal."""
    lower = raise_rank(jnp.tril(distribution.scale_tril), jnp.ndim(z))
    df = raise_rank(distribution.concentration, jnp.ndim(z) - 2)[..., None]
    size = z.shape[-1]
    degrees = df - (size - 1) + raise_rank(jnp.arange(size, dtype=df.dtype), df.ndim)
    noise = _bartlett(degrees, stop(_solve_matrix(z, jnp.broadcast_to(lower, z.shape))))
    eye = jnp.broadcast_to(jnp.eye(size, dtype=z.dtype), z.shape)
    return _product(lower, _solve_matrix(noise, eye))


def _bartlett(degrees: Array, noise: Array) -> Array:
    r"""A lower triangular matrix whose squared diagonal moves as $\chi^2$ of these degrees."""
    diagonal = jnp.diagonal(noise, axis1=-2, axis2=-1)
    path = jnp.sqrt(2 * gamma_path(degrees / 2, diagonal**2 / 2))
    eye = raise_rank(jnp.eye(diagonal.shape[-1], dtype=noise.dtype), noise.ndim)
    return noise + eye * (path - stop(path))[..., None]


@rule(dist.EulerMaruyama)
def _euler_maruyama(distribution: dist.EulerMaruyama, z: Array) -> Array:
    r"""$z_{t+1} = z_t + f(z_t)\,\delta + g(z_t)\sqrt\delta\,\epsilon_t$, step by step."""
    event_dim = distribution.event_dim
    batch, event = z.shape[: z.ndim - event_dim], z.shape[z.ndim - event_dim :]
    first = reexpress(distribution.init_dist, jnp.take(z, 0, axis=-event_dim))
    times = jnp.broadcast_to(raise_rank(distribution.t, len(batch) + 1), (*batch, event[0]))

    def step(y, inputs):
        reached, time, width = inputs
        drift, diffusion = distribution.sde_fn(y, time)
        centre, scale = y + width * drift, jnp.sqrt(width) * diffusion
        after = centre + scale * stop((reached - centre) / scale)
        return after, after

    def walk(first, times, z):
        _, rest = jax.lax.scan(step, first, (z[1:], times[:-1], jnp.diff(times)))
        return jnp.concatenate([first[None], rest])

    def flat(values):
        return values.reshape(-1, *values.shape[len(batch) :])

    return jax.vmap(walk)(flat(first), flat(times), flat(z)).reshape(z.shape)


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
