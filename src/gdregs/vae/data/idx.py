"""The idx format of MNIST and Fashion-MNIST."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from gdregs.vae.errors import UserError

_IMAGES_MAGIC = 0x00000803


def read_idx_images(path: Path) -> np.ndarray:
    """Read an idx file of images, gzipped or not.

    Args:
        path: A file whose bytes are big-endian: magic number 0x803, count, height, width, pixels.

    Returns:
        `uint8 [count, height, width]`.

    Raises:
        UserError: If the file is truncated, corrupt, or no idx file of images.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path} is truncated or corrupt ({error}); get a fresh copy of the file."
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    header = np.frombuffer(content[:16], ">u4") if len(content) >= 16 else np.zeros(4, int)
    magic, *shape = (int(number) for number in header)
    if magic != _IMAGES_MAGIC:
        raise UserError(f"{path} is not an idx file of images; get a fresh copy of the file.")
    expected = shape[0] * shape[1] * shape[2]
    found = len(content) - 16
    if found != expected:
        raise UserError(
            f"{path} is truncated or corrupt: its header promises {shape[0]} images of"
            f" {shape[1]}x{shape[2]} ({expected} bytes) but {found} bytes follow; get a fresh copy"
            f" of the file."
        )
    return np.frombuffer(content, np.uint8, offset=16).reshape(shape)
