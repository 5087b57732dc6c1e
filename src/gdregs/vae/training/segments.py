"""Epochs of several programs: for images that are read in the background, and for convolutions."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gdregs.vae.config import Config
from gdregs.vae.training.compiler import compiler_options
from gdregs.vae.training.epochs import EpochMetrics, Steps, TrainingState, make_steps, over_mesh
from gdregs.vae.training.task import Task

SEGMENT_BYTES = 1 << 26
"""Of the images that are on the device together; two segments are, for a moment."""


def make_stepwise_epoch(
    config: Config, task: Task
) -> Callable[[TrainingState], tuple[TrainingState, EpochMetrics]]:
    """As `make_epoch`, a step at a time."""
    steps = make_steps(config, task)

    @functools.partial(
        jax.jit, donate_argnums=0, compiler_options=compiler_options(config.precision)
    )
    def run(state, rows, keys, number, train):
        return steps.step(lambda batch: train[batch], state, (rows[number], keys[number]))

    def measure(state, rows, keys):
        for number in range(len(rows)):
            state, values = run(state, rows, keys, number, task.train)
            yield state, jax.tree.map(lambda value: value[None], values)

    return _epoch(config, steps, measure)


def make_streamed_epoch(
    config: Config, task: Task, mesh: Mesh | None = None, *, one_by_one: bool = False
) -> Callable[[TrainingState], tuple[TrainingState, EpochMetrics]]:
    """As `make_epoch` for a stream: the same images in the same order, with the same keys.

    While a segment trains, the next one is read.

    Args:
        config: The settings.
        task: The data, with a `stream`.
        mesh: A mesh of `gdregs.make_mesh` to train on. One device unless given.
        one_by_one: Whether a segment is a single step.
    """
    assert task.stream is not None
    stream, steps = task.stream, make_steps(config, task)
    step_bytes = config.batch_size * task.train.shape[1]
    longest = 1 if one_by_one else max(1, SEGMENT_BYTES // step_bytes)

    def on_device(state, inputs):
        step = functools.partial(steps.step, lambda images: images)
        if inputs[0].shape[0] > 1:
            return jax.lax.scan(step, state, inputs)
        state, values = step(state, jax.tree.map(lambda leaf: leaf[0], inputs))
        return state, jax.tree.map(lambda value: value[None], values)

    @functools.partial(
        jax.jit, donate_argnums=0, compiler_options=compiler_options(config.precision)
    )
    def run(state, images, keys):
        images = images.reshape(len(keys), config.batch_size, -1)
        return over_mesh(on_device, mesh, None)(state, (images, keys))

    def measure(state, rows, keys):
        # As equal as they can be, so that two programs do.
        length = -(-len(rows) // -(-len(rows) // longest))
        images = stream.batches(np.asarray(rows).reshape(-1), length * config.batch_size)
        for start, segment in zip(range(0, len(rows), length), images, strict=True):
            state, values = run(state, segment, keys[start : start + length])
            yield state, values

    return _epoch(config, steps, measure)


def _epoch(
    config: Config, steps: Steps, measure: Callable[..., Iterator[tuple[TrainingState, Any]]]
) -> Callable[[TrainingState], tuple[TrainingState, EpochMetrics]]:
    """An epoch of what `measure(state, rows, keys)` runs, one program after another."""
    order, summarise = jax.jit(steps.order), jax.jit(steps.summarise)

    def epoch(state: TrainingState) -> tuple[TrainingState, EpochMetrics]:
        rows, keys = order(jax.random.key(config.seed), int(state.epoch) + 1)
        measured = []
        for after, values in measure(state, rows, keys):
            state = after
            measured.append(values)
            if len(measured) > 1:  # no further ahead of the device than that
                jax.block_until_ready(measured[-2])
        joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *measured)
        return state._replace(epoch=state.epoch + 1), summarise(joined)

    return epoch
