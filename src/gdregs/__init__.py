"""Low-variance gradient estimators for variational objectives, in JAX.

`gdregs.bound` is the whole library in one function: a Monte Carlo objective (ELBO, IWAE, VR-IWAE,
JVI or your own) whose `jax.grad` is the naive, STL, DReGs, RWS or GDReGs estimator.
"""

from gdregs import identities as identities
from gdregs import numpyro as numpyro
from gdregs.auto import Auto, AutoState
from gdregs.bound import Diagnostics, bound, bound_with_diagnostics
from gdregs.chain import Chain
from gdregs.diagnostics import GradientMoments, UnbiasednessCheck, check_unbiased, gradient_moments
from gdregs.estimators import interpolated_dregs, mixed_dregs, mixed_gdregs
from gdregs.evaluation.meshes import make_mesh, value_and_grad
from gdregs.filtering import fivo
from gdregs.hierarchy import Hierarchy
from gdregs.mixing import LearnedMix, MixState
from gdregs.model_checks import check_model
from gdregs.objectives import ELBO, IWAE, JVI, VRIWAE, Objective
from gdregs.reexpression import families as families  # registers the rules of `reexpress`
from gdregs.reexpression.factors import with_factor
from gdregs.reexpression.paths import with_path
from gdregs.reexpression.reexpress import reexpress
from gdregs.shared.tables import (
    POSTERIOR_ESTIMATORS,
    PRIOR_ESTIMATORS,
    PosteriorEstimator,
    PosteriorMix,
    PriorEstimator,
)
from gdregs.topdown import TopDown
from gdregs.weights import log_marginal, log_weights

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "IWAE",
    "JVI",
    "POSTERIOR_ESTIMATORS",
    "PRIOR_ESTIMATORS",
    "VRIWAE",
    "Auto",
    "AutoState",
    "Chain",
    "Diagnostics",
    "GradientMoments",
    "Hierarchy",
    "LearnedMix",
    "MixState",
    "Objective",
    "PosteriorEstimator",
    "PosteriorMix",
    "PriorEstimator",
    "TopDown",
    "UnbiasednessCheck",
    "bound",
    "bound_with_diagnostics",
    "check_model",
    "check_unbiased",
    "fivo",
    "gradient_moments",
    "identities",
    "interpolated_dregs",
    "log_marginal",
    "log_weights",
    "make_mesh",
    "mixed_dregs",
    "mixed_gdregs",
    "numpyro",
    "reexpress",
    "value_and_grad",
    "with_factor",
    "with_path",
]
