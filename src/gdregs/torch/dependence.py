"""Whether a tensor depends on latents, and on parameters."""

from typing import Any, NamedTuple

from torch import Tensor

LATENTS = ("_ForkBackward", "_LinkBackward")
"""The nodes of autograd's graph by which a tensor depends on latents."""


class Dependence(NamedTuple):
    """What a tensor's graph ends at.

    Attributes:
        on_latents: Whether it ends at latents; it is not followed any further there.
        on_parameters: Whether it ends at other leaves.
    """

    on_latents: bool
    on_parameters: bool


def dependence_of(value: Tensor) -> Dependence:
    """What a tensor depends on, as far as it is differentiated."""
    on_latents = on_parameters = False
    if value.is_leaf and value.requires_grad:
        is_latent = getattr(value, "is_latent", False)
        return Dependence(is_latent, not is_latent)
    seen, rest = set(), [value.grad_fn]
    while rest:
        node: Any = rest.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ in LATENTS:
            on_latents = True
        elif type(node).__name__ == "AccumulateGrad":
            is_latent = getattr(node.variable, "is_latent", False)
            on_latents, on_parameters = on_latents or is_latent, on_parameters or not is_latent
        else:
            rest.extend(above for above, _ in node.next_functions)
    return Dependence(on_latents, on_parameters)
