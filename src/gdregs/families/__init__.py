"""The re-expression rules of the families of `numpyro.distributions`: importing registers them."""

from gdregs.families import closed_form, implicit, mixtures, multivariate, truncated, wrapped

__all__ = ["closed_form", "implicit", "mixtures", "multivariate", "truncated", "wrapped"]
