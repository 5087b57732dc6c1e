"""Pyro's own tests with our bound in the place of its objectives."""

import gdregs.torch
from gdregs.pyro import Bound
from peers import PEERS, bind_behind_imports

ELBOS = (
    "Trace_ELBO", "JitTrace_ELBO", "TraceMeanField_ELBO", "JitTraceMeanField_ELBO",
    "TraceGraph_ELBO", "JitTraceGraph_ELBO", "TraceEnum_ELBO", "JitTraceEnum_ELBO", "RenyiELBO",
)  # fmt: skip


def bound_for(name):
    """What takes the arguments of an objective of Pyro and returns a bound."""

    def make(num_particles=1, *, alpha=0.0, **options):
        objective = gdregs.torch.ELBO()
        if name == "RenyiELBO":
            objective = gdregs.torch.VRIWAE(alpha)
        return Bound(num_particles, objective, **options)

    if name == "RenyiELBO":
        return lambda alpha=0.0, num_particles=2, **options: make(
            num_particles, alpha=alpha, **options
        )
    return make


def copy_with_bound(target):
    """Lay Pyro's tests out as its repository does, with the bound substituted."""
    tests = target / "tests"
    (tests / "infer").mkdir(parents=True)
    for folder in (tests, tests / "infer"):
        (folder / "__init__.py").touch()
    for path in (PEERS / "pyro").glob("*.py"):
        if path.name.startswith("test_"):
            source = bind_behind_imports(path.read_text(), "pyro_peers", ELBOS)
            (tests / "infer" / path.name).write_text(source)
        else:
            (tests / path.name).write_text(path.read_text())
