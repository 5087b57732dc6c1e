r"""The two tables: which density is live, and what share of each cotangent takes which path.

Write $v_k = \partial F/\partial \ell_k$ for the derivative of the objective by a log-weight and
$r_k = 1 - (\partial^2 F/\partial \ell_k^2)/v_k$. Every estimator here is then a row of numbers.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class PosteriorEstimator(NamedTuple):
    r"""An estimator of the gradient by the posterior's parameters $\phi$.

    Attributes:
        density: Factor on the gradient of $\log q$ by its own parameters: 1 is live, 0 is
            stopped, -1 is live with its sign flipped.
        constant: $a_0$ in the share $a(r) = a_0 + a_1 r$ of the cotangent
            $v \nabla_z \log w$ that travels down the sampling path $T_q$.
        slope: $a_1$ in the same.
    """

    density: Any
    constant: Any
    slope: Any

    @property
    def has_path(self) -> bool:
        """Whether any cotangent reaches the sampling path."""
        return not (_is_zero(self.constant) and _is_zero(self.slope))

    def share(self, r):
        """The share $a(r)$ of the cotangent that takes the sampling path, `[K, *batch]`."""
        return self.constant + self.slope * r


class PriorEstimator(NamedTuple):
    r"""An estimator of the gradient by the prior's parameters $\theta$.

    It is the mix $(1 - \alpha) g^{\mathrm{naive}} + \alpha g^{\mathrm{GDReGs}}$, unbiased for every
    $\alpha$ that does not depend on the draw (App. H.2). Each stochastic layer l may have its own
    $\alpha_l$: the identity (13) holds for the parameters of each conditional by themselves.

    Attributes:
        mix: $\alpha$, or a mapping from the latents of a `gdregs.Hierarchy` to their $\alpha_l$.
            0 is the naive estimator (B.11), 1 is GDReGs (19), (C.16).
    """

    mix: Any

    @property
    def density(self):
        r"""Factor on the gradient of $\log p$ by its own parameters: $1 - \alpha$."""
        if isinstance(self.mix, Mapping):
            return {name: 1 - alpha for name, alpha in self.mix.items()}
        return 1 - self.mix

    @property
    def path(self):
        r"""Factor on the gradient of the path $T_p$ by its own parameters: $\alpha$."""
        return self.mix

    @property
    def has_path(self) -> bool:
        """Whether any cotangent reaches the path $T_p$."""
        mixes = self.mix.values() if isinstance(self.mix, Mapping) else (self.mix,)
        return not all(map(_is_zero, mixes))

    def likelihood_share(self, r):
        r"""The share of $v \nabla_z \log p(x|z)$ that takes the path $T_p$, `[K, *batch]`."""
        return 1 - r

    def rest_share(self, r):
        r"""The share of $v \nabla_z (\log p(z) - \log q(z))$ that takes $T_p$, `[K, *batch]`."""
        return -r


POSTERIOR_ESTIMATORS = {
    #                                  density of q   share a(r) = constant + slope * r
    "naive": PosteriorEstimator(density=1, constant=1, slope=0),
    "stl": PosteriorEstimator(density=0, constant=1, slope=0),
    "dregs": PosteriorEstimator(density=0, constant=0, slope=1),
    "rws": PosteriorEstimator(density=-1, constant=0, slope=0),
    "rws-dregs": PosteriorEstimator(density=0, constant=1, slope=-1),
}

PRIOR_ESTIMATORS = {
    "naive": PriorEstimator(mix=0),
    "gdregs": PriorEstimator(mix=1),
    "gdregs-mix": PriorEstimator(mix=0.5),
}


def interpolated_dregs(alpha: Any) -> PosteriorEstimator:
    r"""Tucker et al.'s interpolation, $a = \alpha + (1 - 2\alpha) r$, as a posterior estimator.

    Args:
        alpha: 0 gives DReGs, 1 gives RWS-DReGs, 1/2 gives half of STL.

    Returns:
        A value for the argument `posterior_estimator` of `gdregs.bound`.

    Example:
        >>> import gdregs
        >>> gdregs.interpolated_dregs(0.0) == gdregs.POSTERIOR_ESTIMATORS["dregs"]
        True

    Reference:
        Tucker et al., Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2019.
    """
    return PosteriorEstimator(density=0, constant=alpha, slope=1 - 2 * alpha)


def mixed_gdregs(alpha: Any) -> PriorEstimator:
    r"""A mix of the naive estimator and GDReGs, as a prior estimator (App. H.2).

    $(1-\alpha) g^{\mathrm{naive}} + \alpha g^{\mathrm{GDReGs}}$, unbiased for every fixed $\alpha$.

    It costs one pass, as either of the two does. `gdregs-mix` is `mixed_gdregs(0.5)`;
    `gdregs.LearnedMix` finds the $\alpha_l$ of least variance during training.

    Args:
        alpha: Any number that does not depend on the draw, or, for a prior that is a
            `gdregs.Hierarchy`, a mapping from all its latents to such numbers:
            `{"z1": 0.2, "z2": 0.9}`.

    Returns:
        A value for the argument `prior_estimator` of `gdregs.bound`.

    Raises:
        TypeError: If alpha is neither a number nor a mapping to numbers.

    Example:
        >>> import gdregs
        >>> gdregs.mixed_gdregs(1) == gdregs.PRIOR_ESTIMATORS["gdregs"]
        True

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, App. H.2.
    """
    for value in alpha.values() if isinstance(alpha, Mapping) else (alpha,):
        is_number = isinstance(value, (int, float, np.ndarray, np.generic, jax.Array))
        if not is_number or isinstance(value, bool) or np.ndim(value) != 0:
            raise TypeError(
                "alpha must be a number, or a mapping from the latents of the prior to numbers;"
                f" got {alpha!r}."
            )
    return PriorEstimator(mix=alpha)


def find_posterior_estimator(name: Any) -> PosteriorEstimator:
    """The row that `name` stands for; a row stands for itself."""
    return _find(name, "posterior_estimator", POSTERIOR_ESTIMATORS, PosteriorEstimator)


def find_prior_estimator(name: Any) -> PriorEstimator:
    """The row that `name` stands for; a row stands for itself."""
    return _find(name, "prior_estimator", PRIOR_ESTIMATORS, PriorEstimator)


def _find(name, argument, table, row_type):
    if isinstance(name, row_type):
        return name
    accepted = f"{', '.join(map(repr, table))} or a gdregs.{row_type.__name__}"
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be one of {accepted}; got {type(name).__name__}.")
    if name not in table:
        raise ValueError(f"{argument} must be one of {accepted}; got {name!r}.")
    return table[name]


def _is_zero(number) -> bool:
    return isinstance(number, (int, float)) and number == 0
