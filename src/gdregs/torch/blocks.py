r"""A sum over blocks of samples, whose gradient is taken one block after another.

The graph of a block is gone before the next one is evaluated. What is kept is the sum of the
derivatives by everything that blocks depend on, for the cotangent 1 of each datapoint; on the way
back it is multiplied by the cotangent, or computed anew if datapoints have different ones.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gdregs.torch.stand_ins import StandIns
from gdregs.torch.weights import Model, Weighed

Evaluate = Callable[[Model, Weighed], Tensor]


def sum_of_blocks(evaluate: Evaluate, model: Model, blocks: list[Weighed]) -> Tensor:
    """The sum of `evaluate(model, block)` over blocks, `[*batch]`: its derivative, and the value 0.

    Where a block depends on tensors that cannot be seen from outside, its graph is kept without
    what it holds, which is computed once more on the way back (`torch.utils.checkpoint`).
    """
    stand_ins = StandIns()
    parts = Model(
        stand_ins.of(model.posterior),
        stand_ins.of(model.prior),
        stand_ins.of(model.likelihood),
        *model[3:],
    )
    derivative = _Derivative(lambda block: evaluate(parts, block), blocks)
    zeros = torch.zeros_like(blocks[0].v[0])
    try:
        gradients = derivative.at(torch.ones_like(zeros))
    except _HiddenGraphError:
        terms = [checkpoint(evaluate, model, block, use_reentrant=False) for block in blocks]
        return torch.stack(terms).sum(0)  # pyright: ignore[reportArgumentType]
    if not gradients:
        return zeros
    inputs = [stand_ins.originals.get(id(leaf), leaf) for leaf in gradients]
    found = list(gradients.values())
    return _Sum.apply(zeros, derivative, found, list(gradients), *inputs)  # pyright: ignore


class _HiddenGraphError(Exception):
    """Raised where a block depends on a tensor that was computed outside, or has a hook."""


class _Derivative:
    """That of a sum of blocks by all leaves of their graphs."""

    def __init__(self, evaluate: Callable[[Weighed], Tensor], blocks: list[Weighed]):
        self.evaluate, self.blocks = evaluate, blocks
        self.device = blocks[0].v.device.type
        self.is_rounded = torch.is_autocast_enabled(self.device)
        self.precision = torch.get_autocast_dtype(self.device)

    def at(self, cotangent: Tensor) -> dict[Tensor, Tensor]:
        """The derivative for a cotangent of each datapoint, `[*batch]`."""
        total: dict[Tensor, Tensor] = {}
        with torch.enable_grad(), self._rounding():
            for block in self.blocks:
                for leaf, gradient in self._of_block(block, cotangent):
                    total[leaf] = total[leaf] + gradient if leaf in total else gradient
        return total

    def _of_block(self, block: Weighed, cotangent: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The derivatives by the leaves of a block's graph, which ends here."""
        start = _next_number()
        value = self.evaluate(block)
        leaves = _leaves(value, start) if value.requires_grad else []
        if not leaves:
            return []
        found = torch.autograd.grad(value, leaves, cotangent, allow_unused=True)
        return [pair for pair in zip(leaves, found, strict=True) if pair[1] is not None]

    def _rounding(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast as it was; a weight that it has rounded for one block is none of the next."""
        if not self.is_rounded:
            return contextlib.nullcontext()
        return torch.autocast(self.device, self.precision, cache_enabled=False)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        zeros: Tensor,
        derivative: _Derivative,
        gradients: list[Tensor],
        leaves: list[Tensor],
        *inputs: Tensor,
    ) -> Tensor:
        del inputs
        ctx.derivative, ctx.gradients, ctx.leaves = derivative, gradients, leaves
        return zeros.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        (cotangent,) = cotangents
        first = cotangent.flatten()[0]
        if bool((cotangent == first).all()):
            gradients = [first.to(one.dtype) * one for one in ctx.gradients]
        else:
            anew = ctx.derivative.at(cotangent.detach())
            # (It is 0, and says of these that they are a first derivative: `with_gradient`.)
            zero = (cotangent - cotangent.detach()).sum()
            found = map(anew.get, ctx.leaves)
            gradients = [None if one is None else one + zero.to(one.dtype) for one in found]
        return None, None, None, None, *gradients


def _next_number() -> int:
    """Nodes of autograd's graph that this thread makes from now on have larger numbers."""
    node: Any = torch.zeros((), requires_grad=True).clone().grad_fn
    return node._sequence_nr()


def _leaves(value: Tensor, start: int) -> list[Tensor]:
    """The leaves of a graph that was made since; an error if it goes on into an older one."""
    seen, leaves, rest = set(), [], [value.grad_fn]
    while rest:
        node: Any = rest.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            leaf = node.variable
            if leaf._backward_hooks:
                raise _HiddenGraphError
            leaves.append(leaf)
        elif node._sequence_nr() < start:
            raise _HiddenGraphError
        else:
            rest.extend(above for above, _ in node.next_functions)
    return leaves
