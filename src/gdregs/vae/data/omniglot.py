"""Omniglot: the 28x28 version that the literature uses, or the official small zips."""

import io
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np

from gdregs.vae.errors import UserError

SMALL_ZIPS = ("images_background_small1.zip", "images_background_small2.zip")
MAT_FILE = "chardata.mat"
CHARDATA_TRAIN = 24_345
"""How many training images the whole data set has."""
_TEST_DRAWERS = {"17", "18", "19", "20"}
_MAX_PNG_BYTES = 1 << 20


def read_chardata(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read `chardata.mat`: 28x28 images, split as Burda et al. (2016) did.

    Returns:
        Train and test images, `uint8 [count, 28, 28]`.

    Raises:
        UserError: If the file cannot be read or has other contents.
    """
    import scipy.io

    try:
        content = scipy.io.loadmat(path)
        splits = [np.asarray(content[name]) for name in ("data", "testdata")]
    except Exception as error:
        raise UserError(
            f"{path} is truncated or corrupt ({type(error).__name__}: {error}); get a fresh copy."
        ) from None
    for split in splits:
        in_range = split.size and split.min() >= 0 and split.max() <= 1
        if split.ndim != 2 or split.shape[0] != 784 or not in_range:
            raise UserError(
                f"{path} does not hold images of 784 pixels between 0 and 1; get a fresh copy."
            )
    # Columns are images in Matlab's column-major order, so that each image is transposed.
    train, test = (
        np.round(255 * split.T).astype(np.uint8).reshape(-1, 28, 28).transpose(0, 2, 1)
        for split in splits
    )
    return train, test


def read_small_zips(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Read official `images_background_small*.zip` files, straight from the archives.

    The 105x105 drawings (ink is 0) are inverted and averaged over areas down to 28x28. The drawing
    of a character that both zips hold counts once. Drawers 17 to 20 of each character are the test
    set, so that train and test share characters but no drawing hand.

    Returns:
        Train and test images, `uint8 [count, 28, 28]`.

    Raises:
        UserError: If an archive cannot be read or holds something else.
    """
    drawings: dict[str, np.ndarray] = {}
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    name = PurePosixPath(entry.filename)
                    if name.suffix == ".png" and name.name not in drawings:
                        drawings[name.name] = _read_drawing(archive, entry)
        except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
            raise UserError(
                f"{path} is truncated or corrupt ({error}); get a fresh copy of the file."
            ) from None
    if not drawings:
        raise UserError(f"{paths[0]} holds no drawings; get a fresh copy of the file.")
    names = sorted(drawings)
    is_test = np.array([Path(name).stem.split("_")[-1] in _TEST_DRAWERS for name in names])
    images = np.stack([drawings[name] for name in names])
    return images[~is_test], images[is_test]


def _read_drawing(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    from PIL import Image

    if entry.file_size > _MAX_PNG_BYTES:
        raise ValueError(f"{entry.filename} is too large for a drawing")
    with Image.open(io.BytesIO(archive.read(entry)), formats=("PNG",)) as image:
        if image.size != (105, 105):
            raise ValueError(f"{entry.filename} has {image.size} pixels instead of (105, 105)")
        gray = image.convert("L").resize((28, 28), Image.Resampling.BOX)
    return 255 - np.asarray(gray)
