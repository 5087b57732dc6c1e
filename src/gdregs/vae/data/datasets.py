"""Data sets of images: local files, checksum-verified downloads, or a user's own."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gdregs.vae.data.arrays import LEVELS
from gdregs.vae.data.idx import read_idx_images
from gdregs.vae.data.omniglot import MAT_FILE, SMALL_ZIPS, read_chardata, read_small_zips
from gdregs.vae.data.own import is_path, read_own
from gdregs.vae.data.pictures import Options
from gdregs.vae.data.streams import Stream, open_stream
from gdregs.vae.errors import UserError

DATASETS = ("digits", "mnist", "fashion-mnist", "omniglot")


class Dataset(NamedTuple):
    """Grey or coloured images.

    Attributes:
        name: One of `DATASETS`, or the path of a user's own.
        train: `uint8 [count, height, width]`, or `[count, height, width, 3]`; or a `Stream` of
            them.
        test: The same, in memory.
        levels: The value of full ink; a binary pixel is 1 with probability value / levels.
        is_ink: Whether values are ink on paper, which pictures show dark, and not light.
        skipped: What of a user's own images could not be read, each with the reason.
    """

    name: str
    train: np.ndarray | Stream
    test: np.ndarray
    levels: int
    is_ink: bool = True
    skipped: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """A checksum of all images and their order."""
        if isinstance(self.train, Stream):
            return self.train.checksum
        digest = hashlib.sha256()
        for images in (self.train, self.test):
            digest.update(f"{images.shape}{self.levels}".encode())
            digest.update(np.ascontiguousarray(images).data)
        return digest.hexdigest()


class Source(NamedTuple):
    """Where a file is downloaded from, and its checksum as pooch spells it."""

    url: str
    checksum: str | None


_IDX_FILES = ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")
SOURCES: dict[str, dict[str, Source]] = {
    "mnist": {
        "train-images-idx3-ubyte.gz": Source(
            "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz",
            "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
        ),
        "t10k-images-idx3-ubyte.gz": Source(
            "https://ossci-datasets.s3.amazonaws.com/mnist/t10k-images-idx3-ubyte.gz",
            "md5:9fb629c4189551a2d022fa330f9573f3",
        ),
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": Source(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-images-idx3-ubyte.gz",
            "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        ),
        "t10k-images-idx3-ubyte.gz": Source(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/t10k-images-idx3-ubyte.gz",
            "md5:bef4ecab320f06d8554ea6380940ec79",
        ),
    },
    "omniglot": {
        # No checksum is published for this file: its shape and range are checked instead, and
        # the checksum of the first download is pinned beside it.
        MAT_FILE: Source(
            "https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat", None
        ),
    },
}


def check_name(name: str) -> None:
    """An error if a data set is neither one of ours nor a path."""
    if name not in DATASETS and not is_path(name):
        raise UserError(
            f"unknown dataset {name!r}; choose one of {', '.join(DATASETS)}, or give the path of a"
            f" folder of images, an .npy or an .npz file."
        )


def load_dataset(
    name: str,
    data_dir: Path | None = None,
    cache: Path | None = None,
    options: Options = Options(),
    stream: bool = False,
) -> Dataset:
    """Load a data set.

    Args:
        name: `digits` (scikit-learn's, bundled), `mnist`, `fashion-mnist`, `omniglot`, or the path
            of own images (`gdregs.vae.data.own`).
        data_dir: A folder with the official files, or with a folder named after the data set that
            holds them. Without one, they are downloaded once and verified by checksum.
        cache: Where downloads are kept; by default the user's cache folder.
        options: How own images are brought to one form.
        stream: Whether own training images are read while they are needed, and not into memory.

    Returns:
        The `Dataset`.

    Raises:
        UserError: If the name is unknown, or a file is missing, truncated or corrupt.
    """
    check_name(name)
    if name not in DATASETS:
        read = open_stream if stream else read_own
        train, test, skipped = read(Path(name), options)
        return Dataset(name, train, test, LEVELS, is_ink=False, skipped=skipped)
    if name == "digits":
        return _digits()
    folder = _find_folder(name, data_dir) if data_dir else download(name, cache)
    if name == "omniglot":
        return _omniglot(folder)
    train, test = (read_idx_images(_find_file(folder, file)) for file in _IDX_FILES)
    for file, images in zip(_IDX_FILES, (train, test), strict=True):
        if images.shape[1:] != (28, 28) or images.max() == 0:
            raise UserError(
                f"{folder / file} holds images of shape {images.shape[1:]}, not (28, 28) with ink;"
                f" get a fresh copy of the file."
            )
    return Dataset(name, train, test, 255)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    pixels, _ = load_digits(return_X_y=True)
    images = np.asarray(pixels, np.uint8).reshape(-1, 8, 8)
    images = images[np.random.default_rng(0).permutation(len(images))]
    return Dataset("digits", images[:1500], images[1500:], 16)


def _omniglot(folder: Path) -> Dataset:
    zips = [folder / name for name in SMALL_ZIPS if (folder / name).exists()]
    if (folder / MAT_FILE).exists():
        return Dataset("omniglot", *read_chardata(folder / MAT_FILE), 255)
    if zips:
        return Dataset("omniglot", *read_small_zips(zips), 255)
    raise UserError(f"{folder} has neither {MAT_FILE} nor any of {', '.join(SMALL_ZIPS)}.")


def _find_folder(name: str, data_dir: Path) -> Path:
    if not data_dir.is_dir():
        raise UserError(f"--data-dir {data_dir} is not a folder.")
    for candidate in (data_dir / name, data_dir / name.replace("-", "_")):
        if candidate.is_dir():
            return candidate
    return data_dir


def _find_file(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / name.removesuffix(".gz")):
        if candidate.exists():
            return candidate
    raise UserError(
        f"{folder} has no {name}; put the official files there, or leave --data-dir out to"
        f" download them."
    )


def download(
    name: str, cache: Path | None = None, sources: dict[str, Source] | None = None
) -> Path:
    """Fetch the files of a data set once, verify them, and return their folder.

    Raises:
        UserError: If a file cannot be fetched or fails its checksum.
    """
    import pooch

    folder = (cache or Path(pooch.os_cache("gdregs"))) / name
    for file, source in (sources or SOURCES[name]).items():
        pin = folder / f"{file}.sha256"
        checksum = source.checksum or (pin.read_text().strip() if pin.exists() else None)
        try:
            path = pooch.retrieve(
                source.url, known_hash=checksum, fname=file, path=folder, progressbar=True
            )
        except ValueError as error:
            raise UserError(f"{source.url} failed its checksum: {error}") from None
        except Exception as error:
            reason = type(error).__name__
            raise UserError(
                f"{source.url} could not be downloaded ({reason}); with the files at hand, pass"
                f" --data-dir FOLDER."
            ) from None
        if source.checksum is None:
            pin.write_text(f"sha256:{pooch.file_hash(path)}\n")
    return folder
