"""A user's own image as the top half that a conditional model completes."""

from pathlib import Path
from typing import Literal

import numpy as np

from gdregs.vae.errors import UserError

Ink = Literal["auto", "dark", "light"]
_MAX_PIXELS = 1 << 24


def read_top_half(path: Path, shape: tuple[int, int], ink: Ink = "auto") -> np.ndarray:
    """The top half of an image file, as wide and half as high as the model's images.

    Colours become grey, transparency becomes paper. A file in the proportions of a whole image
    gives its top half; one in those of a top half is taken as it is. Other sizes are averaged over
    areas (or enlarged) to the model's.

    Args:
        path: A PNG file.
        shape: Height and width of the model's images.
        ink: Whether ink is `dark` on light paper or `light` on dark; `auto` takes what covers less.

    Returns:
        The ink of each pixel, 0 to 255, `uint8 [height // 2, width]`.

    Raises:
        UserError: If the file cannot be read as a PNG image or has other proportions.
    """
    from PIL import Image

    height, width = shape
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise UserError(f"{path} has more than {_MAX_PIXELS:,} pixels; make it smaller.")
            rgba = image.convert("RGBA")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a PNG image ({error}).") from None
    grey, opaque = np.asarray(rgba.convert("L")), np.asarray(rgba.getchannel("A"))
    visible = opaque > 127
    if ink == "auto":
        ink = "dark" if not visible.any() or grey[visible].mean() > 127 else "light"
    paper = 255 if ink == "dark" else 0
    values = np.where(visible, grey, paper).astype(np.uint8)
    drawn = Image.fromarray(255 - values if ink == "dark" else values)
    top = height // 2
    if abs(drawn.height * width - drawn.width * height) <= width:
        drawn = drawn.resize((width, height), Image.Resampling.BOX).crop((0, 0, width, top))
    elif abs(drawn.height * width - drawn.width * top) <= width:
        drawn = drawn.resize((width, top), Image.Resampling.BOX)
    else:
        raise UserError(
            f"{path} is {drawn.width}x{drawn.height} (width x height); it must have the proportions"
            f" of a whole image, {width}x{height}, or of its top half, {width}x{top}."
        )
    return np.asarray(drawn)
