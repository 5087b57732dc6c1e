"""A user's own images: a folder of pictures, an array of them, or a Hugging Face data set."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gdregs.vae.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg")
ARRAYS = (".npy", ".npz")
LEVELS = 255
_MAX_PIXELS = 1 << 26
_MAX_UNPACKED = 1 << 32
_MAX_RATIO = 200
_NAMES = {
    "train": ("train", "x_train", "train_images", "images", "data", "arr_0"),
    "test": ("test", "x_test", "test_images"),
}


class Options(NamedTuple):
    """How own images are brought to one form.

    Attributes:
        image_size: Height and width to which they are resized; 0 leaves them as they are.
        crop: Whether the largest square in the middle is cut out first.
        grey: Whether colours become grey.
        test_share: The share of them that is the test set, where they come without one.
        split_seed: Decides which these are.
    """

    image_size: int = 0
    crop: bool = False
    grey: bool = False
    test_share: float = 0.1
    split_seed: int = 0


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
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    if path.is_dir():
        if any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
            found = _read_huggingface(path, options)
        else:
            found = _read_folder(path, options)
    elif path.suffix in ARRAYS:
        found = _read_arrays(path, options)
    else:
        raise UserError(
            f"{path} is not a data set: give a folder of images, an .npy or an .npz file."
        )
    train, test, skipped = found
    if test is None:
        train, test = _split(train, options)
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"{path}: training images are {_size(train)} and test images {_size(test)};"
            f" --image-size N brings them to one size."
        )
    if not len(test):
        raise UserError(f"{path} has no test images; a larger --test-share sets some aside.")
    return Images(np.ascontiguousarray(train), np.ascontiguousarray(test), skipped)


def read_every(path: Path, options: Options) -> np.ndarray:
    """All images of a path, training images first, without a split.

    Raises:
        UserError: As `read_own`.
    """
    is_pictures = path.is_dir() and not any((path / name).is_dir() for name in ("train", "test"))
    if is_pictures and not (path / "dataset_info.json").exists():
        skipped: list[str] = []
        return _stack([_read_pictures(path, path, options, skipped)], options)[0]
    found = read_own(path, options._replace(test_share=1e-9))
    return np.concatenate([found.train, found.test])


def _split(images: np.ndarray, options: Options) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(options.split_seed).permutation(len(images))
    count = max(1, round(options.test_share * len(images)))
    if count >= len(images):
        raise UserError(f"{len(images)} images are too few to set some aside for a test.")
    return images[np.sort(order[count:])], images[np.sort(order[:count])]


def _size(images: np.ndarray) -> str:
    height, width, *colours = images.shape[1:]
    return f"{width}x{height}" + (" in colour" if colours else "")


def _read_folder(path: Path, options: Options) -> Any:
    parts = [path / name for name in ("train", "test")]
    skipped: list[str] = []
    if all(part.is_dir() for part in parts):
        pictures = [_read_pictures(part, path, options, skipped) for part in parts]
        train, test = _stack(pictures, options)
    else:
        (train,) = _stack([_read_pictures(path, path, options, skipped)], options)
        test = None
    return train, test, tuple(skipped)


def _read_pictures(
    folder: Path, root: Path, options: Options, skipped: list[str]
) -> list[tuple[str, np.ndarray]]:
    found = []
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    inside = root.resolve()
    for file in files:
        name = str(file.relative_to(root))
        if not file.resolve().is_relative_to(inside):
            skipped.append(f"{name}: a link that leaves the folder")
            continue
        try:
            found.append((name, read_picture(file, options)))
        except (OSError, ValueError, SyntaxError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            skipped.append(f"{name}: {reason}")
    if not found:
        why = f": {skipped[0]}" if skipped else ""
        raise UserError(f"{folder} holds no PNG or JPEG image that can be read{why}.")
    return found


def read_picture(file: Any, options: Options) -> np.ndarray:
    """One picture, `uint8 [height, width]` or `[height, width, 3]`.

    Transparency becomes white, 16 bits a pixel become 8, palettes their colours.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is too large.
    """
    from PIL import Image

    with Image.open(file, formats=("PNG", "JPEG")) as image:
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels are more than {_MAX_PIXELS:,}")
        image.load()
        return _bring_to_form(image, options)


def _bring_to_form(image: Any, options: Options) -> np.ndarray:
    from PIL import Image

    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image).convert("RGB")
    is_grey = options.grey or image.mode in ("1", "L")
    image = image.convert("L" if is_grey else "RGB")
    if options.crop:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if options.image_size:
        wanted = (options.image_size, options.image_size)
        is_smaller = image.width * image.height >= wanted[0] * wanted[1]
        how = Image.Resampling.BOX if is_smaller else Image.Resampling.BICUBIC
        image = image.resize(wanted, how)
    return np.asarray(image)


def _stack(groups: list[list[tuple[str, np.ndarray]]], options: Options) -> list[np.ndarray]:
    """Groups of pictures as arrays of one size, in colour where any picture is."""
    everything = [picture for group in groups for picture in group]
    name, first = everything[0]
    for other, picture in everything:
        if picture.shape[:2] != first.shape[:2]:
            raise UserError(
                f"images differ in size: {name} is {first.shape[1]}x{first.shape[0]}, {other} is"
                f" {picture.shape[1]}x{picture.shape[0]}; --image-size N brings them to one size"
                f" (--crop cuts a square out first)."
            )
    in_colour = any(picture.ndim == 3 for _, picture in everything)

    def colours(picture: np.ndarray) -> np.ndarray:
        if not in_colour or picture.ndim == 3:
            return picture
        return np.repeat(picture[..., None], 3, axis=-1)

    return [np.stack([colours(picture) for _, picture in group]) for group in groups]


def _read_arrays(path: Path, options: Options) -> Any:
    try:
        if path.suffix == ".npy":
            loaded = {"train": np.load(path, allow_pickle=False, mmap_mode="r")}
        else:
            _refuse_bombs(path)
            with np.load(path, allow_pickle=False) as archive:
                loaded = {name: archive[name] for name in _chosen(path, archive.files)}
    except UserError:
        raise
    except ValueError as error:
        if (
            "pickle" in str(error)
            or "Object arrays" in str(error)
            or "Python objects" in str(error)
        ):
            raise UserError(
                f"{path} holds Python objects, which are refused: reading them can run code. Save"
                f" numbers: numpy.save(path, numpy.stack(images))."
            ) from None
        raise UserError(f"{path} is truncated or corrupt ({error}).") from None
    except (OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is truncated or corrupt ({error}).") from None
    arrays = {
        split: _brought_to_form(_as_bytes(path, name, array), options)
        for split, (name, array) in _by_split(loaded).items()
    }
    return arrays["train"], arrays.get("test"), ()


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


def _as_bytes(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """Grey values from 0 to 255, checked."""
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] not in (1, 3)):
        raise UserError(
            f"{path}: {name} has shape {array.shape}; images are [count, height, width] or"
            f" [count, height, width, colours] with 1 or 3 colours."
        )
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(LEVELS)
    if array.dtype == np.uint8:
        return np.asarray(array)
    if array.dtype == np.uint16:
        return (np.asarray(array) >> 8).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise UserError(f"{path}: {name} holds {array.dtype}, not numbers of pixels.")
    bad = ~np.isfinite(array)
    if bad.any():
        where = int(np.argwhere(bad)[0][0])
        raise UserError(
            f"{path}: {name} has {int(bad.sum())} pixels that are NaN or infinite, the first in"
            f" image {where}."
        )
    low, high = float(array.min()), float(array.max())
    is_integer = np.issubdtype(array.dtype, np.integer)
    if low < 0 or high > (LEVELS if is_integer or high > 1 else 1):
        raise UserError(
            f"{path}: {name} has pixels from {low:g} to {high:g}; they must lie between 0 and 1, or"
            f" between 0 and 255."
        )
    scale = 1 if is_integer or high > 1 else LEVELS
    return np.round(np.asarray(array) * scale).astype(np.uint8)


def _brought_to_form(images: np.ndarray, options: Options) -> np.ndarray:
    if not (options.image_size or options.crop or options.grey):
        return images
    from PIL import Image

    return np.stack([_bring_to_form(Image.fromarray(image), options) for image in images])


def _read_huggingface(path: Path, options: Options) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{path} is a Hugging Face data set; run: pip install 'gdregs[huggingface]'"
        ) from None
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}).") from None
    splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    if "train" not in splits:
        raise UserError(
            f"{path} has the splits {', '.join(map(str, splits))}, and none named train."
        )
    skipped: list[str] = []
    groups = []
    for name in ("train", "test"):
        if name in splits:
            groups.append(_read_split(path, name, splits[name], options, skipped))
    train, *rest = _stack(groups, options)
    return train, (rest[0] if rest else None), tuple(skipped)


def _read_split(path, name, split, options, skipped) -> list[tuple[str, np.ndarray]]:
    import datasets

    columns = [
        column for column, kind in split.features.items() if isinstance(kind, datasets.Image)
    ]
    if not columns:
        raise UserError(
            f"{path}: {name} has no column of images; it has {', '.join(split.features)}."
        )
    found = []
    for number, image in _each(split, columns[0]):
        try:
            found.append((f"{name} {number}", _bring_to_form(image(), options)))
        except (OSError, ValueError, SyntaxError) as error:
            skipped.append(f"{name} {number}: {error}")
    if not found:
        raise UserError(f"{path}: {name} has no image that can be read.")
    return found


def _each(split: Any, column: str) -> Iterator[tuple[int, Callable[[], Any]]]:
    for number in range(len(split)):
        yield number, lambda number=number: split[number][column]
