"""A model that is checked, and the rows of its report."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from gdregs.shared.report import ENOUGH_WEIGHTS, Report, Row, attempt, row_of_weights
from gdregs.shared.rows import (
    row_of_agreement,
    row_of_cost,
    row_of_estimators,
    row_of_factors,
    row_of_gradient,
    row_of_precision,
)
from gdregs.shared.tables import POSTERIOR_ESTIMATORS, PRIOR_ESTIMATORS
from gdregs.torch.dependence import leaves_of
from gdregs.torch.diagnostics import check_unbiased
from gdregs.torch.digits import MOST_LOST, share_lost
from gdregs.torch.factors import support_of
from gdregs.torch.random_state import set_states, states

NAIVE = ("naive", "naive")

COUPLED = (
    "Its value for one sample depends on the other samples, which breaks every doubly"
    " reparameterized gradient. Normalise over features (layer or group norm) or over the data"
    " before it is encoded, or run batch norm in evaluation mode."
)

Values = dict[Any, Tensor]


class NotReplayedError(Exception):
    """Raised where the random numbers of one sample are not known."""


class Subject(ABC):
    """A model in the words that the checks need.

    Attributes:
        num_samples: K.
        estimators: The names of the estimators whose gradient is looked at.
    """

    num_samples: int
    estimators: tuple[Any, Any]

    @abstractmethod
    def draw(self, size: int) -> Values:
        """Latents `[size, *batch, *event]` by name, without gradient."""

    @abstractmethod
    def parts(self, z: Values) -> dict[str, Callable[[], Tensor]]:
        """What evaluates the log-densities of posterior, prior, likelihood, `[size, *batch]`."""

    def densities(self, z: Values) -> dict[str, Tensor]:
        """These log-densities."""
        return {name: run() for name, run in self.parts(z).items()}

    @abstractmethod
    def densities_of_recorded(self, z: Values) -> dict[str, Tensor]:
        """These, keeping the random numbers that networks draw."""

    @abstractmethod
    def density_of_row(self, place: int, z: Values) -> dict[str, Tensor]:
        """Those of one of the samples alone, `[1, *batch]`, with the random numbers that it had."""

    @abstractmethod
    def bound(self, posterior_estimator: Any, prior_estimator: Any) -> Tensor:
        """The sum of the bounds of datapoints, with its gradient."""

    @abstractmethod
    def log_weights(self, size: int) -> Tensor:
        """The log-weights of other samples, `[size, *batch]`."""

    @abstractmethod
    def factors(self, z: Values) -> Iterator[str]:
        """The masks and scales of latents, in words."""

    @abstractmethod
    def drawn_from(self, z: Values) -> Iterator[tuple[Any, Any, Tensor]]:
        """The latents' keys, the posterior's distributions of them, and draws."""


def check_subject(subject: Subject, shapes: Callable[[], Row], num_draws: int | None) -> Report:
    """All rows of a model."""
    drawn: list[Values] = []

    def first() -> Iterator[Row]:
        row = shapes()
        with torch.no_grad():
            drawn.append(subject.draw(subject.num_samples))
        yield row

    rows = attempt("shapes", first)
    if not drawn:
        rows[-1] = rows[-1]._replace(
            remedy="All three densities must have the shape [K, *batch] for samples [K, *batch,"
            " *event]: event axes are summed over, by Independent or in the likelihood. The other"
            " checks need this."
        )
        return Report(tuple(rows))
    z = drawn[0]
    checks = {
        "deterministic": lambda: _is_deterministic(subject, z),
        "samples are independent": lambda: _are_independent(subject, z),
        "parameters": lambda: _parameters(subject, z),
        "masks and scales": lambda: iter([row_of_factors(list(subject.factors(z)))]),
        "estimators": lambda: _estimators(subject),
        "functions on the circle": lambda: _are_periodic(subject, z),
        "gradient": lambda: _is_finite(subject),
        "weights": lambda: _weights(subject),
        "precision": lambda: _precision(subject, z),
        "cost": lambda: _cost(subject, z),
    }
    if num_draws is not None:
        checks["agreement"] = lambda: _agreement(subject, num_draws)
    for name, run in checks.items():
        rows += attempt(name, run)
    return Report(tuple(rows))


def _is_deterministic(subject: Subject, z: Values) -> Iterator[Row]:
    """Each part is run twice, from the same random numbers."""
    start, runs = states(), []
    with torch.no_grad():
        for _ in range(2):
            set_states(start)
            drawn = subject.draw(subject.num_samples)
            set_states(start)
            runs.append((drawn, subject.densities(z)))
    (first, densities), (second, others) = runs
    same = {name: _equal(one, others[name]) for name, one in densities.items()}
    same["posterior.sample"] = all(_equal(one, second[name]) for name, one in first.items())
    random = [name for name, is_same in same.items() if not is_same]
    if not random:
        yield Row("deterministic", "each part gives the same for the same random numbers")
        return
    yield Row(
        "deterministic", f"{', '.join(random)} gave other values at the same samples", False,
        "It draws random numbers that are not PyTorch's (NumPy's, those of a torch.Generator of its"
        " own). Draw them by PyTorch's operations, without a generator.",
    )  # fmt: skip


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _are_independent(subject: Subject, z: Values) -> Iterator[Row]:
    """Each sample is evaluated alone."""
    coupled: set[str] = set()
    with torch.no_grad():
        together = subject.densities_of_recorded(z)
        for place in range(subject.num_samples):
            try:
                alone = subject.density_of_row(place, z)
            except NotReplayedError as error:
                yield Row("samples are independent", f"not looked at: {error}", None)
                return
            coupled |= {
                name
                for name, value in alone.items()
                if not _close(value[0], together[name][place], together[name])
            }
    if coupled:
        names = ", ".join(name for name in together if name in coupled)
        found = f"{names}: a sample alone has another value than among the others"
        yield Row("samples are independent", found, False, COUPLED)
    else:
        yield Row("samples are independent", "each sample has the same densities alone")


def _close(one: Tensor, other: Tensor, among: Tensor) -> bool:
    tolerance = 1e3 * torch.finfo(among.dtype).eps
    finite = among[among.isfinite()]
    size = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * (1 + size), equal_nan=True)


def _parameters(subject: Subject, z: Values) -> Iterator[Row]:
    """How many tensors that require a gradient each part depends on."""
    found = {name: leaves_of(value) for name, value in subject.densities(z).items()}
    counts = ", ".join(f"{name} {len(leaves)}" for name, leaves in found.items())
    is_learned = any(found.values())
    remedy = "" if is_learned else "No part depends on a tensor that requires a gradient."
    yield Row("parameters", f"tensors: {counts}", True if is_learned else None, remedy)


def _gradient(value: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """The gradient of a summed bound by these leaves."""
    if not leaves or not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    # (The graph may be the user's own, above the distributions: it must remain.)
    found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(leaf) if one is None else one
        for leaf, one in zip(leaves, found, strict=True)
    ]


def _estimators(subject: Subject) -> Iterator[Row]:
    """Each estimator, beside the naive one of the other part."""
    for part, table in (("posterior", POSTERIOR_ESTIMATORS), ("prior", PRIOR_ESTIMATORS)):
        works, reasons = [], []
        for name in table:
            try:
                pair = (name, "naive") if part == "posterior" else ("naive", name)
                value = subject.bound(*pair)
                _gradient(value, leaves_of(value))
            except (TypeError, ValueError, NotImplementedError) as error:
                reasons.append(str(error).splitlines()[0])
            else:
                works.append(name)
        yield row_of_estimators(part, works, reasons)


def _are_periodic(subject: Subject, z: Values) -> Iterator[Row]:
    """All densities are those of angles, where the posterior draws such; no row where it does not.

    The path of an angle leads over the ends of the interval.
    """
    with torch.no_grad():
        angles = [name for name, one, _ in subject.drawn_from(z) if _is_angle(one)]
        found = []
        for name in angles:
            ends = [
                subject.densities({**z, name: torch.full_like(z[name], end)})
                for end in (-math.pi, math.pi)
            ]
            found += [
                f"{part} at {name or 'z'}"
                for part, one in ends[0].items()
                if not _close(one, ends[1][part], one)
            ]
    if found:
        yield Row(
            "functions on the circle", f"other values at -pi and pi: {', '.join(found)}", False,
            "The path of a VonMises leads around the circle, so that its gradient is biased unless"
            " every function of it is periodic: use sin(z) and cos(z), or posterior_estimator='rws'"
            " and prior_estimator='naive', or a family on the line.",
        )  # fmt: skip
    elif angles:
        yield Row("functions on the circle", "each part has the same density at -pi and pi")


def _is_angle(distribution: Any) -> bool:
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return isinstance(distribution, dist.VonMises)


def _is_finite(subject: Subject) -> Iterator[Row]:
    value = subject.bound(*subject.estimators)
    gradient = _gradient(value, leaves_of(value))
    yield row_of_gradient(float(value), sum(int((~one.isfinite()).sum()) for one in gradient))


def _weights(subject: Subject) -> Iterator[Row]:
    number = max(subject.num_samples, 2 * ENOUGH_WEIGHTS)
    blocks, left = [], number
    with torch.no_grad():
        while left:
            blocks.append(subject.log_weights(min(left, 50)))
            left -= len(blocks[-1])
    yield row_of_weights(torch.cat(blocks).double().cpu().numpy())


def _precision(subject: Subject, z: Values) -> Iterator[Row]:
    ends = []
    with torch.no_grad():
        for name, one, value in subject.drawn_from(z):
            expected = share_lost(one)
            share = max(_share_at_an_end(one, value), expected if expected > MOST_LOST else 0.0)
            if share > 0:
                ends.append(f"{share:.1%} of {name or 'z'}")
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in z.values()})
    yield row_of_precision(", ".join(dtypes), ends, " (torch.set_default_dtype(torch.float64))")


def _share_at_an_end(distribution: Any, value: Tensor) -> float:
    """The share of a draw that has been rounded to an end of its support, where the density is 0 or
    infinite.
    """
    if not isinstance(distribution, dist.Distribution):
        return 0.0
    support = support_of(distribution)
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    kind = torch.finfo(value.dtype)
    lower, upper = (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
    if isinstance(support, type(constraints.simplex)):
        lower, upper = 0.0, 1.0
    is_low = value <= kind.tiny if _is(lower, 0.0) else torch.zeros_like(value, dtype=torch.bool)
    is_high = value >= 1 - kind.eps / 2 if _is(upper, 1.0) else torch.zeros_like(is_low)
    return float((is_low | is_high).double().mean())


def _is(end: Any, value: float) -> bool:
    return bool((end == value).all()) if isinstance(end, Tensor) else end == value


def _cost(subject: Subject, z: Values) -> Iterator[Row]:
    """The least of three times."""
    size, times = subject.num_samples, {"draw": float("inf")}

    def finish() -> float:
        if any(value.is_cuda for value in z.values()):
            torch.cuda.synchronize()
        return time.perf_counter()

    with torch.no_grad():
        for _ in range(3):
            start = finish()
            subject.draw(size)
            times["draw"] = min(times["draw"], 1000 * (finish() - start))
            for name, run in subject.parts(z).items():
                start = finish()
                run()
                times[name] = min(times.get(name, float("inf")), 1000 * (finish() - start))
    yield row_of_cost(times, size)


def _agreement(subject: Subject, num_draws: int) -> Iterator[Row]:
    leaves = leaves_of(subject.bound(*NAIVE))
    if not leaves:
        yield Row("agreement", "no part depends on a parameter", None)
        return
    result = check_unbiased(
        lambda: _gradient(subject.bound(*subject.estimators), leaves),
        lambda: _gradient(subject.bound(*NAIVE), leaves),
        num_draws,
    )
    yield row_of_agreement(result, num_draws)
