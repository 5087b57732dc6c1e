"""Training on images that are read in the background: an epoch is several scans, one a segment."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gdregs.vae.config import Config
from gdregs.vae.training.compiler import compiler_options
from gdregs.vae.training.epochs import EpochMetrics, Task, TrainingState, make_steps, over_mesh

SEGMENT_BYTES = 1 << 26
"""Of the images that are on the device together; two segments are, for a moment."""


def make_streamed_epoch(
    config: Config, task: Task, mesh: Mesh | None = None
) -> Callable[[TrainingState], tuple[TrainingState, EpochMetrics]]:
    """As `make_epoch` for a stream: the same images in the same order, with the same keys.

    While a segment trains, the next one is read.

    Args:
        config: The settings.
        task: The data, with a `stream`.
        mesh: A mesh of `gdregs.make_mesh` to train on. One device unless given.
    """
    assert task.stream is not None
    stream, steps = task.stream, make_steps(config, task)
    options = compiler_options(config.precision)
    step_bytes = config.batch_size * task.train.shape[1]
    longest = max(1, SEGMENT_BYTES // step_bytes)

    def run(state, inputs):
        return jax.lax.scan(functools.partial(steps.step, lambda images: images), state, inputs)

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=options)
    def run_segment(state, images, keys):
        images = images.reshape(len(keys), config.batch_size, -1)
        return over_mesh(run, mesh, None)(state, (images, keys))

    order = jax.jit(steps.order)
    summarise = jax.jit(steps.summarise)

    def epoch(state: TrainingState) -> tuple[TrainingState, EpochMetrics]:
        number = int(state.epoch) + 1
        rows, keys = order(jax.random.key(config.seed), number)
        # As equal as they can be, so that two programs do.
        length = -(-len(rows) // -(-len(rows) // longest))
        measured = []
        images = stream.batches(np.asarray(rows).reshape(-1), length * config.batch_size)
        for start, segment in zip(range(0, len(rows), length), images, strict=True):
            if len(measured) > 1:
                jax.block_until_ready(measured[-2])
            state, values = run_segment(state, segment, keys[start : start + length])
            measured.append(values)
        joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *measured)
        return state._replace(epoch=state.epoch + 1), summarise(joined)

    return epoch
