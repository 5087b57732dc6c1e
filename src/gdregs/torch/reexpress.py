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


class ByClass:
    """`functools.singledispatch` by classes alone: PyTorch's compiler can look into it."""

    def __init__(self, default: Callable[..., Any]):
        functools.update_wrapper(self, default)
        self.registry: dict[type, Callable[..., Any]] = {object: default}

    def register(self, cls: type, function: Any = None) -> Any:
        """Register the function of a class; as a decorator where only the class is given."""
        if function is None:
            return functools.partial(self.register, cls)
        self.registry[cls] = function
        return function

    def dispatch(self, cls: type) -> Callable[..., Any]:
        """The function of the nearest class that has one."""
        return next(self.registry[base] for base in cls.__mro__ if base in self.registry)

    def __call__(self, first: Any, *rest: Any) -> Any:
        """Call the function of the first argument's class."""
        return self.dispatch(type(first))(first, *rest)


@ByClass
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


def rule(*families: type, draws: bool = False) -> Callable[[PathOf], PathOf]:
    """Turn the function that maps (distribution, z) to the path into the rule of these families.

    Args:
        families: Classes of distributions.
        draws: Whether the path takes random numbers besides the sample.
    """

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
            return with_path(z, path_of(distribution, z), draws=_draws(distribution))

        reexpressed.draws = draws
        for family in families:
            reexpress.register(family, reexpressed)
        return reexpressed

    return register


def _draws(distribution: Any) -> bool:
    """Whether the path of a distribution, or of what it is made of, draws; a user's rule may."""
    if getattr(reexpress.dispatch(type(distribution)), "draws", True):
        return True
    parts = ("base_dist", "component_distribution")
    return any(_draws(getattr(distribution, part)) for part in parts if hasattr(distribution, part))


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
