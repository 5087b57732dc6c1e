"""What a model of the zoo consists of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Entry(NamedTuple):
    """A model of the zoo.

    Attributes:
        about: What it is, in a few words.
        model: The numpyro program.
        guide: The guide.
        args: What both are called with.
        learning_rate: Of Adam.
    """

    about: str
    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    learning_rate: float = 0.01


def generator(seed):
    """Of a model's data."""
    return np.random.default_rng(seed)
