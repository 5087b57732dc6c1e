r"""Discrete latents, summed out of a numpyro model.

A latent c that is marked `infer={"enumerate": "parallel"}` is no latent of the bound: the model's
density is $p(x, z) = \sum_c p(x, z, c)$, as in numpyro's `TraceEnum_ELBO`, by funsor's variable
elimination. With $\log p(x, z) = \log p(z_P) + \log \sum_c p(x, z_R, c \mid z_P)$ the latents $z_P$
that do not depend on a discrete one are the prior, with every estimator; the rest of the sum is
the likelihood, whose parameters have the gradient $v \nabla \log p$.
"""

import dataclasses
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro import handlers

from gdregs.numpyro.programs import Model
from gdregs.numpyro.sites import AtSites, Sites, Values, as_is, is_enumerated

STEPS, BEFORE = "_time_", "_PREV_"
"""What numpyro's names of a scan's dimensions begin with: over steps, and over the step before."""


def some_value(site: Any) -> Array | None:
    """A value for a discrete latent where none matters; None for any other site."""
    if site["type"] != "sample" or not is_enumerated(site):
        return None
    return site["fn"].enumerate_support(expand=True)[0]


class Factor(NamedTuple):
    """The log-density of a site, with the names of its dimensions, and its scale."""

    name: str
    log_prob: Any  # a funsor
    scale: Any
    plates: frozenset[str]
    is_discrete: bool


class EnumeratedModel(Model):
    """A model whose discrete latents are summed out.

    Attributes:
        summed: The program, with its discrete latents; `function` has some value for each.
        plate_dims: The enclosing plates by dimension.
        first_dim: The first dimension, from the right, that no plate uses.
        free: The latents that depend on no discrete one.
    """

    summed: Callable = eqx.field(static=True)
    plate_dims: tuple[tuple[str, int], ...] = eqx.field(static=True)
    first_dim: int = eqx.field(static=True)
    free: tuple[str, ...] = eqx.field(static=True, default=())

    def log_prob(self, z: Values) -> Array:
        """The log-density of the latents that depend on no discrete one."""
        return self._evaluate(z, lambda sites: {name: sites[name] for name in self.free})

    def likelihood(self, z: Values) -> Array:
        """The log-density of everything else, given those, with all discrete latents summed out."""

        def one(z):
            batch = next(iter(z.values())).shape[: len(self.layout.dims)]
            return jnp.broadcast_to(self._sum_out(self.layout.to_place(z)), batch)

        return jax.vmap(one)(z)

    def without_latents(self) -> Array:
        """The log-density of a model that has discrete latents only, `[*batch]`."""
        return self._sum_out({})

    def is_moved(self, name: str) -> bool:
        """Whether the prior has a path for a latent."""
        return name in self.free

    def find_free(self, z: Values) -> tuple[str, ...]:
        """The latents at z, of one particle and in place, that depend on no discrete one."""
        free: list[str] = []

        def look():
            for factor in self._factors(z):
                is_drawn = factor.name in z and factor.name not in self.points
                if is_drawn and not _sums_of(factor):
                    free.append(factor.name)

        jax.eval_shape(look)
        return tuple(free)

    def _factors(self, z: Values) -> list[Factor]:
        try:
            import funsor
            from numpyro.contrib.funsor import enum, plate_to_enum_plate, trace
        except ImportError:
            raise ImportError(
                "Discrete latents are summed out by funsor: pip install 'gdregs[discrete]'."
            ) from None
        args, kwargs = self.arguments
        at = AtSites(z, as_is)
        at.fn = handlers.substitute(self.summed, data={**self.params, **self.plates})
        with plate_to_enum_plate(), enum(first_available_dim=self.first_dim):
            sites: Sites = trace(at).get_trace(*args, **kwargs)
        factors = []
        for name, site in sites.items():
            if site["type"] != "sample":
                continue
            log_prob = site["fn"].log_prob(site["value"])
            names = site["infer"]["dim_to_name"]
            if not names and log_prob.size == 1:
                log_prob = jnp.reshape(log_prob, ())
            factors.append(
                Factor(
                    name,
                    funsor.to_funsor(log_prob, output=funsor.Real, dim_to_name=names),
                    site["scale"],
                    frozenset(f.name for f in site["cond_indep_stack"] if f.dim is not None),
                    is_enumerated(site),
                )
            )
        return factors

    def _sum_out(self, z: Values) -> Array:
        """The log-density of all sites but the free latents, `[*batch]`."""
        factors = [factor for factor in self._factors(z) if factor.name not in self.free]
        total = jnp.zeros(())
        for group in _connected(factors):
            log_prob = self._as_array(_eliminate(group, frozenset(dict(self.plate_dims))))
            scale = _common_scale(group)
            if scale is not None:
                log_prob = log_prob * (scale / self.layout.scale)
            total = log_prob + jnp.broadcast_to(total, log_prob.shape)
        return total

    def _as_array(self, log_prob: Any) -> Array:
        """A funsor over enclosing plates, with these plates in order."""
        import funsor

        data = funsor.to_data(log_prob, name_to_dim=OrderedDict(self.plate_dims))
        missing = max((-dim for dim in self.layout.dims), default=0) - data.ndim
        data = jnp.reshape(data, (1,) * max(missing, 0) + data.shape)
        return self.layout.reduce(jnp.sum, data)


def sum_out_discrete(
    program: Callable, parts: tuple, model_trace: Any, guide_trace: Any
) -> EnumeratedModel:
    """The model of a program with enumerated sites.

    Args:
        program: The program.
        parts: The fields of a `Model` behind its program.
        model_trace: A trace of the program.
        guide_trace: A trace of the guide.
    """
    layout = parts[0]
    samples = [
        site
        for trace in (model_trace, guide_trace)
        for site in trace.values()
        if site["type"] == "sample"
    ]
    frames = {frame for site in samples for frame in site["cond_indep_stack"]}
    nesting = max(
        (len(site["fn"].batch_shape) - bool(site.get("_control_flow_done")) for site in samples),
        default=0,
    )
    nesting = max([nesting, *(-frame.dim for frame in frames)])
    model = EnumeratedModel(
        handlers.substitute(program, substitute_fn=some_value),
        *parts,
        summed=program,
        plate_dims=tuple(
            (f.name, f.dim) for f in sorted(frames, key=lambda f: f.dim) if f.dim in layout.dims
        ),
        first_dim=-nesting - 1,
    )
    z = {
        name: site["value"]
        for name, site in guide_trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }
    return dataclasses.replace(model, free=model.find_free(z))


def _sums_of(factor: Factor) -> frozenset[str]:
    """The dimensions of a factor that are summed over or belong to a scan."""
    return frozenset(
        name
        for name in factor.log_prob.inputs
        if name not in factor.plates or name.startswith((STEPS, BEFORE))
    )


def _connected(factors: list[Factor]) -> list[list[Factor]]:
    """Factors that share a discrete latent belong together; any other is alone."""
    groups: list[tuple[frozenset[str], list[Factor]]] = []
    for factor in factors:
        sums, members = _sums_of(factor), [factor]
        others = []
        for group in groups:
            if sums & group[0]:
                sums, members = sums | group[0], group[1] + members
            else:
                others.append(group)
        groups = [*others, (sums, members)]
    return [members for _, members in groups]


def _common_scale(group: list[Factor]) -> Any:
    scales = [1.0 if factor.scale is None else factor.scale for factor in group]
    if any(scale is not scales[0] and bool(scale != scales[0]) for scale in scales):
        names = sorted(factor.name for factor in group)
        raise ValueError(
            f"The sites {names} are summed over a discrete latent together, but have different"
            f" scales (handlers.scale, or a subsampled plate around some of them). Use the whole"
            f" data, or put the same plates and scale around all of them."
        )
    return group[0].scale


def _eliminate(group: list[Factor], enclosing: frozenset[str]) -> Any:
    """Sum over discrete latents, multiply over plates and steps; the enclosing plates are left."""
    import funsor
    import funsor.optimizer
    from numpyro.contrib.funsor.infer_util import compute_markov_factors

    plates = frozenset().union(*(factor.plates for factor in group))
    sums = frozenset(factor.name for factor in group if factor.is_discrete)
    plain, steps, befores, kept = [], defaultdict(list), defaultdict(frozenset), {}
    for factor in group:
        inputs = factor.log_prob.inputs
        times = [name for name in inputs if name.startswith(STEPS)]
        if not times:
            plain.append(factor.log_prob)
            continue
        time = funsor.Variable(times[0], inputs[times[0]])
        steps[time].append(factor.log_prob)
        befores[time] |= frozenset(n for n in inputs if n.startswith(BEFORE))
    for time, names in befores.items():
        current = {name.replace(BEFORE, "") for name in names}
        kept[time] = frozenset(
            name for factor in group if factor.name in current for name in factor.log_prob.inputs
        )
    add, log_add = funsor.ops.add, funsor.ops.logaddexp
    if any(befores.values()):
        history = max(name.count(BEFORE) for names in befores.values() for name in names)
        plain += compute_markov_factors(steps, befores, kept, sums, plates, history, log_add, add)
    else:  # steps that do not depend on each other
        plain += [log_prob for factors in steps.values() for log_prob in factors]
        plates |= frozenset(time.name for time in steps)
    with funsor.interpretations.lazy:
        lazy = funsor.sum_product.sum_product(
            log_add, add, plain, eliminate=sums | (plates - enclosing), plates=plates
        )
    return funsor.optimizer.apply_optimizer(lazy)
