"""The re-expression rules of the families of `numpyro.distributions`: importing registers them.

Those of flowjax are registered when one of its flows is first seen. A family is one function, in
the file of those that are like it.
"""

import importlib

from gdregs.reexpression.families import (
    closed_form,
    implicit,
    mixtures,
    multivariate,
    truncated,
    wrapped,
)
from gdregs.reexpression.reexpress import ON_SIGHT

ON_SIGHT["flowjax"] = lambda: importlib.import_module(f"{__name__}.flows")

__all__ = ["closed_form", "implicit", "mixtures", "multivariate", "truncated", "wrapped"]
