"""Programs of `gdregs.numpyro.Bound`."""

from fuzzing.expressions import Writer
from fuzzing.probabilistic import ProgramText, Words, constrained_of, names_of_side, starts_of
from fuzzing.program import Program

_IMPORTS = """\
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints, transforms

import gdregs
import gdregs.numpyro
"""
_WORDS = Words("numpyro", "handlers", lambda name: f"numpyro.subsample({name}, event_dim=0)")


def render(program: Program) -> str:
    """A module with `parameters`, `model`, `guide`, `x`, `y`, and `loss(p, key)`."""
    positive = constrained_of(program)
    writer = Writer(program, constrained=positive)
    texts = []
    for side, order in (("q", program.order), ("p", tuple(one.name for one in program.latents))):
        text = ProgramText(program, writer, _WORDS)
        text.add(0, f"\n\ndef {'guide' if side == 'q' else 'model'}(x, y):")
        _declare(text, program, side, positive)
        text.latents(side, order)
        if side == "p":
            text.observation()
        texts.append("\n".join(text.lines) + "\n")
    x, y = writer.data(program.x + program.x if program.subsample else program.x)
    helpers = "".join(f"\n\n{writer.language.helpers[name]}" for name in sorted(writer.helpers))
    precision = (
        '\njax.config.update("jax_enable_x64", True)\n' if program.dtype == "float64" else ""
    )
    starts = starts_of(program, positive)
    rows = [f'    "{name}": jnp.array({start}),' for name, start in starts.items()]
    parameters = "\n".join(["parameters = {", *rows, "}"])
    data = f"\nx = {x}\ny = {y}\n{parameters}\n"
    return "".join([_IMPORTS, precision, data, helpers, *texts, _loss(program)])


def _declare(text: ProgramText, program: Program, side: str, positive: frozenset[str]) -> None:
    """Statements of the parameters that the program uses."""
    text.add(1, "p = {}")
    for name in names_of_side(program, side):
        constraint = ", constraint=constraints.positive" if name in positive else ""
        text.add(1, f'p["{name}"] = numpyro.param("{name}", parameters["{name}"]{constraint})')


def _loss(program: Program) -> str:
    lines = ["\n\nbound = gdregs.numpyro.Bound("]
    lines += [f"    {program.num_samples},", f"    gdregs.{program.objective},"]
    lines += [f"    {one}," if "(" in one else f'    "{one}",' for one in program.estimators]
    if program.num_gradient_samples is not None:
        lines.append(f"    num_gradient_samples={program.num_gradient_samples},")
    if program.chunk_size is not None:
        lines.append(f"    chunk_size={program.chunk_size},")
    if not program.vectorized:
        lines.append("    vectorize_particles=False,")
    lines += [")", "\n\ndef loss(p, key):", "    return bound.loss(key, p, model, guide, x, y)\n"]
    return "\n".join(lines)
