"""The front-end for Pyro: an objective for `pyro.infer.SVI`.

A guide is a posterior, a model is a prior and a likelihood: `programs` reads them under Pyro's
effect handlers and hands them to `gdregs.torch`. It may import `gdregs.torch` and what is shared,
and nothing of JAX. `pip install 'gdregs[pyro]'`.
"""

from gdregs.pyro import families as families  # registers the rules of `reexpress`
from gdregs.pyro.bound import Bound
from gdregs.pyro.checks import check_model

__all__ = ["Bound", "check_model"]
