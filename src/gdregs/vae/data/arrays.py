"""Images in an .npy or .npz file."""

import math
import mmap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gdregs.vae.data.pictures import Options, bring_to_form
from gdregs.vae.errors import UserError

ARRAYS = (".npy", ".npz")
LEVELS = 255
_MAX_UNPACKED = 1 << 32
_MAX_RATIO = 200
_BLOCK = 1 << 26
_NAMES = {
    "train": ("train", "x_train", "train_images", "images", "data", "arr_0"),
    "test": ("test", "x_test", "test_images"),
}


def read_arrays(path: Path, options: Options) -> tuple[np.ndarray, np.ndarray | None]:
    """The training and the test images of a file; None where it has no test images.

    Raises:
        UserError: If it holds something else, or cannot be read.
    """
    arrays = {
        split: in_form(to_bytes(path, name, array)(array), options)
        for split, (name, array) in _by_split(load(path)).items()
    }
    return arrays["train"], arrays.get("test")


def load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name, that of an .npy mapped into memory rather than read.

    Raises:
        UserError: If it cannot be read, or only by running code.
    """
    try:
        if path.suffix == ".npy":
            with open(path, "rb") as file:
                np.lib.format.read_magic(file)
            return {"train": np.load(path, allow_pickle=False, mmap_mode="r")}
        _refuse_bombs(path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in _chosen(path, archive.files)}
    except UserError:
        raise
    except ValueError as error:
        if any(word in str(error) for word in ("pickle", "Object arrays", "Python objects")):
            raise UserError(
                f"{path} holds Python objects, which are refused: reading them can run code. Save"
                f" numbers: numpy.save(path, numpy.stack(images))."
            ) from None
        raise UserError(f"{path} is truncated or corrupt ({error}).") from None
    except (OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is truncated or corrupt ({error}).") from None


def _refuse_bombs(path: Path) -> None:
    """A small archive that would unpack into more than the memory."""
    with zipfile.ZipFile(path) as archive:
        packed = sum(entry.compress_size for entry in archive.infolist())
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > _MAX_UNPACKED and unpacked > _MAX_RATIO * max(packed, 1):
        raise UserError(
            f"{path} would unpack to {unpacked / 2**30:.0f} GiB from {packed / 2**20:.1f} MiB, as"
            f" archives do that are made to fill a memory; save it as .npy if it is meant."
        )


def _chosen(path: Path, names: list[str]) -> list[str]:
    known = [name for split in _NAMES.values() for name in split]
    chosen = [name for name in names if name in known] or names[:1]
    if not chosen or (len(names) > 1 and not set(names) & set(_NAMES["train"])):
        raise UserError(
            f"{path} holds {', '.join(names) or 'nothing'}; name the arrays train and test."
        )
    return chosen


def _by_split(loaded: dict[str, np.ndarray]) -> dict[str, tuple[str, np.ndarray]]:
    found = {}
    for split, names in _NAMES.items():
        for name in names:
            if name in loaded and split not in found:
                found[split] = (name, loaded[name])
    if "train" not in found:
        name = next(iter(loaded))
        found["train"] = (name, loaded[name])
    return found


def to_bytes(path: Path, name: str, array: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """How any rows of an array become grey values from 0 to 255, once all of it is checked.

    The array is looked at a part at a time, so that a mapped file need not fit into memory.

    Raises:
        UserError: If they are no images.
    """
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] not in (1, 3)):
        raise UserError(
            f"{path}: {name} has shape {array.shape}; images are [count, height, width] or"
            f" [count, height, width, colours] with 1 or 3 colours."
        )

    def squeezed(rows: np.ndarray) -> np.ndarray:
        return rows[..., 0] if array.ndim == 4 and array.shape[-1] == 1 else rows

    if array.dtype == bool:
        return lambda rows: squeezed(rows).astype(np.uint8) * np.uint8(LEVELS)
    if array.dtype == np.uint8:
        return lambda rows: np.asarray(squeezed(rows))
    if array.dtype == np.uint16:
        return lambda rows: (np.asarray(squeezed(rows)) >> 8).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise UserError(f"{path}: {name} holds {array.dtype}, not numbers of pixels.")
    low, high = _range(path, name, array)
    is_integer = np.issubdtype(array.dtype, np.integer)
    if low < 0 or high > (LEVELS if is_integer or high > 1 else 1):
        raise UserError(
            f"{path}: {name} has pixels from {low:g} to {high:g}; they must lie between 0 and 1, or"
            f" between 0 and 255."
        )
    scale = 1 if is_integer or high > 1 else LEVELS
    return lambda rows: np.round(np.asarray(squeezed(rows)) * scale).astype(np.uint8)


def blocks(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Consecutive rows of an array, as many as are read at a time, and the first one's number."""
    size = max(1, _BLOCK // max(1, array[:1].nbytes))
    for start in range(0, len(array), size):
        yield start, rows_of(array, start, start + size)


def rows_of(array: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Consecutive rows of an array; of one that is mapped into memory, read from its file.

    What was touched of a mapping counts as memory of the process for as long as nobody needs it.
    """
    if not (isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap)):
        return array[start:stop]
    if not (array.flags.c_contiguous and array.size):
        return array[start:stop]
    stop = min(stop, len(array))
    count, width = math.prod((stop - start, *array.shape[1:])), array[0].nbytes
    offset = array.offset + start * width
    found = np.fromfile(str(array.filename), array.dtype, count, offset=offset)
    return found.reshape(stop - start, *array.shape[1:])


def _range(path: Path, name: str, array: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest pixel, all of them finite."""
    low, high, count, where = float("inf"), float("-inf"), 0, 0
    for start, rows in blocks(array):
        bad = ~np.isfinite(rows)
        if bad.any():
            where = where if count else start + int(np.argwhere(bad)[0][0])
            count += int(bad.sum())
        elif rows.size:
            low, high = min(low, float(rows.min())), max(high, float(rows.max()))
    if count:
        raise UserError(
            f"{path}: {name} has {count} pixels that are NaN or infinite, the first in image"
            f" {where}."
        )
    return (low, high) if len(array) else (0.0, 0.0)


def in_form(images: np.ndarray, options: Options) -> np.ndarray:
    """Bytes as the options say."""
    if not (options.image_size or options.crop or options.grey):
        return images
    from PIL import Image

    return np.stack([bring_to_form(Image.fromarray(image), options) for image in images])
