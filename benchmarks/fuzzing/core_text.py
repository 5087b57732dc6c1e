"""Programs of `gdregs.bound`: a `gdregs.Hierarchy` of numpyro distributions."""

from fuzzing.expressions import Writer, literal
from fuzzing.grammar import parameters_of
from fuzzing.program import Density, Latent, Program

_IMPORTS = """\
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.tree_util import Partial
from numpyro.distributions import transforms

import gdregs
"""


def render(program: Program) -> str:
    """A module with `parameters`, `parts(p)`, and `bound(p, key)`."""
    writer = Writer(program)
    x, y = writer.data(program.x)
    conditionals = "".join(
        _conditional(writer, side, latent, density)
        for latent in program.latents
        for side, density in (("q", latent.posterior), ("p", latent.prior))
    )
    body = _parts(program, writer) + _bound(program)
    head = _IMPORTS
    if any("with_factor(" in part for part in (conditionals, body)):
        head += "from gdregs import with_factor\n"
    if program.dtype == "float64":
        head += '\njax.config.update("jax_enable_x64", True)\n'
    helpers = "".join(f"\n\n{writer.language.helpers[name]}" for name in sorted(writer.helpers))
    data = f"\nx = {x}\ny = {y}\nparameters = {_parameters(program)}\n"
    return f"{head}{data}{helpers}{conditionals}{body}"


def _parameters(program: Program) -> str:
    rows = [
        f'    "{name}": jnp.array({literal(start)}),'
        for name, start in parameters_of(program).items()
    ]
    return "\n".join(["{", *rows, "}"])


def _conditional(writer: Writer, side: str, latent: Latent, density: Density) -> str:
    parents = density.parents
    code = writer.density(latent, density, {name: name for name in parents})
    if not parents and writer.program.x:
        code = f"{code}.expand(x.shape)"
    if density.factor:
        number = writer.factor(density.factor)
        is_mask = density.factor.kind == "mask"
        code = f"{code}.mask({number})" if is_mask else f"with_factor({code}, {number})"
    arguments = ", ".join(["p", *parents])
    return f"\n\ndef {side}_{latent.name}({arguments}):\n    return {code}\n"


def _node(program: Program, side: str, latent: Latent, density: Density) -> str:
    function = f"{side}_{latent.name}"
    whole = {"q": "posterior", "p": "prior"}[side]
    parents = density.parents
    if program.hidden == whole:
        arguments = ", ".join(["p", *parents])
        given = f"lambda {', '.join(parents)}: {function}({arguments})"
    elif not parents and program.vectorized:
        given = f"{function}(p)"
    else:
        given = f"Partial({function}, p)"
    names = "".join(f'"{name}", ' for name in parents)
    return f'        "{latent.name}": ({given}, ({names.strip()})),'


def _parts(program: Program, writer: Writer) -> str:
    location = writer.location({one.name: f'z["{one.name}"]' for one in program.latents})
    if _is_alone(program):
        (latent,) = program.latents
        location = location.replace(f'z["{latent.name}"]', "z")
        sides = [f"    posterior = q_{latent.name}(p)", f"    prior = p_{latent.name}(p)"]
    else:
        by_name = {one.name: one for one in program.latents}
        sides = ["    posterior = {"]
        sides += [_node(program, "q", by_name[n], by_name[n].posterior) for n in program.order]
        sides += ["    }", "    prior = {"]
        sides += [_node(program, "p", one, one.prior) for one in program.latents]
        sides += ["    }"]
    density = writer.observed("location")
    factor = program.observed.factor
    if factor and factor.kind == "mask":
        density += f".mask({writer.factor(factor)})"
    density += ".log_prob(y)"
    if factor and factor.kind == "scale":
        density = f"{writer.factor(factor)} * {density}"
    lines = [
        "\n\ndef parts(p):", *sides, "",
        "    def likelihood(z):",
        f"        location = {location}",
        f'        return {density} + p["constant"]', "",
        "    return posterior, prior, likelihood",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _is_alone(program: Program) -> bool:
    """Whether posterior and prior are distributions, without a graph."""
    return len(program.latents) == 1 and program.vectorized and not program.hidden


def _bound(program: Program) -> str:
    sides = ("posterior", "prior")
    if not _is_alone(program):
        sides = tuple(f"gdregs.Hierarchy({side})" for side in sides)
    posterior, prior = (one if "(" in one else f'"{one}"' for one in program.estimators)
    lines = [
        "\n\ndef hierarchies(p):",
        "    posterior, prior, likelihood = parts(p)",
        f"    return {sides[0]}, {sides[1]}, likelihood",
        "\n\ndef bound(p, key):",
        "    return gdregs.bound(\n        *hierarchies(p),",
        f"        key=key,\n        num_samples={program.num_samples},",
        f"        objective=gdregs.{program.objective},",
        f"        posterior_estimator={posterior},",
        f"        prior_estimator={prior},",
    ]
    if program.num_gradient_samples is not None:
        lines.append(f"        num_gradient_samples={program.num_gradient_samples},")
    if program.chunk_size is not None:
        lines.append(f"        chunk_size={program.chunk_size},")
    return "\n".join([*lines, "    )"]) + "\n"
