"""Draws of a gradient in JAX as rows of numbers, of ours and of the evaluator."""

import os
from types import ModuleType
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fuzzing import exact
from fuzzing.execution import run_text
from fuzzing.program import Program

BLOCK = 256


def rows_of(value_and_surrogate, parameters):
    """A compiled function from keys to rows: the gradient by each parameter, and the value."""

    def row(p, key):
        def total(p):
            value, surrogate = value_and_surrogate(p, key)
            return jnp.sum(surrogate), jnp.sum(value)

        gradients, value = jax.grad(total, has_aux=True)(p)
        return jnp.append(ravel_pytree(gradients)[0], value)

    compiled = jax.jit(jax.vmap(row, in_axes=(None, 0)))
    return lambda keys: np.asarray(compiled(parameters, keys), np.float64)


def keys_of(seed: int, number: int = BLOCK):
    """Keys of a block."""
    return jax.random.split(jax.random.key(seed), number)


def names_of(parameters) -> list[str]:
    """The entries of a row."""
    names = []
    for name in sorted(parameters):
        size = jnp.size(parameters[name])
        names += [name] if size == 1 else [f"{name}[{i}]" for i in range(size)]
    return [*names, "value"]


class JaxRunner:
    """A program of JAX, set up: rows of gdregs and rows of the evaluator.

    Subclasses say what of the program's text is differentiated.
    """

    text: ClassVar[ModuleType]

    def __init__(self, program: Program):
        use_precision(program.dtype)
        self.program, self.blocks, self.by_block = program, 64, False
        self.module = run_text(self.text.render(program), keeps_imports=True)
        self.parameters = self.module["parameters"]
        self.names = names_of(self.parameters)
        self.rounding = float(jnp.finfo(program.dtype).eps) * 256
        self.of_ours = rows_of(_twice(self.bound_of(self.module)), self.parameters)
        self.of_peer = rows_of(self.evaluator(), self.parameters)

    def bound_of(self, module):
        """The bound of a program's module as a function of parameters and a key."""
        raise NotImplementedError

    def evaluator(self):
        """The evaluator as a function of parameters and a key."""
        raise NotImplementedError

    def ours(self, seed: int) -> np.ndarray:
        """A block of rows of gdregs."""
        return self.of_ours(keys_of(seed))

    def peer(self, seed: int) -> np.ndarray:
        """A block of rows of the evaluator."""
        return self.of_peer(keys_of(seed))

    def without_chunks(self, keys) -> np.ndarray:
        """Rows of gdregs, all samples at once."""
        whole = run_text(self.text.render(exact.without_chunks(self.program)), keeps_imports=True)
        return rows_of(_twice(self.bound_of(whole)), self.parameters)(keys)

    def gradient_of_map(self, keys, rows: np.ndarray) -> str:
        """Whether the gradient of a sum over `vmap` is the sum of gradients."""
        bound = self.bound_of(self.module)
        return gradient_of_map(bound, self.parameters, keys[:4], rows, self.program)


def _twice(bound):
    """The bound as the value and as what is differentiated."""

    def value_and_surrogate(p, key):
        value = bound(p, key)
        return value, value

    return value_and_surrogate


def use_precision(dtype: str) -> None:
    """Float32 or float64 for all that follows."""
    jax.config.update("jax_enable_x64", dtype == "float64")


def compile_quickly() -> None:
    """Most of the time goes to compiling: ask for few optimisations, before the first program."""
    quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}"
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_traceback_filtering", "off")  # the last line of an error is its author


def gradient_of_map(bound, parameters, keys, rows: np.ndarray, program: Program) -> str:
    """The gradient of a sum over `vmap` is the sum of gradients."""

    @jax.jit
    def gradient(p):
        total = lambda p: jnp.sum(jax.vmap(lambda key: bound(p, key))(keys))  # noqa: E731
        return ravel_pytree(jax.grad(total)(p))[0]

    mapped = np.asarray(gradient(parameters), np.float64)
    expected = rows[: len(keys), :-1].sum(0)
    size = np.abs(rows[: len(keys), :-1]).sum(0) + 1e-3
    differs = ~(
        (np.abs(mapped - expected) <= 10 * exact.tolerance(program) * size) | (mapped == expected)
    )
    differs &= ~(np.isnan(mapped) & np.isnan(expected))
    if not differs.any():
        return ""
    entry = int(np.argmax(differs))
    return (
        f"entry {entry} is {mapped[entry]:.7g} by grad of vmap and {expected[entry]:.7g} by vmap"
        f" of grad"
    )
