"""Properties that hold for every draw, so that one draw shows a fault."""

import dataclasses

import numpy as np

from fuzzing.program import Program


def without_chunks(program: Program) -> Program:
    """The same program, all samples at once."""
    is_vectorized = program.vectorized or program.frontend == "numpyro"
    return dataclasses.replace(program, chunk_size=None, vectorized=is_vectorized)


def tolerance(program: Program) -> float:
    """How much two ways of computing one number may differ, relative to its size."""
    return 2e-3 if program.dtype == "float32" else 1e-8


def constant(program: Program, names: list[str], rows: np.ndarray) -> str:
    """The derivative by a constant in the likelihood is 1 for each datapoint.

    Kept samples have weights that add up to 1 on average alone where some are below 0. Draws with
    a sample outside of a support are left out: it adds nothing.
    """
    kept = program.num_gradient_samples or program.num_samples
    if program.objective == "JVI()" and kept < program.num_samples:
        return ""
    number = float(program.subsample or max(len(program.x), 1))
    found = rows[np.isfinite(rows[:, -1]), names.index("constant")]
    if np.allclose(found, number, rtol=tolerance(program)):
        return ""
    worst = int(np.argmax(np.nan_to_num(np.abs(found - number), nan=np.inf)))
    return f"the derivative by a constant is {found[worst]:.6g}, not {number:.6g}"


def same(one, other, names: list[str], program: Program, *words: str) -> str:
    """Two ways of computing the same rows agree, but for one draw in fifty.

    (A threshold that rounding crosses, as that of resampling, may keep another sample.)
    """
    size = np.abs(one) + np.nanmedian(np.abs(one), axis=0) + 1e-6
    both_nan = np.isnan(one) & np.isnan(other)
    differs = ~((np.abs(one - other) <= tolerance(program) * size) | both_nan | (one == other))
    if differs.any(1).mean() <= 0.02:
        return ""
    draw, entry = np.argwhere(differs)[0]
    return (
        f"{names[entry]} is {one[draw, entry]:.7g} {words[0]} and {other[draw, entry]:.7g}"
        f" {words[1]}, in {differs.any(1).mean():.0%} of the draws"
    )
