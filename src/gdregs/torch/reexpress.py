r"""Re-expression: the same sample, as if a given distribution had drawn it (Eqs. C.10, C.11)."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributions as dist
from torch import Tensor

from gdregs.torch.autograd import with_path

PathOf = Callable[[Any, Tensor], Tensor]


class NoReexpressionError(TypeError):
    """Raised where a distribution has no rule of `reexpress`."""


class NoPriorPathError(NoReexpressionError):
    """Raised where the prior has no path, so that its estimator can only be the naive one."""


class MovingSupportError(ValueError):
    """Raised where the support depends on a parameter that is being differentiated."""


@functools.singledispatch
def reexpress(distribution: Any, z: Any) -> Any:
    r"""Re-express a sample as if `distribution` had drawn it: Eqs. (C.10), (C.11).

    Extend it to a distribution of your own with `@gdregs.torch.reexpress.register`: compute `path`,
    the forward transform of the detached noise, and return `gdregs.torch.with_path(z, path)`.

    Args:
        distribution: Any distribution with a rule, or a scalar one with a differentiable `cdf`.
        z: A sample, `[K, *batch, *event]`, a constant here.

    Returns:
        z, bit for bit, with the derivative of $T_p$ at the noise $T_p^{-1}(z)$ by the parameters.

    Raises:
        TypeError: If the distribution has no rule.
        ValueError: If its support depends on a parameter that is being differentiated.

    Example:
        >>> import gdregs.torch, torch
        >>> scale = torch.tensor(2.0, requires_grad=True)
        >>> normal = torch.distributions.Normal(0.0, scale)
        >>> z = gdregs.torch.reexpress(normal, torch.tensor([3.0]))  # z = scale * 1.5
        >>> z.sum().backward()
        >>> z.item(), scale.grad.item()
        (3.0, 1.5)
    """
    if _has_cdf(distribution):
        return rule()(by_cdf)(distribution, z)
    name = type(distribution).__name__
    known = sorted(cls.__name__ for cls in reexpress.registry if cls is not object)
    raise NoReexpressionError(
        f"{name} has no re-expression rule. Rules exist for {', '.join(known)}, and for scalar"
        f" continuous distributions with a `cdf`; add one with"
        f" @gdregs.torch.reexpress.register({name})."
    )


def _has_cdf(distribution: Any) -> bool:
    return (
        isinstance(distribution, dist.Distribution)
        and tuple(distribution.event_shape) == ()
        and type(distribution).cdf is not dist.Distribution.cdf
        and not getattr(distribution.support, "is_discrete", True)
    )


def by_cdf(distribution: Any, z: Tensor) -> Tensor:
    r"""The implicit path of a scalar family: $dz = -\partial_\theta F(z; \theta) / p(z)$."""
    hold_support(distribution)
    density = distribution.log_prob(z).exp().detach()
    probability = distribution.cdf(z)
    tiny = torch.finfo(density.dtype).tiny
    return z - (probability - probability.detach()) / density.clamp(min=tiny)


def rule(*families: type) -> Callable[[PathOf], PathOf]:
    """Turn the function that maps (distribution, z) to the path into the rule of these families."""

    def register(path_of: PathOf) -> PathOf:
        def reexpressed(distribution: Any, z: Tensor) -> Tensor:
            shape = tuple(distribution.batch_shape) + tuple(distribution.event_shape)
            if tuple(z.shape[z.ndim - len(shape) :]) != shape and not _broadcasts(shape, z.shape):
                raise ValueError(
                    f"A value of shape {tuple(z.shape)} is not a batch of samples of"
                    f" {type(distribution).__name__} with batch shape"
                    f" {tuple(distribution.batch_shape)} and event shape"
                    f" {tuple(distribution.event_shape)}: samples have shape [..., *batch, *event]."
                )
            z = z.detach()
            return with_path(z, path_of(distribution, z))

        for family in families:
            reexpress.register(family, reexpressed)
        return reexpressed

    return register


def _broadcasts(shape: tuple[int, ...], to: Any) -> bool:
    try:
        return torch.broadcast_shapes(shape, to) == torch.Size(to)
    except RuntimeError:
        return False


def hold_support(distribution: Any) -> None:
    """An error if a bound of the support is being differentiated.

    There the expected score is not 0, and every estimator that stops the density is biased.
    """
    support = distribution.support
    bounds = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    hold(type(distribution).__name__, *bounds)


def hold(name: str, *bounds: Any) -> None:
    """An error if a bound of the support of the family `name` is being differentiated.

    One that is infinite stays where it is.
    """

    def moves(bound: Any) -> bool:
        is_live = isinstance(bound, Tensor) and bound.requires_grad
        return is_live and bool(bound.isfinite().any())

    if any(map(moves, bounds)):
        raise MovingSupportError(
            f"The support of the {name} depends on a parameter that is being differentiated, which"
            f" makes every estimator that stops its density biased. Make the bound of the support a"
            f" constant."
        )
