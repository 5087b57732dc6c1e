"""Peers' own tests with our bound in the place of their objectives."""

import ast
import json
import os
import shutil
from pathlib import Path

import gdregs
from gdregs.numpyro.bound import Bound

PEERS = Path(os.environ.get("GDREGS_PEERS", Path(__file__).parents[3] / "shared" / "peers"))
ELBOS = ("Trace_ELBO", "TraceMeanField_ELBO", "TraceGraph_ELBO", "TraceEnum_ELBO", "RenyiELBO")


def bound_for(name):
    """What takes the arguments of an objective of numpyro and returns a bound."""

    def make(num_particles=1, *, alpha=0.0, max_plate_nesting=None, **options):
        del max_plate_nesting
        objective = gdregs.VRIWAE(alpha) if name == "RenyiELBO" else gdregs.ELBO()
        return Bound(num_particles, objective, **options)

    if name == "RenyiELBO":
        return lambda alpha=0.0, num_particles=2, **options: make(
            num_particles, alpha=alpha, **options
        )
    return make


def bind_behind_imports(source, module, names):
    """The test file, with names bound anew to what `module.bound_for` makes."""
    tree = ast.parse(source)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    end = max(node.end_lineno or 0 for node in imports)
    lines = source.splitlines(keepends=True)
    bindings = "".join(f"{name} = {module}.bound_for({name!r})\n" for name in names)
    return "".join([*lines[:end], f"import {module}\n", bindings, *lines[end:]])


def copy_with_bound(folder, target):
    """Copy a peer's tests to a folder, with the bound substituted."""
    for path in (PEERS / folder).glob("*.py"):
        if path.name.startswith("test_"):
            (target / path.name).write_text(bind_behind_imports(path.read_text(), "peers", ELBOS))
        else:
            shutil.copy(path, target)


SELECTION = "GDREGS_PEERS_SELECTION"
"""The variable with the path to which a run writes which tests there are."""


def pytest_addoption(parser):
    """As a plugin of a run of a peer's tests: which of them."""
    parser.addoption("--only", action="append", default=[], help="a test; by default, all")


def pytest_collection_modifyitems(config, items):
    """Run what is asked for, and write what there is."""
    only = set(config.getoption("--only"))
    Path(os.environ[SELECTION]).write_text(json.dumps([item.name for item in items]))
    chosen = [item for item in items if not only or item.name in only]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
