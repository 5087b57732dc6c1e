"""The same bound for PyTorch: `gdregs.torch.bound` of `torch.distributions`.

The estimators' tables and the words of errors are those of `gdregs.shared`. Samples are leaves of
autograd's graph here, so that a density's derivative by them never touches a parameter: nothing has
to be stopped. It may import what is shared, and nothing of JAX. `pip install 'gdregs[torch]'`.
"""

from gdregs.torch import families as families  # registers the rules of `reexpress`
from gdregs.torch.auto import Auto
from gdregs.torch.bound import bound, log_marginal
from gdregs.torch.checks import check_model
from gdregs.torch.diagnostics import UnbiasednessCheck, check_unbiased
from gdregs.torch.factors import with_factor
from gdregs.torch.hierarchy import Hierarchy
from gdregs.torch.objectives import ELBO, IWAE, JVI, VRIWAE, Objective
from gdregs.torch.reexpress import reexpress, with_path

__all__ = [
    "ELBO",
    "IWAE",
    "JVI",
    "VRIWAE",
    "Auto",
    "Hierarchy",
    "Objective",
    "UnbiasednessCheck",
    "bound",
    "check_model",
    "check_unbiased",
    "log_marginal",
    "reexpress",
    "with_factor",
    "with_path",
]
