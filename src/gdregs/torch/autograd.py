"""Values that carry the derivative of other values."""

from typing import Any

import torch
from torch import Tensor


class _WithPath(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, path: Tensor) -> Tensor:
        del path
        ctx.set_materialize_grads(False)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        del ctx
        return None, gradients[0]


def with_path(value: Tensor, path: Tensor) -> Tensor:
    """Return `value`, bit for bit, with the derivative of `path`.

    Example:
        >>> import gdregs.torch, torch
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> y = gdregs.torch.with_path(torch.tensor(5.0), x**2)
        >>> y.backward()
        >>> y.item(), x.grad.item()
        (5.0, 6.0)
    """
    return _WithPath.apply(value.detach(), path)  # pyright: ignore[reportReturnType]


class Switch:
    """Where a cotangent goes that reaches a latent which is a leaf and a point on a path too."""

    to_leaves = False


class _Link(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, leaf: Tensor, path: Tensor, switch: Switch) -> Tensor:
        del path
        ctx.set_materialize_grads(False)
        ctx.switch = switch
        return leaf.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        return (gradient, None, None) if ctx.switch.to_leaves else (None, gradient, None)


def link(leaf: Tensor, path: Tensor, switch: Switch) -> Tensor:
    """A latent as its children see it: a leaf of the graph, and a point on a path.

    While `switch.to_leaves`, derivatives end at the leaf: those of a density by the latents. At any
    other time they go on along the path, to the parameters. So a network's one evaluation serves
    both.
    """
    return _Link.apply(leaf, path, switch)  # pyright: ignore[reportReturnType]


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, alive: Tensor, shares: tuple[Any, ...], *paths: Tensor):
        ctx.alive, ctx.shares = alive, shares
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        alive = align(ctx.alive, gradient)
        gradient = torch.where(alive, gradient, torch.zeros_like(gradient))
        return None, None, None, *(align(share, gradient) * gradient for share in ctx.shares)


def fork(value: Tensor, alive: Tensor, paths: list[tuple[Tensor, Tensor]]) -> Tensor:
    """`value`, bit for bit, whose cotangent goes down each (path, share), multiplied by the share.

    Args:
        value: Latents, `[M, *batch, *event]`.
        alive: Where a sample has weight; elsewhere the cotangent is 0, whatever it was.
        paths: Pairs of a re-expression of `value` and the share of the cotangent it receives.
    """
    if not paths:
        return value.detach()
    shares = tuple(share for _, share in paths)
    return _Fork.apply(value.detach(), alive, shares, *(path for path, _ in paths))  # pyright: ignore


def align(values: Any, like: Tensor) -> Any:
    """Append axes of length 1 until `values` (`[M, *batch]`) broadcasts against a latent."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))
