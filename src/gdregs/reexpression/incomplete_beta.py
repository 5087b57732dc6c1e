r"""How a Beta variate moves with its concentrations, at fixed probability.

For $z \sim \mathrm{Beta}(a, b)$ implicit reparameterization needs
$\partial z / \partial a = -(\partial F / \partial a) / p(z)$, but the incomplete beta function has
no derivative by a and b in JAX. In terms of the logit $\ell$, whose log-density
$a \log\sigma(\ell) + b \log\sigma(-\ell) - \log B(a, b)$ is concave,

$$\frac{\partial \ell}{\partial a} = \frac{1}{p(\ell)} \int_\ell^\infty
(\log\sigma(t) - \mathrm{E}[\log\sigma]) \, p(t) \, dt ,$$

and minus the integral from $-\infty$ to $\ell$ is the same number. On the side that leads away
from the mode $p(t) / p(\ell)$ falls from 1 to 0 without a second scale, so that one
double-exponential quadrature reaches full precision for any a, b and $\ell$.

Reference:
    Figurnov, Mohamed and Mnih, Implicit Reparameterization Gradients, 2018.
    Takahasi and Mori, Double Exponential Formulas for Numerical Integration, 1974.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_BISECTIONS = 6


def logit_beta_derivatives(
    a: Float[Array, "*n"], b: Float[Array, "*n"], logit: Float[Array, "*n"]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    r"""$\partial \ell / \partial a$ and $\partial \ell / \partial b$ at fixed probability.

    Args:
        a: The first concentration.
        b: The second concentration.
        logit: $\ell = \log z - \log(1 - z)$.
    """
    upper = logit > jnp.log(a) - jnp.log(b)  # beyond the mode, where the integral is to the right
    swap = lambda x, y: (jnp.where(upper, y, x), jnp.where(upper, x, y))  # noqa: E731
    # Reflect, so that the tail in which to integrate is always the left one.
    (near, far), ell = swap(a, b), jnp.where(upper, -logit, logit)
    by_near, by_far = _left_tail(near, far, ell)
    by_a, by_b = swap(by_near, by_far)
    sign = jnp.where(upper, -1, 1).astype(logit.dtype)
    return sign * by_a, sign * by_b


def _left_tail(a: Array, b: Array, logit: Array) -> tuple[Array, Array]:
    sigmoid, complement = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
    log_sigmoid, log_complement = jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)
    excess = log_sigmoid + digamma_difference(a, b)
    excess_of_complement = log_complement + digamma_difference(b, a)

    def moves(u):
        """By how much both log-sigmoids change a step u to the left."""
        small = -jnp.log1p(jnp.expm1(jnp.minimum(u, 1)) * complement)
        large = -u - jnp.logaddexp(log_sigmoid - u, log_complement)
        return jnp.where(u < 1, small, large), -jnp.log1p(jnp.expm1(-u) * sigmoid)

    def fall(u):
        """The change of the log-density, at most 0."""
        down, up = moves(u)
        return a * down + b * up

    scale = _where_it_has_fallen(fall, a * complement - b * sigmoid, (a + b) * sigmoid * complement)
    nodes, weights = _quadrature(logit.dtype)

    def add(index, totals):
        u = scale * nodes[index]
        down, up = moves(u)
        density = weights[index] * scale * jnp.exp(a * down + b * up)
        return (
            totals[0] - density * (excess + down),
            totals[1] - density * (excess_of_complement + up),
        )

    nothing = jnp.zeros_like(logit)
    return jax.lax.fori_loop(0, len(nodes), add, (nothing, nothing))


def digamma_difference(x: Float[Array, "*n"], d: Float[Array, "*n"]) -> Float[Array, "*n"]:
    r"""$\psi(x + d) - \psi(x)$ for positive x and d, to full relative precision.

    The recurrence raises x by 16, where the asymptotic series of $\psi$ is exact; every term is a
    difference that has been taken on paper, so that nothing cancels.
    """
    total = jnp.zeros_like(x)
    for shift in range(16):
        total = total + d / ((x + shift) * (x + shift + d))
    low, high = x + 16, x + 16 + d
    inverse, product = 1 / low + 1 / high, 1 / (low * high)
    squares = inverse**2 - 2 * product  # 1 / low^2 + 1 / high^2
    total = (
        total
        + jnp.log1p(d / low)
        + d
        * product
        * (1 / 2 + inverse * (1 / 12 - squares / 120 + (squares**2 - product**2) / 252))
    )
    return total


def _where_it_has_fallen(fall, slope: Array, curvature: Array) -> Array:
    """About the step at which the log-density has fallen by 1: from its Taylor series, bisected."""
    slope = jnp.maximum(slope, 0)
    guess = 2 / (slope + jnp.sqrt(slope**2 + 2 * curvature))
    low, high = jnp.log(guess) - 5, jnp.log(guess) + 5

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        is_past = fall(jnp.exp(middle)) < -1
        return jnp.where(is_past, low, middle), jnp.where(is_past, middle, high)

    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    return jnp.exp((low + high) / 2)


def _quadrature(dtype) -> tuple[Array, Array]:
    r"""Nodes u and weights of $\int_0^\infty f(u) du$ for f that falls like $e^{-u}$.

    $u = \exp(x - e^{-x})$ with equal steps in x.
    """
    start, stop, count = (-3.7, 4.0, 78) if dtype == jnp.float64 else (-2.9, 3.2, 32)
    x, step = np.linspace(start, stop, count, retstep=True)
    u = np.exp(x - np.exp(-x))
    return jnp.asarray(u, dtype), jnp.asarray(step * u * (1 + np.exp(-x)), dtype)
