"""Pictures in a folder, and the one form to which own images are brought."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gdregs.vae.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg")
_MAX_PIXELS = 1 << 26


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


class Picture(NamedTuple):
    """A picture that has not been read yet."""

    name: str
    read: Callable[[], np.ndarray]


UNREADABLE = (OSError, ValueError, SyntaxError)
"""What reading a broken picture raises."""


def reason(error: BaseException) -> str:
    """Why a picture cannot be read."""
    return str(error.strerror if isinstance(error, OSError) and error.strerror else error)


def find_pictures(folder: Path, root: Path, options: Options, skipped: list[str]) -> list[Picture]:
    """The PNG and JPEG files below a folder; `skipped` gets the links that leave `root`."""
    found = []
    inside = root.resolve()
    for file in sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES):
        name = str(file.relative_to(root))
        if file.resolve().is_relative_to(inside):
            found.append(Picture(name, lambda file=file: read_picture(file, options)))
        else:
            skipped.append(f"{name}: a link that leaves the folder")
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
        return bring_to_form(image, options)


def bring_to_form(image: Any, options: Options) -> np.ndarray:
    """A picture of the imaging library as the options say."""
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


def common_shape(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[int, ...]:
    """The one shape of all pictures, in colour where any is.

    Raises:
        UserError: If they differ in size.
    """
    shapes = list(shapes)
    name, first = shapes[0]
    for other, shape in shapes:
        if shape[:2] != first[:2]:
            raise UserError(
                f"images differ in size: {name} is {first[1]}x{first[0]}, {other} is"
                f" {shape[1]}x{shape[0]}; --image-size N brings them to one size (--crop cuts a"
                f" square out first)."
            )
    return (*first[:2], 3) if any(len(shape) == 3 for _, shape in shapes) else first


def with_colours(picture: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A grey picture in colour, where the common shape has colours."""
    if picture.ndim == len(shape):
        return picture
    return np.repeat(picture[..., None], shape[2], axis=-1)


def size(shape: tuple[int, ...]) -> str:
    """A shape in words."""
    height, width, *colours = shape
    return f"{width}x{height}" + (" in colour" if colours else "")
