r"""Factors on densities: masks, scales and annealing.

A density may enter the log-weight with a factor,
$\ell = \log p(x|z) + \sum_i a_i \log p_i - \sum_j b_j \log q_j$. A mask is the factor 0 or 1.
Samples are drawn from the distribution itself, whatever its factor.
"""

from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints

from gdregs.shared.checks import check_part
from gdregs.torch.reexpress import ByClass, reexpress


class WithFactor(dist.Distribution):
    """A distribution whose log-density is multiplied by a factor; see `with_factor`."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base_dist: Any, factor: Any):
        if not isinstance(factor, (bool, int, float)):
            factor = torch.as_tensor(factor)
            shape = torch.broadcast_shapes(factor.shape, base_dist.batch_shape)
            base_dist = base_dist if shape == base_dist.batch_shape else base_dist.expand(shape)
        self.base_dist, self.factor = base_dist, factor
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the distribution."""
        return self.base_dist.has_rsample

    @property
    def support(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the distribution."""
        return self.base_dist.support

    @property
    def mean(self) -> Tensor:
        """That of the distribution."""
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """That of the distribution."""
        return self.base_dist.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> "WithFactor":
        """The distribution with other batch axes, and its factor."""
        return WithFactor(self.base_dist.expand(batch_shape), self.factor)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draw from the distribution itself."""
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draw from the distribution itself."""
        return self.base_dist.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density times the factor; 0 where the factor is 0."""
        density = read_factor(self)
        assert density is not None
        return density.log_probs(value, drops=True)[0]


class _ConditionalWithFactor(nn.Module):
    """A conditional of a hierarchy, whose density is multiplied by a factor."""

    def __init__(self, conditional: Any, factor: Any):
        super().__init__()
        self.conditional, self.factor = conditional, factor

    def forward(self, *parents: Tensor) -> WithFactor:
        """The distribution given its parents."""
        return WithFactor(self.conditional(*parents), self.factor)


def with_factor(distribution: Any, factor: Any) -> Any:
    r"""Let a density enter the log-weight with a factor: masks and annealing.

    `gdregs.torch.bound` draws from the distribution as it is, and multiplies its log-density by the
    factor. Every estimator accounts for that. Pyro's `distribution.mask(...)` does the same for 0
    and 1.

    Args:
        distribution: A `torch.distributions.Distribution`: a posterior, a prior, or what a
            conditional of a `gdregs.torch.Hierarchy` returns. Of a hierarchy itself every latent's
            density has the factor.
        factor: A number, or a tensor that broadcasts against the log-density, `[*batch]`. It is a
            constant: where it depends on latents or parameters, only the estimators `naive` are
            unbiased, and others are refused.

    Returns:
        A distribution, or a hierarchy.

    Raises:
        TypeError: If `distribution` is neither.

    Example:
        An ELBO whose KL divergence counts half:

        >>> import gdregs.torch, torch
        >>> from torch.distributions import Normal
        >>> posterior, prior = (
        ...     gdregs.torch.with_factor(one, 0.5) for one in (Normal(1.0, 0.8), Normal(0.0, 1.0)))
        >>> z = torch.tensor(2.0)
        >>> bool(prior.log_prob(z) == 0.5 * Normal(0.0, 1.0).log_prob(z))
        True

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, Eq. (13), for
        the score of a density times any function.
    """
    if callable(getattr(distribution, "with_nodes", None)):
        return distribution.with_nodes(
            lambda conditional: _ConditionalWithFactor(conditional, factor),
            lambda one: with_factor(one, factor),
        )
    like = "a torch distribution or a gdregs.torch.Hierarchy"
    check_part("distribution", distribution, ("sample", "log_prob", "expand"), like)
    return WithFactor(distribution, factor)


class Factors(NamedTuple):
    """A density as a sum over elements, each of which has a factor.

    Attributes:
        plain: The distribution of the elements, without factors.
        value: The factor: a number, or a tensor that broadcasts against the log-density of `plain`.
        num_summed: Over how many of the last axes of that the density is a sum.
    """

    plain: Any
    value: Any
    num_summed: int

    def times(self, factor: Any) -> "Factors":
        """The density, multiplied by a factor `[*batch]` as a whole."""
        outer, inner = _with_axes(factor, self.num_summed), self.value
        if not isinstance(inner, Tensor) and inner == 1:
            return self._replace(value=outer)
        outer, inner = (
            one.double() if isinstance(one, Tensor) and one.dtype == torch.bool else one
            for one in (outer, inner)
        )
        return self._replace(value=outer * inner)

    def at(self, z: Tensor) -> Any:
        """The factor of each element of a sample: it broadcasts against z."""
        value = _with_axes(self.value, len(self.plain.event_shape))
        return value.to(z.dtype) if isinstance(value, Tensor) else value

    def inside(self, z: Tensor) -> Tensor:
        """The sample, whose elements that have the factor 0 lie in the support."""
        point = point_inside(self.plain, z)
        if point is None or not (isinstance(self.value, Tensor) or self.value == 0):
            return z
        counts = torch.as_tensor(self.at(z) != 0, device=z.device)
        return torch.where(counts, z, point)

    def log_probs(self, z: Tensor, *, drops: bool) -> tuple[Tensor, Tensor]:
        """The log-density with its factors, and without.

        Args:
            z: A sample.
            drops: Whether elements that have the factor 0 are no part of the latter.
        """
        elements = self.plain.log_prob(self.inside(z) if drops else z)
        counts = torch.as_tensor(self.value != 0, device=elements.device)
        kept = torch.where(counts, elements, torch.zeros_like(elements))
        value = self.value.to(kept.dtype) if isinstance(self.value, Tensor) else self.value
        return self._add_up(value * kept), self._add_up(kept if drops else elements)

    def _add_up(self, elements: Tensor) -> Tensor:
        return elements.sum(list(range(-self.num_summed, 0))) if self.num_summed else elements

    def is_live(self) -> bool:
        """Whether the factor is differentiated."""
        return isinstance(self.value, Tensor) and self.value.requires_grad

    def depends_on_samples(self, z: Tensor) -> bool:
        """Whether the factor has other values for some of the samples, `[M, *batch, *event]`."""
        value, rank = self.value, z.ndim - len(self.plain.event_shape)
        if not isinstance(value, Tensor) or value.ndim != rank or len(value) != len(z):
            return False
        return bool((value != value[:1]).any())

    def differs_from(self, other: "Factors") -> bool:
        """Whether another density, of the same kind, has another factor."""
        if isinstance(self.value, Tensor) and isinstance(other.value, Tensor):
            return not torch.equal(self.value, other.value)
        return self.value is not other.value and self.value != other.value


def _with_axes(factor: Any, num_axes: int) -> Any:
    """A factor with axes of length 1 behind."""
    if not isinstance(factor, Tensor):
        return float(factor)
    return factor.reshape(factor.shape + (1,) * num_axes)


def point_inside(distribution: Any, z: Tensor) -> Tensor | None:
    """Some point of the support for each sample; None where all points lie in it."""
    support = support_of(distribution)
    if support is None:
        return None
    try:
        unconstrained = dist.transform_to(support).inv(z.detach())
        return dist.transform_to(support)(torch.zeros_like(unconstrained))
    except NotImplementedError:  # it is discrete
        return None


def support_of(distribution: Any) -> Any:
    """The support of a distribution; None where it is everything, or not known."""
    try:
        support: Any = distribution.support
    except NotImplementedError:
        return None
    innermost = support
    while hasattr(innermost, "base_constraint"):
        innermost = innermost.base_constraint
    return None if isinstance(innermost, type(constraints.real)) else support


@ByClass
def read_factor(distribution: Any) -> Factors | None:
    """The factors on the density of a distribution; None where there are none."""
    del distribution
    return None


@ByClass
def is_point(distribution: Any) -> bool:
    """Whether a distribution has one value; that has no score, as if the factor were 0."""
    del distribution
    return False


@is_point.register(WithFactor)
@is_point.register(dist.Independent)
def is_point_inside(distribution: Any) -> bool:
    """The same of a distribution that stands around another one."""
    return is_point(distribution.base_dist)


@read_factor.register(WithFactor)
def _(distribution: WithFactor) -> Factors | None:
    return multiplied(distribution.base_dist, distribution.factor)


def multiplied(distribution: Any, factor: Any) -> Factors:
    """The density of a distribution that is multiplied by one more factor."""
    inner = read_factor(distribution) or Factors(distribution, 1, 0)
    return inner.times(factor)


@read_factor.register(dist.Independent)
def _(distribution: Any) -> Factors | None:
    inner = read_factor(distribution.base_dist)
    if inner is None:
        return None
    return inner._replace(num_summed=inner.num_summed + distribution.reinterpreted_batch_ndims)


@read_factor.register(dist.TransformedDistribution)
@read_factor.register(dist.MixtureSameFamily)
def _(distribution: Any) -> None:
    is_mixture = isinstance(distribution, dist.MixtureSameFamily)
    inner = distribution.component_distribution if is_mixture else distribution.base_dist
    if read_factor(inner) is not None:
        name = type(distribution).__name__
        raise ValueError(
            f"A {name} is made of a distribution whose density has a factor or a mask, so that it"
            f" has no density of its own. Give the factor or mask to the {name}."
        )


@reexpress.register(WithFactor)
def _(distribution: WithFactor, z: Tensor) -> Tensor:
    """A factor changes no path."""
    return reexpress(distribution.base_dist, z)
