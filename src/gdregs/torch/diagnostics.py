"""Proofs of what a gradient is: whether two estimators have the same mean."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gdregs.shared.statistics import largest_by_chance


class UnbiasednessCheck(NamedTuple):
    """What `check_unbiased` found.

    Attributes:
        unbiased: Whether no entry differs by more than chance allows.
        z_scores: Entrywise (mean of the difference) / (its standard error), one tensor a gradient.
        largest: The largest size of a z-score.
        threshold: The largest size that still counts as chance.
    """

    unbiased: bool
    z_scores: list[Tensor]
    largest: float
    threshold: float


def check_unbiased(
    estimator: Callable[[], Sequence[Tensor]],
    reference: Callable[[], Sequence[Tensor]],
    num_draws: int,
    *,
    false_alarm: float = 1e-3,
) -> UnbiasednessCheck:
    """Test whether two estimators of one gradient have the same mean.

    Differences at the level of floating-point rounding do not count.

    Args:
        estimator: Returns one draw of the gradients, as `torch.autograd.grad` does.
        reference: The same, known to be unbiased; for instance the naive estimator.
        num_draws: How many pairs of draws.
        false_alarm: Probability of rejecting an unbiased estimator.

    Example:
        >>> import gdregs.torch, torch
        >>> _ = torch.manual_seed(0)
        >>> noise = lambda: [torch.randn(3)]
        >>> gdregs.torch.check_unbiased(noise, noise, 1000).unbiased
        True
        >>> gdregs.torch.check_unbiased(lambda: [0.5 + noise()[0]], noise, 1000).unbiased
        False
    """
    mean: list[Tensor] = []
    squares: list[Tensor] = []
    sizes: list[Tensor] = []
    for count in range(1, num_draws + 1):
        pairs = [(a.detach(), b.detach()) for a, b in zip(estimator(), reference(), strict=True)]
        draw = [(a - b).double() for a, b in pairs]
        if count == 1:
            mean = [torch.zeros_like(one) for one in draw]
            squares = [torch.zeros_like(one) for one in draw]
            sizes = [torch.zeros_like(one) for one in draw]
        for i, (one, (_, b)) in enumerate(zip(draw, pairs, strict=True)):
            difference = one - mean[i]
            mean[i] = mean[i] + difference / count
            squares[i] = squares[i] + difference * (one - mean[i])
            rounding = 64 * torch.finfo(b.dtype).eps
            sizes[i] = sizes[i] + ((rounding * b.double()) ** 2 - sizes[i]) / count
    z_scores = []
    for average, sum_of_squares, size in zip(mean, squares, sizes, strict=True):
        error = (sum_of_squares / (num_draws - 1) / num_draws).sqrt()
        tiny = torch.finfo(error.dtype).tiny
        z_scores.append(average / torch.maximum(error, size.sqrt()).clamp(min=tiny))
    largest = max(float(score.abs().max()) for score in z_scores)
    threshold = largest_by_chance(sum(score.numel() for score in z_scores), false_alarm)
    return UnbiasednessCheck(largest <= threshold, z_scores, largest, threshold)
