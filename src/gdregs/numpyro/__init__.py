"""The front-end for NumPyro: `Bound`, a loss for `numpyro.infer.SVI`, and `SVI`, which learns.

A guide is read as a posterior, a model as a prior and a likelihood, by running both under effect
handlers.
It may import everything but the other front-ends, the VAE and the papers' experiments.
"""

from gdregs.numpyro import independent as independent  # registers how a guide is remembered
from gdregs.numpyro.bound import Bound
from gdregs.numpyro.checks import check_model
from gdregs.numpyro.svi import SVI

__all__ = ["SVI", "Bound", "check_model"]
