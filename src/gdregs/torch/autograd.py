"""Values that carry the derivative of other values."""

import contextlib
from collections.abc import Iterator
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


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, surrogate: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.surrogate = surrogate
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        if gradient is not None and torch.is_grad_enabled():
            gradient = _FirstDerivative.apply(gradient, ctx.surrogate)
        return None, gradient


class _FirstDerivative(torch.autograd.Function):
    """A cotangent, by which whatever is computed from it is known as a first derivative.

    It hangs on what is differentiated, so that a second derivative by any of that comes by here.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, surrogate: Tensor) -> Tensor:
        del ctx, surrogate
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(
            "A bound of gdregs has a first derivative only: its gradient is an estimator, whose"
            " own derivative is no second derivative of the bound. Estimate that from the"
            " log-weights of samples with a path (rsample), without gdregs."
        )


def with_gradient(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return `value`, bit for bit, with the derivative of `surrogate`, but no second one."""
    if torch.compiler.is_compiling():  # what is compiled refuses that by itself
        return with_path(value, surrogate)
    return _WithGradient.apply(value.detach(), surrogate)  # pyright: ignore[reportReturnType]


class Switch:
    """Where a cotangent goes that reaches a latent which is a leaf and a point on a path too."""

    to_leaves = False

    @contextlib.contextmanager
    def ending_at_leaves(self) -> Iterator[None]:
        """Meanwhile derivatives end at the leaves."""
        before, self.to_leaves = self.to_leaves, True
        try:
            yield
        finally:
            self.to_leaves = before


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


class Strength:
    """How the derivative of a path is multiplied; it may be filled in before the backward pass.

    Attributes:
        own: The factor on that by the parameters of its own distribution.
        moves: Where the latent moves at all.
    """

    def __init__(self, own: Any = 1, moves: Any = True):
        self.own, self.moves = own, moves

    def become(self, other: "Strength") -> None:
        """Be filled in."""
        self.own, self.moves = other.own, other.moves


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, path: Tensor, strength: Strength, parents: Any, switch: Any, *onward: Tensor
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.path, ctx.strength, ctx.parents, ctx.switch = path, strength, parents, switch
        ctx.count = len(onward)
        return path.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), strength = gradients, ctx.strength
        none = [None] * ctx.count
        if gradient is None:
            return None, None, None, None, *none
        if strength.moves is not True:
            moves = torch.as_tensor(strength.moves, device=gradient.device)
            gradient = torch.where(moves, gradient, torch.zeros_like(gradient))
        own = strength.own * gradient
        if not ctx.parents:
            return own, None, None, None, *none
        with ctx.switch.ending_at_leaves():
            rest = torch.autograd.grad(
                ctx.path, ctx.parents, gradient - own, retain_graph=True, allow_unused=True
            )
        return own, None, None, None, *rest


def gate(path: Tensor, strength: Strength, parents: dict[Any, Tensor], onward: Any, switch: Any):
    r"""A path $T(\epsilon; \theta, \mathrm{pa})$ whose derivative by $\theta$ is multiplied.

    That by the parents, through which the parameters of other latents are reached, is not: it is
    the sum of the path's own, multiplied too, and of what is missing of it.

    Args:
        path: The path.
        strength: How its derivatives are multiplied.
        parents: The latents that it may depend on, leaves.
        onward: Where a derivative by each of them goes.
        switch: The switch of their links.
    """
    if isinstance(strength.own, (int, float)) and strength.own == 1 and strength.moves is True:
        return path
    if not path.requires_grad:
        return path
    names = [name for name, parent in parents.items() if parent.requires_grad]
    above, onward = [parents[name] for name in names], [onward[name] for name in names]
    return _Gate.apply(path, strength, above, switch, *onward)  # pyright: ignore


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
