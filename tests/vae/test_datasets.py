"""Local files, downloads, and every way in which either can be wrong."""

import gzip
import hashlib
import http.server
import io
import struct
import threading
import zipfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from gdregs.vae.data.datasets import DATASETS, Source, download, load_dataset
from gdregs.vae.errors import UserError
from real_data import REAL


def idx(images):
    return struct.pack(">4I", 0x803, *images.shape) + images.tobytes()


@pytest.fixture
def folder(tmp_path):
    """A folder with a small data set in idx files."""
    rng = np.random.default_rng(0)
    for name, count in (("train-images-idx3-ubyte.gz", 20), ("t10k-images-idx3-ubyte.gz", 8)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (tmp_path / name).write_bytes(gzip.compress(idx(images)))
    return tmp_path


def test_digits_are_bundled():
    data = load_dataset("digits")
    assert data.train.shape == (1500, 8, 8)
    assert data.test.shape == (297, 8, 8)
    assert data.train.max() == data.levels == 16


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("mnist", 60_000, 10_000),
        pytest.param("fashion-mnist", 60_000, 10_000, marks=pytest.mark.slow),
        pytest.param("omniglot", 3872, 968, marks=pytest.mark.slow),
    ],
)
def test_real_files(name, train, test):
    if not REAL.is_dir():
        pytest.skip(f"needs the real data sets in {REAL} (or in $GDREGS_DATA)")
    data = load_dataset(name, REAL)
    assert data.train.shape == (train, 28, 28)
    assert data.test.shape == (test, 28, 28)
    assert data.train.dtype == np.uint8
    assert 0.05 < data.train.mean() / data.levels < 0.5
    if name == "omniglot":  # ink is sparse, and the sheet around it is empty
        assert np.median(data.train) == 0
    same = load_dataset(name, REAL / name.replace("-", "_"))
    np.testing.assert_array_equal(same.test, data.test)


def test_files_may_be_unzipped(folder):
    expected = load_dataset("mnist", folder)
    for path in list(folder.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    data = load_dataset("mnist", folder)
    np.testing.assert_array_equal(data.train, expected.train)


def fails(message, *arguments, **options):
    with pytest.raises(UserError, match=message) as caught:
        load_dataset(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_unknown_names_are_listed():
    fails(f"unknown dataset 'cifar'; choose one of {', '.join(DATASETS)}", "cifar")


def test_missing_folders_and_files(folder, tmp_path):
    fails("is not a folder", "mnist", tmp_path / "nowhere")
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    fails("has no t10k-images-idx3-ubyte.gz; put the official files there", "mnist", folder)
    fails("has neither chardata.mat nor any of images_background_small1", "omniglot", folder)


@pytest.mark.parametrize(
    "spoil",
    {
        "cut gzip": lambda raw: raw[: len(raw) // 2],
        "flipped gzip": lambda raw: raw[:200] + bytes(255 - b for b in raw[200:300]) + raw[300:],
        "cut pixels": lambda raw: gzip.compress(gzip.decompress(raw)[:-10]),
        "more pixels": lambda raw: gzip.compress(gzip.decompress(raw) + b"\0"),
        "labels": lambda raw: gzip.compress(struct.pack(">2I", 0x801, 3) + b"abc" * 5),
        "empty": lambda raw: b"",
        "text": lambda raw: b"<html>404 Not Found</html>",
        "other size": lambda raw: gzip.compress(idx(np.ones((3, 20, 20), np.uint8))),
        "no ink": lambda raw: gzip.compress(idx(np.zeros((3, 28, 28), np.uint8))),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_spoiled_idx_files(folder, spoil):
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(spoil[1](path.read_bytes()))
    fails(r"train-images-idx3-ubyte.gz .*; get a fresh copy of the file\.$", "mnist", folder)


# Omniglot.


def drawing(ink, size=105):
    pixels = np.full((size, size), 255, np.uint8)
    pixels[:ink, :ink] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_zip(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_small_zips(tmp_path):
    make_zip(
        tmp_path / "images_background_small1.zip",
        {
            "small1/Greek/character01/0394_01.png": drawing(30),
            "small1/Greek/character01/0394_17.png": drawing(60),
            "small1/README": b"no drawing",
        },
    )
    make_zip(
        tmp_path / "images_background_small2.zip",
        {
            "small2/Greek/character01/0394_01.png": drawing(30),
            "../../../outside/0395_02.png": drawing(105),
        },
    )
    before = sorted(tmp_path.rglob("*"))
    data = load_dataset("omniglot", tmp_path)
    assert data.train.shape == (2, 28, 28)  # the drawing that both zips hold counts once
    assert data.test.shape == (1, 28, 28)
    assert data.train[0, 0, 0] == 255  # ink is full
    assert data.train[0, -1, -1] == 0
    np.testing.assert_allclose(data.train[0].mean() / 255, (30 / 105) ** 2, rtol=0.02)
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "outside").exists()


@pytest.mark.parametrize(
    "entries",
    [{"a/0394_01.png": drawing(9, size=50)}, {"a/0394_01.png": b"no png"}, {"readme": b"nothing"}],
)
def test_spoiled_zips(tmp_path, entries):
    path = tmp_path / "images_background_small1.zip"
    make_zip(path, entries)
    fails("small1.zip .*; get a fresh copy", "omniglot", tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    fails("small1.zip is truncated or corrupt", "omniglot", tmp_path)


def test_chardata(tmp_path):
    rng = np.random.default_rng(0)
    content = {"data": rng.random((784, 5)), "testdata": rng.random((784, 3))}
    scipy.io.savemat(tmp_path / "chardata.mat", content)
    data = load_dataset("omniglot", tmp_path)
    assert data.train.shape == (5, 28, 28)
    assert data.test.shape == (3, 28, 28)
    # Pixels are stored by columns.
    expected = np.round(255 * content["data"][1, 2])
    assert data.train[2, 1, 0] == expected


@pytest.mark.parametrize("content", [{"data": np.ones((10, 5)), "testdata": np.ones((784, 3))}, {}])
def test_spoiled_chardata(tmp_path, content):
    scipy.io.savemat(tmp_path / "chardata.mat", content)
    fails("chardata.mat .* get a fresh copy", "omniglot", tmp_path)
    (tmp_path / "chardata.mat").write_bytes(b"MATLAB 5.0 MAT-file, cut")
    fails("chardata.mat is truncated or corrupt", "omniglot", tmp_path)


# Downloads, from a server on this machine.


@pytest.fixture
def server(folder):
    class Handler(http.server.SimpleHTTPRequestHandler):
        requests: list[str] = []  # noqa: RUF012

        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self):
            self.requests.append(self.path)
            super().do_GET()

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", Handler.requests
        running.shutdown()
        thread.join()


def sources(url, folder, spoil=""):
    return {
        path.name: Source(
            f"{url}/{path.name}", "md5:" + hashlib.md5(path.read_bytes()).hexdigest() + spoil
        )
        for path in folder.iterdir()
    }


def test_downloads_are_verified_and_kept(server, folder, tmp_path_factory):
    url, requests = server
    cache = tmp_path_factory.mktemp("cache")
    wanted = sources(url, folder)
    for _ in range(2):
        path = download("mnist", cache, wanted)
        np.testing.assert_array_equal(
            load_dataset("mnist", path).train, load_dataset("mnist", folder).train
        )
    assert len(requests) == 2  # one per file; the second time from the cache


def test_a_download_with_another_checksum_is_refused(server, folder, tmp_path_factory):
    url, _ = server
    cache = tmp_path_factory.mktemp("cache")
    with pytest.raises(UserError, match="failed its checksum"):
        download("mnist", cache, sources(url, folder, spoil="0"))
    assert not list(cache.rglob("*.gz"))


def test_a_file_that_changes_behind_a_pinned_checksum_is_refused(server, folder, tmp_path_factory):
    url, _ = server
    cache = tmp_path_factory.mktemp("cache")
    name = "train-images-idx3-ubyte.gz"
    wanted = {name: Source(f"{url}/{name}", None)}
    kept = download("omniglot", cache, wanted) / name
    kept.unlink()
    (folder / name).write_bytes(b"something else")
    with pytest.raises(UserError, match="failed its checksum"):
        download("omniglot", cache, wanted)


def test_a_download_that_fails_says_so(server, tmp_path_factory):
    url, _ = server
    cache = tmp_path_factory.mktemp("cache")
    for address in (f"{url}/nowhere.gz", "http://127.0.0.1:9/closed.gz"):
        with pytest.raises(UserError, match=r"could not be downloaded .* pass --data-dir FOLDER"):
            download("mnist", cache, {"x.gz": Source(address, "md5:0")})
