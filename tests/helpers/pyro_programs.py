"""Programs of Pyro with their guides, and gradients as `SVI.step` computes them.

Data of two axes are copies of the same data, each with parameters of its own and in a plate that
encloses every site: one step of so many copies is so many independent draws of the gradient.
"""

import contextlib

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[pyro]'")
pyro = pytest.importorskip("pyro", reason="pip install 'gdregs[pyro]'")

import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402

import torch_means  # noqa: E402

DATA = torch.tensor([1.0, 2.0, -0.5, 0.3], dtype=torch.float64)


def parameter(name, value, data, **options):
    """A parameter, or one for each copy of the data."""
    shape = (*data.shape[:-1], 1) if data.ndim > 1 else ()
    return pyro.param(name, lambda: torch.full(shape, value), **options)


def copies_of(data):
    return pyro.plate("copies", len(data), dim=-2) if data.ndim > 1 else contextlib.nullcontext()


def data_plate(data, size=None):
    """The plate of the data, or of a random subsample of this size, or of this one."""
    is_given = isinstance(size, torch.Tensor)
    options = {"subsample": size} if is_given else {"subsample_size": size}
    return pyro.plate("data", data.shape[-1], dim=-1, **options)


def model(data, size=None):
    centre = parameter("centre", 0.3, data)
    width = parameter("width", 0.8, data, constraint=dist.constraints.positive)
    with copies_of(data):
        level = pyro.sample("level", dist.LogNormal(centre, width))
        with data_plate(data, size) as index:
            z = pyro.sample("z", dist.Normal(centre * level, width))
            pyro.sample("x", dist.Normal(z, 0.7), obs=data[..., index])


def guide(data, size=None):
    loc, slope = parameter("loc", 0.1, data), parameter("slope", 0.4, data)
    with copies_of(data):
        level = pyro.sample("level", dist.LogNormal(loc, 0.4))
        with data_plate(data, size) as index:
            pyro.sample("z", dist.Normal(slope * data[..., index] + loc * level, 0.6))


def local_model(data, size=None):
    centre = parameter("centre", 0.3, data)
    with copies_of(data), data_plate(data, size) as index:
        z = pyro.sample("z", dist.Normal(centre, 1.0))
        y = pyro.sample("y", dist.Gamma(1.0 + z**2, 1.0 + centre**2))
        pyro.sample("x", dist.Normal(z + y, 0.7), obs=data[..., index])


def local_guide(data, size=None):
    loc = parameter("loc", -0.5, data)
    with copies_of(data), data_plate(data, size) as index:
        z = pyro.sample("z", dist.Normal(loc * data[..., index], 0.6))
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


def assert_unbiased(suspects, reference, *programs, biased, block=2000, **options):
    """Objectives by name against one whose gradient is unbiased, from the same random numbers.

    Four fifths of the first one's gradient must be found too, besides those named in `biased`.
    """
    for loss in (*suspects.values(), reference):
        loss.loss(*programs, DATA.expand(block, -1))  # looks at the programs, which takes numbers
    number = 0

    def draw(copies):
        nonlocal number
        number += 1

        def of(loss):
            pyro.set_rng_seed(number)
            return gradients(loss, *programs, arguments=(DATA.expand(copies, -1),))

        found = {name: of(loss) for name, loss in suspects.items()}
        first = next(iter(suspects))
        found["four fifths"] = [0.8 * one for one in found[first]]
        return found, of(reference)

    biased = [*biased, "four fifths"]
    return torch_means.assert_unbiased(draw, biased=biased, block=block, **options)
