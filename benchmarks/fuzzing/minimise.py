"""Makes a program that fails smaller, as long as it fails alike."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from fuzzing.grammar import supports_of
from fuzzing.judge import Outcome, judge
from fuzzing.program import Density, Factor, Latent, Program, Value
from fuzzing.record import general


def minimise(program: Program, make: Callable[[Program], Any], *, minutes: float = 10) -> Program:
    """Take away what the failure does not need, one thing at a time, until nothing can go."""
    first = judge(program, make)
    print(f"{first.kind}: {first.text}", flush=True)
    if first.kind in ("right", "undecided", "unjudged"):
        return program
    begun, found = time.monotonic(), True
    while found:
        found = False
        for smaller in reductions(program):
            if time.monotonic() - begun > 60 * minutes:
                return program
            outcome = judge(smaller, make)
            if _is_alike(first, outcome):
                print(f"smaller: {outcome.text}", flush=True)
                program, found = smaller, True
                break
    return program


def _is_alike(one: Outcome, other: Outcome) -> bool:
    if one.kind != other.kind:
        return False
    return one.kind in ("biased", "nan") or general(one.text)[:40] == general(other.text)[:40]


def reductions(program: Program) -> Iterator[Program]:
    """Programs that are a step smaller, those that lack most first."""
    for latent in program.latents:
        if len(program.latents) > 1:
            yield without(program, latent.name)
    changes: list[dict[str, Any]] = [
        {"subsample": 0},
        {"latents": tuple(map(_in_plate, program.latents))},
        {"vectorized": True},
        {"chunk_size": None},
        {"num_gradient_samples": None},
        {"hidden": ""},
        {"observed": replace(program.observed, factor=None)},
        {"observed": replace(program.observed, family="Normal")},
        {"num_samples": 2} if program.num_samples > 2 else {},
        {"num_samples": 1} if program.objective != "JVI()" else {},
        {"objective": "ELBO()"},
        {"objective": "IWAE()"} if program.objective != "ELBO()" else {},
        {"estimators": ("naive", "naive")},
        {"estimators": (program.estimators[0], "naive")},
        {"estimators": ("naive", program.estimators[1])},
        {"estimators": (program.estimators[0], "gdregs")} if "(" in program.estimators[1] else {},
        {"dtype": "float64"},
    ]
    for change in changes:
        smaller = replace(program, **change)
        if smaller != program:
            yield smaller
    if len(program.x) > 1:
        yield with_one_datapoint(program)
    for latent in program.latents:
        for smaller in smaller_latents(program, latent):
            if smaller != latent:
                yield with_latent(program, smaller)


def smaller_latents(program: Program, latent: Latent) -> Iterator[Latent]:
    """A latent with plainer densities."""
    for side in ("posterior", "prior"):
        density: Density = getattr(latent, side)
        yield replace(latent, **{side: replace(density, factor=None)})
        plain = tuple(replace(value, parents=(), x=0.0) for value in density.values)
        yield replace(latent, **{side: replace(density, values=plain)})
        for i, value in enumerate(density.values):
            for change in ({"name": ""}, {"parents": (), "x": 0.0}, {"style": "array"}):
                values = [*density.values]
                values[i] = replace(value, **change)
                yield replace(latent, **{side: replace(density, values=tuple(values))})
    yield replace(latent, prior=replace(latent.posterior, values=_renamed(latent, "prior")))
    if latent.support != "real":
        yield _normal(program, latent)


def _in_plate(latent: Latent) -> Latent:
    return replace(latent, place="plate") if latent.place == "inner" else latent


def _renamed(latent: Latent, side: str) -> tuple[Value, ...]:
    """The posterior's values without what they depend on, as another side's."""
    return tuple(
        replace(value, name=f"{side[0]}{value.name[1:]}" if value.name else "", parents=(), x=0.0)
        for value in latent.posterior.values
    )


def _normal(program: Program, latent: Latent) -> Latent:
    """The same latent as a number on the line."""
    assert "Normal" in supports_of(program.frontend)["real"].families

    def density(side: str) -> Density:
        old: Density = latent.posterior if side == "q" else latent.prior
        parents = tuple((name, 0.4) for name in old.parents)
        loc = Value(f"{side}_{latent.name}_0", 0.2 if side == "q" else -0.3, "float", parents)
        return Density("Normal", (loc, Value("", 0.0, "float")), old.factor)

    return replace(latent, support="real", posterior=density("q"), prior=density("p"))


def with_latent(program: Program, latent: Latent) -> Program:
    """The program with this latent in the place of that of the same name."""
    latents = tuple(latent if one.name == latent.name else one for one in program.latents)
    return replace(program, latents=latents)


def without(program: Program, name: str) -> Program:
    """The program without a latent."""
    latents = []
    for latent in program.latents:
        if latent.name != name:
            changed = {
                side: _without_parent(getattr(latent, side), name)
                for side in ("posterior", "prior")
            }
            latents.append(replace(latent, **changed))
    weights = tuple(pair for pair in program.observed.weights if pair[0] != name)
    weights = weights or ((latents[-1].name, 0.8),)
    posterior, prior = program.estimators
    return replace(
        program,
        latents=tuple(latents),
        order=tuple(one for one in program.order if one != name),
        observed=replace(program.observed, weights=weights),
        estimators=(posterior, "gdregs" if "{" in prior else prior),
    )


def _without_parent(density: Density, name: str) -> Density:
    values = tuple(
        replace(value, parents=tuple(pair for pair in value.parents if pair[0] != name))
        for value in density.values
    )
    return replace(density, values=values)


def with_one_datapoint(program: Program) -> Program:
    """The program with the first datapoint alone."""

    def factor(one: Factor | None) -> Factor | None:
        if one and isinstance(one.value, tuple):
            return dataclasses.replace(one, value=one.value[:1])
        return one

    latents = tuple(
        replace(
            latent,
            posterior=replace(latent.posterior, factor=factor(latent.posterior.factor)),
            prior=replace(latent.prior, factor=factor(latent.prior.factor)),
        )
        for latent in program.latents
    )
    observed = replace(program.observed, factor=factor(program.observed.factor))
    size = 2 if program.subsample else 0
    return replace(program, x=program.x[:1], latents=latents, observed=observed, subsample=size)
