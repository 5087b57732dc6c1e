"""What would make a gradient biased without a word: samples that are evaluated anew, and differ."""

import torch
from torch import Tensor


def check_same_weights(before: Tensor, terms: tuple[Tensor, ...], alive: Tensor) -> None:
    """An error if samples weigh something else than at the look.

    Args:
        before: Their log-weights at the look, `[M, *batch]`.
        terms: Log-densities of likelihood and prior, and minus that of the posterior.
        alive: Where a sample has weight.
    """
    parts = [term.detach().to(before.dtype) for term in terms]
    now, size = sum(parts), sum(part.abs() for part in parts)
    same = (now - before).abs() <= _precision(before) ** 0.5 * (1 + size)
    if bool((alive & ~same).any()):
        raise ValueError(
            "The likelihood, or a conditional, gives the samples of the backward pass other values"
            " than it gave them before: it draws random numbers (dropout) or depends on the other"
            " samples of its block (batch norm). With num_gradient_samples or chunk_size the"
            " gradient would be silently biased. Draw them once for all samples, use evaluation"
            " mode, or leave both options out."
        )


def _precision(values: Tensor) -> float:
    """The coarsest relative precision that a network's products may have had."""
    if torch.is_autocast_enabled(values.device.type):
        return 2.0**-8
    if values.is_cuda and values.dtype == torch.float32:
        return 2.0**-11  # TF32
    return torch.finfo(values.dtype).eps
