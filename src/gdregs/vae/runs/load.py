"""A trained run, ready to use."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from gdregs.vae.config import Config, read_config
from gdregs.vae.data.streams import Stream
from gdregs.vae.errors import UserError
from gdregs.vae.files import write_atomically
from gdregs.vae.runs.folders import CHECKPOINT, CONFIG, load_state
from gdregs.vae.runs.record import load_stub
from gdregs.vae.training.task import Task


class Run(NamedTuple):
    """A trained model, with what is needed to use it.

    Attributes:
        model: With `posterior(x, context)`, `prior(context)`, `likelihood(x)` and `pixels(z)`.
        config: Its settings.
        task: The shape of its images, and how they are prepared; without any images.
        epoch: How many epochs it was trained.

    Example:
        >>> import gdregs.vae, jax, pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "run"
        >>> config = gdregs.vae.Config(epochs=1, hidden_size=8, num_samples=4, train_images=128)
        >>> task = gdregs.vae.make_task(config, gdregs.vae.load_dataset("digits"))
        >>> gdregs.vae.open_run(folder, config)
        >>> _ = gdregs.vae.train(folder, config, task)
        >>> run = gdregs.vae.load(folder)
        >>> run.sample(jax.random.key(0), 5).shape
        (5, 8, 8, 1)
        >>> images = gdregs.vae.load_dataset("digits").test[:3]
        >>> {name: z.shape for name, z in run.encode(images).items()}
        {'z1': (3, 50), 'z2': (3, 50)}
    """

    model: Any
    config: Config
    task: Task
    epoch: int

    def sample(self, key: PRNGKeyArray, count: int) -> Float[Array, "count height width colours"]:
        """Expected pixels, between 0 and 1, of samples of an unconditional model's prior."""
        if self.task.num_context:
            raise UserError("a conditional model has samples given a context only.")
        z = self.model.prior().sample(key, (count,))
        return self.model.pixels(z).reshape(count, *self.task.shape, -1)

    def encode(
        self, images: Any, key: PRNGKeyArray | None = None, batch_size: int = 256
    ) -> dict[str, np.ndarray]:
        """The latents of images.

        Args:
            images: Grey values from 0 to the run's levels, `[count, height, width]` or
                `[count, height, width, colours]`; or a `Stream` of them.
            key: For a sample of the posterior. Without it, the mean of each latent given those of
                the latents before it, and of pixels that are binarised at half of full ink.
            batch_size: How many at a time.

        Returns:
            By latent, `[count, *event]`.
        """
        is_stream = isinstance(images, Stream)
        values = images if is_stream else np.asarray(images)
        expected = self.task.train.shape[1]
        if len(values.shape) < 3 or math.prod(values.shape[1:]) != expected:
            raise UserError(
                f"images of shape {values.shape} do not fit this run, whose images have"
                f" {expected} numbers each."
            )
        if is_stream:
            batches = images.batches(range(len(images)), batch_size)
        else:
            flat = np.asarray(values).reshape(len(values), -1)
            batches = (
                flat[start : start + batch_size] for start in range(0, len(flat), batch_size)
            )
        parts = []
        for number, batch in enumerate(batches):
            batch_key = None if key is None else jax.random.fold_in(key, number)
            parts.append(_encode(self.model, self.task, jnp.asarray(batch), batch_key))
        return {
            name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]
        }


@eqx.filter_jit
def _encode(model: Any, task: Task, images: Array, key: PRNGKeyArray | None) -> dict[str, Array]:
    observe_key, sample_key = jax.random.split(jax.random.key(0) if key is None else key)
    if key is None and task.observation.kind == "bernoulli":
        seen = (2 * images.astype(float) > task.levels).astype(jnp.float32)
    else:
        seen = task.observe(observe_key, images)
    posterior = model.posterior(*task.split(seen))
    return _means(posterior) if key is None else posterior.sample(sample_key)


def _means(posterior: Any) -> dict[str, Array]:
    """The mean of each latent given the means before it."""
    if hasattr(posterior, "walk"):
        return {name: z for name, _, z in posterior.walk(lambda name, part: part.mean)}
    means: dict[str, Array] = {}
    for name, parents in posterior.parents:
        means[name] = posterior.conditional(name, parents, means).mean
    return means


def load(folder: Path | str, model: Any = None) -> Run:
    """Load a trained run.

    Args:
        folder: The run folder.
        model: For a run of a model of your own: the same, untrained.

    Raises:
        UserError: If there is no such run, or no checkpoint.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG)
    if not (folder / CHECKPOINT).exists():
        raise UserError(f"{folder} has no checkpoint yet; `gdregs train` writes one each epoch.")
    task = load_stub(folder, config)
    state = load_state(folder, config, task, model=model)
    return Run(state.model, config, task, int(state.epoch))


def export(run: Run, path: Path) -> int:
    """Write the weights as safetensors, named by their place in the model; returns how many.

    Their metadata hold the settings.
    """
    import json

    import safetensors.numpy

    named = {
        "".join(map(str, place)).lstrip("."): np.asarray(leaf)
        for place, leaf in jax.tree_util.tree_flatten_with_path(run.model)[0]
    }
    content = safetensors.numpy.save(named, {"config": json.dumps(run.config.to_dict())})
    write_atomically(path, lambda file: file.write(content))
    return len(named)
