"""The mesh of a training run: read from text, described, and with arrays put on it."""

from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gdregs.evaluation.meshes import AXES, DATA, SAMPLES, make_mesh
from gdregs.vae.config import Config
from gdregs.vae.errors import UserError

T = TypeVar("T")


def read_mesh(text: str, config: Config) -> Mesh | None:
    """A mesh from text such as `data=4,samples=2`; None if it is empty and there is one process.

    Raises:
        UserError: If it is not such a text, there are fewer devices, or the settings do not
            divide.
    """
    if not text:
        if jax.process_count() == 1:
            return None
        text = f"data={jax.device_count()}"
    sizes: dict[str, int] = {}
    for item in text.split(","):
        name, _, size = item.partition("=")
        if name.strip() not in (DATA, SAMPLES) or not size.strip().isdigit():
            raise UserError(f"--mesh is {DATA}=N, {SAMPLES}=N or both with a comma; got {text!r}.")
        sizes[name.strip()] = int(size)
    try:
        mesh = make_mesh(**sizes)
    except ValueError as error:
        raise UserError(f"--mesh {text}: {error}") from None
    if mesh.size < jax.device_count() and jax.process_count() > 1:
        raise UserError(f"--mesh {text} leaves out some of the {jax.device_count()} devices.")
    for flag, total, axis in (
        ("--batch-size", config.batch_size, DATA),
        ("--num-samples", config.num_samples, SAMPLES),
    ):
        if total % mesh.shape[axis]:
            raise UserError(f"--mesh {text}: {flag} {total} is not a multiple of {axis}.")
    return mesh


def describe_mesh(mesh: Mesh) -> str:
    """How many devices and processes there are, and who shares what."""
    shares = ", ".join(f"{name} over {mesh.shape[name]}" for name in AXES if mesh.shape[name] > 1)
    processes = jax.process_count()
    return (
        f"{mesh.size} devices" + (f" in {processes} processes" if processes > 1 else "")
        + (f": {shares}" if shares else "")
    )  # fmt: skip


def spread(tree: T, mesh: Mesh, *axes: str) -> T:
    """Put arrays on all devices of a mesh, whole or by their leading axes."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))


def fetch(tree: T) -> T:
    """Arrays on this machine, whole, wherever they were."""

    def one(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if leaf.is_fully_replicated:
            return jax.numpy.asarray(np.asarray(leaf))
        return jax.numpy.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(one, tree)
