"""What is not collected where PyTorch or Pyro are not installed: `pip install 'gdregs[pyro]'`."""

from importlib.util import find_spec

collect_ignore_glob = []
if not find_spec("torch"):
    collect_ignore_glob += ["src/gdregs/torch/*", "docs/pytorch.md"]
if not find_spec("pyro"):
    collect_ignore_glob += ["src/gdregs/pyro/*", "docs/pyro.md"]
