"""Scalar families whose sampling transform has a closed form in both directions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from gdregs.reexpression.reexpress import finite, hold, raise_rank, reexpress, rule

stop = jax.lax.stop_gradient


def parameters(distribution: Any, z: Array, *names: str) -> list[Array]:
    """The named parameters, with axes in front until they align with z."""
    return [raise_rank(getattr(distribution, name), jnp.ndim(z)) for name in names]


@rule(dist.Cauchy, dist.Gumbel, dist.Laplace, dist.Logistic, dist.Normal, dist.SoftLaplace)
def _location_scale(distribution: Any, z: Array) -> Array:
    r"""$z = \mu + \sigma\epsilon$."""
    loc, scale = parameters(distribution, z, "loc", "scale")
    return loc + scale * stop((z - loc) / scale)


@rule(dist.Levy)
def _levy(distribution: dist.Levy, z: Array) -> Array:
    r"""$z = \mu + \sigma\epsilon$ with $\epsilon > 0$: the location is the end of the support."""
    return hold(_location_scale(distribution, z), "Levy", distribution.loc)


@rule(dist.HalfCauchy, dist.HalfNormal)
def _scale(distribution: Any, z: Array) -> Array:
    r"""$z = \sigma\epsilon$."""
    (scale,) = parameters(distribution, z, "scale")
    return scale * stop(z / scale)


@rule(dist.Exponential)
def _exponential(distribution: dist.Exponential, z: Array) -> Array:
    r"""$z = \epsilon / \lambda$."""
    (rate,) = parameters(distribution, z, "rate")
    return stop(z * rate) / rate


@rule(dist.Uniform)
def _uniform(distribution: dist.Uniform, z: Array) -> Array:
    """Its only parameters are the ends of its support, which cannot move."""
    return hold(z, "Uniform", distribution.low, distribution.high)


@rule(dist.Delta)
def _delta(distribution: dist.Delta, z: Array) -> Array:
    r"""$z = v$."""
    v = raise_rank(distribution.v, jnp.ndim(z))
    return v + stop(z - v)


@rule(dist.Weibull)
def _weibull(distribution: dist.Weibull, z: Array) -> Array:
    r"""$z = \lambda\epsilon^{1/k}$ with $\epsilon \sim \mathrm{Exponential}(1)$."""
    scale, concentration = parameters(distribution, z, "scale", "concentration")
    log_noise = stop(concentration * (jnp.log(finite(z, 0.0)) - jnp.log(scale)))
    return scale * jnp.exp(log_noise / concentration)


@rule(dist.Gompertz)
def _gompertz(distribution: dist.Gompertz, z: Array) -> Array:
    r"""$z = \log(1 + \epsilon / c) / r$ with $\epsilon \sim \mathrm{Exponential}(1)$.

    In terms of $u = \log\epsilon - \log c$, which stays finite for large z.
    """
    concentration, rate = parameters(distribution, z, "concentration", "rate")
    scaled = finite(z * rate, 0.0)
    log_growth = scaled + jax.nn.log1mexp(scaled)  # log(exp(scaled) - 1)
    log_noise = stop(log_growth + jnp.log(concentration))
    return jax.nn.softplus(log_noise - jnp.log(concentration)) / rate


@rule(dist.Kumaraswamy)
def _kumaraswamy(distribution: dist.Kumaraswamy, z: Array) -> Array:
    r"""$z = (1 - e^{-\epsilon / b})^{1/a}$ with $\epsilon \sim \mathrm{Exponential}(1)$."""
    a, b = parameters(distribution, z, "concentration1", "concentration0")
    minus_log_power = finite(-a * jnp.log(finite(z, 0.0, 1.0)), 0.0)
    noise = stop(-b * jax.nn.log1mexp(minus_log_power))
    return jnp.exp(jax.nn.log1mexp(finite(noise / b, 0.0)) / a)


@rule(dist.Dagum)
def _dagum(distribution: dist.Dagum, z: Array) -> Array:
    r"""$z = b (e^{\epsilon / p} - 1)^{-1/a}$ with $\epsilon \sim \mathrm{Exponential}(1)$."""
    p, a, b = parameters(distribution, z, "concentration", "sharpness", "scale")
    log_odds = stop(a * (jnp.log(finite(z, 0.0)) - jnp.log(b)))
    noise = finite(p * jax.nn.softplus(-log_odds), 0.0)
    x = finite(stop(noise) / p, 0.0)
    return b * jnp.exp(-(x + jax.nn.log1mexp(x)) / a)


@rule(dist.LowerTruncatedPowerLaw)
def _power_law(distribution: dist.LowerTruncatedPowerLaw, z: Array) -> Array:
    r"""$z = z_0 e^{-\epsilon / (\alpha + 1)}$ with $\epsilon \sim \mathrm{Exponential}(1)$."""
    alpha, low = parameters(distribution, z, "alpha", "low")
    path = low * jnp.exp(stop(jnp.log(z / low) * (alpha + 1)) / (alpha + 1))
    return hold(path, "LowerTruncatedPowerLaw", distribution.low)


@rule(dist.AsymmetricLaplace)
def _asymmetric_laplace(distribution: dist.AsymmetricLaplace, z: Array) -> Array:
    r"""Left of the location $\log F$ is linear in z, right of it $\log(1 - F)$ is."""
    loc, scale, asymmetry = parameters(distribution, z, "loc", "scale", "asymmetry")
    log_left = -jax.nn.softplus(-2 * jnp.log(asymmetry))
    log_right = -jax.nn.softplus(2 * jnp.log(asymmetry))

    def tail(distance, tail_scale, log_mass):
        log_probability = stop(log_mass - distance / tail_scale)
        return tail_scale * (log_mass - log_probability)

    left = loc - tail(loc - z, scale * asymmetry, log_left)
    right = loc + tail(z - loc, scale / asymmetry, log_right)
    return jnp.where(z < loc, left, right)


@rule(dist.AsymmetricLaplaceQuantile)
def _asymmetric_laplace_quantile(distribution: dist.AsymmetricLaplaceQuantile, z: Array) -> Array:
    return reexpress(distribution._ald, z)
