"""What would make a gradient biased without a word: samples that are mixed, or evaluated anew."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

_may_mix = contextvars.ContextVar("may_mix", default=True)
"""Whether the bound around this code is right for log-weights that depend on other samples."""


@contextlib.contextmanager
def _setting(allowed: bool) -> Iterator[None]:
    token = _may_mix.set(allowed)
    try:
        yield
    finally:
        _may_mix.reset(token)


def mixing_samples(*, allowed: bool) -> Any:
    """Whether networks may normalise over samples; where not, `alone` refuses it.

    What a compiler traces is not looked into.
    """
    is_free = allowed or torch.compiler.is_compiling()
    return contextlib.nullcontext() if is_free else _setting(allowed)


def alone(part: str) -> Any:
    """Around code that evaluates networks at latents, each sample by itself."""
    is_looked_into = not (torch.compiler.is_compiling() or _may_mix.get())
    return _refusing_batch_norms(part) if is_looked_into else contextlib.nullcontext()


@contextlib.contextmanager
def _refusing_batch_norms(part: str) -> Iterator[None]:
    def refuse(module: torch.nn.Module, _: Any) -> None:
        if isinstance(module, _BatchNorm) and module.training:
            raise ValueError(
                f"The {part} normalises over importance samples ({type(module).__name__} in"
                f" training mode), so that a log-weight depends on other samples and the gradient"
                f" is silently biased. Use GroupNorm or LayerNorm, or evaluation mode; batch norm"
                f" over x alone belongs in front of the {part}."
            )

    hook = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


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
