r"""Monte Carlo objectives $F(\ell_1, \dots, \ell_K)$ of log-weights, with their derivatives.

$v_k = \partial F / \partial \ell_k$ and $c_k = v_k - \partial^2 F / \partial \ell_k^2$.
"""

import abc
import math
from typing import NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """An objective of some log-weights, and its derivatives.

    Attributes:
        value: F, `[*batch]`.
        v: `[K, *batch]`.
        c: `[K, *batch]`.
    """

    value: Tensor
    v: Tensor
    c: Tensor


class Objective(abc.ABC):
    """A Monte Carlo objective. Subclass it with only `__call__` to make your own.

    Example:
        >>> import gdregs.torch, torch
        >>> class MeanOfHalves(gdregs.torch.Objective):
        ...     def __call__(self, log_weights):
        ...         first, second = log_weights.chunk(2)
        ...         iwae = gdregs.torch.IWAE()
        ...         return (iwae(first) + iwae(second)) / 2
        >>> float(MeanOfHalves()(torch.zeros(4)))
        0.0
    """

    @abc.abstractmethod
    def __call__(self, log_weights: Tensor) -> Tensor:
        """The objective, in nats.

        Args:
            log_weights: `[K, *batch]`. The reduction is over the first axis alone.

        Returns:
            `[*batch]`, larger is better.
        """

    def coefficients(self, log_weights: Tensor) -> Coefficients:
        """F, v and c by automatic differentiation; K gradients of F."""
        with torch.enable_grad():
            leaf = log_weights.detach().requires_grad_()
            value = self(leaf)
            if value.shape != log_weights.shape[1:]:
                raise ValueError(
                    f"objective {type(self).__name__} maps log-weights of shape"
                    f" {tuple(log_weights.shape)} to shape {tuple(value.shape)}; it must reduce the"
                    f" first axis alone, to {tuple(log_weights.shape[1:])}."
                )
            (v,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
            second = torch.zeros_like(v)
            if v.requires_grad:
                rows = []
                for k in range(len(v)):
                    (row,) = torch.autograd.grad(v[k].sum(), leaf, retain_graph=True)
                    rows.append(row[k])
                second = torch.stack(rows)
        return Coefficients(value.detach(), v.detach(), v.detach() - second)


class ELBO(Objective):
    r"""The evidence lower bound, $F = \frac1K \sum_k \ell_k$, with $v = 1/K$ and $r = 1$."""

    def __call__(self, log_weights: Tensor) -> Tensor:
        return log_weights.mean(0)

    def coefficients(self, log_weights: Tensor) -> Coefficients:
        v = torch.full_like(log_weights, 1 / len(log_weights))
        return Coefficients(self(log_weights), v, v)


class VRIWAE(Objective):
    r"""The variational Rényi bound of order $\alpha$.

    $F = \frac{1}{1-\alpha} \log \frac1K \sum_k w_k^{1-\alpha}$,
    $v = \mathrm{softmax}((1-\alpha)\ell)$, $r = \alpha + (1-\alpha) v$.

    Args:
        alpha: The order, any number but 1.

    Raises:
        ValueError: If alpha is 1 (use `ELBO`) or not finite.
    """

    def __init__(self, alpha: float):
        if alpha == 1:
            raise ValueError("VRIWAE of order alpha = 1 is the ELBO; use gdregs.torch.ELBO().")
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be a finite number; got {alpha!r}.")
        self.alpha = alpha

    def __call__(self, log_weights: Tensor) -> Tensor:
        power = 1 - self.alpha
        return (torch.logsumexp(power * log_weights, 0) - math.log(len(log_weights))) / power

    def coefficients(self, log_weights: Tensor) -> Coefficients:
        power = 1 - self.alpha
        v = torch.softmax(power * log_weights, 0)
        return Coefficients(self(log_weights), v, v * (self.alpha + power * v))


class IWAE(VRIWAE):
    r"""The importance-weighted bound, with $v = \tilde w$ and $r = \tilde w$."""

    def __init__(self):
        super().__init__(0.0)


class JVI(Objective):
    r"""The first-order jackknife bound, JVI-1.

    $F = K\,\mathrm{IWAE}_K - \frac{K-1}{K} \sum_j \mathrm{IWAE}_{K-1}^{(-j)}$. The largest weight
    is kept apart, so that no sum without a weight is a difference of two nearly equal ones.
    """

    def __call__(self, log_weights: Tensor) -> Tensor:
        return self.coefficients(log_weights).value

    def coefficients(self, log_weights: Tensor) -> Coefficients:
        size = len(log_weights)
        iwae = torch.logsumexp(log_weights, 0) - math.log(size)
        if size == 1:
            v = torch.softmax(log_weights, 0)
            return Coefficients(iwae, v, v**2)
        top, position = log_weights.max(0, keepdim=True)
        leads = torch.zeros_like(log_weights, dtype=torch.bool).scatter_(0, position, True)
        log_others = torch.logsumexp(log_weights.masked_fill(leads, -math.inf), 0, keepdim=True)
        log_total = torch.logaddexp(top, log_others)
        inner = (log_weights - log_total).clamp(max=-math.log(2))
        log_without = torch.where(leads, log_others, log_total + torch.log1p(-torch.exp(inner)))
        mean_without = log_without.mean(0) - math.log(size - 1)
        value = size * iwae - (size - 1) * mean_without
        value = torch.where(top[0] == -math.inf, torch.full_like(value, -math.inf), value)
        inverse = torch.exp(log_total - log_without)
        weights = torch.exp(log_weights - log_total)
        share = (size - 1) / size

        def of_others(values: Tensor) -> Tensor:
            values = values.masked_fill(leads, 0)
            return values.sum(0, keepdim=True) - values

        # The weight among all but the leading sample; as a product it would be 0 times infinity.
        is_none = leads | (log_weights == -math.inf)
        among_others = torch.exp(log_weights - log_others).masked_fill(is_none, 0)
        v = weights * (size - share * of_others(inverse)) - share * among_others
        c = weights**2 * (size - share * of_others(inverse**2)) - share * among_others**2
        return Coefficients(value, v, c)
