"""What is collected: PyTorch's and Pyro's modules and pages where those are installed."""

from importlib.util import find_spec

import pytest

LONG_EXAMPLES = tuple(f"src/gdregs/{name}" for name in ("vae/", "papers/", "numpyro/", "auto.py"))
"""Docstrings that train; an example has no place for a mark of its own."""

collect_ignore_glob = []
if not find_spec("torch"):
    collect_ignore_glob += ["src/gdregs/torch/*", "docs/pytorch.md"]
if not find_spec("pyro"):
    collect_ignore_glob += ["src/gdregs/pyro/*", "docs/pyro.md"]


def pytest_collection_modifyitems(items):
    """Examples that train are slow."""
    for item in items:
        if item.nodeid.startswith(LONG_EXAMPLES):
            item.add_marker(pytest.mark.slow)
