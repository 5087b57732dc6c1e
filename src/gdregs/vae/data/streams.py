"""Images that are read in the background while a model is trained, for data larger than memory."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gdregs.vae.data.arrays import blocks, in_form, load, rows_of, to_bytes
from gdregs.vae.data.own import find_groups, is_array, none_to_read, split
from gdregs.vae.data.pictures import (
    UNREADABLE,
    Options,
    Picture,
    common_shape,
    reason,
    with_colours,
)
from gdregs.vae.errors import UserError

AHEAD = 512
"""How many images are read before they are asked for, in as many threads as help."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Images that are read when they are asked for; in length and shape like an array of them.

    Attributes:
        read: Reads an image of the source, `uint8 [height, width]` or `[height, width, 3]`.
        rows: Which images of the source these are.
        image_shape: The shape of one.
        checksum: Of all images of the source, and their order.
    """

    read: Callable[[int], np.ndarray]
    rows: np.ndarray
    image_shape: tuple[int, ...]
    checksum: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """`[count, height, width]` or `[count, height, width, 3]`."""
        return (len(self), *self.image_shape)

    def first(self, count: int) -> "Stream":
        """The first so many of them."""
        return self.take(np.arange(min(count, len(self))))

    def take(self, rows: np.ndarray) -> "Stream":
        """Some of them."""
        return dataclasses.replace(self, rows=self.rows[rows])

    def batches(self, order: Sequence[int] | np.ndarray, size: int) -> Iterator[np.ndarray]:
        """The images in an order, so many at a time: `uint8 [size, height * width * colours]`.

        Raises:
            UserError: If one cannot be read any more.
        """
        rows = self.rows[np.asarray(order)]

        def pixels(position: int) -> np.ndarray:
            return self.read(int(rows[position])).reshape(-1)

        return _ahead(pixels, len(rows), size)

    def all(self) -> np.ndarray:
        """All images, in memory."""
        (images,) = self.batches(range(len(self)), len(self))
        return images.reshape(self.shape)


def open_stream(path: Path, options: Options) -> tuple[Stream, np.ndarray, tuple[str, ...]]:
    """Check own images, one after another, without keeping them.

    Args:
        path: As of `gdregs.vae.data.own.read_own`, but for archives, which are not read in parts.
        options: How they are brought to one form.

    Returns:
        The training images; the test images, in memory; and what cannot be read, with the reason.

    Raises:
        UserError: As `read_own`, and if the package `grain` is missing.
    """
    try:
        import grain  # noqa: F401
    except ImportError:
        raise UserError(
            "--stream needs a package that reads ahead; run: pip install 'gdregs[stream]'"
        ) from None
    skipped: list[str] = []
    if is_array(path):
        everything, test_rows = _open_array(path, options), None
    else:
        everything, test_rows = _open_pictures(path, options, skipped)
    if test_rows is None:
        kept, aside = split(len(everything), options)
    else:
        aside = np.flatnonzero(test_rows)
        kept = np.flatnonzero(~test_rows)
    train, test = (everything.take(rows) for rows in (kept, aside))
    return train, test.all(), tuple(sorted(skipped))


def _open_array(path: Path, options: Options) -> Stream:
    if path.suffix != ".npy":
        raise UserError(f"{path} cannot be read in parts; save its array as .npy, or a folder.")
    array = load(path)["train"]
    convert = to_bytes(path, "train", array)

    def read(row: int) -> np.ndarray:
        try:
            images = rows_of(array, row, row + 1)
        except UNREADABLE as error:
            raise UserError(f"{path} cannot be read any more: {reason(error)}.") from None
        return in_form(convert(images), options)[0]

    digest = hashlib.sha256(f"{array.shape}{array.dtype}".encode())
    for _, rows in blocks(array):
        digest.update(np.ascontiguousarray(rows).data)
    shape = read(0).shape if len(array) else array.shape[1:]
    return Stream(read, np.arange(len(array)), shape, digest.hexdigest())


class _Look(NamedTuple):
    """What is kept of a picture that was checked: its shape and checksum, or what is wrong."""

    shape: tuple[int, ...]
    checksum: str
    wrong: str | None


def _open_pictures(
    path: Path, options: Options, skipped: list[str]
) -> tuple[Stream, np.ndarray | None]:
    """All pictures, and which of them are for tests, where they say so themselves."""
    groups = find_groups(path, options, skipped)
    pictures = [picture for group in groups.values() for picture in group]
    of_test = np.repeat([name == "test" for name in groups], [len(g) for g in groups.values()])

    def look(position: int) -> _Look:
        try:
            image = pictures[position].read()
        except UNREADABLE as error:
            return _Look((), "", f"{pictures[position].name}: {reason(error)}")
        return _Look(
            image.shape, hashlib.sha256(np.ascontiguousarray(image).data).hexdigest(), None
        )

    looks = list(_ahead(look, len(pictures), None, "checking images"))
    skipped += [look.wrong for look in looks if look.wrong]
    rows = np.flatnonzero([look.wrong is None for look in looks])
    for name in groups:
        if not (of_test[rows] == (name == "test")).any():
            raise none_to_read(path, name, skipped)
    shape = common_shape((pictures[row].name, looks[row].shape) for row in rows)
    digest = hashlib.sha256(str(shape).encode())
    for row in rows:
        digest.update(looks[row].checksum.encode())

    def read(row: int) -> np.ndarray:
        return _read_again(pictures[row], shape)

    stream = Stream(read, rows, shape, digest.hexdigest())
    return stream, of_test[rows] if len(groups) > 1 else None


def _read_again(picture: Picture, shape: tuple[int, ...]) -> np.ndarray:
    try:
        image = with_colours(picture.read(), shape)
    except UNREADABLE as error:
        raise UserError(f"{picture.name} cannot be read any more: {reason(error)}.") from None
    if image.shape != shape:
        raise UserError(f"{picture.name} is another picture than when training began.")
    return image


def _ahead(
    read: Callable[[int], Any], count: int, size: int | None, what: str | None = None
) -> Iterator[Any]:
    """`read(0)`, `read(1)`, ... from the background, stacked by `size` where that is given.

    Args:
        read: What threads call.
        count: How often.
        size: How many of what it returns make an array; one by one, if None.
        what: What a progress bar says.
    """
    import grain
    from tqdm import tqdm

    threads = min(32, 2 * (os.cpu_count() or 1))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD)
    found: Any = grain.MapDataset.range(count).map(read).to_iter_dataset(options)
    if size is not None:
        found = found.batch(size)
    return iter(tqdm(found, what, count, unit="image", disable=None if what else True))
