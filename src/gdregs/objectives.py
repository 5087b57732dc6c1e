r"""Monte Carlo objectives $F(\ell_1, \dots, \ell_K)$ of the log-weights, with their derivatives.

An estimator needs, for each sample, $v_k = \partial F/\partial \ell_k$ and
$r_k = c_k / v_k$ with $c_k = v_k - \partial^2 F/\partial \ell_k^2$ (0 where $v_k = 0$).
All log-weights of a datapoint are in memory, 4 bytes each; `gdregs.bound` streams latents and
networks.
"""

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float


class Objective(eqx.Module):
    r"""A Monte Carlo objective $F(\ell)$. Subclass it with only `__call__` to make your own.

    $v$ and the diagonal of the Hessian then come from automatic differentiation, at the price of
    K gradients of F. `ELBO`, `IWAE`, `VRIWAE` and `JVI` have closed forms instead. F must be twice
    differentiable: of a kink (a maximum, a sort, a clip) the second derivative is not seen, and
    only the estimators `naive` are right.

    Example:
        >>> import gdregs, jax.numpy as jnp
        >>> class MeanOfHalves(gdregs.Objective):
        ...     def __call__(self, log_weights):
        ...         first, second = jnp.split(log_weights, 2)
        ...         iwae = gdregs.IWAE()
        ...         return (iwae(first) + iwae(second)) / 2
        >>> float(MeanOfHalves()(jnp.zeros(4)))
        0.0
    """

    @abc.abstractmethod
    def __call__(self, log_weights: Float[Array, "K *batch"]) -> Float[Array, "*batch"]:
        """The objective, in nats.

        Args:
            log_weights: `[K, *batch]`. The reduction is over the first axis alone: datapoints
                must not mix.

        Returns:
            `[*batch]`, larger is better.
        """

    def coefficients(
        self, log_weights: Float[Array, "K *batch"]
    ) -> tuple[Float[Array, "K *batch"], Float[Array, "K *batch"]]:
        r"""$v_k = \partial F / \partial \ell_k$ and $c_k = v_k - \partial^2 F / \partial \ell_k^2$.

        Args:
            log_weights: `[K, *batch]`.

        Returns:
            v and c, `[K, *batch]`. What they are where a datapoint has no weight does not matter.
        """
        _, v = _value_and_gradient(self, log_weights)
        return v, v - _hessian_diagonal(self, log_weights)


def _value_and_gradient(objective, log_weights):
    value, pullback = jax.vjp(objective, log_weights)
    if value.shape != log_weights.shape[1:]:
        raise ValueError(
            f"objective {type(objective).__name__} maps log-weights of shape {log_weights.shape}"
            f" to shape {value.shape}; it must reduce the first axis alone, to"
            f" {log_weights.shape[1:]}."
        )
    return value, pullback(jnp.ones_like(value))[0]


def _hessian_diagonal(objective, log_weights):
    def gradient(values):
        return _value_and_gradient(objective, values)[1]

    def second_derivative(k):
        direction = jnp.zeros_like(log_weights).at[k].set(1)
        return jax.jvp(gradient, (log_weights,), (direction,))[1][k]

    return jax.lax.map(second_derivative, jnp.arange(log_weights.shape[0]))


class ELBO(Objective):
    r"""The evidence lower bound, $F = \frac1K \sum_k \ell_k$, with $v = 1/K$ and $r = 1$.

    Example:
        >>> import gdregs, jax.numpy as jnp
        >>> float(gdregs.ELBO()(jnp.array([1.0, 3.0])))
        2.0
    """

    def __call__(self, log_weights: Float[Array, "K *batch"]) -> Float[Array, "*batch"]:
        return jnp.mean(log_weights, axis=0)

    def coefficients(self, log_weights: Float[Array, "K *batch"]) -> tuple[Array, Array]:
        v = jnp.full_like(log_weights, 1 / log_weights.shape[0])
        return v, v


class IWAE(Objective):
    r"""The importance-weighted bound (2), $F = \log \frac1K \sum_k w_k$.

    Its $v_k$ is the normalized weight $\tilde w_k$, and $r_k = \tilde w_k$ (B.3).

    Example:
        >>> import gdregs, jax.numpy as jnp
        >>> round(float(gdregs.IWAE()(jnp.log(jnp.array([1.0, 3.0])))), 4)  # log 2
        0.6931

    Reference:
        Burda et al., Importance Weighted Autoencoders, 2016.
    """

    def __call__(self, log_weights: Float[Array, "K *batch"]) -> Float[Array, "*batch"]:
        return logsumexp(log_weights, axis=0) - math.log(log_weights.shape[0])

    def coefficients(self, log_weights: Float[Array, "K *batch"]) -> tuple[Array, Array]:
        v = jnp.exp(log_weights - logsumexp(log_weights, axis=0, keepdims=True))
        return v, v**2


class VRIWAE(Objective):
    r"""The variational Rényi bound of order $\alpha$, importance-weighted (VR-IWAE).

    $F = \frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}$,
    $v = \mathrm{softmax}((1-\alpha)\ell)$, $r = \alpha + (1-\alpha) v$. Order 0 is the IWAE bound
    and the limit of order 1 is the ELBO.

    Attributes:
        alpha: The order, any number but 1.

    Raises:
        ValueError: If alpha is 1 (use `ELBO`) or not finite.

    Example:
        >>> import gdregs, jax.numpy as jnp
        >>> log_weights = jnp.log(jnp.array([1.0, 3.0]))
        >>> bool(gdregs.VRIWAE(0.0)(log_weights) == gdregs.IWAE()(log_weights))
        True

    Reference:
        Li and Turner, Rényi Divergence Variational Inference, 2016; Daudel et al., Alpha-divergence
        Variational Inference Meets Importance Weighted Auto-Encoders, 2023.
    """

    alpha: Any

    def __check_init__(self):
        if isinstance(self.alpha, (int, float)) and self.alpha == 1:
            raise ValueError("VRIWAE of order alpha = 1 is the ELBO; use gdregs.ELBO().")
        if isinstance(self.alpha, (int, float)) and not math.isfinite(self.alpha):
            raise ValueError(f"alpha must be a finite number; got {self.alpha!r}.")

    def __call__(self, log_weights: Float[Array, "K *batch"]) -> Float[Array, "*batch"]:
        return IWAE()((1 - self.alpha) * log_weights) / (1 - self.alpha)

    def coefficients(self, log_weights: Float[Array, "K *batch"]) -> tuple[Array, Array]:
        v, _ = IWAE().coefficients((1 - self.alpha) * log_weights)
        return v, v * (self.alpha + (1 - self.alpha) * v)


class _LeaveOneOut(NamedTuple):
    """Sums of weights without one of them; without cancellation, since the largest is kept apart.

    Attributes:
        is_leading: Which sample has the largest weight, `[K, *batch]`.
        log_total: The log of the sum of all weights, `[1, *batch]`.
        log_others: That of all weights but the largest, `[1, *batch]`.
        log_without: That of all weights but each one in turn, `[K, *batch]`.
    """

    is_leading: Array
    log_total: Array
    log_others: Array
    log_without: Array


def _leave_one_out(log_weights: Float[Array, "K *batch"]) -> _LeaveOneOut:
    rows = jax.lax.broadcasted_iota(jnp.int32, log_weights.shape, 0)
    is_leading = rows == jnp.argmax(log_weights, axis=0).astype(jnp.int32)[None]
    log_total = logsumexp(log_weights, axis=0, keepdims=True)
    others = jnp.where(is_leading, -jnp.inf, log_weights)
    log_others = logsumexp(others, axis=0, keepdims=True)
    # No weight but the largest is more than half of all: the difference loses one bit at most.
    inner = jnp.minimum(log_weights - log_total, -math.log(2))
    log_without = log_total + jnp.log1p(-jnp.exp(inner))
    return _LeaveOneOut(
        is_leading, log_total, log_others, jnp.where(is_leading, log_others, log_without)
    )


class JVI(Objective):
    r"""The first-order jackknife bound, JVI-1.

    $F = K\,\mathrm{IWAE}_K - \frac{K-1}{K} \sum_j \mathrm{IWAE}_{K-1}^{(-j)}$, where $(-j)$ leaves
    sample j out. Then, with the leave-one-out normalized weights $\tilde w^{(-j)}$,
    $v = K\tilde w - \frac{K-1}{K} \sum_j \tilde w^{(-j)}$ and
    $c = K\tilde w^2 - \frac{K-1}{K} \sum_j (\tilde w^{(-j)})^2$. At K = 1 it is the ELBO.

    The leave-one-out sums never subtract a weight that dominates: the largest weight is kept
    apart, so that W - w loses at most one bit.

    Example:
        >>> import gdregs, jax.numpy as jnp
        >>> float(gdregs.JVI()(jnp.zeros(4)))
        0.0

    Reference:
        Nowozin, Debiasing Evidence Approximations: On Importance-weighted Autoencoders and
        Jackknife Variational Inference, 2018.
    """

    def __call__(self, log_weights: Float[Array, "K *batch"]) -> Float[Array, "*batch"]:
        size = log_weights.shape[0]
        iwae = IWAE()(log_weights)
        if size == 1:
            return iwae
        without = jnp.mean(_leave_one_out(log_weights).log_without, axis=0) - math.log(size - 1)
        weightless = jnp.max(log_weights, axis=0) == -jnp.inf
        return jnp.where(weightless, -jnp.inf, size * iwae - (size - 1) * without)

    def coefficients(self, log_weights: Float[Array, "K *batch"]) -> tuple[Array, Array]:
        size = log_weights.shape[0]
        if size == 1:
            return IWAE().coefficients(log_weights)
        is_leading, log_total, log_others, log_without = _leave_one_out(log_weights)
        weights = jnp.exp(log_weights - log_total)
        share = (size - 1) / size
        # The term of j = the leading sample is apart: as a product with its inverse, the weight
        # among the others would be 0 times infinity.
        inverse = jnp.where(is_leading, 0, jnp.exp(log_total - log_without))
        ones, twos = (
            jnp.sum(power, axis=0, keepdims=True) - power for power in (inverse, inverse**2)
        )
        is_none = is_leading | (log_weights == -jnp.inf)
        among_others = jnp.where(is_none, 0, jnp.exp(log_weights - log_others))
        v = weights * (size - share * ones) - share * among_others
        c = weights**2 * (size - share * twos) - share * among_others**2
        return v, c
