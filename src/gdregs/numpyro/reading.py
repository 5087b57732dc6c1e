"""What one run of guide and model says of their sites, before any number is computed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer import autoguide

from gdregs.numpyro.programs import Sites, is_delta, is_enumerated, latents, sample_sites


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
