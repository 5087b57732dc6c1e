"""Draws of a gradient in JAX as rows of numbers, of ours and of the evaluator."""

import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fuzzing import exact
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
