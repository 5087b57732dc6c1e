"""Code for values, densities and likelihoods, in the language of JAX or of PyTorch."""

import math
from dataclasses import dataclass
from typing import Any

from fuzzing.families import Slot
from fuzzing.grammar import family_of, supports_of
from fuzzing.program import Density, Factor, Latent, Program, Value


@dataclass(frozen=True)
class Language:
    """How functions of arrays are called."""

    module: str
    array: str
    sigmoid: str
    helpers: dict[str, str]


JAX = Language(
    "jnp", "jnp.array", "jax.nn.sigmoid",
    {
        "tril": "def tril(a):\n    return jnp.tril(a, -1) + jnp.exp(a) * jnp.eye(a.shape[-1])\n",
        "square": "def square(a):\n    return a @ jnp.swapaxes(a, -1, -2)\n",
    },
)  # fmt: skip
TORCH = Language(
    "torch", "torch.tensor", "torch.sigmoid",
    {
        "tril": "def tril(a):\n"
        "    return torch.tril(a, -1) + torch.exp(a) * torch.eye(a.shape[-1])\n",
        "square": "def square(a):\n    return a @ a.mT\n",
    },
)  # fmt: skip
LANGUAGES = {"core": JAX, "numpyro": JAX, "torch": TORCH, "pyro": TORCH}


def literal(numbers: Any) -> str:
    """Numbers as lists."""
    if isinstance(numbers, tuple):
        return f"[{', '.join(map(literal, numbers))}]"
    return repr(numbers if isinstance(numbers, bool) else round(float(numbers), 4))


def started(slot: Slot, start: Any) -> Any:
    """What a parameter of the slot is made of a real number, or of many."""
    if isinstance(start, tuple):
        return tuple(started(slot, one) for one in start)
    if slot.kind == "positive":
        return slot.centre * math.exp(start)
    if slot.kind == "unit":
        return 1 / (1 + math.exp(-start))
    return slot.centre + start


class Writer:
    """Code for the parts of one program.

    Args:
        program: The program.
        parameter: Code of a parameter with `{}` in the place of its name.
        constrained: Names of parameters that hold positive numbers themselves.
    """

    def __init__(self, program: Program, parameter: str = 'p["{}"]', constrained=frozenset()):
        self.program, self.parameter, self.constrained = program, parameter, constrained
        self.language = LANGUAGES[program.frontend]
        self.helpers: set[str] = set()

    def constant(self, numbers: Any, style: str, step: float = 0.1) -> str:
        """A literal in its style; arrays of numbers are never floats.

        That of a batch grows by `step` from datapoint to datapoint.
        """
        if style == "batch":
            number = len(self.program.x)
            numbers = tuple(_shifted(numbers, step * i) for i in range(number))
        if style == "numpy" and self.language is JAX:
            return f"np.array({literal(numbers)})"
        if style == "float" and not isinstance(numbers, tuple):
            return literal(numbers)
        return f"{self.language.array}({literal(numbers)})"

    def feature(self, name: str, access: str) -> str:
        """One bounded number for each batch index."""
        latent = self.program.latent(name)
        code = supports_of(self.program.frontend)[latent.support].feature.format(z=access)
        for function in ("tanh(", "sin("):
            code = code.replace(function, f"{self.language.module}.{function}")
        return code

    def value(self, slot: Slot, value: Value, access: dict[str, str]) -> str:
        """Code of what stands in a slot."""
        if slot.kind == "tril":
            self.helpers.add("tril")
        if value.is_constant:
            step = 0.0 if slot.kind == "end" else 0.1  # both sides have the same support
            code = self.constant(started(slot, value.start), value.style, step)
            return f"tril({code})" if slot.kind == "tril" else code
        if value.name in self.constrained:
            return self.parameter.format(value.name)
        shared = [
            f"{weight} * {self.feature(name, access[name])}" for name, weight in value.parents
        ]
        if value.x:
            shared.append(f"{value.x} * x")
        moved = " + ".join(shared)
        if moved and slot.shape:
            moved = f"({moved})[..., {', '.join(['None'] * len(slot.shape))}]"
        own = self.parameter.format(value.name) if value.name else None
        if own is None and (slot.shape or value.start):
            own = self.constant(value.start, "array" if slot.shape else "float")
        code = " + ".join(part for part in (own, moved) if part)
        if slot.kind == "positive":
            return f"{slot.centre} * {self.language.module}.exp({code})"
        if slot.kind == "unit":
            return f"{self.language.sigmoid}({code})"
        return f"tril({code})" if slot.kind == "tril" else code

    def density(self, latent: Latent, density: Density, access: dict[str, str]) -> str:
        """The distribution, without its factor."""
        family = family_of(self.program, latent, density)
        values = [
            self.value(slot, value, access)
            for slot, value in zip(family.slots, density.values, strict=True)
        ]
        if "square(" in family.text:
            self.helpers.add("square")
        # An index binds more closely than a sum.
        values = [
            f"({code})" if f"{{{i}}}[" in family.text and " " in code else code
            for i, code in enumerate(values)
        ]
        return family.text.format(*values)

    def location(self, access: dict[str, str]) -> str:
        """The number that an observation depends on."""
        terms = [f"{w} * {self.of_inner(n, access[n])}" for n, w in self.program.observed.weights]
        return " + ".join([self.parameter.format("offset"), *terms])

    def of_inner(self, name: str, access: str) -> str:
        """A feature, averaged over the inner plate."""
        code = self.feature(name, access)
        if self.program.latent(name).place != "inner":
            return code
        return f"{code}.mean(-2{'' if self.language is JAX else ', keepdim=True'})"

    def observed(self, location: str) -> str:
        """The distribution of what is observed, without its factor."""
        return {
            "Normal": f"dist.Normal({location}, 0.8)",
            "StudentT": f"dist.StudentT(5.0, {location}, 0.7)",
            "Bernoulli": f"dist.Bernoulli(logits={location})",
            "Poisson": f"dist.Poisson({self.language.module}.exp({location}))",
        }[self.program.observed.family]

    def data(self, numbers: tuple[float, ...]) -> tuple[str, str]:
        """x, and the observation y."""
        x = numbers or (0.7,)
        made = {
            "Bernoulli": lambda one: float(one > 0),
            "Poisson": lambda one: float(round(2 * abs(one))),
        }
        y = tuple(made.get(self.program.observed.family, lambda one: one)(one) for one in x)
        both = (x, y) if numbers else (x[0], y[0])
        return tuple(f"{self.language.array}({literal(one)})" for one in both)  # pyright: ignore[reportReturnType]

    def factor(self, factor: Factor) -> str:
        """The number or array of a factor."""
        if isinstance(factor.value, tuple):
            return f"{self.language.array}({literal(factor.value)})"
        return literal(factor.value)


def _shifted(numbers: Any, by: float) -> Any:
    if isinstance(numbers, tuple):
        return tuple(_shifted(one, by) for one in numbers)
    return numbers + by
