"""Runs a program of the core: its rows, those of the evaluator, and its exact properties."""

import jax
import jax.numpy as jnp
import numpy as np

from fuzzing import core_text, exact
from fuzzing.execution import run_text
from fuzzing.jax_evaluator import Nodes, WithFactor, objective_of, surrogate
from fuzzing.jax_runner import gradient_of_map, keys_of, names_of, rows_of, use_precision
from fuzzing.program import Program


class CoreRunner:
    """A program of the core, set up."""

    def __init__(self, program: Program):
        use_precision(program.dtype)
        self.program, self.blocks, self.by_block = program, 64, False
        self.module = run_text(core_text.render(program), keeps_imports=True)
        self.parameters = self.module["parameters"]
        self.names = names_of(self.parameters)
        self.rounding = float(jnp.finfo(program.dtype).eps) * 256
        self.of_ours = rows_of(_twice(self.module["bound"]), self.parameters)
        self.of_peer = rows_of(self.evaluator(), self.parameters)

    def evaluator(self):
        """The evaluator as a function of parameters and a key."""
        module = run_text(core_text.render(self.program), keeps_imports=False, factor=WithFactor)
        objective = objective_of(self.program.objective)
        is_wake = self.program.estimators[0].startswith("rws")

        def evaluate(p, key):
            nodes = Nodes(*module["parts"](p), self.program.num_samples)
            return surrogate(nodes, objective, key, is_wake=is_wake)

        return evaluate

    def ours(self, seed: int) -> np.ndarray:
        """A block of rows of gdregs."""
        return self.of_ours(keys_of(seed))

    def peer(self, seed: int) -> np.ndarray:
        """A block of rows of the evaluator."""
        return self.of_peer(keys_of(seed))

    def properties(self) -> str:
        """The first exact property that does not hold, in words; empty if all hold."""
        program, keys = self.program, keys_of(10**6)
        rows = self.of_ours(keys)
        failed = exact.constant(program, self.names, rows)
        if failed:
            return failed
        if program.chunk_size is not None:
            whole = run_text(core_text.render(exact.without_chunks(program)), keeps_imports=True)
            other = rows_of(_twice(whole["bound"]), self.parameters)(keys)
            failed = exact.same(rows, other, self.names, program, "in chunks", "whole")
        if not failed:
            values = self.values(keys)
            failed = exact.same(rows[:, -1:], values, ["value"], program, "bound", "F(log_weights)")
        if failed or program.seed % 3:  # a third of the programs: it compiles one more
            return failed
        return gradient_of_map(self.module["bound"], self.parameters, keys[:4], rows, program)

    def values(self, keys) -> np.ndarray:
        """F of the log-weights that gdregs gives for the same keys."""
        posterior, prior, likelihood = self.module["hierarchies"](self.parameters)
        objective, gdregs = objective_of(self.program.objective), self.module["gdregs"]

        def value(key):
            weights = gdregs.log_weights(
                posterior, prior, likelihood, key=key, num_samples=self.program.num_samples
            )
            return jnp.sum(objective(weights))

        return np.asarray(jax.jit(jax.vmap(value))(keys), np.float64)[:, None]


def _twice(bound):
    def value_and_surrogate(p, key):
        value = bound(p, key)
        return value, value

    return value_and_surrogate
