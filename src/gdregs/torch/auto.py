r"""The default that nobody regrets: how much of which estimator, measured.

$g = g^{\mathrm{naive}} + \beta d^q + \alpha d^p$ is unbiased for strengths that were fixed before
the draw, where $d^q = g^{\mathrm{DReGs}} - g^{\mathrm{naive}}$ and $d^p$ alike for the prior. Its
variance is a quadratic function of the two, whose minimum follows from running means over the draws
of earlier steps.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from gdregs.shared.learning import FIRST, MARGINS, PERIOD, SETTLING, STRENGTHS, WORK
from gdregs.shared.tables import POSTERIOR_ESTIMATORS, PosteriorEstimator, PriorEstimator

Loss = Callable[[PosteriorEstimator, PriorEstimator], Tensor]


class Auto:
    r"""An estimator that descends its own variance from the naive end.

    Before anything is known it is the naive gradient. Every step takes its strengths from the draws
    of the steps before, so that every step is unbiased. A step that teaches differentiates the loss
    three times, at the same random numbers: the first hundred do, and later one in sixteen.

    Args:
        decay: How slowly old draws are forgotten: about $1/(1 - \mathrm{decay})$ of them count.
        patience: How many draws it takes until what was measured outweighs the naive start.
        prior: Whether the prior's estimator is mixed too; where its distributions have no
            re-expression rule it must stay naive.
        work: How long a step takes with a mix with DReGs, and with one with GDReGs too, in units of
            a naive one's. That is used which has the least variance times work.

    Example:
        >>> import gdregs.torch, torch
        >>> from torch.distributions import Normal
        >>> _ = torch.manual_seed(0)
        >>> parameters = [torch.tensor(0.5, requires_grad=True) for _ in range(2)]
        >>> def loss(posterior_estimator, prior_estimator):
        ...     return -gdregs.torch.bound(
        ...         Normal(parameters[0], 0.7), Normal(parameters[1], 1.0),
        ...         lambda z: Normal(z, 1.0).log_prob(torch.tensor(2.0)), num_samples=8,
        ...         posterior_estimator=posterior_estimator, prior_estimator=prior_estimator)
        >>> auto = gdregs.torch.Auto()
        >>> optimiser = torch.optim.Adam(parameters, 0.05)
        >>> for _ in range(100):
        ...     optimiser.zero_grad()
        ...     value = auto.backward(loss, parameters)  # in the place of loss().backward()
        ...     optimiser.step()
        >>> posterior_strength, prior_strength = auto.strengths

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, App. H.2, for
        the prior of two Gaussians and a known optimum.
    """

    def __init__(
        self,
        decay: float = 0.95,
        patience: float = 20.0,
        prior: bool = True,
        work: tuple[float, float] = WORK,
    ):
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1; got {decay}.")
        if not patience > 0:
            raise ValueError(f"patience must be positive; got {patience}.")
        self.decay, self.patience, self.prior, self.work = decay, patience, prior, work
        self.strengths = (0.0, 0.0)
        self.mean: dict[Tensor, Tensor] = {}
        self.moments = torch.zeros(6, dtype=torch.float64)
        self.count = 0
        self.step = 0

    @property
    def estimators(self) -> tuple[PosteriorEstimator, PriorEstimator]:
        """The rows of the tables that the present strengths are."""
        beta, alpha = self.strengths
        return PosteriorEstimator(1 - beta, 1 - beta, beta), PriorEstimator(alpha or 0)

    def backward(
        self,
        function: Loss,
        parameters: Iterable[Tensor] | Callable[[], Iterable[Tensor]],
        *,
        retain_graph: bool | None = None,
    ) -> Tensor:
        """Add the mixed gradient to `.grad` of the parameters, and learn from the draw.

        Args:
            function: Maps a posterior and a prior estimator to a loss, by `gdregs.torch.bound`.
            parameters: What is differentiated, or a function that lists it after a first loss.
            retain_graph: Whether the graph of the loss is to be kept, as in `Tensor.backward`.

        Returns:
            The loss, without gradient.
        """
        teaches = self.step < FIRST or self.step % PERIOD == 0
        self.step += 1
        if not teaches:
            return self._backward(function, retain_graph)
        rows = [(POSTERIOR_ESTIMATORS["naive"], PriorEstimator(0))]
        rows.append((POSTERIOR_ESTIMATORS["dregs"], PriorEstimator(0)))
        if self.prior:
            rows.append((POSTERIOR_ESTIMATORS["naive"], PriorEstimator(1)))
        value, found = torch.zeros(()), []
        for number, row in enumerate(rows):
            if number < len(rows) - 1:
                with torch.random.fork_rng():
                    value = function(*row)
            else:
                value = function(*row)
            leaves = list(parameters() if callable(parameters) else parameters)
            leaves = [leaf for leaf in leaves if leaf.requires_grad]
            found.append(_gradients(value, leaves, retain_graph))
        naive, differences = found[0], [_minus(one, found[0]) for one in found[1:]]
        mixed = naive
        for strength, difference in zip(self.strengths, differences, strict=False):
            mixed = [a + strength * b for a, b in zip(mixed, difference, strict=True)]
        with torch.no_grad():
            for leaf, gradient in zip(leaves, mixed, strict=True):
                leaf.grad = gradient.clone() if leaf.grad is None else leaf.grad + gradient
            self._learn(leaves, naive, mixed, differences)
        return value.detach()

    def _backward(self, function: Loss, retain_graph: bool | None) -> Tensor:
        value = function(*self.estimators)
        if value.requires_grad:
            value.backward(retain_graph=retain_graph)
        return value.detach()

    def _learn(self, leaves, naive, mixed, differences) -> None:
        """What the draw of a step says about the strengths of the next one."""
        for leaf in leaves:
            self.mean.setdefault(leaf, torch.zeros_like(leaf))
        noise = [a - self.mean[leaf] for leaf, a in zip(leaves, naive, strict=True)]
        by_q = differences[0]
        by_p = differences[1] if self.prior else [torch.zeros_like(one) for one in by_q]
        pairs = ((by_q, by_q), (by_p, by_p), (by_q, by_p), (by_q, noise), (by_p, noise))
        new = torch.stack([_dot(a, b) for a, b in (*pairs, (noise, noise))])
        if not bool(new.isfinite().all()):
            return
        self.count += 1
        known = max(self.count - SETTLING, 0)
        weight = max(1 / self.count, 1 - self.decay)
        for leaf, gradient in zip(leaves, mixed, strict=True):
            self.mean[leaf] += weight * (gradient - self.mean[leaf])
        if known:
            self.moments += max(1 / known, 1 - self.decay) * (new - self.moments)
            trust = 1 - torch.exp(torch.tensor(-known / self.patience)).item()
            beta, alpha = _best(self.moments.tolist(), self.work)
            self.strengths = (trust * beta, trust * alpha)


def _gradients(value: Tensor, leaves: list[Tensor], retain_graph: bool | None) -> list[Tensor]:
    if not value.requires_grad or not leaves:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(value, leaves, retain_graph=retain_graph, allow_unused=True)
    return [
        torch.zeros_like(leaf) if one is None else one
        for leaf, one in zip(leaves, found, strict=True)
    ]


def _minus(one: list[Tensor], other: list[Tensor]) -> list[Tensor]:
    return [a - b for a, b in zip(one, other, strict=True)]


def _dot(one: list[Tensor], other: list[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for a, b in zip(one, other, strict=True):
        total = total + (a.double() * b.double()).sum().cpu()
    return total


def _best(moments: list[float], work: tuple[float, float]) -> tuple[float, float]:
    r"""The strengths with the least product of variance and work.

    The variance is $V + 2 s \cdot x + x \cdot C x$ with $x = (\beta, \alpha)$.
    """
    qq, pp, qp, q, p, variance = moments

    def usable(beta: float, alpha: float) -> tuple[float, float]:
        low, high = STRENGTHS
        return min(max(beta, low), high), min(max(alpha, low), high)

    def left(strengths: tuple[float, float]) -> float:
        b, a = strengths
        return variance + 2 * (q * b + p * a) + qq * b * b + pp * a * a + 2 * qp * a * b

    naive = (0.0, 0.0)
    of_posterior = usable(-q / qq, 0.0) if qq > 0 else naive
    both = of_posterior
    if pp > 0:
        ridge = 1 + 1e-3
        determinant = ridge**2 * qq * pp - qp**2
        if qq > 0 and determinant > 0:
            beta = (qp * p - ridge * pp * q) / determinant
            both = usable(beta, (qp * q - ridge * qq * p) / determinant)
        else:
            both = usable(0.0, -p / pp)
    best, least = naive, left(naive)
    for strengths, its_work, margin in zip((of_posterior, both), work, MARGINS, strict=False):
        noise = its_work * left(strengths)
        if noise < (1 - margin) * least:
            best, least = strengths, noise
    return best
