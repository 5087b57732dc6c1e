"""Programs of `gdregs.pyro.Bound`."""

from fuzzing.expressions import Writer
from fuzzing.probabilistic import ProgramText, Words, constrained_of, names_of_side, starts_of
from fuzzing.program import Program

_IMPORTS = """\
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch.distributions import constraints, transforms

import gdregs
import gdregs.pyro
"""
_WORDS = Words("pyro", "poutine", lambda name: f"pyro.subsample({name}, event_dim=0)")


def render(program: Program) -> str:
    """A module with `parameters`, `model`, `guide`, `x`, `y`, and `bound`."""
    positive = constrained_of(program)
    writer = Writer(program, constrained=positive)
    texts = []
    for side, order in (("q", program.order), ("p", tuple(one.name for one in program.latents))):
        text = ProgramText(program, writer, _WORDS)
        text.add(0, f"\n\ndef {'guide' if side == 'q' else 'model'}(x, y):")
        text.add(1, "p = {}")
        is_hidden = program.hidden == {"q": "posterior", "p": "prior"}[side]
        for name in names_of_side(program, side):
            constraint = ", constraint=constraints.positive" if name in positive else ""
            given = f'pyro.param("{name}", parameters["{name}"]{constraint})'
            text.add(1, f'p["{name}"] = ' + (f'parameters["{name}"]' if is_hidden else given))
        text.latents(side, order)
        if side == "p":
            text.observation()
        texts.append("\n".join(text.lines) + "\n")
    x, y = writer.data(program.x + program.x if program.subsample else program.x)
    helpers = "".join(f"\n\n{writer.language.helpers[name]}" for name in sorted(writer.helpers))
    rows = [
        f'    "{name}": torch.tensor({start}, requires_grad=True),'
        for name, start in starts_of(program, positive).items()
    ]
    parameters = "\n".join(["parameters = {", *rows, "}"])
    precision = f"\ntorch.set_default_dtype(torch.{program.dtype})\n"
    data = f"\nx = {x}\ny = {y}\n{parameters}\n"
    return "".join([_IMPORTS, precision, data, helpers, *texts, _bound(program)])


def _bound(program: Program) -> str:
    lines = ["\n\nbound = gdregs.pyro.Bound("]
    lines += [f"    {program.num_samples},", f"    gdregs.torch.{program.objective},"]
    lines += [f"    {one}," if "(" in one else f'    "{one}",' for one in program.estimators]
    if program.num_gradient_samples is not None:
        lines.append(f"    num_gradient_samples={program.num_gradient_samples},")
    if program.chunk_size is not None:
        lines.append(f"    chunk_size={program.chunk_size},")
    lines += [f"    vectorize_particles={program.vectorized},", ")"]
    lines += ["\n\ndef loss():", "    return bound.differentiable_loss(model, guide, x, y)\n"]
    return "\n".join(lines)
