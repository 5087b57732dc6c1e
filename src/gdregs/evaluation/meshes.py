r"""Importance samples and datapoints spread over devices.

A mesh has the axes `seeds`, `data` and `samples`. A program that is traced for one is the program
of one device: the compiler divides it, told only which axes are datapoints and which are importance
samples. Sample k depends on key k alone, so that the numbers are those of one device.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from gdregs.shared.checks import positive_integer

T = TypeVar("T")

SEEDS, DATA, SAMPLES = AXES = ("seeds", "data", "samples")


def make_mesh(*, data: Any = 1, samples: Any = 1, seeds: Any = 1, devices: Any = None) -> Mesh:
    """A mesh over which `gdregs` spreads its work.

    Args:
        data: How many devices share a batch of datapoints.
        samples: How many devices share the K importance samples of each datapoint.
        seeds: How many devices share the seeds that one program trains.
        devices: Which devices; the first of `jax.devices()` unless given. Devices that are
            neighbours in this list lie along `samples`, which has the most to say to each other.

    Returns:
        A `jax.sharding.Mesh` with the axes `seeds`, `data` and `samples`.

    Raises:
        TypeError: If a number is not whole.
        ValueError: If a number is below 1, or there are fewer devices.

    Example:
        >>> import gdregs
        >>> dict(gdregs.make_mesh().shape)
        {'seeds': 1, 'data': 1, 'samples': 1}
    """
    sizes = {SEEDS: seeds, DATA: data, SAMPLES: samples}
    shape = tuple(positive_integer(name, size) for name, size in sizes.items())
    count = math.prod(shape)
    devices = jax.devices() if devices is None else list(devices)
    if len(devices) < count:
        listed = ", ".join(f"{name}={size}" for name, size in zip(AXES, shape, strict=True))
        raise ValueError(f"A mesh of {listed} takes {count} devices; there are {len(devices)}.")
    return Mesh(np.array(devices[:count]).reshape(shape), AXES)


_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)
"""The mesh that the code at hand is traced for."""


@contextlib.contextmanager
def over(mesh: Mesh | None) -> Iterator[None]:
    """What is traced inside is spread over the mesh; None is one device."""
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)


def devices_along(axis: str) -> int:
    """How many devices share that axis where the code at hand is traced for a mesh."""
    mesh = _MESH.get()
    return 1 if mesh is None else mesh.shape[axis]


def gather_samples(tree: T) -> T:
    """The compiler is told to leave all importance samples, the leading axis, on every device."""
    return spread(tree, None) if devices_along(SAMPLES) > 1 else tree


def gather(tree: T) -> T:
    """The compiler is told to leave the whole of each array on every device."""
    mesh = _MESH.get()
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def spread(tree: T, *axes: str | None) -> T:
    """The compiler is told what the first axes are: datapoints, importance samples.

    None is an axis that each device has whole. What does not divide is left to the compiler.
    """
    mesh = _MESH.get()
    if mesh is None:
        return tree

    def one(leaf):
        spec = [PartitionSpec.UNCONSTRAINED] * leaf.ndim
        for place, axis in enumerate(axes[: leaf.ndim]):
            if axis is None or not leaf.shape[place] % mesh.shape[axis]:
                spec[place] = axis
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(one, tree)


def value_and_grad(
    loss: Callable[..., Any], mesh: Mesh, *, has_aux: bool = False
) -> Callable[..., Any]:
    r"""`jax.value_and_grad` of a loss over many devices, without a change to the loss.

    The compiler divides the batch over the devices along `data`, and the K importance samples of
    each `gdregs.bound` inside of the loss over those along `samples`. Value and gradient are those
    of one device up to the order of additions.

    Args:
        loss: `loss(parameters, batch, *rest)`, with leading axis the datapoints in every leaf of
            `batch`, and with keys and whatever else it needs in `rest`.
        mesh: A mesh of `gdregs.make_mesh`, whose size along `data` divides the batch, and along
            `samples` divides K.
        has_aux: Whether the loss returns a pair, of the value and a pytree.

    Returns:
        A function like `loss`, to be jitted, which returns the value (or the pair of value and
        aux) and the gradient by `parameters`. All are the same on every device.

    Raises:
        ValueError: If `data` does not divide the batch, or `samples` K.

    Example:
        >>> import gdregs, jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> def loss(theta, x, key):
        ...     posterior = dist.Normal(0.5 * (x + theta), 0.8)
        ...     prior = dist.Normal(theta * jnp.ones(x.shape), 1.0)
        ...     likelihood = lambda z: dist.Normal(z, 1.0).log_prob(x)
        ...     return -jnp.mean(
        ...         gdregs.bound(posterior, prior, likelihood, key=key, num_samples=8)
        ...     )
        >>> x, key = jnp.arange(4.0), jax.random.key(0)
        >>> mesh = gdregs.make_mesh(data=1, samples=1)  # as many as you have
        >>> value, gradient = jax.jit(gdregs.value_and_grad(loss, mesh))(0.0, x, key)
        >>> bool(value == jax.jit(loss)(0.0, x, key))
        True
    """
    differentiated = jax.value_and_grad(loss, has_aux=has_aux)

    def divided(parameters: PyTree, batch: PyTree, *rest: Any) -> Any:
        for leaf in jax.tree.leaves(batch):
            if jnp.shape(leaf)[0] % mesh.shape[DATA]:
                raise ValueError(
                    f"A batch of {jnp.shape(leaf)[0]} datapoints cannot be shared equally by"
                    f" {mesh.shape[DATA]} devices along data."
                )
        with over(mesh):
            return gather(differentiated(parameters, spread(batch, DATA), *rest))

    return jax.jit(divided)
