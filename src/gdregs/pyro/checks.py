"""The doctor for Pyro programs."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from gdregs.pyro.bound import Bound, Look
from gdregs.pyro.factors import factors_of
from gdregs.pyro.programs import latents, samples
from gdregs.shared.report import Report, Row, attempt
from gdregs.shared.rows import describe_factor
from gdregs.torch.restoring import restoring
from gdregs.torch.subject import NAIVE, NotReplayedError, Subject, Values, check_subject


def check_model(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: Any = 8,
    objective: Any = None,
    posterior_estimator: Any = "dregs",
    prior_estimator: Any = "gdregs",
    num_draws: int | None = None,
    vectorize_particles: bool = False,
    max_plate_nesting: float = math.inf,
    **kwargs: Any,
) -> Report:
    """Check a model and a guide before they are trained, and say in words what to mend.

    As `gdregs.torch.check_model`, with the masks and scales of each site. It leaves no trace in the
    store of parameters either; an automatic guide is initialised by it, as by a first step.

    Args:
        model: A Pyro program.
        guide: Its guide.
        *args: What both are called with.
        num_samples: K, the number of particles.
        objective: As in `gdregs.pyro.Bound`.
        posterior_estimator: As there: the one whose gradient is looked at.
        prior_estimator: As there.
        num_draws: If given, the mean of so many gradients is compared with that of naive ones.
        vectorize_particles: As in `gdregs.pyro.Bound`: only then can particles depend on each
            other.
        max_plate_nesting: As there.
        **kwargs: What both are called with.

    Returns:
        A report, with `rows`, `ok`, and a table as its `str`. Errors of programs are rows of it.

    Example:
        >>> import gdregs.pyro, pyro, pyro.distributions as dist, torch
        >>> pyro.clear_param_store()
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.7))
        >>> report = gdregs.pyro.check_model(model, guide, torch.tensor(2.0))
        >>> report.ok
        True
    """
    options = {"vectorize_particles": vectorize_particles, "max_plate_nesting": max_plate_nesting}
    with _keeping_parameters(), restoring(model, guide), torch.enable_grad():
        subject = _OfPrograms(model, guide, (args, kwargs))
        subject.estimators = posterior_estimator, prior_estimator

        def run() -> Iterator[Row]:
            subject.read(num_samples, objective, options)
            yield Row("sites", subject.sites())

        rows = attempt("sites", run)
        if rows[0].ok is False:
            return Report(tuple(rows))
        return Report((*rows, *check_subject(subject, subject.shapes, num_draws).rows))


@contextlib.contextmanager
def _keeping_parameters() -> Iterator[None]:
    """Forget afterwards the parameters that programs have initialised meanwhile."""
    store = pyro.get_param_store()
    before = set(store.keys())
    try:
        yield
    finally:
        for name in set(store.keys()) - before:
            del store[name]


class _OfPrograms(Subject):
    """A model and its guide."""

    def __init__(self, model: Any, guide: Any, arguments: tuple[Any, Any]):
        self.programs, self.arguments = (model, guide), arguments

    def read(self, num_samples: Any, objective: Any, options: dict[str, Any]) -> None:
        """Run both, and see whether they fit together."""
        args, kwargs = self.arguments
        loss = Bound(num_samples, objective, *NAIVE, **options)
        self.num_samples = loss.num_particles
        loss.loss(*self.programs, *args, **kwargs)
        self.options = {**options, "max_plate_nesting": loss.max_plate_nesting}
        self.objective, self.loss = objective, loss
        self.losses = {NAIVE: loss}
        model, guide = self.programs
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args, **kwargs)
        self.traces = samples(model_trace), samples(guide_trace)
        self.look, z, _ = self._look()
        if z is None:
            raise ValueError("The guide has no latents: nothing is estimated.")

    def sites(self) -> str:
        """The sites of the model, in words."""
        sites = self.traces[0]
        shapes = {name: list(site["value"].shape) for name, site in latents(sites).items()}
        drawn = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        seen = ", ".join(name for name in sites if name not in shapes)
        return f"latents {drawn or 'none'}; observed {seen or 'none'}"

    def _look(self, size: int | None = None) -> Any:
        """A first run of both for some particles, with latents and log-weights."""
        model, guide = self.programs
        loss = self.loss if size is None else self._loss(NAIVE, size)
        with torch.no_grad():
            look = Look(loss, model, guide, self.arguments, True)
            return look, *look.all()

    def _loss(self, estimators: Any, size: int | None = None) -> Bound:
        loss = Bound(size or self.num_samples, self.objective, *estimators, **self.options)
        loss._have_run.append(self.programs)
        return loss

    def shapes(self) -> Row:
        """The axes of latents and of the plates that enclose every site."""
        _, z, log_weights = self._look()
        self.batch = log_weights.shape[1:]
        particles = self.look.model.particles

        def event(value: Tensor) -> list[int]:
            axes = list(value.shape[log_weights.ndim :])
            while particles is not None and axes[:1] == [1]:  # of a plate that it is not in
                axes.pop(0)
            return axes

        events = ", ".join(
            f"z[{name!r}] {event(value)}" for name, value in sorted(z.items(), key=str)
        )
        dtype = str(log_weights.dtype).removeprefix("torch.")
        return Row("shapes", f"batch {list(self.batch)}; event axes {events}; {dtype}")

    def draw(self, size: int) -> Values:
        """Draw from the guide; values that the model has no density at are moved."""
        del size
        self.look, z, _ = self._look()
        return z

    def parts(self, z: Values) -> dict[str, Callable[[], Tensor]]:
        """By further runs of the programs, at given values."""
        guide, model = self.look.guide, self.look.model
        return {
            "posterior": lambda: guide.log_prob(z),
            "prior": lambda: model.log_prob(z),
            "likelihood": lambda: model.likelihood(z),
        }

    def densities_of_recorded(self, z: Values) -> dict[str, Tensor]:
        """All runs of a program draw the same."""
        return self.densities(z)

    def density_of_row(self, place: int, z: Values) -> dict[str, Tensor]:
        """Of one particle; where it draws for each particle, its numbers are not known."""
        one = {name: value[place : place + 1] for name, value in z.items()}
        try:
            return self.densities(one)
        except ValueError as error:
            if "num_gradient_samples" not in str(error):
                raise
            raise NotReplayedError(str(error)) from None

    def bound(self, posterior_estimator: Any, prior_estimator: Any) -> Tensor:
        """The bound, in nats, of the whole data."""
        pair = posterior_estimator, prior_estimator
        loss = self.losses.setdefault(pair, self._loss(pair))
        args, kwargs = self.arguments
        return -loss.differentiable_loss(*self.programs, *args, **kwargs)

    def log_weights(self, size: int) -> Tensor:
        """Those of new particles."""
        return self._look(size)[2]

    def factors(self, z: Values) -> Iterator[str]:
        """Of each site, observed ones included."""
        del z
        for program, sites in zip(("model", "guide"), self.traces, strict=True):
            for name, site in sites.items():
                factors = factors_of(site, self.look.model.layout.scale)
                if factors is not None:
                    factor = torch.as_tensor(factors.value).detach().cpu().numpy()
                    yield f"{program} {name}: {describe_factor(factor)}"

    def drawn_from(self, z: Values) -> Iterator[tuple[Any, Any, Tensor]]:
        """The sites of the guide."""
        del z
        for name, site in latents(self.traces[1]).items():
            yield name, site["fn"], site["value"]
