"""Programs of Pyro with their guides, and gradients as `SVI.step` computes them."""

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[pyro]'")
pyro = pytest.importorskip("pyro", reason="pip install 'gdregs[pyro]'")

import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402

import gdregs.torch  # noqa: E402

DATA = torch.tensor([1.0, 2.0, -0.5, 0.3], dtype=torch.float64)


def model(data, size=None):
    centre = pyro.param("centre", torch.tensor(0.3))
    width = pyro.param("width", torch.tensor(0.8), constraint=dist.constraints.positive)
    level = pyro.sample("level", dist.LogNormal(centre, width))
    with pyro.plate("data", len(data), subsample_size=size) as index:
        z = pyro.sample("z", dist.Normal(centre * level, width))
        pyro.sample("x", dist.Normal(z, 0.7), obs=data[index])


def guide(data, size=None):
    loc = pyro.param("loc", torch.tensor(0.1))
    slope = pyro.param("slope", torch.tensor(0.4))
    level = pyro.sample("level", dist.LogNormal(loc, 0.4))
    with pyro.plate("data", len(data), subsample_size=size) as index:
        pyro.sample("z", dist.Normal(slope * data[index] + loc * level, 0.6))


def local_model(data, size=None):
    centre = pyro.param("centre", torch.tensor(0.3))
    with pyro.plate("data", len(data), subsample_size=size) as index:
        z = pyro.sample("z", dist.Normal(centre, 1.0))
        y = pyro.sample("y", dist.Gamma(1.0 + z**2, 1.0 + centre**2))
        pyro.sample("x", dist.Normal(z + y, 0.7), obs=data[index])


def local_guide(data, size=None):
    loc = pyro.param("loc", torch.tensor(0.1))
    with pyro.plate("data", len(data), subsample_size=size) as index:
        z = pyro.sample("z", dist.Normal(loc * data[index], 0.6))
        pyro.sample("y", dist.Gamma(2.0 + loc**2, 1.0 + z**2))


def gradients(loss, *programs, arguments=(DATA,)):
    """One draw of the gradient by all parameters, as `SVI.step` computes it."""
    with poutine.trace(param_only=True) as capture:
        loss.loss_and_grads(*programs, *arguments)
    leaves = [site["value"].unconstrained() for site in capture.trace.nodes.values()]
    found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return found


def check(one, other, *programs, draws=250, arguments=(DATA,)):
    for loss in (one, other):
        loss.loss(*programs, *arguments)
    return gdregs.torch.check_unbiased(
        lambda: gradients(one, *programs, arguments=arguments),
        lambda: gradients(other, *programs, arguments=arguments),
        draws,
    )
