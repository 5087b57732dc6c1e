"""What is trained on: images on the device, and what of each is modelled."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from gdregs.vae.config import Config
from gdregs.vae.data.datasets import Dataset
from gdregs.vae.data.streams import Stream
from gdregs.vae.errors import UserError
from gdregs.vae.networks.observations import Observation


class Task(NamedTuple):
    """Images on the device, and what of each is modelled.

    Attributes:
        train: Grey values, `[count, pixels]`; of a stream the first ones, as many as there are test
            images.
        test: The same, all of them.
        levels: Grey value of full ink.
        num_context: How many values, from the top, are given rather than modelled.
        shape: Height and width of an image.
        observation: The likelihood, and what it sees of grey values.
        is_ink: Whether values are ink on paper, which pictures show dark.
        stream: All training images, where they are read while training runs.
    """

    train: UInt8[Array, "train pixels"]
    test: UInt8[Array, "test pixels"]
    levels: int
    num_context: int
    shape: tuple[int, int]
    observation: Observation = Observation()
    is_ink: bool = True
    stream: Stream | None = None

    @property
    def num_train(self) -> int:
        """How many training images there are."""
        return self.train.shape[0] if self.stream is None else len(self.stream)

    @property
    def colours(self) -> int:
        """How many values a pixel has."""
        return self.observation.colours

    @property
    def context_shape(self) -> tuple[int, int, int] | None:
        """Height, width and colours of what is given; None if nothing is."""
        if not self.num_context:
            return None
        return self.shape[0] // 2, self.shape[1], self.colours

    @property
    def target_shape(self) -> tuple[int, int, int]:
        """Height, width and colours of what is modelled."""
        given = self.shape[0] // 2 if self.num_context else 0
        return self.shape[0] - given, self.shape[1], self.colours

    def observe(
        self, key: PRNGKeyArray, images: UInt8[Array, "batch pixels"]
    ) -> Float[Array, "batch pixels"]:
        """What the likelihood sees of grey values."""
        return self.observation.observe(key, images)

    def split(
        self, images: Float[Array, "batch pixels"]
    ) -> tuple[Float[Array, "batch target"], Float[Array, "batch context"] | None]:
        """The modelled pixels, and the given ones (None if there are none)."""
        if not self.num_context:
            return images, None
        given = images[:, : self.num_context]
        return images[:, self.num_context :], self.observation.to_network(given)


def make_task(config: Config, dataset: Dataset) -> Task:
    """Put a data set on the device.

    Raises:
        UserError: If there are fewer images than fit a batch.
    """
    train, stream = dataset.train, None
    count = config.train_images or train.shape[0]
    test = dataset.test[: config.test_images or None]
    if isinstance(train, Stream):
        stream = train.first(count)
        train = stream.first(max(len(test), config.batch_size)).all()
    train = train[:count]
    if len(train) < config.batch_size:
        raise UserError(
            f"--batch-size {config.batch_size} is more than the {len(train)} training images."
        )
    task = _task(config, train, test, dataset.levels, dataset.is_ink)
    return task._replace(stream=stream)


def make_stub(config: Config, shape: tuple[int, ...], levels: int, is_ink: bool) -> Task:
    """A task without images, of their shape: enough to load a model and to draw from it."""
    nothing = np.zeros((1, *shape), np.uint8)
    return _task(config, nothing, nothing, levels, is_ink)


def _task(config: Config, train: np.ndarray, test: np.ndarray, levels: int, is_ink: bool) -> Task:
    height, width, *rest = train.shape[1:]
    colours = rest[0] if rest else 1
    return Task(
        jnp.asarray(train.reshape(len(train), -1)),
        jnp.asarray(test.reshape(len(test), -1)),
        levels,
        height // 2 * width * colours if config.conditional else 0,
        (height, width),
        Observation(config.likelihood_name, levels, colours),
        is_ink,
    )
