"""What one run of guide and model says of their sites, before any number is computed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer import autoguide

from gdregs.numpyro.programs import Guide
from gdregs.numpyro.sites import (
    AtSites,
    Sites,
    as_is,
    is_delta,
    is_enumerated,
    latents,
    sample_sites,
    unwrapped,
)
from gdregs.reexpression.factors import factor_of
from gdregs.reexpression.paths import separate
from gdregs.reexpression.reparameterized import depend


def trace_program(program: Any, data: Any, args: Any, kwargs: Any) -> Any:
    """A program's trace at given values."""
    return handlers.trace(handlers.substitute(program, data=data)).get_trace(*args, **kwargs)


def values_of_type(kind: str, *traces: Any) -> dict[str, Any]:
    """The values of all sites of a type, of the last trace that has them."""
    sites = {name: site for trace in traces for name, site in trace.items()}
    return {name: site["value"] for name, site in sites.items() if site["type"] == kind}


def check_sites(model_trace: Any, guide_trace: Any) -> None:
    """Every latent is drawn by the guide, is continuous, and has the shape that the model says."""
    for name, site in sample_sites(guide_trace).items():
        if is_enumerated(site):
            raise ValueError(
                f"The guide enumerates site {name!r}: leave it out of the guide, and enumerate it"
                f" in the model, which sums it out."
            )
    drawn, needed = latents(sample_sites(guide_trace)), latents(sample_sites(model_trace))
    auxiliary = {name for name, site in drawn.items() if site["infer"].get("is_auxiliary")}
    for name in needed:
        if needed[name]["fn"].is_discrete:
            raise ValueError(
                f"Site {name!r} is a discrete latent, which has no gradient. "
                + (
                    f"Sum it out: numpyro.sample({name!r}, ..., infer={{'enumerate': 'parallel'}}),"
                    f" without a site in the guide."
                    if needed[name]["fn"].has_enumerate_support
                    else "It has too many values to be summed out: marginalise it by hand."
                )
            )
        if name not in drawn:
            raise ValueError(f"The model's latent site {name!r} is missing in the guide.")
        shapes = [jnp.shape(drawn[name]["value"]), tuple(needed[name]["fn"].shape())]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"Site {name!r} has shape {shapes[0]} in the guide and {shapes[1]} in the model."
            )
    for name in drawn:
        if name not in needed and name not in auxiliary:
            raise ValueError(
                f"The guide's site {name!r} is missing in the model. If it is auxiliary, say so:"
                f" numpyro.sample({name!r}, ..., infer={{'is_auxiliary': True}})."
            )
    for name, site in drawn.items():
        if site["fn"].is_discrete:
            raise ValueError(f"Site {name!r} is a discrete latent, which has no gradient.")


def find_points(
    guide: Guide, guide_trace: Any, model_trace: Any, *, is_naive: bool, moves_prior: bool
) -> tuple[tuple[str, ...], bool]:
    """The latents of which a guide has one value, whatever it draws: point estimates.

    Returns:
        Their names, and whether any value that the guide computes has parameters of its own.

    Raises:
        ValueError: If the density of a computed value depends on a parameter, which only the naive
            estimator accounts for; or a computed value on a latent of the model, where the prior's
            estimator is not naive.
    """
    sites = latents(sample_sites(guide_trace))
    computed = sorted(name for name, site in sites.items() if is_delta(site["fn"]))
    if not computed:
        return (), False
    drawn = {name: site["value"] for name, site in sites.items() if name not in computed}

    def values(guide: Guide, z: Any) -> list[tuple[Any, Any]]:
        found = guide.run(AtSites(z, as_is))
        fns = [unwrapped(found[name]["fn"]) for name in computed]
        return [(fn.v, fn.log_density) for fn in fns]

    by_latents = depend(lambda z: values(guide, z), drawn)[::2]
    parameters, with_parameters = separate(guide.params)
    by_parameters = depend(
        lambda new: values(dataclasses.replace(guide, params=with_parameters(new)), drawn),
        parameters,
    )
    for name, moves, density in zip(computed, by_latents, by_parameters[1::2], strict=True):
        if moves and density and not is_naive:
            raise ValueError(
                f"The guide computes site {name!r} from others with a density that depends on"
                f" parameters, which only the estimators 'naive' account for."
            )
    in_model = {name: value for name, value in drawn.items() if name in model_trace}
    if moves_prior and any(depend(lambda z: values(guide, {**drawn, **z}), in_model)):
        raise ValueError(
            f"The guide computes one of the sites {computed} from other latents of the model, so"
            f" that the prior's density of them cannot be reweighted. Use prior_estimator='naive'."
        )
    points = [name for name, moves in zip(computed, by_latents, strict=True) if not moves]
    return tuple(points), any(by_parameters[::2])


def check_factors(program: Any, trace: Any) -> None:
    """An error if the mask or the scale of a latent depends on latents or parameters."""
    z = {name: site["value"] for name, site in latents(sample_sites(trace)).items()}
    parameters, with_parameters = separate(program.params)

    def factors(parameters: Any, z: Any) -> dict[str, Any]:
        moved = dataclasses.replace(program, params=with_parameters(parameters))
        sites = latents(moved.run(AtSites(z, as_is)))
        return {
            name: (site["scale"], factor_of(site["fn"], site["value"]))
            for name, site in sites.items()
        }

    if any(depend(factors, parameters, z)):
        raise ValueError(
            "The mask or scale of a latent depends on another latent or on a parameter, which only"
            " the estimators 'naive' account for. Make it a constant, or use those."
        )


def find_inverses(guide: Any, model_sites: Sites, guide_sites: Sites) -> dict[str, Callable]:
    """Auxiliary sites of automatic guides, as functions of the latents computed from them."""

    def unconstrain(name, value):
        return biject_to(model_sites[name]["fn"].support).inv(value)

    inverses: dict[str, Callable] = {}
    suffix = "_unconstrained"
    for name, site in latents(guide_sites).items():
        if name in model_sites:
            continue
        source = name.removesuffix(suffix)
        if name.endswith(suffix) and source in model_sites and is_delta(guide_sites[source]["fn"]):
            inverses[name] = lambda path, source=source: unconstrain(source, path[source])
        elif isinstance(guide, autoguide.AutoContinuous) and hasattr(guide, "_unpack_latent"):
            unpack, latent = guide._unpack_latent, site["value"]
            unpacked = jax.eval_shape(unpack, latent)
            if all(
                value.shape == jnp.shape(unconstrain(part, model_sites[part]["value"]))
                for part, value in unpacked.items()
            ):  # otherwise the guide runs a chain of its own
                inverses[name] = _packing(unpack, latent, unconstrain)
    return inverses


def _packing(unpack: Any, latent: Float[Array, "..."], unconstrain: Callable) -> Callable:
    """The inverse of `unpack`, which only moves numbers: its transpose."""
    pack = jax.linear_transpose(lambda x: dict(unpack(x)), jnp.zeros_like(latent))

    def inverse(path):
        names = jax.eval_shape(unpack, latent)
        (packed,) = pack({name: unconstrain(name, path[name]) for name in names})
        return packed

    return inverse
