"""A doctor for models: one call that says what is wrong with a posterior, prior or likelihood."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gdregs.shared.report import Report, Row
from gdregs.shared.rows import describe_factor
from gdregs.torch.bound import bound
from gdregs.torch.factors import read_factor
from gdregs.torch.gates import log_prob_of
from gdregs.torch.hierarchy import Hierarchy
from gdregs.torch.noise import Noise
from gdregs.torch.objectives import IWAE
from gdregs.torch.random_state import drawing_from
from gdregs.torch.restoring import restoring
from gdregs.torch.subject import NotReplayedError, Subject, Values, check_subject
from gdregs.torch.support import settle
from gdregs.torch.weights import look_at, named, read_model, unnamed


def check_model(
    posterior: Any,
    prior: Any,
    likelihood: Any,
    *,
    generator: torch.Generator | None = None,
    num_samples: Any = 8,
    objective: Any = None,
    posterior_estimator: Any = "dregs",
    prior_estimator: Any = "gdregs",
    num_draws: int | None = None,
) -> Report:
    r"""Check a model before it is trained, and say in words what to mend: `gdregs.check_model`.

    It draws and evaluates the model a few times, without training. Checked are: shapes; whether
    each part is deterministic given PyTorch's random numbers; whether samples are independent of
    each other; how many parameters each part depends on; masks and scales; which estimators can be
    used; whether the gradient is finite; how the weights of 1,000 samples are spread; numerical
    precision; and the cost of each part. It leaves no trace: random numbers, `.grad`, and the
    running statistics of modules are afterwards what they were.

    Args:
        posterior: As in `gdregs.torch.bound`.
        prior: As in `gdregs.torch.bound`.
        likelihood: As in `gdregs.torch.bound`.
        generator: Where random numbers come from; PyTorch's own generator unless given.
        num_samples: K.
        objective: As in `gdregs.torch.bound`; `IWAE()` unless given.
        posterior_estimator: As in `gdregs.torch.bound`: the one whose gradient is looked at.
        prior_estimator: As in `gdregs.torch.bound`.
        num_draws: If given, the mean of so many gradients is compared with that of as many naive
            ones.

    Returns:
        A report, with `rows`, `ok`, and a table as its `str`. Errors of the model are rows of it.

    Example:
        >>> import gdregs.torch, torch
        >>> from torch.distributions import Normal
        >>> def centred(z):  # a batch norm over the importance samples
        ...     return Normal(z - z.mean(0), 1.0).log_prob(torch.tensor(0.0))
        >>> report = gdregs.torch.check_model(Normal(0.1, 1.0), Normal(0.0, 1.0), centred)
        >>> report.ok, [row.check for row in report.rows if row.ok is False]
        (False, ['samples are independent'])
    """
    objective = IWAE() if objective is None else objective
    estimators = posterior_estimator, prior_estimator
    parts = posterior, prior, likelihood
    with restoring(*parts, generator=generator), torch.enable_grad(), drawing_from(generator):
        subject = _OfParts(parts, num_samples, objective)
        subject.estimators = estimators
        return check_subject(subject, subject.shapes, num_draws)


class _OfParts(Subject):
    """A posterior, a prior and a likelihood."""

    def __init__(self, parts: tuple[Any, Any, Any], num_samples: Any, objective: Any):
        self.given, self.num_samples, self.objective = parts, num_samples, objective

    def shapes(self) -> Row:
        """The axes of latents and datapoints."""
        self.model = read_model(*self.given, self.num_samples, None)
        self.num_samples = self.model.num_samples
        with torch.no_grad():
            z, log_weights, _ = look_at(self.model, self.num_samples)
        self.batch = log_weights.shape[1:]
        events = ", ".join(
            f"z{'' if name is None else [name]} {list(value.shape[log_weights.ndim :])}"
            for name, value in sorted(z.items(), key=str)
        )
        dtype = str(log_weights.dtype).removeprefix("torch.")
        return Row("shapes", f"batch {list(self.batch)}; event axes {events}; {dtype}")

    def draw(self, size: int) -> Values:
        """Draw from the posterior."""
        return dict(named(self.model.posterior.sample(torch.Size([size]))))

    def parts(self, z: Values) -> dict[str, Callable[[], Tensor]]:
        """At samples that the prior may have moved into its support."""
        return _parts(self.model, z)

    def densities_of_recorded(self, z: Values) -> dict[str, Tensor]:
        """Keep what each network draws."""
        self.noise = Noise(records=True)
        self.noise.start_block(self.num_samples)
        return self._with_noise(z)

    def density_of_row(self, place: int, z: Values) -> dict[str, Tensor]:
        """Replay what each network drew for this sample."""
        value = next(iter(z.values()))
        index = torch.full((1, *self.batch), place, device=value.device)
        one = {name: value[place : place + 1] for name, value in z.items()}
        with self.noise.of(0, index):
            try:
                return self._with_noise(one)
            except ValueError as error:
                if "num_gradient_samples" not in str(error):
                    raise
                raise NotReplayedError(str(error)) from None

    def _with_noise(self, z: Values) -> dict[str, Tensor]:
        return {name: run() for name, run in _parts(self.model.with_noise(self.noise), z).items()}

    def bound(self, posterior_estimator: Any, prior_estimator: Any) -> Tensor:
        """The bound, summed over datapoints."""
        return bound(
            *self.given, num_samples=self.num_samples, objective=self.objective,
            posterior_estimator=posterior_estimator, prior_estimator=prior_estimator,
        ).sum()  # fmt: skip

    def log_weights(self, size: int) -> Tensor:
        """Those of new samples."""
        return look_at(self.model, size)[1]

    def factors(self, z: Values) -> Iterator[str]:
        """Of each latent whose distribution is known."""
        for part, distributions in (("posterior", self.given[0]), ("prior", self.given[1])):
            for name, one in _nodes(distributions, z).items():
                factors = read_factor(one)
                if factors is not None:
                    factor = torch.as_tensor(factors.at(z[name])).detach().cpu().numpy()
                    yield f"{part} of {name or 'z'}: {describe_factor(factor)}"

    def drawn_from(self, z: Values) -> Iterator[tuple[Any, Any, Tensor]]:
        """The nodes of the posterior."""
        for name, one in _nodes(self.given[0], z).items():
            yield name, one, z[name]


def _parts(model: Any, z: Values) -> dict[str, Callable[[], Tensor]]:
    latents = unnamed(z)
    moved: list[Any] = []

    def prior() -> Tensor:
        moved.append(settle(model.prior, latents))
        return moved[0].log_prob

    def likelihood() -> Tensor:
        return model.likelihood(moved[0].z if moved else settle(model.prior, latents).z)

    return {
        "posterior": lambda: log_prob_of(model.posterior, latents),
        "prior": prior,
        "likelihood": likelihood,
    }


def _nodes(part: Any, z: Mapping[Any, Tensor]) -> dict[Any, Any]:
    """The distribution of each latent whose distribution is known."""
    if isinstance(part, Hierarchy):
        return {name: part.conditional(name, z) for name in part.parents}
    return {None: part} if None in z else {}
