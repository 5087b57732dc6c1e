"""Models and guides as code, for NumPyro and for Pyro, which are written nearly alike."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from fuzzing.expressions import Writer, literal
from fuzzing.grammar import family_of, parameters_of
from fuzzing.program import Density, Factor, Latent, Program

INNER = 2
"""The size of the inner plate."""


@dataclass(frozen=True)
class Words:
    """What differs between the two.

    Attributes:
        module: `numpyro` or `pyro`.
        handlers: Its effect handlers.
        subsample: The datapoints of a plate, given code of all of them.
    """

    module: str
    handlers: str
    subsample: Callable[[str], str]


def constrained_of(program: Program) -> frozenset[str]:
    """Parameters that are positive numbers themselves: those that nothing else moves."""
    moved, plain = set(), set()
    for latent in program.latents:
        for density in (latent.posterior, latent.prior):
            slots = family_of(program, latent, density).slots
            for slot, value in zip(slots, density.values, strict=True):
                alone = slot.kind == "positive" and not (value.parents or value.x)
                (plain if alone else moved).add(value.name)
    return frozenset(plain - moved - {""})


def starts_of(program: Program, positive: frozenset[str]) -> dict[str, str]:
    """What parameters begin with, as code."""
    centres = {
        value.name: slot.centre
        for latent in program.latents
        for density in (latent.posterior, latent.prior)
        for slot, value in zip(
            family_of(program, latent, density).slots, density.values, strict=True
        )
        if value.name in positive
    }
    return {
        name: literal(_multiplied(start, centres[name]) if name in positive else start)
        for name, start in parameters_of(program).items()
    }


def _multiplied(start, centre: float):
    if isinstance(start, tuple):
        return tuple(_multiplied(one, centre) for one in start)
    return centre * math.exp(start)


def names_of_side(program: Program, side: str) -> list[str]:
    """The parameters of the guide, `q`, or of the model, `p`."""
    names = dict.fromkeys(
        value.name
        for latent in program.latents
        for value in (latent.posterior if side == "q" else latent.prior).values
        if value.name
    )
    return [*names, *(["offset", "constant"] if side == "p" else [])]


class ProgramText:
    """Code of the model or of the guide."""

    def __init__(self, program: Program, writer: Writer, words: Words):
        self.program, self.writer, self.words = program, writer, words
        self.lines: list[str] = []

    def add(self, depth: int, line: str) -> None:
        self.lines.append("    " * depth + line)

    def plate(self, extra_depth: int = 0) -> None:
        """Open the plate of the datapoints."""
        size = len(self.program.x)
        subsample = self.program.subsample
        whole = f"{subsample}, subsample_size={size}" if subsample else f"{size}"
        self.add(1 + extra_depth, f'with {self.words.module}.plate("data", {whole}, dim=-1):')
        for name in ("x", "y") if subsample else ():
            self.add(2 + extra_depth, f"{name} = {self.words.subsample(name)}")

    def latents(self, side: str, names: tuple[str, ...], depth: int = 0) -> None:
        """Sites of latents, in their plates."""
        opened = set()
        for name in names:
            latent = self.program.latent(name)
            density = latent.posterior if side == "q" else latent.prior
            if latent.place != "global" and "plate" not in opened:
                self.plate(depth)
                opened.add("plate")
            if latent.place == "inner" and "inner" not in opened:
                self.add(2 + depth, f'with {self.words.module}.plate("inner", {INNER}, dim=-2):')
                opened.add("inner")
            level = {"global": 1, "plate": 2, "inner": 3}[latent.place] + depth
            self.latent(level, latent, density)
        if "plate" not in opened and side == "p":
            self.plate(depth)

    def latent(self, level: int, latent: Latent, density: Density) -> None:
        """One site."""
        code = self.writer.density(latent, density, {name: name for name in density.parents})
        self.site(level, f"{latent.name} = ", latent.name, code, "", density.factor)

    def site(self, level, assigned, name, code, observed, factor: Factor | None) -> None:
        """A sample statement, with its factor."""
        if factor:
            number = self.writer.factor(factor)
            if factor.where == "distribution" and factor.kind == "mask":
                code = f"{code}.mask({number})"
            else:
                call = f"{factor.kind}({factor.kind}={number})"
                self.add(level, f"with {self.words.handlers}.{call}:")
                level += 1
        self.add(level, f'{assigned}{self.words.module}.sample("{name}", {code}{observed})')

    def observation(self, depth: int = 0) -> None:
        """What is observed, and the constant."""
        names = {one.name: one.name for one in self.program.latents}
        self.add(2 + depth, f"location = {self.writer.location(names)}")
        code = self.writer.observed("location")
        self.site(2 + depth, "", "y", code, ", obs=y", self.program.observed.factor)
        constant = self.writer.parameter.format("constant")
        self.add(2 + depth, f'{self.words.module}.factor("added", {constant})')
