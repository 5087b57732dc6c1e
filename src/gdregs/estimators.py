r"""Estimators by name, and rows between them.

The two tables, one number for each thing that an estimator does, are in `gdregs.shared.tables`;
every framework reads them from there. Here are the rows that are not in a table: mixes of others.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from numpyro.util import not_jax_tracer

from gdregs.shared.tables import POSTERIOR_ESTIMATORS as POSTERIOR_ESTIMATORS
from gdregs.shared.tables import PRIOR_ESTIMATORS as PRIOR_ESTIMATORS
from gdregs.shared.tables import PosteriorEstimator as PosteriorEstimator
from gdregs.shared.tables import PosteriorMix as PosteriorMix
from gdregs.shared.tables import PriorEstimator as PriorEstimator


def interpolated_dregs(alpha: Any) -> PosteriorEstimator:
    r"""Tucker et al.'s interpolation, $a = \alpha + (1 - 2\alpha) r$, as a posterior estimator.

    Args:
        alpha: 0 gives DReGs, 1 gives RWS-DReGs, 1/2 gives half of STL.

    Returns:
        A value for the argument `posterior_estimator` of `gdregs.bound`.

    Raises:
        TypeError: If alpha is not a finite number.

    Example:
        >>> import gdregs
        >>> gdregs.interpolated_dregs(0.0) == gdregs.POSTERIOR_ESTIMATORS["dregs"]
        True

    Reference:
        Tucker et al., Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2019.
    """
    if not _is_number(alpha):
        raise TypeError(f"alpha must be a finite number; got {alpha!r}.")
    return PosteriorEstimator(density=0, constant=alpha, slope=1 - 2 * alpha)


def mixed_dregs(beta: Any) -> PosteriorMix:
    r"""A mix of the naive estimator and DReGs, as a posterior estimator.

    $(1-\beta) g^{\mathrm{naive}} + \beta g^{\mathrm{DReGs}}$, unbiased for every fixed $\beta$.
    DReGs is far better near the optimum of the posterior; far from it, where $\nabla_z \log w$ is
    large and nearly the same for all samples, the naive estimator is. `gdregs.Auto` finds the
    $\beta$ of least variance during training.

    Args:
        beta: Any number that does not depend on the draw.

    Returns:
        A value for the argument `posterior_estimator` of `gdregs.bound`.

    Raises:
        TypeError: If beta is not a finite number.

    Example:
        >>> import gdregs
        >>> gdregs.mixed_dregs(0.25).density
        0.75

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, App. H.2, for
        mixes of unbiased estimators.
    """
    if not _is_number(beta):
        raise TypeError(f"beta must be a finite number; got {beta!r}.")
    return PosteriorMix(mix=beta)


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
        if not _is_number(value):
            raise TypeError(
                "alpha must be a finite number, or a mapping from the latents of the prior to"
                f" numbers; got {alpha!r}."
            )
    return PriorEstimator(mix=alpha)


def _is_number(value: Any) -> bool:
    kinds = (int, float, np.ndarray, np.generic, jax.Array)
    if not isinstance(value, kinds) or isinstance(value, bool) or np.ndim(value) != 0:
        return False
    return not not_jax_tracer(value) or bool(np.isfinite(value))
