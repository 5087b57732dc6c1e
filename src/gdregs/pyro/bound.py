"""The objective for `pyro.infer.SVI`."""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import elbo
from pyro.util import warn_if_nan
from torch import Tensor

from gdregs.pyro.factors import factors_of
from gdregs.pyro.programs import Guide, Model, latents, moved, observed, without_observed
from gdregs.pyro.reading import (
    computed_sites,
    find_computed,
    inverses,
    read_layout,
    read_sites,
)
from gdregs.shared.checks import check_objective, positive_integer
from gdregs.shared.graphs import check_mix
from gdregs.shared.learning import WORK
from gdregs.shared.tables import (
    AUTO,
    find_posterior_estimator,
    find_prior_estimator,
    is_auto,
    is_naive,
)
from gdregs.torch import weights
from gdregs.torch.auto import Auto
from gdregs.torch.autograd import with_gradient
from gdregs.torch.batch_norm import refusing_batch_norm
from gdregs.torch.digits import warn_of_lost_digits
from gdregs.torch.gates import POSTERIOR, PRIOR
from gdregs.torch.objectives import ELBO, IWAE, Objective
from gdregs.torch.pull import pull
from gdregs.torch.reexpress import NoPriorPathError
from gdregs.torch.support import move_into

SECOND_RUN = 2.2
"""How long a step takes that runs model and guide more than once, in units of one that does not."""


class Bound(elbo.ELBO):
    r"""`gdregs.torch.bound` of a Pyro model and guide, for `pyro.infer.SVI`.

    Datapoints have importance weights of their own in the plates that enclose every site of model
    and guide; subsampling them, `scale`, `mask`, `obs_mask`, `pyro.factor`, parameters, modules and
    automatic guides work as they do with Pyro's objectives. Its loss is minus the bound, in nats,
    scaled to the whole data where it is subsampled.

    Args:
        num_particles: K, the number of importance samples.
        objective: `ELBO()`, `IWAE()`, `VRIWAE(alpha)`, `JVI()` of `gdregs.torch`, or an `Objective`
            of your own.
        posterior_estimator: As in `gdregs.torch.bound`, or `auto`: naive at first, and from then on
            the mix of naive and DReGs that had the least variance in the steps before.
        prior_estimator: The same, of naive and GDReGs.
        num_gradient_samples: M, as in `gdregs.torch.bound`.
        chunk_size: Where particles are vectorised, how many to look at at a time.
        vectorize_particles: True runs the program once, in an outermost plate of all particles, as
            Pyro's own objectives do; False runs it for one particle after another.
        max_plate_nesting: As in Pyro; found by a run of model and guide unless given.
        retain_graph: As in Pyro.
        strict_enumeration_warning: Taken as Pyro's objectives take it, and without effect.
        ignore_jit_warnings: Likewise.

    Raises:
        TypeError: If a number or the objective is not one.
        ValueError: If a number is below 1. When it is evaluated: if a latent is discrete or is in
            only one of model and guide; or if a plate that does not enclose every site is
            subsampled, unless the objective is the ELBO.

    Example:
        >>> import gdregs.pyro, pyro, pyro.distributions as dist, torch
        >>> pyro.set_rng_seed(0)
        >>> pyro.clear_param_store()
        >>> def model(data):
        ...     centre = pyro.param("centre", torch.tensor(0.0))
        ...     with pyro.plate("data", len(data)):
        ...         z = pyro.sample("z", dist.Normal(centre, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=data)
        >>> def guide(data):
        ...     slope = pyro.param("slope", torch.tensor(0.1))
        ...     with pyro.plate("data", len(data)):
        ...         pyro.sample("z", dist.Normal(slope * data, 0.7))
        >>> loss = gdregs.pyro.Bound(num_particles=16, vectorize_particles=True)
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss)
        >>> losses = [svi.step(torch.tensor([1.0, 2.0, 3.0])) for _ in range(200)]
        >>> abs(pyro.param("centre").item() - 2.0) < 0.2  # the mean of the data
        True

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021.
    """

    def __init__(
        self,
        num_particles: Any = 1,
        objective: Any = None,
        posterior_estimator: Any = AUTO,
        prior_estimator: Any = AUTO,
        *,
        num_gradient_samples: Any = None,
        chunk_size: Any = None,
        vectorize_particles: bool = False,
        max_plate_nesting: float = math.inf,
        retain_graph: bool | None = None,
        strict_enumeration_warning: bool = True,
        ignore_jit_warnings: bool = False,
    ):
        super().__init__(
            num_particles=positive_integer("num_particles", num_particles),
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            strict_enumeration_warning=strict_enumeration_warning,
            ignore_jit_warnings=ignore_jit_warnings,
            retain_graph=retain_graph,
        )
        self.objective = IWAE() if objective is None else objective
        check_objective(self.objective, Objective, "gdregs.torch")
        self.wanted = (posterior_estimator, prior_estimator)
        find_posterior_estimator(posterior_estimator)
        check_mix(
            find_prior_estimator(prior_estimator).mix, self, is_graph=False,
            graphs="gdregs.torch.Hierarchy",
        )  # fmt: skip
        self.num_gradient_samples, self.chunk_size = (
            None if value is None else positive_integer(name, value)
            for name, value in (
                ("num_gradient_samples", num_gradient_samples),
                ("chunk_size", chunk_size),
            )
        )
        self.auto = self._make_auto(prior=is_auto(prior_estimator))
        self._have_run: list[Any] = []

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Minus the bound, in nats."""
        with torch.no_grad():
            value = self._loss(model, guide, args, kwargs, *self._rows(*self.auto.estimators))
        warn_if_nan(value, "loss")
        return float(value)

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the bound, whose gradient is the estimator; `auto` does not learn from it."""
        loss = self._loss(model, guide, args, kwargs, *self._rows(*self.auto.estimators))
        warn_if_nan(loss, "loss")
        return loss

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """Minus the bound; its gradient is added to `.grad` of all parameters."""
        capture = poutine.trace(param_only=True)

        def loss_of(*estimators: Any) -> Tensor:
            return self._loss(model, guide, args, kwargs, *self._rows(*estimators))

        def parameters() -> list[Tensor]:
            sites: Any = capture.trace.nodes.values()
            return list({id(p): p for p in (_leaf(site["value"]) for site in sites)}.values())

        with capture:
            if any(map(is_auto, self.wanted)):
                loss = self._learn(loss_of, parameters)
            else:
                loss = loss_of(*self.wanted)
                if loss.requires_grad:
                    loss.backward(retain_graph=self.retain_graph)
        loss = loss.detach()
        warn_if_nan(loss, "loss")
        return float(loss)

    def _make_auto(self, *, prior: bool) -> Auto:
        """A naive step on all particles runs model and guide once, a mix more often."""
        kept = min(self.num_gradient_samples or self.num_particles, self.num_particles)
        of_posterior, of_both = WORK
        times = SECOND_RUN if kept == self.num_particles else 1.0
        return Auto(prior=prior, work=(times * of_posterior, times * of_both))

    def _learn(self, loss_of: Any, parameters: Any) -> Tensor:
        try:
            return self.auto.backward(loss_of, parameters, retain_graph=self.retain_graph)
        except NoPriorPathError as error:
            if not self.auto.prior:
                raise
            warnings.warn(f"{error} The automatic choice is naive from now on.", stacklevel=4)
            self.auto = self._make_auto(prior=False)
            return self.auto.backward(loss_of, parameters, retain_graph=self.retain_graph)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        """Pyro's own walks over traces: a bound has runs of its own instead."""
        raise NotImplementedError("gdregs.pyro.Bound is not a sum over the sites of one trace.")

    def _rows(self, posterior: Any, prior: Any) -> tuple[Any, Any]:
        """The estimators that were asked for, with these in the place of `auto`."""
        chosen = [
            learned if is_auto(wanted) else wanted
            for wanted, learned in zip(self.wanted, (posterior, prior), strict=True)
        ]
        return find_posterior_estimator(chosen[0]), find_prior_estimator(chosen[1])

    @property
    def _is_linear(self) -> bool:
        """Whether the objective is linear in the log-weights."""
        return isinstance(self.objective, ELBO) or self.num_particles == 1

    @property
    def _is_vectorized(self) -> bool:
        return self.vectorize_particles and self.num_particles > 1

    def _run_first(self, model, guide, args, kwargs) -> None:
        """Let automatic guides look at their model, and find out how deep the plates are."""
        guess = copy.copy(self)
        with torch.no_grad(), torch.random.fork_rng():
            guess._guess_max_plate_nesting(model, without_observed(guide), args, kwargs)
        if self.max_plate_nesting == math.inf:
            self.max_plate_nesting = guess.max_plate_nesting
        self._have_run.append((model, guide))

    def _loss(self, model, guide, args, kwargs, posterior_row, prior_row) -> Tensor:
        if not any(model is one and guide is other for one, other in self._have_run):
            self._run_first(model, guide, args, kwargs)
        if (
            isinstance(self.objective, ELBO)
            and self.num_particles > 1
            and not (self.vectorize_particles or self.num_gradient_samples)
        ):
            # As Pyro's: particles add up, and each draws its own part of the data.
            alone = copy.copy(self)
            alone.num_particles = 1
            losses = [
                alone._loss(model, guide, args, kwargs, posterior_row, prior_row)
                for _ in range(self.num_particles)
            ]
            return torch.stack(losses).mean()
        all_naive = is_naive(posterior_row, prior_row)
        kept = min(self.num_gradient_samples or self.num_particles, self.num_particles)
        is_live = torch.is_grad_enabled() and kept == self.num_particles and all_naive
        look = Look(self, model, guide, (args, kwargs), all_naive)
        z, log_weights = look.all(is_live=is_live)
        scale = look.model.layout.scale
        if z is None:
            same = log_weights.expand(self.num_particles, *log_weights.shape)
            return -self.objective(same).sum() * scale
        with torch.no_grad():
            value, weighed = weights.weigh(self.objective, z, log_weights.detach())
            weighed = weighed._replace(has_factors=look.has_factors)
            if kept < self.num_particles:
                weighed = weights.choose(weighed, kept)
        if is_live and bool((weighed.v != 0).all()):
            # The naive gradient: everything was live in the one run of model and guide.
            value = with_gradient(value, (weighed.v * log_weights).sum(0))
        elif torch.is_grad_enabled():
            parts = weights.Model(look.guide, look.model, look.likelihood, self.num_particles, None)
            networks = () if all_naive and kept == self.num_particles else (model, guide)
            with refusing_batch_norm(*networks, is_repeated=True):
                if not all_naive:
                    weighed = weighed._replace(has_factors=look.find_points(z, prior_row))
                value = with_gradient(value, pull(parts, weighed, posterior_row, prior_row))
        return -value.sum() * scale


class Look:
    """Model and guide of one step, and the first run of both."""

    def __init__(self, bound: Bound, model: Any, guide: Any, arguments: Any, is_naive: bool):
        self.bound, self.is_naive = bound, is_naive
        plates: dict[str, Tensor] = {}
        particles = -int(bound.max_plate_nesting) if bound._is_vectorized else None
        self.automatic = guide
        self.guide = Guide(without_observed(guide), arguments, particles, plates)
        self.model = Model(model, arguments, particles, plates)
        self.has_factors = weights.HasFactors(False, False)
        self.computed: list[str] = []

    def all(self, *, is_live: bool = False) -> tuple[Any, Tensor]:
        """The latents of all particles, None where there are none, and their log-weights.

        Where they are live, the weights have the derivative by all parameters, along the path too.
        """
        bound = self.bound
        size = bound.chunk_size or bound.num_particles if bound._is_vectorized else 1
        sizes = [size] * (bound.num_particles // size)
        if sum(sizes) < bound.num_particles:
            sizes.append(bound.num_particles - sum(sizes))
        blocks = []
        for number, size in enumerate(sizes):
            with torch.set_grad_enabled(is_live):
                drawn = self.guide.run(size, self._draw_live if is_live else None)
                values, flags, sites = self._weigh(latents(drawn), size)
            if number == 0:
                self._read(sites, drawn)
            if not latents(sites):
                return None, self._without_latents()
            with torch.set_grad_enabled(is_live):
                blocks.append(self._log_weights(values, flags, sites, drawn, size))
        z, log_weights = zip(*blocks, strict=True)
        z = {name: value.detach() for name, value in self.model.gather(list(z)).items()}
        return z, self.model.gather(list(log_weights))

    def find_points(self, z: Any, prior_row: Any) -> weights.HasFactors:
        """Tell the model of the guide's point estimates.

        Returns:
            Whether densities have factors; a value that the guide computes has 0.
        """
        has_prior_path = prior_row.has_path
        found = find_computed(self.guide, self.computed, z, has_prior_path=has_prior_path)
        self.model.points, self.guide.flows = found.points, found.flows
        of_posterior, of_prior = self.has_factors
        return weights.HasFactors(of_posterior or found.are_learned, of_prior)

    def likelihood(self, z: Any) -> Tensor:
        """The log-density of what is no part of the posterior or prior."""
        log_likelihood = self.model.likelihood(z)
        if not self.guide.flows:
            return log_likelihood
        return log_likelihood - self.guide.log_prob_of_flows(z)

    def _draw_live(self, site: Any) -> Tensor:
        """A draw that follows its path."""
        if self.guide.computes(site["fn"]):
            return site["fn"].rsample()
        with torch.no_grad():
            drawn = site["fn"]()
        return moved(site, drawn, POSTERIOR)

    def _weigh(self, drawn: Any, size: int) -> Any:
        """Run the model at what the guide drew, moved into the model's supports."""
        values = {name: site["value"] for name, site in drawn.items()}
        flags: dict[str, Tensor] = {}

        def at(site):
            fn, name = site["fn"], site["name"]
            if name not in values or fn.support.is_discrete:
                return values.get(name)
            values[name], inside = move_into(fn, factors_of(site), values[name])
            if inside is not None:
                flags[name] = inside
            return values[name]

        return values, flags, self.model.run(size, at)

    def _read(self, sites: Any, drawn: Any) -> None:
        """What the first run says of all others."""
        read_sites(sites, drawn, self.is_naive)
        for site in latents(drawn).values():
            warn_of_lost_digits(site["fn"])
        layout = read_layout(sites, drawn, self.model.particles, self.bound._is_linear)
        self.guide.layout = self.model.layout = layout
        self.has_factors = weights.HasFactors(
            *(
                any(factors_of(site, layout.scale) is not None for site in latents(one).values())
                for one in (drawn, sites)
            )
        )
        self.computed = computed_sites(self.automatic, drawn)
        is_vectorized = self.model.particles is not None
        self.model.inverses = inverses(self.automatic, sites, drawn, is_vectorized)

    def _without_latents(self) -> Tensor:
        """The log-density of what is observed, which is live; of one particle, `[*batch]`."""
        total: Any = 0.0
        for program, sign in ((self.model, 1), (self.guide, -1)):
            particles, program.particles = program.particles, None
            sites = observed(program.run(1))
            program.particles = particles
            one = self.model.layout._replace(particles=None)
            total = total + sign * one.add_up(sites, 1, {})
        return total

    def _log_weights(self, values, flags, sites, drawn, size) -> tuple[Any, Tensor]:
        layout = self.model.layout
        log_weights = layout.add_up(observed(sites), size, values)
        for sign, one, gates in ((1, sites, PRIOR), (-1, drawn, POSTERIOR)):
            log_prob, _ = layout.add_up_latents(latents(one), size, values, gates)
            log_weights = log_weights + sign * log_prob
        for inside in flags.values():
            outside = torch.where(inside, 0.0, -math.inf).to(log_weights.dtype)
            log_weights = log_weights + layout.reduce(outside)
        log_weights = log_weights.masked_fill(log_weights.isnan(), -math.inf)
        return layout.to_front(values), log_weights


def _leaf(value: Any) -> Tensor:
    return value.unconstrained() if hasattr(value, "unconstrained") else value
