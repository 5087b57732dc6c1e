r"""Importance samples and datapoints spread over devices.

A mesh has the axes `seeds`, `data` and `samples`. Inside of a `jax.shard_map` over such a mesh,
`gdregs.bound` is one device's part of one bound: it draws its own rows of the same K samples for
its own columns of the same batch, and talks to the other devices only to normalise the weights.
What it returns is the bound of the whole; its derivative is this device's share, times the number
of devices along `samples`. So the *mean* over all devices of any loss's gradient is the gradient,
whatever else the loss contains, and one all-reduce of it is all that training needs.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from gdregs.evaluation.windows import window
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


class Axis(NamedTuple):
    """One axis of the mesh that the code at hand runs on.

    Attributes:
        name: The axis, or several that make one; None where there is a single device along it.
        size: How many devices there are along it.
    """

    name: tuple[str, ...] | None
    size: int

    def index(self) -> int | Int[Array, ""]:
        """The position of this device."""
        return 0 if self.name is None else jax.lax.axis_index(self.name)

    def total(self, values: T) -> T:
        """Sums over the devices, of a pytree in one message."""
        return values if self.name is None else jax.lax.psum(values, self.name)

    def largest(self, values: Array) -> Array:
        """The maximum over the devices."""
        return values if self.name is None else jax.lax.pmax(values, self.name)

    def smallest(self, values: Array) -> Array:
        """The minimum over the devices."""
        return values if self.name is None else jax.lax.pmin(values, self.name)

    def stacked(self, values: Array) -> Array:
        """The values of all devices along a new leading axis."""
        return values[None] if self.name is None else jax.lax.all_gather(values, self.name)

    def rows_of_all(self, values: Array) -> Array:
        """The leading axes of all devices, one after another."""
        return self.stacked(values).reshape(-1, *values.shape[1:])

    def log_total(self, log_values: Float[Array, "..."]) -> Float[Array, "..."]:
        """The log of the sum of exponentials over the devices: one maximum and one sum."""
        if self.name is None:
            return log_values
        top = self.largest(log_values)
        top = jnp.where(top > -jnp.inf, top, 0)
        return top + jnp.log(self.total(jnp.exp(log_values - top)))

    def own_rows(self, values: Array) -> Array:
        """This device's equal share of the leading axis."""
        if self.name is None:
            return values
        size = values.shape[0] // self.size
        return jax.lax.dynamic_slice_in_dim(values, self.index() * size, size)

    def own_key(self, key: PRNGKeyArray, num_rows: int) -> PRNGKeyArray:
        """The key of this device's `num_rows` rows of a draw that all devices share."""
        return key if self.name is None else window(key, self.index() * num_rows)


ALONE = Axis(None, 1)


def axis(*names: str) -> Axis:
    """The axis of that name, if the code at hand is one device's part of a `jax.shard_map`.

    Of several names, the axis that they make together.
    """
    mesh = jax.sharding.get_abstract_mesh()
    present = tuple(n for n in names if n in mesh.manual_axes and mesh.shape[n] > 1)
    return Axis(present, math.prod(mesh.shape[n] for n in present)) if present else ALONE


def mean_over_devices(tree: T) -> T:
    """The mean of each leaf over the devices that share a batch and its samples, in one message."""
    everyone = axis(DATA, SAMPLES)
    return tree if everyone == ALONE else jax.lax.pmean(tree, everyone.name)


def value_and_grad(
    loss: Callable[..., Any], mesh: Mesh, *, has_aux: bool = False
) -> Callable[..., Any]:
    r"""`jax.value_and_grad` of a loss over many devices, without a change to the loss.

    The loss is a mean over a batch of datapoints of (minus) `gdregs.bound` and of anything else.
    Each device evaluates it on its share of the batch and of the K importance samples, which are
    the ones that a single device would draw. For a sampler that draws its noise in the shape
    `[K, *batch, ...]`, as those of all location-scale families and hierarchies of them do, value
    and gradient are those of one device up to the order of additions. Log-weights cross the
    devices as one maximum and one sum, gradients, value and aux together as one all-reduce.

    Args:
        loss: `loss(parameters, batch, *rest)`, with leading axis the datapoints in every leaf of
            `batch`, and with keys and whatever else it needs in `rest`. It must be a mean over
            datapoints.
        mesh: A mesh of `gdregs.make_mesh`, whose size along `data` divides the batch, and along
            `samples` divides K.
        has_aux: Whether the loss returns a pair, of the value and a pytree of means.

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

    @functools.partial(jax.value_and_grad, has_aux=has_aux)
    def differentiated(parameters: PyTree, batch: PyTree, rest: tuple[Any, ...]) -> Any:
        return loss(parameters, batch, *rest)

    def on_device(parameters, batch, rest):
        return mean_over_devices(differentiated(parameters, batch, rest))

    everywhere, by_datapoint = PartitionSpec(), PartitionSpec(DATA)

    def spread(parameters: PyTree, batch: PyTree, *rest: Any) -> Any:
        for leaf in jax.tree.leaves(batch):
            if jnp.shape(leaf)[0] % mesh.shape[DATA]:
                raise ValueError(
                    f"A batch of {jnp.shape(leaf)[0]} datapoints cannot be shared equally by"
                    f" {mesh.shape[DATA]} devices along data."
                )
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(everywhere, by_datapoint, everywhere),
            out_specs=everywhere,
            check_vma=False,
        )(parameters, batch, rest)

    return spread
