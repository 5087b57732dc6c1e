"""A user's own images: a folder of pictures, an array of them, or a Hugging Face data set."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gdregs.vae.data import huggingface
from gdregs.vae.data.arrays import ARRAYS, read_arrays
from gdregs.vae.data.pictures import (
    UNREADABLE,
    Options,
    Picture,
    common_shape,
    find_pictures,
    reason,
    size,
    with_colours,
)
from gdregs.vae.errors import UserError


class Images(NamedTuple):
    """Own images, `uint8 [count, height, width]` or `[count, height, width, 3]`.

    Attributes:
        train: The training images.
        test: The test images.
        skipped: The files that could not be read, each with the reason.
    """

    train: np.ndarray
    test: np.ndarray
    skipped: tuple[str, ...] = ()


def is_path(name: str) -> bool:
    """Whether the name of a data set is that of a file or folder."""
    return Path(name).exists() or "/" in name or Path(name).suffix in ARRAYS


def read_own(path: Path, options: Options) -> Images:
    """Read own images, check them, and split them.

    Args:
        path: A folder of PNG or JPEG files, with or without sub-folders `train` and `test`; an
            `.npy` file, or an `.npz` file with arrays `train` and `test` or a single one; or a
            folder that the `datasets` library has saved.
        options: How they are brought to one form.

    Raises:
        UserError: If there is nothing to be read, or images differ in size and no size is given.
    """
    skipped: list[str] = []
    if is_array(path):
        if path.suffix == ".npy":
            _refuse_more_than_memory(path, path.stat().st_size)
        train, test = read_arrays(path, options)
    else:
        groups = find_groups(path, options, skipped)
        train, *rest = _read(path, groups, skipped)
        test = rest[0] if rest else None
    if test is None:
        kept, aside = split(len(train), options)
        train, test = train[kept], train[aside]
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"{path}: training images are {size(train.shape[1:])} and test images"
            f" {size(test.shape[1:])}; --image-size N brings them to one size."
        )
    if not len(test):
        raise UserError(f"{path} has no test images; a larger --test-share sets some aside.")
    return Images(np.ascontiguousarray(train), np.ascontiguousarray(test), tuple(sorted(skipped)))


def read_every(path: Path, options: Options) -> np.ndarray:
    """All images of a path, training images first, without a split.

    Raises:
        UserError: As `read_own`.
    """
    if is_array(path):
        arrays = [array for array in read_arrays(path, options) if array is not None]
    else:
        skipped: list[str] = []
        arrays = _read(path, find_groups(path, options, skipped), skipped)
    return np.concatenate(arrays)


def is_array(path: Path) -> bool:
    """Whether a path is that of an array; an error if it is nothing that can be read."""
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    if not path.is_dir() and path.suffix not in ARRAYS:
        raise UserError(
            f"{path} is not a data set: give a folder of images, an .npy or an .npz file."
        )
    return not path.is_dir()


def find_groups(path: Path, options: Options, skipped: list[str]) -> dict[str, list[Picture]]:
    """The pictures of a folder, not read yet: `train`, and `test` where they come apart."""
    if huggingface.is_saved(path):
        return huggingface.find_rows(path, options)
    parts = {name: path / name for name in ("train", "test")}
    if not all(part.is_dir() for part in parts.values()):
        parts = {"train": path}
    return {name: find_pictures(part, path, options, skipped) for name, part in parts.items()}


def none_to_read(path: Path, name: str, skipped: list[str]) -> UserError:
    """What is said where not one picture of a group can be read."""
    why = f": {skipped[0]}" if skipped else ""
    place = path / name if (path / name).is_dir() else path
    return UserError(f"{place} holds no PNG or JPEG image that can be read{why}.")


def split(count: int, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Which of so many images are for training, and which are set aside for a test."""
    order = np.random.default_rng(options.split_seed).permutation(count)
    aside = max(1, round(options.test_share * count))
    if aside >= count:
        raise UserError(f"{count} images are too few to set some aside for a test.")
    return np.sort(order[aside:]), np.sort(order[:aside])


def _memory() -> int:
    """Of the machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _refuse_more_than_memory(path: Path, num_bytes: int) -> None:
    """An error if images need more than half of the memory: they are there twice for a while."""
    if num_bytes > _memory() // 2:
        raise UserError(
            f"{path} would take {num_bytes / 2**30:.1f} GiB of this machine's"
            f" {_memory() / 2**30:.0f} GiB of memory; --stream reads images while training runs."
        )


def _read(path: Path, groups: dict[str, list[Picture]], skipped: list[str]) -> list[np.ndarray]:
    """Groups of pictures as arrays of one shape."""
    total, largest = sum(len(pictures) for pictures in groups.values()), 0
    found: list[list[tuple[str, np.ndarray]]] = []
    for name, pictures in groups.items():
        images = []
        for picture in pictures:
            try:
                images.append((picture.name, picture.read()))
            except UNREADABLE as error:
                skipped.append(f"{picture.name}: {reason(error)}")
                continue
            if images[-1][1].nbytes > largest:
                largest = images[-1][1].nbytes
                _refuse_more_than_memory(path, total * largest)
        if not images:
            raise none_to_read(path, name, skipped)
        found.append(images)
    shape = common_shape((name, image.shape) for images in found for name, image in images)
    return [np.stack([with_colours(image, shape) for _, image in images]) for images in found]
