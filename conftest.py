"""What is collected: the pages of PyTorch and Pyro where they are installed, long pages as slow."""

from importlib.util import find_spec

import pytest

LONG_PAGES = ("mixing.md", "numpyro.md", "sequences.md")  # they train many models

collect_ignore_glob = []
if not find_spec("torch"):
    collect_ignore_glob += ["src/gdregs/torch/*", "docs/pytorch.md"]
if not find_spec("pyro"):
    collect_ignore_glob += ["src/gdregs/pyro/*", "docs/pyro.md"]


def pytest_collection_modifyitems(items):
    """A page has no place for a mark of its own."""
    for item in items:
        if item.path.name in LONG_PAGES:
            item.add_marker(pytest.mark.slow)
