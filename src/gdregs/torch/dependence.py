"""Whether a tensor depends on latents, and on parameters."""

from collections.abc import Iterator
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
    ends = list(_ends(value))
    is_latent = [end is None or getattr(end, "is_latent", False) for end in ends]
    return Dependence(any(is_latent), not all(is_latent))


def leaves_of(value: Tensor) -> list[Tensor]:
    """The leaves that a tensor depends on, without latents."""
    return [end for end in _ends(value) if end is not None and not getattr(end, "is_latent", False)]


def _ends(value: Tensor) -> Iterator[Tensor | None]:
    """The leaves of a tensor's graph; None where it depends on latents that have a path."""
    if value.is_leaf:
        if value.requires_grad:
            yield value
        return
    seen, rest = set(), [value.grad_fn]
    while rest:
        node: Any = rest.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ in LATENTS:
            yield None
        elif type(node).__name__ == "AccumulateGrad":
            yield node.variable
        else:
            rest.extend(above for above, _ in node.next_functions)
