"""The ends of a support, which may not move with a parameter, through a chain of transforms."""

import math
from typing import Any

import torch
import torch.distributions as dist
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import _InverseTransform

from gdregs.torch.reexpress import hold

Ends = tuple[Any, Any] | None
"""The least and the largest value, or infinities; None for a support that is no interval."""


def hold_ends(name: str, support: Any, steps: list[Any]) -> None:
    """An error if an end of the support is moved by a parameter that is being differentiated.

    An end that is infinite stays where it is, and so does 0 if it is scaled.

    Args:
        name: The family, for the error.
        support: That of the distribution which is transformed.
        steps: The transforms, in order.
    """
    ends = ends_of(support)
    for step in steps:
        hold(name, *_moving(step, ends))
        ends = _after(step, ends)


def ends_of(support: Any) -> Ends:
    """The ends of a support."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if isinstance(support, type(constraints.real)):
        return -math.inf, math.inf
    if not hasattr(support, "lower_bound") and not hasattr(support, "upper_bound"):
        return None
    return getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)


def _moving(step: Any, ends: Ends) -> list[Any]:
    """The parameters by which a transform moves ends."""
    is_inverse = isinstance(step, _InverseTransform)
    affine = step.inv if is_inverse else step
    if not isinstance(affine, dist.AffineTransform):
        return []
    parameters = [affine.loc, affine.scale]
    if ends is None:
        return parameters
    if not any(isinstance(one, Tensor) and one.requires_grad for one in parameters):
        return []
    finite = [end for end in ends if not _is_all(end, math.inf) and not _is_all(end, -math.inf)]
    is_scaled = is_inverse or not all(_is_all(end, 0.0) for end in finite)
    return parameters[: bool(finite) * (1 + is_scaled)]


def _is_all(end: Any, value: Any) -> bool:
    if not isinstance(end, Tensor):
        return end == value
    # (A program that is compiled does not wait for values.)
    return not torch.compiler.is_compiling() and bool((end == value).all())


def _after(step: Any, ends: Ends) -> Ends:
    """The ends of what a transform makes of an interval."""
    codomain, domain = ends_of(step.codomain), ends_of(step.domain)
    if ends is None or domain is None or step.domain.event_dim or torch.compiler.is_compiling():
        return codomain
    if all(map(_is_all, ends, domain)):
        return codomain
    if not type(step).__module__.startswith("torch."):
        return None
    with torch.no_grad():
        first, second = (step(torch.as_tensor(end)) for end in ends)
    return torch.minimum(first, second), torch.maximum(first, second)
