"""Values that carry the derivative of other values."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class _WithPath(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, path: Tensor, needs_path: bool) -> Tensor:
        ctx.set_materialize_grads(False)
        return value + torch.nan_to_num(0 * path) if needs_path else value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        del ctx
        return None, gradients[0], None


def with_path(value: Tensor, path: Tensor, *, draws: bool = True) -> Tensor:
    """Return `value`, bit for bit, with the derivative of `path`.

    Args:
        value: Any tensor.
        path: One of the same shape.
        draws: Whether the path may have drawn random numbers. What a forward pass does not need,
            PyTorch's compiler computes on the way back, in part once more and of other random
            numbers; so in a program that is compiled the forward pass is made to need them.

    Example:
        >>> import gdregs.torch, torch
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> y = gdregs.torch.with_path(torch.tensor(5.0), x**2)
        >>> y.backward()
        >>> y.item(), x.grad.item()
        (5.0, 6.0)
    """
    needs_path = draws and torch.compiler.is_compiling()
    return _WithPath.apply(value.detach(), path, needs_path)  # pyright: ignore[reportReturnType]


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


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, path: Tensor, strength: Any, *parents: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.path, ctx.strength, ctx.parents = path, strength, parents
        return path.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        if gradient is None or not ctx.parents:
            down = None if gradient is None else ctx.strength * gradient
            return down, None, *(None for _ in ctx.parents)
        rest = torch.autograd.grad(
            ctx.path, ctx.parents, (1 - ctx.strength) * gradient, retain_graph=True,
            allow_unused=True,
        )  # fmt: skip
        return ctx.strength * gradient, None, *rest


def gate(path: Tensor, strength: Any, parents: Iterable[Tensor]) -> Tensor:
    r"""A path $T(\epsilon; \theta, \mathrm{pa})$ whose derivative by $\theta$ is multiplied.

    That by the parents, through which the parameters of other latents are reached, is not: it is
    the sum of the path's own, multiplied too, and of what is missing of it.
    """
    if isinstance(strength, (int, float)) and strength == 1:
        return path
    return _Gate.apply(path, strength, *(one for one in parents if one.requires_grad))  # pyright: ignore


class Shares:
    """What forks send down their paths; known once the samples are weighed.

    Attributes:
        alive: Where a sample has weight, `[M, *batch]`; elsewhere a cotangent is 0.
        of_paths: For each path of a fork the share of the cotangent that it receives.
    """

    alive: Tensor
    of_paths: tuple[Any, ...]


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, shares: Shares, *paths: Tensor):
        del paths
        ctx.shares = shares
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), shares = gradients, ctx.shares
        gradient = torch.where(align(shares.alive, gradient), gradient, torch.zeros_like(gradient))
        return None, None, *(align(share, gradient) * gradient for share in shares.of_paths)


def fork(value: Tensor, shares: Shares, paths: list[Tensor]) -> Tensor:
    """`value`, bit for bit, whose cotangent goes down each path, multiplied by the path's share.

    Args:
        value: Latents, `[M, *batch, *event]`.
        shares: The shares, which may be filled in before the backward pass.
        paths: Re-expressions of `value`.
    """
    if not paths:
        return value.detach()
    return _Fork.apply(value.detach(), shares, *paths)  # pyright: ignore


def align(values: Any, like: Tensor) -> Any:
    """Append axes of length 1 until `values` (`[M, *batch]`) broadcasts against a latent."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))
