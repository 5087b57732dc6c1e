"""Programs at random: latents, families, factors, sizes and estimators from one seed."""

import random

from fuzzing import numpyro_families
from fuzzing.families import Family, Slot, Support
from fuzzing.program import Density, Factor, Latent, Observed, Program, Value

FRONTENDS = ("core", "numpyro", "torch", "pyro")


def supports_of(frontend: str) -> dict[str, Support]:
    """The families that a front-end has, by support."""
    if frontend in ("core", "numpyro"):
        return numpyro_families.SUPPORTS
    from fuzzing import torch_families

    return torch_families.SUPPORTS


def generate(frontend: str, seed: int) -> Program:
    """The program of a seed."""
    return _Maker(frontend, seed).program()


class _Maker:
    """Choices for one program."""

    def __init__(self, frontend: str, seed: int):
        self.frontend, self.seed = frontend, seed
        self.random = random.Random(f"{frontend}-{seed}")
        self.supports = supports_of(frontend)
        self.has_plates = frontend in ("numpyro", "pyro")

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def number(self, size: float) -> float:
        return round(self.random.gauss(0.0, size), 2)

    def program(self) -> Program:
        choose = self.random.choice
        size = choose([1, 2, 3, 3, 3] if self.has_plates else [0, 0, 1, 2, 3])
        self.x = tuple(round(self.random.uniform(-1.5, 1.5), 2) for _ in range(size))
        number = self.random.choices([1, 2, 3, 4, 5], [6, 6, 4, 2, 1])[0]
        names = [f"z{i + 1}" for i in range(number)]
        places = self.places(names)
        supports = {name: self.support() for name in names}
        order = self.random.sample(names, number)
        order.sort(key=lambda name: ("global", "plate", "inner").index(places[name]))
        names.sort(key=lambda name: ("global", "plate", "inner").index(places[name]))
        has_factors = self.chance(0.3)
        latents = []
        for name in names:
            support = self.supports[supports[name]]
            mine = choose(list(support.families))
            group = support.families[mine].group
            others = [
                n for n, f in support.families.items() if n == mine or (group and f.group == group)
            ]
            other = mine if self.chance(0.5) else choose(others)
            pair = [mine, other] if self.chance(0.5) else [other, mine]
            posterior = self.density(
                "q", name, support.families, pair[0], order, places, has_factors
            )
            prior = self.density("p", name, support.families, pair[1], names, places, has_factors)
            latents.append(
                Latent(
                    name,
                    supports[name],
                    posterior,
                    self.share(posterior, prior, support),
                    places[name],
                )
            )
        return self.settings(tuple(latents), tuple(order))

    def places(self, names: list[str]) -> dict[str, str]:
        if not self.has_plates:
            return dict.fromkeys(names, "plate")
        kinds = self.random.choice(
            [["plate"], ["plate"], ["plate", "global"], ["global"], ["plate", "inner"]]
        )
        return {name: self.random.choice(kinds) for name in names}

    def support(self) -> str:
        names = list(self.supports)
        sizes = [len(self.supports[name].families) ** 0.7 for name in names]
        return self.random.choices(names, sizes)[0]

    def density(self, side, name, families, family, order, places, has_factors) -> Density:
        slots, joint = families[family].slots, families[family].joint
        free = [i for i, slot in enumerate(slots) if slot.kind != "end"]
        before = order[: order.index(name)]
        before = [one for one in before if places[one] != "inner" or places[name] == "inner"]
        parents = [one for one in before if self.chance(0.6)][-3:] if free else []
        uses_x = bool(side == "q" and free and places[name] != "global" and self.chance(0.5))
        of_slot: dict[int, list[str]] = {i: [] for i in free}
        for parent in [*parents, *(["x"] if uses_x else [])]:
            chosen = (
                free
                if joint
                else self.random.sample(free, self.random.randint(1, min(2, len(free))))
            )
            for i in chosen:
                of_slot[i].append(parent)
        values = tuple(
            self.value(f"{side}_{name}_{i}", slot, of_slot.get(i, []), joint, places[name])
            for i, slot in enumerate(slots)
        )
        factor = self.factor(places[name]) if has_factors and self.chance(0.4) else None
        return Density(family, values, factor)

    def value(self, name: str, slot: Slot, depends: list[str], joint: bool, place: str) -> Value:
        size = {"real": 0.4, "positive": 0.15, "unit": 0.3, "tril": 0.2, "end": 0.0}[slot.kind]
        start = self.numbers(size, slot.shape)
        weights = tuple((one, self.weight(slot.kind)) for one in depends if one != "x")
        x = self.weight(slot.kind) if "x" in depends else 0.0
        is_learned = slot.kind != "end" and self.chance(0.75)
        styles = ["float", "float", "array", "numpy"]
        if joint and slot.kind != "end":
            styles = ["array"]
        if self.x and place == "plate" and slot.kind in ("real", "positive", "end") and not joint:
            styles.append("batch")
        return Value(name if is_learned else "", start, self.random.choice(styles), weights, x)

    def numbers(self, size: float, shape: tuple[int, ...]):
        if not shape:
            return self.number(size)
        return tuple(self.numbers(size, shape[1:]) for _ in range(shape[0]))

    def weight(self, kind: str) -> float:
        size = {"real": 0.8, "positive": 0.25, "unit": 0.5, "tril": 0.15}[kind]
        return round(self.random.choice([-1, 1]) * self.random.uniform(size / 2, size), 2)

    def factor(self, place: str) -> Factor:
        per_datapoint = bool(self.x) and place == "plate" and self.chance(0.5)
        kind = self.random.choice(["mask", "scale"])
        where = (
            self.random.choice(["distribution", "handler"]) if self.has_plates else "distribution"
        )
        if kind == "scale" and self.has_plates:
            where = "handler"

        def one():
            return self.chance(0.6) if kind == "mask" else self.random.choice([0.3, 0.5, 1.0, 1.7])

        value = tuple(one() for _ in self.x) if per_datapoint else one()
        if kind == "mask" and not per_datapoint:
            value = False
        return Factor(kind, value, where)

    def share(self, posterior: Density, prior: Density, support: Support) -> Density:
        """A prior that has a parameter of the posterior's, now and then."""
        kinds = {
            (slot.kind, slot.shape): value
            for slot, value in zip(
                support.families[posterior.family].slots, posterior.values, strict=True
            )
            if value.name
        }
        values = list(prior.values)
        for i, slot in enumerate(support.families[prior.family].slots):
            mine = kinds.get((slot.kind, slot.shape))
            if mine and values[i].name and self.chance(0.07):
                values[i] = Value(
                    mine.name, mine.start, values[i].style, values[i].parents, values[i].x
                )
        return Density(prior.family, tuple(values), prior.factor)

    def settings(self, latents: tuple[Latent, ...], order: tuple[str, ...]) -> Program:
        choose = self.random.choice
        K = choose([1, 2, 2, 3, 4, 5, 8])
        M = choose([None, None, 1, 1, 2, 3, K, K + 1])
        chunk = choose([None, None, None, 1, 2, 3, K + 1])
        objectives = ["ELBO()", "IWAE()", "IWAE()", "VRIWAE(0.3)"] + ["JVI()"] * (K > 1)
        objective = choose(objectives)
        is_linear = objective == "ELBO()" or K == 1
        has_factors = any(one.posterior.factor or one.prior.factor for one in latents)
        posteriors = (
            ["dregs"] * 8
            + ["naive"] * 3
            + ["gdregs.mixed_dregs(0.3)"] * 2
            + ["stl"] * 2 * is_linear
        )
        priors = ["gdregs"] * 8 + ["naive"] * 3 + ["gdregs-mix", "gdregs.mixed_gdregs(0.3)"]
        if self.has_plates:
            posteriors += ["auto"] * 2
            priors += ["auto"] * 2
        elif not has_factors:
            posteriors += ["rws", "rws-dregs"]
        if not self.has_plates and len(latents) > 1:
            strengths = {one.name: choose([0.0, 0.4, 1.0]) for one in latents}
            priors += [f"gdregs.mixed_gdregs({strengths})"]
        weights = tuple((one.name, self.weight("real") * 2) for one in latents if self.chance(0.8))
        if not weights:
            weights = ((latents[-1].name, 0.8),)
        family = choose(["Normal", "Normal", "StudentT", "Bernoulli", "Poisson"])
        factor = self.factor("plate") if self.x and self.chance(0.15) else None
        encloses = all(one.place != "global" for one in latents)
        subsample = 0
        if self.has_plates and self.chance(0.3) and (encloses or is_linear):
            subsample = 2 * len(self.x)
        return Program(
            frontend=self.frontend,
            seed=self.seed,
            dtype=choose(["float32", "float64"]),
            x=self.x,
            latents=latents,
            order=order,
            observed=Observed(family, weights, factor),
            num_samples=K,
            num_gradient_samples=M,
            chunk_size=chunk,
            objective=objective,
            estimators=(choose(posteriors), choose(priors)),
            hidden=choose(["posterior", "prior"]) if self.chance(0.03) else "",
            subsample=subsample,
            vectorized=self.chance(0.7),
        )


def parameters_of(program: Program) -> dict[str, object]:
    """The learned parameters of a program and their starts, in order."""
    values = [
        value
        for latent in program.latents
        for density in (latent.posterior, latent.prior)
        for value in density.values
        if value.name
    ]
    return {value.name: value.start for value in values} | {"offset": 0.1, "constant": 0.0}


def family_of(program: Program, latent: Latent, density: Density) -> Family:
    """The family of a density."""
    return supports_of(program.frontend)[latent.support].families[density.family]
