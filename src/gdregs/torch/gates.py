"""What factors on a node's density do to its log-density, and to the derivative of its path."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from gdregs.torch.autograd import Strength, align
from gdregs.torch.dependence import dependence_of
from gdregs.torch.factors import Factors, is_point, read_factor
from gdregs.torch.reexpress import NoPriorPathError, reexpress


class Gates(NamedTuple):
    r"""How a part of the model takes the factors on its densities.

    Attributes:
        is_prior: Elements that have the factor 0 are no part of the prior, and do not move along
            its path. In the posterior they do: samples are drawn from it without factors.
        own: From a latent's name, its factor and r to the multiplier of the derivative of its path
            by its own conditional's parameters; None where it is 1.
        r: The shares of the samples, `[M, *batch]`.
        refuses: Whether a factor that depends on latents or parameters is an error.
        has_samples: Whether values have an axis of samples, in front.
        refuses_points: Whether a latent with a single value is an error.
    """

    is_prior: bool
    own: Callable[[Any, Any, Any], Any] | None = None
    r: Any = None
    refuses: bool = False
    has_samples: bool = True
    refuses_points: bool = False

    def strength(self, name: Any, factors: Factors | None, z: Tensor, r: Tensor | None) -> Strength:
        """That of a node.

        Args:
            name: Its latent.
            factors: Those on its density; None where there are none.
            z: A sample.
            r: The shares of the samples in z, whose axes are those of z but for the event's.
        """
        assert self.own is not None
        factor = 1 if factors is None else factors.at(z)
        own = self.own(name, factor, r if r is None else align(r, z))
        return Strength(own, True if factors is None or not self.is_prior else factor != 0)

    def check(self, factors: Factors, z: Tensor) -> None:
        """An error if the estimators need a constant factor, and this one is none."""
        if self.refuses and (
            factors.is_live() or (self.has_samples and factors.depends_on_samples(z))
        ):
            raise not_constant()


def not_constant() -> ValueError:
    """The error of a factor that depends on latents."""
    return ValueError(
        "A factor on a density (with_factor, a mask, a scale) depends on latents or on"
        " parameters, so that only the estimators 'naive' are unbiased. Make the factor a"
        " constant, or use posterior_estimator='naive' and prior_estimator='naive'."
    )


POSTERIOR, PRIOR = Gates(is_prior=False), Gates(is_prior=True)


class Node(NamedTuple):
    """A latent's distribution at a sample.

    Attributes:
        distribution: The distribution, with what factors it has.
        factors: Those; None where there are none.
        gates: How they are taken.
        is_point: Whether it has a single value, whose density has no score: its factor is 0 for
            its path, and 1 for its density.
    """

    distribution: Any
    factors: Factors | None
    gates: Gates
    is_point: bool = False

    def log_probs(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The log-density with its factors, and without."""
        if self.factors is None or self.is_point:
            log_prob = self.distribution.log_prob(z)
            if self.is_point and self.gates.refuses and dependence_of(log_prob).on_parameters:
                raise ValueError(
                    "The density of a latent with a single value (Delta) depends on parameters,"
                    " which only the estimators 'naive' account for."
                )
            return log_prob, log_prob
        self.gates.check(self.factors, z)
        return self.factors.log_probs(z, drops=self.gates.is_prior)

    def path(self, z: Tensor) -> Any:
        """The sample as if the distribution had drawn it."""
        if self.factors is None or self.is_point:
            return reexpress(self.distribution, z)
        return reexpress(self.factors.plain, self.factors.inside(z) if self.gates.is_prior else z)


def log_prob_of(part: Any, z: Any) -> Tensor:
    """The log-density of a posterior or prior, with its factors; 0 where a factor is 0."""
    return read_factors(part, PRIOR).log_probs(z)[0]


def read_factors(distribution: Any, gates: Gates) -> Node:
    """The factors on a distribution's density, and how they are taken."""
    if gates.is_prior or not is_point(distribution):
        return Node(distribution, read_factor(distribution), gates)
    if gates.refuses_points:
        raise NoPriorPathError(
            "The posterior has a latent with a single value (Delta), which has no density by which"
            " the prior's samples could be reweighted. Use prior_estimator='naive'."
        )
    return Node(distribution, Factors(distribution, 0.0, 0), gates, is_point=True)
