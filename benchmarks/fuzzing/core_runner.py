"""Runs a program of the core: its rows, those of the evaluator, and its exact properties."""

import jax
import jax.numpy as jnp
import numpy as np

from fuzzing import core_text, exact
from fuzzing.execution import run_text
from fuzzing.jax_evaluator import Nodes, WithFactor, objective_of, surrogate
from fuzzing.jax_runner import JaxRunner, keys_of


class CoreRunner(JaxRunner):
    """A program of the core, set up."""

    text = core_text

    def bound_of(self, module):
        """The program's own function."""
        return module["bound"]

    def evaluator(self):
        """The evaluator as a function of parameters and a key."""
        module = run_text(core_text.render(self.program), keeps_imports=False, factor=WithFactor)
        objective = objective_of(self.program.objective)
        is_wake = self.program.estimators[0].startswith("rws")

        def evaluate(p, key):
            nodes = Nodes(*module["parts"](p), self.program.num_samples)
            return surrogate(nodes, objective, key, is_wake=is_wake)

        return evaluate

    def properties(self) -> str:
        """The first exact property that does not hold, in words; empty if all hold."""
        program, keys = self.program, keys_of(10**6)
        rows = self.of_ours(keys)
        failed = exact.constant(program, self.names, rows)
        if failed:
            return failed
        if program.chunk_size is not None:
            other = self.without_chunks(keys)
            failed = exact.same(rows, other, self.names, program, "in chunks", "whole")
        if not failed:
            values = self.values(keys)
            failed = exact.same(rows[:, -1:], values, ["value"], program, "bound", "F(log_weights)")
        if failed or program.seed % 3:  # a third of the programs: it compiles one more
            return failed
        return self.gradient_of_map(keys, rows)

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
