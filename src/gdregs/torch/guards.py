"""What would make a gradient biased without a word: samples that are evaluated anew, and differ."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

TRACED = (
    "A network of the bound that torch.compile has compiled gives the samples of the backward pass"
    " other values than it gave them before: it draws random numbers (dropout) or depends on the"
    " other samples (batch norm), so that the gradient would be silently biased. Leave the bound"
    " out of the compiled function, or use evaluation mode."
)


def check_same_weights(
    before: Tensor, terms: tuple[Tensor, ...], alive: Tensor, evaluate: Callable[[], Any]
) -> None:
    """An error if samples weigh something else than at the look.

    Args:
        before: Their log-weights at the look, `[M, *batch]`.
        terms: Log-densities of likelihood and prior, and minus that of the posterior.
        alive: Where a sample has weight.
        evaluate: Evaluates the networks, to find out for the error which one it may be.
    """
    if bool(_are_same(before, terms, alive)):
        return
    names = _modules_of_several_samples(evaluate)
    which = f" ({', '.join(names)})" if names else ""
    raise ValueError(
        f"The likelihood, or a conditional, gives the samples of the backward pass other values"
        f" than it gave them before{which}: it depends on the other samples of its block (batch"
        f" norm), or draws random numbers that are not PyTorch's. With num_gradient_samples or"
        f" chunk_size the gradient would be silently biased. Use evaluation mode, or leave both"
        f" options out."
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


def _modules_of_several_samples(evaluate: Callable[[], Any]) -> list[str]:
    """The classes of modules in training mode that normalise by all samples of a batch."""
    found: dict[str, None] = {}

    def note(module: nn.Module, arguments: Any) -> None:
        del arguments
        if module.training and isinstance(module, nn.modules.batchnorm._BatchNorm):
            found[type(module).__name__] = None

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        with torch.no_grad():
            evaluate()
    finally:
        handle.remove()
    return list(found)
