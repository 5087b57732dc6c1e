"""What the first run of model and guide says of all others: sites, plates, scales, inverses."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.infer import autoguide
from torch import Tensor
from torch.distributions import biject_to

from gdregs.pyro.layout import Layout, Sites, Values
from gdregs.pyro.programs import Guide, is_delta, latents, observed
from gdregs.torch.dependence import dependence_of
from gdregs.torch.hierarchy import as_leaf
from gdregs.torch.reexpress import NoPriorPathError


def read_sites(model_sites: Sites, guide_sites: Sites, is_naive: bool) -> None:
    """Every latent is drawn by the guide, is continuous, and has the shape that the model says."""
    drawn, needed = latents(guide_sites), latents(model_sites)
    factors = sorted(observed(guide_sites))
    if factors and not is_naive:
        raise ValueError(
            f"The guide adds the factor {factors[0]!r} to its density, so that its latents are"
            f" not drawn from it, and only the estimators 'naive' are unbiased."
        )
    for name, site in (*needed.items(), *drawn.items()):
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"Site {name!r} is a discrete latent, which has no gradient. Marginalise it by"
                f" hand, for example with pyro.distributions.MixtureSameFamily, or use pyro's"
                f" TraceEnum_ELBO."
            )
    for name, site in needed.items():
        if name not in drawn:
            raise ValueError(f"The model's latent site {name!r} is missing in the guide.")
        shapes = [
            tuple(one["fn"].batch_shape + one["fn"].event_shape) for one in (drawn[name], site)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"Site {name!r} has shape {shapes[0]} in the guide and {shapes[1]} in the model."
            )
    for name, site in drawn.items():
        if name not in needed and not site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"The guide's site {name!r} is missing in the model. If it is auxiliary, say so:"
                f" pyro.sample({name!r}, ..., infer={{'is_auxiliary': True}})."
            )


def read_layout(
    model_sites: Sites,
    guide_sites: Sites,
    particles: int | None,
    is_linear: bool,
) -> Layout:
    """The plates that enclose every site of both.

    Args:
        model_sites: Those of the model.
        guide_sites: Those of the guide.
        particles: The dimension of the plate of particles.
        is_linear: Whether the objective is linear in the log-weights.
    """
    sites = [*guide_sites.values(), *model_sites.values()]
    stacks = [
        {frame for frame in site["cond_indep_stack"] if frame.dim not in (None, particles)}
        for site in sites
    ]
    enclosing = set.intersection(*stacks) if stacks else set()
    for frame in set().union(*stacks) - enclosing:
        if _scale_of(frame) != 1 and not is_linear:
            raise ValueError(
                f"The plate {frame.name!r} is subsampled but does not enclose every site of model"
                f" and guide, so that its {frame.size} elements cannot stand for all of them inside"
                f" of one importance weight. Use objective=gdregs.torch.ELBO(), or the whole data."
            )
    scale = math.prod(_scale_of(frame) for frame in enclosing)
    dims = tuple(sorted(frame.dim for frame in enclosing))
    event_dims = {site["name"]: site["fn"].event_dim for site in sites}
    return Layout(dims, scale, event_dims, particles)


def _scale_of(frame: Any) -> float:
    """How many elements of the whole data one of a subsample stands for."""
    return 1.0 if frame.full_size is None else frame.full_size / frame.size


class Computed(NamedTuple):
    """What a guide computes (`Delta`) in the place of drawing it.

    Attributes:
        points: The latents of which it has one value, whatever it draws.
        are_learned: Whether a value that it computes has parameters of its own.
        flows: The sites whose density has, so that it is differentiated as the likelihood is.
    """

    points: frozenset[str] = frozenset()
    are_learned: bool = False
    flows: frozenset[str] = frozenset()


def find_computed(guide: Guide, names: list[str], z: Values, *, has_prior_path: bool) -> Computed:
    """Run the guide once more, and see what its computed values depend on.

    Args:
        guide: The guide.
        names: Its computed sites.
        z: Latents of particles.
        has_prior_path: Whether the prior's estimator has a path.
    """
    if not names:
        return Computed()
    values, size = next(guide.runs(z))
    values = {name: as_leaf(value) for name, value in values.items()}
    sites = guide.run(size, lambda site: guide.given(site, values))
    points, flows, are_learned = [], [], False
    for name in names:
        site = sites[name]
        on_latents, on_parameters = dependence_of(site["value"])
        are_learned = are_learned or on_parameters
        if dependence_of(site["fn"].log_prob(site["value"])).on_parameters:
            flows.append(name)
        if not on_latents:
            points.append(name)
        elif has_prior_path:
            raise NoPriorPathError(
                f"The guide computes site {name!r} from others, with which it has no density by"
                f" which the prior's samples could be reweighted. Use prior_estimator='naive'."
            )
    return Computed(frozenset(points), are_learned, frozenset(flows))


def computed_sites(guide: Any, guide_sites: Sites) -> list[str]:
    """The sites that a guide computes, without those that automatic guides transform."""
    transformed = {
        name
        for one in (guide if isinstance(guide, autoguide.AutoGuideList) else [guide])
        if isinstance(one, autoguide.AutoContinuous)
        for name in one._unconstrained_shapes
    }
    return [
        name
        for name, site in latents(guide_sites).items()
        if is_delta(site["fn"])
        and name not in transformed
        and f"{name}_unconstrained" not in guide_sites
    ]


def inverses(
    guide: Any, model_sites: Sites, guide_sites: Sites, is_vectorized: bool
) -> dict[str, Callable]:
    """Auxiliary sites of automatic guides, as functions of the latents computed from them."""

    def unconstrain(name: str, value: Tensor) -> Tensor:
        return biject_to(model_sites[name]["fn"].support).inv(value)

    automatic = {
        f"_{one._pyro_name}_latent": one
        for one in (guide if isinstance(guide, autoguide.AutoGuideList) else [guide])
        if isinstance(one, autoguide.AutoContinuous)
    }
    found: dict[str, Callable] = {}
    suffix = "_unconstrained"
    for name in latents(guide_sites):
        if name in model_sites:
            continue
        source = name.removesuffix(suffix)
        if name.endswith(suffix) and source in guide_sites and is_delta(guide_sites[source]["fn"]):

            def alone(path: Any, like: Tensor, source: str = source) -> Tensor:
                return unconstrain(source, path[source]).expand(like.shape)

            found[name] = alone
        elif name in automatic:

            def packed(path: Any, like: Tensor, guide: Any = automatic[name]) -> Tensor:
                lead = like.shape[:1] if is_vectorized else ()
                order = [site["name"] for site, _ in guide._unpack_latent(like)]
                parts = [unconstrain(one, path[one]).reshape(*lead, -1) for one in order]
                return torch.cat(parts, -1).reshape(like.shape)

            found[name] = packed
    return found
