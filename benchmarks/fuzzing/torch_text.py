"""Programs of `gdregs.torch.bound`: a `gdregs.torch.Hierarchy` of torch's distributions."""

from fuzzing.expressions import Writer, literal
from fuzzing.grammar import parameters_of
from fuzzing.program import Density, Latent, Program

_IMPORTS = """\
import torch
import torch.distributions as dist
from torch.distributions import transforms

import gdregs
import gdregs.torch
"""


def render(program: Program) -> str:
    """A module with `parameters`, `parts(p, batch)` and `bound(p, batch)`."""
    writer = Writer(program)
    x, y = writer.data(program.x)
    conditionals = "".join(
        _conditional(writer, side, latent, density)
        for latent in program.latents
        for side, density in (("q", latent.posterior), ("p", latent.prior))
    )
    body = _parts(program, writer) + _bound(program)
    head = _IMPORTS
    if "with_factor(" in conditionals:
        head += "from gdregs.torch import with_factor\n"
    head += f"\ntorch.set_default_dtype(torch.{program.dtype})\n"
    helpers = "".join(f"\n\n{writer.language.helpers[name]}" for name in sorted(writer.helpers))
    rows = [
        f'    "{name}": torch.tensor({literal(start)}, requires_grad=True),'
        for name, start in parameters_of(program).items()
    ]
    parameters = "\n".join(["parameters = {", *rows, "}"])
    data = f"\nx = {x}\ny = {y}\n{parameters}\n"
    return f"{head}{data}{helpers}{conditionals}{body}"


def _conditional(writer: Writer, side: str, latent: Latent, density: Density) -> str:
    parents = density.parents
    code = writer.density(latent, density, {name: name for name in parents})
    if not parents:
        code = f"{code}.expand(batch)"
    if density.factor:
        value = density.factor.value
        numbers = tuple(map(float, value)) if isinstance(value, tuple) else float(value)
        given = (
            f"torch.tensor({literal(numbers)})" if isinstance(value, tuple) else literal(numbers)
        )
        code = f"with_factor({code}, {given})"
    arguments = ", ".join(["p", *parents] if parents else ["p", "batch"])
    return f"\n\ndef {side}_{latent.name}({arguments}):\n    return {code}\n"


def _node(side: str, latent: Latent, density: Density) -> str:
    function, parents = f"{side}_{latent.name}", density.parents
    given = f"{function}(p, batch)"
    if parents:
        given = f"lambda {', '.join(parents)}: {function}(p, {', '.join(parents)})"
    names = "".join(f'"{name}", ' for name in parents)
    return f'        "{latent.name}": ({given}, ({names.strip()})),'


def _is_alone(program: Program) -> bool:
    """Whether posterior and prior are distributions, without a graph."""
    return len(program.latents) == 1 and program.vectorized


def _parts(program: Program, writer: Writer) -> str:
    location = writer.location({one.name: f'z["{one.name}"]' for one in program.latents})
    if _is_alone(program):
        (latent,) = program.latents
        location = location.replace(f'z["{latent.name}"]', "z")
        sides = [
            f"    posterior = q_{latent.name}(p, batch)",
            f"    prior = p_{latent.name}(p, batch)",
        ]
    else:
        by_name = {one.name: one for one in program.latents}
        sides = ["    posterior = {"]
        sides += [_node("q", by_name[name], by_name[name].posterior) for name in program.order]
        sides += ["    }", "    prior = {"]
        sides += [_node("p", one, one.prior) for one in program.latents]
        sides += ["    }"]
    density = f"{writer.observed('location')}.log_prob(y)"
    factor = program.observed.factor
    if factor:
        density = f"{writer.factor(factor)} * {density}"
    lines = [
        "\n\ndef parts(p, batch=x.shape):", *sides, "",
        "    def likelihood(z):",
        f"        location = {location}",
        f'        return {density} + p["constant"]', "",
        "    return posterior, prior, likelihood",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _bound(program: Program) -> str:
    sides = ("posterior", "prior")
    if not _is_alone(program):
        sides = tuple(f"gdregs.torch.Hierarchy({side})" for side in sides)
    posterior, prior = (one if "(" in one else f'"{one}"' for one in program.estimators)
    lines = [
        "\n\ndef bound(p, batch=x.shape):",
        "    posterior, prior, likelihood = parts(p, batch)",
        "    return gdregs.torch.bound(",
        f"        {sides[0]},",
        f"        {sides[1]},",
        "        likelihood,",
        f"        num_samples={program.num_samples},",
        f"        objective=gdregs.torch.{program.objective},",
        f"        posterior_estimator={posterior},",
        f"        prior_estimator={prior},",
    ]
    if program.num_gradient_samples is not None:
        lines.append(f"        num_gradient_samples={program.num_gradient_samples},")
    if program.chunk_size is not None:
        lines.append(f"        chunk_size={program.chunk_size},")
    return "\n".join([*lines, "    )"]) + "\n"
