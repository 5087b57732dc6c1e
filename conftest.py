"""What is collected: PyTorch's and Pyro's modules and pages where those are installed."""

from importlib.util import find_spec

collect_ignore_glob = []
if not find_spec("torch"):
    collect_ignore_glob += ["src/gdregs/torch/*", "docs/pytorch.md"]
if not find_spec("pyro"):
    collect_ignore_glob += ["src/gdregs/pyro/*", "docs/pyro.md"]
