"""A program as a value: what the four front-ends render, and what the minimiser makes smaller."""

from dataclasses import dataclass
from typing import Any

Numbers = Any
"""A number, or nested tuples of numbers."""


@dataclass(frozen=True)
class Value:
    """What stands in the slot of a family.

    Attributes:
        name: The learned parameter in it; empty if it is a constant.
        start: What the parameter begins with, or the constant, before it is made positive or alike.
        style: How a constant is written: `float`, `array`, `numpy`, or `batch` (an array of the
            datapoints).
        parents: Names of latents, each with its weight.
        x: The weight of the datapoint; 0 if it does not matter.
    """

    name: str
    start: Numbers
    style: str = "float"
    parents: tuple[tuple[str, float], ...] = ()
    x: float = 0.0

    @property
    def is_constant(self) -> bool:
        """Whether it is a literal."""
        return not (self.name or self.parents or self.x)


@dataclass(frozen=True)
class Factor:
    """A factor on a log-density.

    Attributes:
        kind: `mask` or `scale`.
        value: A number, or one for each datapoint.
        where: `distribution`, or `handler` around the site.
    """

    kind: str
    value: Any
    where: str = "distribution"


@dataclass(frozen=True)
class Density:
    """A conditional distribution of a latent."""

    family: str
    values: tuple[Value, ...]
    factor: Factor | None = None

    @property
    def parents(self) -> tuple[str, ...]:
        """The latents that it depends on."""
        return tuple(dict.fromkeys(name for value in self.values for name, _ in value.parents))


@dataclass(frozen=True)
class Latent:
    """A latent variable; `place` is `global`, `plate` or `inner` (a plate in the plate)."""

    name: str
    support: str
    posterior: Density
    prior: Density
    place: str = "plate"


@dataclass(frozen=True)
class Observed:
    """What is observed at each datapoint, given one number that depends on the latents."""

    family: str
    weights: tuple[tuple[str, float], ...]
    factor: Factor | None = None


@dataclass(frozen=True)
class Program:
    """Model, posterior, and how their bound is evaluated.

    Attributes:
        frontend: `core`, `numpyro`, `torch` or `pyro`.
        seed: What it was made from.
        dtype: `float32` or `float64`.
        x: The datapoints; empty for a bound without batch axes.
        latents: In the order of the prior.
        order: The names of the latents in the order of the posterior.
        observed: The likelihood.
        num_samples: K.
        num_gradient_samples: M.
        chunk_size: How many samples at a time.
        objective: Code without its module.
        estimators: Code of the posterior's and the prior's.
        hidden: `posterior` or `prior` if its parameters are hidden in a closure.
        subsample: The size of the whole data of which x is a part; 0 if x is all.
        vectorized: Whether a front-end vectorises particles.
    """

    frontend: str
    seed: int
    dtype: str
    x: tuple[float, ...]
    latents: tuple[Latent, ...]
    order: tuple[str, ...]
    observed: Observed
    num_samples: int
    num_gradient_samples: int | None
    chunk_size: int | None
    objective: str
    estimators: tuple[str, str]
    hidden: str = ""
    subsample: int = 0
    vectorized: bool = True

    @property
    def is_linear(self) -> bool:
        """Whether the objective is linear in the log-weights."""
        return self.objective == "ELBO()" or self.num_samples == 1

    @property
    def has_factors(self) -> bool:
        """Whether the density of a latent has a factor."""
        return any(one.posterior.factor or one.prior.factor for one in self.latents)

    def latent(self, name: str) -> Latent:
        """The latent of this name."""
        return next(one for one in self.latents if one.name == name)
