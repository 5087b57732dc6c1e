"""The front-end for numpyro: an objective for `numpyro.infer.SVI`."""

import copy
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from numpyro import handlers
from numpyro.infer import elbo
from numpyro.util import not_jax_tracer

from gdregs.bound import Settings, evaluate
from gdregs.numpyro.enumeration import sum_out_discrete
from gdregs.numpyro.live import check_cost, pays, sum_of_bounds
from gdregs.numpyro.programs import Guide, Layout, Model
from gdregs.numpyro.reading import (
    check_factors,
    check_sites,
    find_inverses,
    find_points,
    trace_program,
    values_of_type,
)
from gdregs.numpyro.sites import is_enumerated, latents, observed, sample_sites
from gdregs.objectives import ELBO, IWAE, Objective
from gdregs.reexpression.factors import has_factor
from gdregs.shared.checks import positive_integer
from gdregs.shared.tables import AUTO, find_prior_estimator, is_auto, is_naive

_SHARED_TYPES = ["sample", "prng_key", "control_flow"]
_OWN_TYPES = ["sample", "plate", "control_flow"]


class Bound(elbo.ELBO):
    r"""`gdregs.bound` of a numpyro model and guide, for `numpyro.infer.SVI`.

    Datapoints have importance weights of their own in the plates that enclose every site of model
    and guide; subsampling them, `scale`, `mask`, `factor`, parameters, modules and automatic guides
    work as they do with numpyro's objectives. The latents of the model are re-expressed in its own
    order. Its loss is minus the bound, in nats, scaled to the whole data where it is subsampled.

    Args:
        num_particles: K, the number of importance samples.
        objective: `ELBO()`, `IWAE()`, `VRIWAE(alpha)`, `JVI()`, or an `Objective` of your own.
        posterior_estimator: As in `gdregs.bound`, or `auto`: naive at first, and from then on, in
            `gdregs.numpyro.SVI`, the mix of naive and DReGs that had the least variance. numpyro's
            own SVI has no place for what is learned: there `auto` is `naive`.
        prior_estimator: The same, of naive and GDReGs.
        num_gradient_samples: M, as in `gdregs.bound`.
        chunk_size: As in `gdregs.bound`.
        vectorize_particles: True evaluates all particles at once, False one after another.

    Raises:
        TypeError: If a number or the objective is not one.
        ValueError: If a number is below 1, or an option of numpyro's objectives is given that a
            bound cannot have (`sum_sites=False`, `multi_sample_guide=True`). When it is evaluated:
            if a latent is discrete, lies in a `scan`, or is in only one of model and guide; or if a
            plate that does not enclose every site is subsampled, unless the objective is the ELBO.

    Example:
        >>> import gdregs.numpyro, jax, numpyro, numpyro.distributions as dist, optax
        >>> def model(data):
        ...     centre = numpyro.param("centre", 0.0)
        ...     with numpyro.plate("data", len(data)):
        ...         z = numpyro.sample("z", dist.Normal(centre, 1.0))
        ...         numpyro.sample("x", dist.Normal(z, 1.0), obs=data)
        >>> def guide(data):
        ...     slope = numpyro.param("slope", 0.1)
        ...     with numpyro.plate("data", len(data)):
        ...         numpyro.sample("z", dist.Normal(slope * data, 0.7))
        >>> loss = gdregs.numpyro.Bound(num_particles=16)
        >>> svi = numpyro.infer.SVI(model, guide, optax.adam(0.05), loss)
        >>> data = jax.numpy.array([1.0, 2.0, 3.0])
        >>> result = svi.run(jax.random.key(0), 200, data, progress_bar=False)
        >>> bool(abs(result.params["centre"] - 2.0) < 0.2)  # the mean of the data
        True

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021.
    """

    can_infer_discrete = True  # numpyro asks: it sums them out, and refuses others by name

    def __init__(
        self,
        num_particles: Any = 1,
        objective: Any = IWAE(),
        posterior_estimator: Any = AUTO,
        prior_estimator: Any = AUTO,
        *,
        num_gradient_samples: Any = None,
        chunk_size: Any = None,
        vectorize_particles: Any = True,
        sum_sites: bool = True,
        multi_sample_guide: bool = False,
    ):
        super().__init__(positive_integer("num_particles", num_particles))
        if not isinstance(vectorize_particles, bool):
            raise ValueError(
                "vectorize_particles must be True or False: particles share their weights, so that"
                " a mapper of your own cannot run them apart; chunk_size streams over them."
            )
        if not sum_sites:
            raise ValueError(
                "sum_sites=False: a bound is not a sum over sites; numpyro's Trace_ELBO has terms."
            )
        if multi_sample_guide:
            raise ValueError(
                "multi_sample_guide=True: a bound draws its particles itself; use numpyro's"
                " Trace_ELBO for guides that draw them."
            )
        if not vectorize_particles and chunk_size is None:
            chunk_size = 1
        self.wanted = (posterior_estimator, prior_estimator)
        self.is_learning = False
        self.settings = Settings(
            objective, posterior_estimator, prior_estimator, num_gradient_samples, chunk_size
        )

    @property
    def is_auto(self) -> bool:
        """Whether an estimator is to be learned."""
        return any(map(is_auto, self.wanted))

    def with_estimators(self, posterior_estimator: Any, prior_estimator: Any) -> "Bound":
        """The same bound with these estimators in the place of those that are `auto`."""
        new = copy.copy(self)
        chosen = {
            name: given
            for name, wanted, given in (
                ("posterior_estimator", self.wanted[0], posterior_estimator),
                ("prior_estimator", self.wanted[1], prior_estimator),
            )
            if is_auto(wanted)
        }
        new.settings = self.settings._replace(**chosen)
        new.is_learning = True
        return new

    def loss_with_mutable_state(
        self,
        rng_key: PRNGKeyArray,
        param_map: dict[str, Any],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Minus the bound, and the state of the `mutable` sites after the first particle."""
        key, posterior, prior, mutable = self._read(rng_key, param_map, model, guide, args, kwargs)
        if mutable and self.num_particles > 1:
            warnings.warn(
                f"mutable state is that of the first of {self.num_particles} particles.",
                stacklevel=2,
            )
        if not prior.drawn:
            loss = self._loss_without_latents(posterior, prior)
            return {"loss": loss, "mutable_state": mutable}
        if prior.is_subsampled and self.num_particles > 1 and self._is_linear:
            # As numpyro's ELBO: particles add up, and each draws its own part of the data.
            alone = copy.copy(self)
            alone.num_particles = 1

            def loss_of_one(key):
                return alone.loss_with_mutable_state(key, param_map, model, guide, *args, **kwargs)[
                    "loss"
                ]

            losses = jax.vmap(loss_of_one)(jax.random.split(rng_key, self.num_particles))
            return {"loss": jnp.mean(losses), "mutable_state": mutable}
        if self.is_learning:
            check_cost(posterior, prior, key)
        settings = self.settings

        def values() -> Array:
            likelihood = prior.likelihood
            return evaluate(posterior, prior, likelihood, key, self.num_particles, settings)[0]

        if self._is_live(posterior, prior, key):
            parts = (posterior, prior, key, self.num_particles, settings.objective)
            total = sum_of_bounds(*parts, values)
        else:
            total = jnp.sum(values())
        return {"loss": -total * prior.layout.scale, "mutable_state": mutable}

    def _is_live(self, posterior: Guide, prior: Model, key: PRNGKeyArray) -> bool:
        """Whether it takes the naive gradient of all particles at once along the sampler."""
        settings, kept = self.settings, self.settings.num_gradient_samples
        return (
            self._is_naive
            and isinstance(settings.objective, Objective)
            and settings.chunk_size is None
            and (kept is None or (isinstance(kept, int) and kept >= self.num_particles))
            and pays(posterior, prior, key)
        )

    def _loss_without_latents(self, posterior: Guide, prior: Model) -> Array:
        """Minus the objective of weights that are all the same: the density of what is observed."""
        log_weight = prior.without_latents()
        log_posterior = posterior.without_latents()
        log_weight = log_weight - jnp.broadcast_to(log_posterior, log_weight.shape)
        same = jnp.broadcast_to(log_weight, (self.num_particles, *log_weight.shape))
        return -jnp.sum(self.settings.objective(same)) * prior.layout.scale

    def _read(self, rng_key, param_map, model, guide, args, kwargs):
        """Run guide and model once to see their sites, as numpyro's own objectives do."""
        plate_key, key = jax.random.split(rng_key)
        automatic = guide
        model, guide = (
            handlers.seed(program, plate_key, hide_types=_SHARED_TYPES)
            for program in (model, guide)
        )
        model_key, guide_key = jax.random.split(jax.random.split(key, self.num_particles)[0])
        # Dropout and the like (`prng_key`) is the same for all particles.
        model, guide = (
            handlers.seed(program, jax.random.fold_in(plate_key, i), _OWN_TYPES)
            for i, program in enumerate((model, guide))
        )
        guide_trace = trace_program(handlers.seed(guide, guide_key), param_map, args, kwargs)
        state = {**param_map, **values_of_type("mutable", guide_trace)}
        replayed = handlers.replay(handlers.seed(model, model_key), guide_trace)
        model_trace = trace_program(replayed, state, args, kwargs)
        mutable = values_of_type("mutable", guide_trace, model_trace)
        plates = values_of_type("plate", guide_trace, model_trace)
        check_sites(model_trace, guide_trace)
        layout = self._layout(model_trace, guide_trace)
        inverses = find_inverses(automatic, sample_sites(model_trace), sample_sites(guide_trace))
        self._check_factors(guide_trace)
        posterior = Guide(guide, layout, param_map, plates, (args, kwargs))
        points, is_learned = find_points(
            posterior,
            guide_trace,
            model_trace,
            is_naive=self._is_naive,
            moves_prior=find_prior_estimator(self.settings.prior_estimator).has_path,
        )
        has_factors = is_learned or self._has_factors(layout, model_trace, guide_trace)
        posterior = dataclasses.replace(posterior, has_factors=has_factors)
        drawn = tuple(latents(sample_sites(guide_trace)))
        is_subsampled = any(
            site["type"] == "plate" and len(site["value"]) < site["args"][0]
            for trace in (guide_trace, model_trace)
            for site in trace.values()
        )
        fields = (layout, param_map, plates, (args, kwargs), inverses, drawn, is_subsampled)
        parts = (*fields, points)
        if any(map(is_enumerated, sample_sites(model_trace).values())):
            prior = sum_out_discrete(model, parts, model_trace, guide_trace)
        else:
            prior = Model(model, *parts)
        prior = dataclasses.replace(prior, has_factors=has_factors)
        if has_factors and not self._is_naive:
            check_factors(posterior, guide_trace)
            check_factors(prior, model_trace)
        return key, posterior, prior, mutable or None

    @property
    def _is_linear(self) -> bool:
        """Whether the objective is linear in the log-weights."""
        return isinstance(self.settings.objective, ELBO) or self.num_particles == 1

    @property
    def _is_naive(self) -> bool:
        return is_naive(self.settings.posterior_estimator, self.settings.prior_estimator)

    def _check_factors(self, guide_trace: Any) -> None:
        """A guide that adds factors does not draw from what it says is its density."""
        factors = sorted(observed(sample_sites(guide_trace)))
        if factors and not self._is_naive:
            raise ValueError(
                f"The guide adds the factor {factors[0]!r} to its density, so that its latents are"
                f" not drawn from it, and only the estimators 'naive' are unbiased."
            )

    def _has_factors(self, layout: Layout, model_trace: Any, guide_trace: Any) -> bool:
        """Whether a mask or a scale makes the density of a latent enter the weight otherwise."""
        ours, theirs = (latents(sample_sites(trace)) for trace in (model_trace, guide_trace))
        scales = [
            {name: 1.0 if site["scale"] is None else site["scale"] for name, site in sites.items()}
            for sites in (ours, theirs)
        ]
        if any(has_factor(site["fn"]) for sites in (ours, theirs) for site in sites.values()):
            return True
        if self._is_linear and scales[0].keys() == scales[1].keys():
            # One factor for both densities of a latent leaves a linear objective as it is.
            return any(not _is_close(scales[0][name], scales[1][name]) for name in scales[0])
        return any(not _is_close(scale, layout.scale) for part in scales for scale in part.values())

    def _layout(self, model_trace: Any, guide_trace: Any) -> Layout:
        """The plates that enclose every site of both, and the sites' event axes."""
        sites = {**sample_sites(guide_trace), **sample_sites(model_trace)}
        stacks = [
            {(frame.name, frame.dim, frame.size) for frame in site["cond_indep_stack"]}
            for trace in (model_trace, guide_trace)
            for site in sample_sites(trace).values()
        ]
        enclosing = set.intersection(*stacks) if stacks else set()
        scales = {}
        for name, _, size in set().union(*stacks):
            trace = model_trace if name in model_trace else guide_trace
            # A plate inside of a scan is not in the trace.
            scales[name] = trace[name]["args"][0] / size if name in trace else 1.0
        for name, _, size in set().union(*stacks) - enclosing:
            if scales[name] != 1 and not self._is_linear:
                has_sums = any(map(is_enumerated, sample_sites(model_trace).values()))
                remedy = (
                    "the whole data" if has_sums else "objective=gdregs.ELBO(), or the whole data"
                )
                raise ValueError(
                    f"The plate {name!r} is subsampled but does not enclose every site of model and"
                    f" guide, so that its {size} elements cannot stand for all of them inside of"
                    f" one importance weight. Use {remedy}."
                )
        scale = 1.0
        for name, _, _ in enclosing:
            scale *= scales[name]
        dims = tuple(sorted(dim for _, dim, _ in enclosing))
        return Layout(dims, scale, tuple((n, s["fn"].event_dim) for n, s in sites.items()))


def _is_close(a: Any, b: Any) -> bool:
    """Whether two numbers are known to be the same."""
    if not_jax_tracer(a) and not_jax_tracer(b):
        return bool(np.allclose(a, b, rtol=1e-6, atol=0))
    return a is b
