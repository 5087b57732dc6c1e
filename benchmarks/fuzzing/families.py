"""Families of distributions by their supports, as text with a slot for each parameter.

Families of one support that share a `group` may stand opposite each other as posterior and prior:
the log-weight and its gradient then have finite variance. The others stand opposite themselves.
"""

from typing import NamedTuple


class Slot(NamedTuple):
    """A parameter of a family.

    Attributes:
        kind: `real`, `positive`, `unit`, `tril` (a Cholesky factor) or `end` (of the support).
        centre: Its value where nothing else moves it; a positive one is a multiple of it.
        shape: Its own axes, after those of the batch.
    """

    kind: str
    centre: float = 0.0
    shape: tuple[int, ...] = ()


class Family(NamedTuple):
    """A family.

    Attributes:
        text: Python code with `{0}`, `{1}`, ... in the place of the slots.
        slots: Its parameters.
        group: Which other families of the same support may stand opposite it; alone if empty.
        joint: Whether all slots must have the same batch axes.
    """

    text: str
    slots: tuple[Slot, ...]
    group: str = ""
    joint: bool = False


class Support(NamedTuple):
    """Where latents live.

    Attributes:
        event_dim: The number of axes of a latent.
        feature: Code that maps a latent `{z}` to one bounded number for each batch index.
        families: By name.
    """

    event_dim: int
    feature: str
    families: dict[str, Family]


REAL, ONE, WIDE = Slot("real"), Slot("positive", 1.0), Slot("positive", 0.5)


def real(*shape: int) -> Slot:
    return Slot("real", 0.0, shape)


def positive(centre: float, *shape: int) -> Slot:
    return Slot("positive", centre, shape)


def end(value: float) -> Slot:
    return Slot("end", value)


def tril(size: int) -> Slot:
    return Slot("tril", 0.0, (size, size))


UNIT = Slot("unit", 0.5)
SCALAR = "tanh({z})"
VECTOR = "tanh({z}).mean(-1)"
