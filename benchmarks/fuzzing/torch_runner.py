"""Runs a program of PyTorch: its rows, those of the evaluator, and its exact properties.

Each parameter has a copy for each draw, so that one backward pass gives the gradients of a block.
"""

import numpy as np
import torch

from fuzzing import exact, torch_text
from fuzzing.execution import run_text
from fuzzing.program import Program
from fuzzing.torch_evaluator import Nodes, WithFactor, objective_of, surrogate

BLOCK = 1000


def copies_of(parameters, number: int, axes: int):
    """Parameters with a copy for each draw, and so many axes of size 1 for the batch."""
    return {
        name: value.detach().expand(number, *[1] * axes, *value.shape).clone().requires_grad_()
        for name, value in parameters.items()
    }


def row_of(p, value, total) -> np.ndarray:
    """Rows: the gradient of the total by each parameter, sorted by name, and the value."""
    leaves = [p[name] for name in sorted(p)]
    gradients = torch.autograd.grad(total.sum(), leaves, allow_unused=True)
    number = len(value)
    columns = [
        torch.zeros_like(leaf) if one is None else one
        for leaf, one in zip(leaves, gradients, strict=True)
    ]
    flat = [one.reshape(number, -1) for one in [*columns, value]]
    return torch.cat(flat, 1).detach().double().numpy()


def names_of(parameters) -> list[str]:
    """The entries of a row."""
    names = []
    for name in sorted(parameters):
        size = parameters[name].numel()
        names += [name] if size == 1 else [f"{name}[{i}]" for i in range(size)]
    return [*names, "value"]


class TorchRunner:
    """A program of PyTorch, set up."""

    blocks, by_block = 16, False

    def __init__(self, program: Program):
        self.program = program
        torch.set_default_dtype(getattr(torch, program.dtype))
        self.module = run_text(torch_text.render(program), keeps_imports=True)
        self.peers = run_text(torch_text.render(program), keeps_imports=False, factor=WithFactor)
        self.names = names_of(self.module["parameters"])
        self.rounding = torch.finfo(getattr(torch, program.dtype)).eps * 256
        self.batch = torch.Size((BLOCK, *self.module["x"].shape))

    def ours(self, seed: int) -> np.ndarray:
        """A block of rows of gdregs."""
        torch.manual_seed(seed)
        p = copies_of(self.module["parameters"], BLOCK, len(self.batch) - 1)
        value = self.module["bound"](p, self.batch).reshape(BLOCK, -1).sum(1)
        return row_of(p, value, value)

    def peer(self, seed: int) -> np.ndarray:
        """A block of rows of the evaluator."""
        torch.manual_seed(seed)
        p = copies_of(self.peers["parameters"], BLOCK, len(self.batch) - 1)
        nodes = Nodes(*self.peers["parts"](p, self.batch), self.program.num_samples)
        objective = objective_of(self.program.objective)
        is_wake = self.program.estimators[0].startswith("rws")
        value, total = surrogate(nodes, objective, is_wake=is_wake)
        return row_of(p, value.reshape(BLOCK, -1).sum(1), total)

    def properties(self) -> str:
        """The first exact property that does not hold, in words; empty if all hold."""
        return exact.constant(self.program, self.names, self.ours(10**6))
