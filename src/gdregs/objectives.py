r"""Monte Carlo objectives $F(\ell_1, \dots, \ell_K)$ of the log-weights, with their derivatives.

An estimator needs, for each sample, $v_k = \partial F/\partial \ell_k$ and
$r_k = c_k / v_k$ with $c_k = v_k - \partial^2 F/\partial \ell_k^2$ (0 where $v_k = 0$).
Each objective computes them from its log-weights in blocks, by way of a *summary* whose size
does not grow with K: that is what lets `gdregs.bound` stream.
"""

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gdregs.evaluation.meshes import ALONE, Axis
from gdregs.evaluation.streams import Fold, Shape, Start, extend_logsumexp, whole


class Objective(eqx.Module):
    r"""A Monte Carlo objective $F(\ell)$. Subclass it with only `__call__` to make your own.

    $v$ and the diagonal of the Hessian then come from automatic differentiation, at the price of
    K gradients of F, and a streamed bound keeps its K log-weights per datapoint. `ELBO`, `IWAE`,
    `VRIWAE` and `JVI` have closed forms and summaries of constant size instead.

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

    def summarize(self, fold: Fold, shape: Shape) -> Any:
        """Condense all log-weights into what `value` and `coefficients` need."""

        def collect(collected, log_weights, start):
            return jax.lax.dynamic_update_slice_in_dim(collected, log_weights, start, axis=0)

        size = (shape.num_samples, *shape.batch)
        log_weights = shape.devices.total(fold(collect, jnp.zeros(size, shape.dtype)))
        value, v = _value_and_gradient(self, log_weights)
        any_weight = jnp.any(log_weights > -jnp.inf, axis=0)
        value = jnp.where(any_weight, value, -jnp.inf)
        return value, v, v - _hessian_diagonal(self, log_weights)

    def value(self, summary: Any) -> Float[Array, "*batch"]:
        """$F$ from the summary of all log-weights, in nats."""
        return summary[0]

    def coefficients(
        self, summary: Any, log_weights: Float[Array, "k *batch"], start: Start
    ) -> tuple[Float[Array, "k *batch"], Float[Array, "k *batch"]]:
        """$v$ and $c$ of one block of log-weights whose first sample has position `start`."""
        _, v, c = summary
        size = log_weights.shape[0]
        return (
            jax.lax.dynamic_slice_in_dim(v, start, size),
            jax.lax.dynamic_slice_in_dim(c, start, size),
        )


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


class _Summarized(Objective):
    """An objective that is computed through its own summary."""

    def __call__(self, log_weights: Float[Array, "K *batch"]) -> Float[Array, "*batch"]:
        return self.value(self.summarize(*whole(log_weights)))


class ELBO(_Summarized):
    r"""The evidence lower bound, $F = \frac1K \sum_k \ell_k$, with $v = 1/K$ and $r = 1$.

    Example:
        >>> import gdregs, jax.numpy as jnp
        >>> float(gdregs.ELBO()(jnp.array([1.0, 3.0])))
        2.0
    """

    def summarize(self, fold: Fold, shape: Shape) -> Any:
        def add(total, log_weights, start):
            return total + jnp.sum(log_weights, axis=0)

        total = fold(add, jnp.zeros(shape.batch, shape.dtype))
        return shape.devices.total(total), shape.num_samples

    def value(self, summary: Any) -> Float[Array, "*batch"]:
        total, num_samples = summary
        return total / num_samples

    def coefficients(self, summary: Any, log_weights: Array, start: Start) -> tuple[Array, Array]:
        v = jnp.full_like(log_weights, 1 / summary[1])
        return v, v


def _running_logsumexp(scale):
    def add(total, log_weights, start):
        return extend_logsumexp(total, scale * log_weights)

    return add


class IWAE(_Summarized):
    r"""The importance-weighted bound (2), $F = \log \frac1K \sum_k w_k$.

    Its $v_k$ is the normalized weight $\tilde w_k$, and $r_k = \tilde w_k$ (B.3).

    Example:
        >>> import gdregs, jax.numpy as jnp
        >>> round(float(gdregs.IWAE()(jnp.log(jnp.array([1.0, 3.0])))), 4)  # log 2
        0.6931

    Reference:
        Burda et al., Importance Weighted Autoencoders, 2016.
    """

    def summarize(self, fold: Fold, shape: Shape) -> Any:
        start = jnp.full(shape.batch, -jnp.inf, shape.dtype)
        log_total = fold(_running_logsumexp(1), start)
        return shape.devices.log_total(log_total), shape.num_samples

    def value(self, summary: Any) -> Float[Array, "*batch"]:
        log_total, num_samples = summary
        return log_total - jnp.log(jnp.asarray(num_samples, log_total.dtype))

    def coefficients(self, summary: Any, log_weights: Array, start: Start) -> tuple[Array, Array]:
        v = jnp.exp(log_weights - summary[0][None])
        return v, v**2


class VRIWAE(_Summarized):
    r"""The variational Rényi bound of order $\alpha$, importance-weighted (VR-IWAE).

    $F = \frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}$,
    $v = \mathrm{softmax}((1-\alpha)\ell)$, $r = \alpha + (1-\alpha) v$. Order 0 is the IWAE bound
    and the limit of order 1 is the ELBO.

    Attributes:
        alpha: The order, any number but 1.

    Raises:
        ValueError: If alpha is 1 (use `ELBO`).

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

    def summarize(self, fold: Fold, shape: Shape) -> Any:
        start = jnp.full(shape.batch, -jnp.inf, shape.dtype)
        log_total = fold(_running_logsumexp(1 - self.alpha), start)
        return shape.devices.log_total(log_total), shape.num_samples

    def value(self, summary: Any) -> Float[Array, "*batch"]:
        return IWAE().value(summary) / (1 - self.alpha)

    def coefficients(self, summary: Any, log_weights: Array, start: Start) -> tuple[Array, Array]:
        v = jnp.exp((1 - self.alpha) * log_weights - summary[0][None])
        return v, v * (self.alpha + (1 - self.alpha) * v)


class _Leading(NamedTuple):
    """The largest log-weight, its position, and the log of the sum of all other weights.

    It is told apart by its position: log-weights that are computed anew may differ in a last bit.
    """

    top: Array
    position: Array
    log_others: Array

    @property
    def log_total(self):
        return jnp.logaddexp(self.top, self.log_others)

    def among(self, devices: Axis) -> "_Leading":
        """The leading sample of all devices, from the leading one of each."""
        if devices == ALONE:
            return self
        top = devices.largest(self.top)
        last = jnp.iinfo(jnp.int32).max
        position = devices.smallest(jnp.where(self.top == top, self.position, last))
        is_here = self.position == position
        others = jnp.where(is_here, self.log_others, self.log_total)
        return _Leading(top, position, devices.log_total(others))

    def is_at(self, log_weights, start):
        """Where a block holds the leading sample."""
        rows = jax.lax.broadcasted_iota(jnp.int32, log_weights.shape, 0)
        return start + rows == self.position[None]

    def log_without(self, log_weights, is_leading):
        """Log of the sum of all weights but each one in turn, without cancellation."""
        inner = jnp.minimum(log_weights - self.log_total[None], -math.log(2))
        without = self.log_total[None] + jnp.log1p(-jnp.exp(inner))
        return jnp.where(is_leading, self.log_others[None], without)


class _Sums(NamedTuple):
    """Sums over all samples j but the leading one of functions of W - w_j."""

    log_without: Array
    inverse: Array
    squared_inverse: Array


class JVI(_Summarized):
    r"""The first-order jackknife bound, JVI-1.

    $F = K\,\mathrm{IWAE}_K - \frac{K-1}{K} \sum_j \mathrm{IWAE}_{K-1}^{(-j)}$, where $(-j)$ leaves
    sample j out. Then, with the leave-one-out normalized weights $\tilde w^{(-j)}$,
    $v = K\tilde w - \frac{K-1}{K} \sum_j \tilde w^{(-j)}$ and
    $c = K\tilde w^2 - \frac{K-1}{K} \sum_j (\tilde w^{(-j)})^2$. At K = 1 it is the ELBO.

    The leave-one-out sums never subtract a weight that dominates: the largest weight is kept
    apart, so that W - w loses at most one bit. A second pass over the log-weights is the price.

    Example:
        >>> import gdregs, jax.numpy as jnp
        >>> float(gdregs.JVI()(jnp.zeros(4)))
        0.0

    Reference:
        Nowozin, Debiasing Evidence Approximations: On Importance-weighted Autoencoders and
        Jackknife Variational Inference, 2018.
    """

    def summarize(self, fold: Fold, shape: Shape) -> Any:
        nothing = jnp.full(shape.batch, -jnp.inf, shape.dtype)

        def lead(leading, log_weights, start):
            entries = jnp.concatenate([leading.top[None], log_weights])
            first = jnp.argmax(entries, axis=0).astype(jnp.int32)
            rows = jax.lax.broadcasted_iota(jnp.int32, entries.shape, 0)
            others = jnp.where(rows == first[None], -jnp.inf, entries)
            return _Leading(
                jnp.max(entries, axis=0),
                jnp.where(first == 0, leading.position, start + first - 1),
                extend_logsumexp(leading.log_others, others),
            )

        nowhere = jnp.full(shape.batch, -1, jnp.int32)
        leading = fold(lead, _Leading(nothing, nowhere, nothing)).among(shape.devices)

        def add(sums, log_weights, start):
            is_leading = leading.is_at(log_weights, start)
            log_without = leading.log_without(log_weights, is_leading)
            inverse = jnp.exp(leading.log_total[None] - log_without)

            def total(values):
                return jnp.sum(jnp.where(is_leading, 0, values), axis=0)

            return _Sums(
                sums.log_without + total(log_without),
                sums.inverse + total(inverse),
                sums.squared_inverse + total(inverse**2),
            )

        zero = jnp.zeros(shape.batch, shape.dtype)
        sums = shape.devices.total(fold(add, _Sums(zero, zero, zero)))
        return leading, sums, shape.num_samples

    def value(self, summary: Any) -> Float[Array, "*batch"]:
        leading, sums, num_samples = summary
        iwae = IWAE().value((leading.log_total, num_samples))
        if num_samples == 1:
            return iwae
        weightless = leading.top == -jnp.inf
        mean_without = (sums.log_without + leading.log_others) / num_samples
        log_size = jnp.log(jnp.asarray(num_samples - 1, iwae.dtype))
        jackknife = num_samples * iwae - (num_samples - 1) * (mean_without - log_size)
        return jnp.where(weightless, -jnp.inf, jackknife)

    def coefficients(self, summary: Any, log_weights: Array, start: Start) -> tuple[Array, Array]:
        leading, sums, num_samples = summary
        weights = jnp.exp(log_weights - leading.log_total[None])
        if num_samples == 1:
            return weights, weights**2
        is_leading = leading.is_at(log_weights, start)
        log_without = leading.log_without(log_weights, is_leading)
        inverse = jnp.exp(leading.log_total[None] - log_without)
        share = (num_samples - 1) / num_samples

        def without_own(others, own):
            return jnp.where(is_leading, others[None], others[None] - own)

        # The weight among all but the leading sample; as a product it would be 0 times infinity.
        is_none = is_leading | (log_weights == -jnp.inf)
        among_others = jnp.exp(log_weights - leading.log_others[None])
        among_others = jnp.where(is_none, 0, among_others)
        ones = without_own(sums.inverse, inverse)
        twos = without_own(sums.squared_inverse, inverse**2)
        v = weights * (num_samples - share * ones) - share * among_others
        c = weights**2 * (num_samples - share * twos) - share * among_others**2
        return v, c
