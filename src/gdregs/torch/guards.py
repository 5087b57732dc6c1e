"""What would make a gradient biased without a word: samples that are evaluated anew, and differ."""

import torch
from torch import Tensor

TRACED = (
    "A network of the bound that torch.compile has compiled gives the samples of the backward pass"
    " other values than it gave them before: it draws random numbers (dropout) or depends on the"
    " other samples (batch norm), so that the gradient would be silently biased. Leave the bound"
    " out of the compiled function, or use evaluation mode."
)


def check_same_weights(before: Tensor, terms: tuple[Tensor, ...], alive: Tensor) -> None:
    """An error if samples weigh something else than at the look.

    Args:
        before: Their log-weights at the look, `[M, *batch]`.
        terms: Log-densities of likelihood and prior, and minus that of the posterior.
        alive: Where a sample has weight.
    """
    if not bool(_are_same(before, terms, alive)):
        raise ValueError(
            "The likelihood, or a conditional, gives the samples of the backward pass other values"
            " than it gave them before: it depends on other samples (batch norm, a mean over them),"
            " or draws random numbers that are not PyTorch's, so that the gradient would be"
            " silently biased. Make it a function of each sample alone (group or layer norm,"
            " evaluation mode), or use both estimators 'naive' with all samples at once."
        )


def check_same_weights_when_run(before: Tensor, terms: tuple[Tensor, ...], alive: Tensor) -> None:
    """The same, as a part of a program that is compiled."""
    torch._assert_async(_are_same(before, terms, alive), TRACED)  # pyright: ignore


def _are_same(before: Tensor, terms: tuple[Tensor, ...], alive: Tensor) -> Tensor:
    parts = [term.detach().to(before.dtype) for term in terms]
    now, size = sum(parts), sum(part.abs() for part in parts)
    same = (now - before).abs() <= _precision(before) ** 0.5 * (1 + size)
    return (same | ~alive).all()


def _precision(values: Tensor) -> float:
    """The coarsest relative precision that a network's products may have had."""
    if torch.is_autocast_enabled(values.device.type):
        return 2.0**-8
    if values.is_cuda and values.dtype == torch.float32:
        return 2.0**-11  # TF32
    return torch.finfo(values.dtype).eps
