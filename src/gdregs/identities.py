r"""The GDReGs identity (13) for any integrand, and all that is known in closed form of its simplest
case, the cross-entropy of two Gaussians (App. H).

This is the place to study an estimator by itself, without importance weights around it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from gdregs.evaluation.gates import gated, gated_density
from gdregs.reexpression.paths import with_path
from gdregs.reexpression.reexpress import reexpress
from gdregs.shared.checks import positive_integer
from gdregs.shared.tables import find_prior_estimator

Number = Any  # a float, or an array; all are combined elementwise


def score_integral(
    integrand: Callable[[PyTree], Any],
    posterior: Any,
    prior: Any,
    *,
    key: PRNGKeyArray,
    num_samples: Any,
    prior_estimator: Any = "gdregs",
) -> Float[Array, "*batch"]:
    r"""An unbiased estimator of $\mathrm{E}_q[g \nabla_\theta \log p_\theta]$ for any g: Eq. (13).

    $$\mathrm{E}_q\left[g \nabla_\theta \log p_\theta\right] = \mathrm{E}_q\left[\left(
    g \nabla_z \log\frac{q(z)}{p_\theta(z)} + \nabla_z g\right)
    \nabla_\theta T_p(\tilde\epsilon;\theta)\right],
    \qquad \tilde\epsilon = T_p^{-1}(z;\theta)$$

    Its `jax.grad` by the parameters of `prior` is the mean over K samples $z \sim q$ of the right
    side (`gdregs`), of the left side (`naive`), or of a mix of both. Where p and q are one
    distribution this is DReGs, Eq. (6). Parameters of g and q, and the samples, are constants.

    Args:
        integrand: g, a function $z \mapsto g(z)$ of shape `[K, *batch]`: a pytree callable whose
            array leaves are all its parameters, or a function without parameters of its own.
        posterior: q, with `sample(key, sample_shape)` and `log_prob(z)`; it need not be
            reparameterizable.
        prior: p, with `log_prob(z)` and a rule of `gdregs.reexpress`.
        key: A JAX random key.
        num_samples: K.
        prior_estimator: `gdregs`, `naive`, `gdregs-mix` or `gdregs.mixed_gdregs(alpha)`.

    Returns:
        The mean over samples of $g(z) \log p_\theta(z)$, `[*batch]`.

    Raises:
        TypeError: If the prior has no re-expression rule.
        ValueError: If the shapes differ, or, on differentiation, if g or q hides a parameter that
            is being differentiated in a closure.

    Example:
        >>> import gdregs, jax, numpyro.distributions as dist
        >>> def integral(theta):
        ...     return gdregs.identities.score_integral(
        ...         lambda z: z**2, dist.Normal(0.0, 1.0), dist.Normal(theta, 1.0),
        ...         key=jax.random.key(0), num_samples=100_000,
        ...     )
        >>> round(float(jax.jit(jax.grad(integral))(1.0)), 1)  # E[z^2 (z - 1)] = -1
        -1.0

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, Sec. 4.
    """
    row = find_prior_estimator(prior_estimator)
    num_samples = positive_integer("num_samples", num_samples)
    z = jax.lax.stop_gradient(posterior.sample(key, (num_samples,)))
    log_prior = gated_density(prior, row.density, "prior")
    log_posterior = gated_density(posterior, 0, "posterior")
    # In the stopped densities of the pathwise part every parameter is constant: that part's own
    # derivative by theta is what the identity has moved to the other side.
    log_stopped_prior = gated_density(prior, 0, "prior")
    evaluate = gated_density(integrand, 0, "integrand", lambda function, z: function(z))
    g = jax.lax.stop_gradient(evaluate(z))
    shapes = {"integrand(z)": jnp.shape(g), "prior.log_prob(z)": jnp.shape(log_prior(z))}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} has shape {shape}" for name, shape in shapes.items())
        raise ValueError(f"Both must be [K, *batch] with K = {num_samples}, but {listed}.")
    surrogate = g * log_prior(z)
    if row.has_path:
        z_p = reexpress(gated(prior, row.path), z)
        surrogate += g * (log_posterior(z_p) - log_stopped_prior(z_p)) + evaluate(z_p)
    value = jax.lax.stop_gradient(g * prior.log_prob(z))
    return with_path(jnp.mean(value, axis=0), jnp.mean(surrogate, axis=0))


def negative_cross_entropy(
    posterior: Any,
    prior: Any,
    *,
    key: PRNGKeyArray,
    num_samples: Any,
    prior_estimator: Any = "gdregs",
) -> Float[Array, "*batch"]:
    r"""$\mathcal L^{ce} = \mathrm{E}_q[\log p_\theta(z)]$, whose gradient by $\theta$ is Eq. (18).

    The identity (13) with g = 1: $\nabla_z \log \frac{q(z)}{p_\theta(z)} \nabla_\theta
    T_p(\tilde\epsilon;\theta)$, in place of the naive $\nabla_\theta \log p_\theta(z)$ (F.2).

    Args:
        posterior: q, with `sample(key, sample_shape)` and `log_prob(z)`.
        prior: p, with `log_prob(z)` and a rule of `gdregs.reexpress`.
        key: A JAX random key.
        num_samples: K.
        prior_estimator: `gdregs`, `naive`, `gdregs-mix` or `gdregs.mixed_gdregs(alpha)`.

    Returns:
        `[*batch]`, in nats.

    Raises:
        TypeError: If the prior has no re-expression rule.
        ValueError: If, on differentiation, q hides a differentiated parameter in a closure.

    Example:
        Where p is q, every draw of (18) is exactly 0, as the gradient is:

        >>> import gdregs, jax, numpyro.distributions as dist
        >>> def objective(scale):
        ...     return gdregs.identities.negative_cross_entropy(
        ...         dist.Normal(0.0, 2.0), dist.Normal(0.0, scale),
        ...         key=jax.random.key(0), num_samples=1,
        ...     )
        >>> bool(abs(jax.jit(jax.grad(objective))(2.0)) < 1e-6)
        True

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, App. F.
    """
    return score_integral(
        jax.tree_util.Partial(_ones_like_density, jax.lax.stop_gradient(prior)),
        posterior,
        prior,
        key=key,
        num_samples=num_samples,
        prior_estimator=prior_estimator,
    )


def _ones_like_density(distribution: Any, z: PyTree) -> Array:
    shape = jax.eval_shape(lambda z: distribution.log_prob(z), z)
    return jnp.ones(shape.shape, shape.dtype)


class GaussianCrossEntropy(NamedTuple):
    r"""The cross-entropy of $q = \mathcal N(\mu_q, \sigma_q^2)$ and $p = \mathcal N(\mu_p,
    \sigma_p^2)$, and the moments of its gradient estimators, in closed form: App. H.

    With $z = \mu_q + \sigma_q \epsilon$ and $\delta = \mu_q - \mu_p$, a draw of the naive
    estimator is $(\delta + \sigma_q\epsilon)/\sigma_p^2$ by $\mu_p$ and
    $(\delta + \sigma_q\epsilon)^2/\sigma_p^3 - 1/\sigma_p$ by $\sigma_p$. One of GDReGs is
    $s = (\delta + \sigma_q\epsilon)/\sigma_p^2 - \epsilon/\sigma_q$ by $\mu_p$ and
    $s (\delta + \sigma_q\epsilon)/\sigma_p$ by $\sigma_p$. All that follows are moments of these
    polynomials in $\epsilon$. Everything is for one draw, and elementwise in arrays.

    Attributes:
        mu_q: Mean of q.
        sigma_q: Standard deviation of q.
        mu_p: Mean of p.
        sigma_p: Standard deviation of p.

    Example:
        >>> from gdregs.identities import GaussianCrossEntropy
        >>> pair = GaussianCrossEntropy(mu_q=0.0, sigma_q=1.0, mu_p=1.0, sigma_p=2.0)
        >>> pair.naive_variance_mu(), pair.gdregs_variance_mu(), pair.best_mix_mu()
        (0.0625, 0.5625, 0.25)
        >>> pair.mixed_variance_mu(pair.best_mix_mu())
        0.0

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, App. H.
    """

    mu_q: Number
    sigma_q: Number
    mu_p: Number
    sigma_p: Number

    def value(self) -> Number:
        r"""$\mathrm{E}_q[\log p]$, in nats: (H.1), which is printed with its sign flipped."""
        distance = self.sigma_q**2 + (self.mu_q - self.mu_p) ** 2
        return -0.5 * jnp.log(2 * jnp.pi) - jnp.log(self.sigma_p) - distance / (2 * self.sigma_p**2)

    def gradient_mu(self) -> Number:
        r"""Mean of both estimators of the gradient by $\mu_p$: (H.3), (H.7)."""
        return (self.mu_q - self.mu_p) / self.sigma_p**2

    def gradient_sigma(self) -> Number:
        r"""Mean of both estimators of the gradient by $\sigma_p$: (H.5), (H.9)."""
        distance = (self.mu_q - self.mu_p) ** 2
        return (self.sigma_q**2 - self.sigma_p**2 + distance) / self.sigma_p**3

    def naive_variance_mu(self) -> Number:
        r"""Variance of the naive gradient by $\mu_p$: (H.4)."""
        return self.sigma_q**2 / self.sigma_p**4

    def naive_variance_sigma(self) -> Number:
        r"""Variance of the naive gradient by $\sigma_p$: (H.6)."""
        distance = (self.mu_q - self.mu_p) ** 2
        return (2 * self.sigma_q**4 + 4 * self.sigma_q**2 * distance) / self.sigma_p**6

    def gdregs_variance_mu(self) -> Number:
        r"""Variance of the GDReGs gradient by $\mu_p$: (H.8)."""
        return (self.sigma_p**2 - self.sigma_q**2) ** 2 / (self.sigma_p**4 * self.sigma_q**2)

    def gdregs_variance_sigma(self) -> Number:
        r"""Variance of the GDReGs gradient by $\sigma_p$: (H.10).

        $2(\sigma_q^2-\sigma_p^2)^2/\sigma_p^6 + (\sigma_p^2-2\sigma_q^2)^2(\mu_q-\mu_p)^2 /
        (\sigma_q^2\sigma_p^6)$; as printed, the second term lacks the division by $\sigma_p^6$.
        """
        distance = (self.mu_q - self.mu_p) ** 2
        first = 2 * (self.sigma_q**2 - self.sigma_p**2) ** 2
        second = (self.sigma_p**2 - 2 * self.sigma_q**2) ** 2 * distance / self.sigma_q**2
        return (first + second) / self.sigma_p**6

    def largest_sigma_p_mu(self) -> Number:
        r"""The $\sigma_p$ up to which GDReGs wins for $\mu_p$: (H.11), $\sqrt2\,\sigma_q$."""
        return 2**0.5 * self.sigma_q

    def largest_sigma_p_sigma(self) -> Number:
        r"""The $\sigma_p$ up to which GDReGs wins for $\sigma_p$: (H.12)."""
        distance = (self.mu_q - self.mu_p) ** 2
        share = self.sigma_q**2 / (distance + 2 * self.sigma_q**2)
        return 2 * self.sigma_q * (1 - share) ** 0.5

    def best_mix_mu(self) -> Number:
        r"""The optimal strength $\alpha^*$ of the control variate (H.13) for $\mu_p$: (H.15)."""
        return self.sigma_q**2 / self.sigma_p**2

    def best_mix_sigma(self) -> Number:
        r"""The optimal strength $\alpha^*$ of the control variate (H.13) for $\sigma_p$: (H.16)."""
        distance = (self.mu_q - self.mu_p) ** 2
        ratio = (distance + self.sigma_q**2) / (distance + 2 * self.sigma_q**2)
        return 2 * self.sigma_q**2 / self.sigma_p**2 * ratio

    def mixed_variance_mu(self, alpha: Number) -> Number:
        r"""Variance of the mix (H.13) of any strength, for $\mu_p$; 0 at the optimum (H.17).

        The coefficient of $\epsilon$ is $\sigma_q/\sigma_p^2 - \alpha/\sigma_q$.
        """
        return (self.sigma_q / self.sigma_p**2 - alpha / self.sigma_q) ** 2

    def mixed_variance_sigma(self, alpha: Number) -> Number:
        r"""Variance of the mix (H.13) of any strength, for $\sigma_p$.

        $\sigma_p$ times a draw of it is, but for a constant, $u\epsilon^2 + w\epsilon$ with
        $u = \sigma_q^2/\sigma_p^2 - \alpha$ and $w = \delta(2\sigma_q/\sigma_p^2 -
        \alpha/\sigma_q)$, and has variance $2u^2 + w^2$.
        """
        u = self.sigma_q**2 / self.sigma_p**2 - alpha
        slope = 2 * self.sigma_q / self.sigma_p**2 - alpha / self.sigma_q
        w = (self.mu_q - self.mu_p) * slope
        return (2 * u**2 + w**2) / self.sigma_p**2

    def best_variance_mu(self) -> Number:
        r"""Variance of the optimal mix for $\mu_p$: 0, (H.17)."""
        return 0.0 * self.naive_variance_mu()

    def best_variance_sigma(self) -> Number:
        r"""Variance of the optimal mix for $\sigma_p$: (H.18)."""
        distance = (self.mu_q - self.mu_p) ** 2
        share = distance / (distance + 2 * self.sigma_q**2)
        return 2 * self.sigma_q**4 / self.sigma_p**6 * share
