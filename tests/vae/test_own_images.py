"""A user's own images: what is read, and what is said of what cannot be."""

import contextlib
import io
import json
import os
import shutil
import zipfile
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from gdregs.cli import main
from gdregs.vae import UserError, load, load_dataset
from gdregs.vae.data.own import read_every, read_own
from gdregs.vae.data.pictures import Options

SMALL = [
    "--networks", "conv", "--epochs", "2", "--batch-size", "8", "--num-samples", "4",
    "--gradient-samples", "2", "--num-layers", "1", "--latent-size", "3", "--hidden-size", "8",
    "--channels", "4", "--learning-rate", "1e-2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def shapes(count, size=12, seed=0):
    """Coloured squares on textured grounds, `uint8 [count, size, size, 3]`."""
    draw = np.random.default_rng(seed)
    images = draw.integers(30, 70, (count, size, size, 3), dtype=np.uint8)
    for image in images:
        top, left = draw.integers(1, size // 2, 2)
        image[top : top + size // 3, left : left + size // 3] = draw.integers(150, 255, 3)
    return images


def save(folder, images, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, start):
        Image.fromarray(image).save(folder / f"image{number:04d}.png")


def test_a_folder_is_split_the_same_way_every_time(tmp_path):
    images = shapes(20)
    save(tmp_path / "own", images)
    first, again = (read_own(tmp_path / "own", Options()) for _ in range(2))
    assert first.train.shape == (18, 12, 12, 3)
    assert first.test.shape == (2, 12, 12, 3)
    np.testing.assert_array_equal(first.test, again.test)
    other = read_own(tmp_path / "own", Options(split_seed=1))
    assert not np.array_equal(first.test, other.test)
    both = np.concatenate([first.train, first.test])
    assert {image.tobytes() for image in both} == {image.tobytes() for image in images}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of coloured images with some that cannot be read, and two epochs on it."""
    root = tmp_path_factory.mktemp("trained")
    save(root / "own", shapes(40))
    whole = (root / "own" / "image0003.png").read_bytes()
    (root / "own" / "image0003.png").write_bytes(whole[: len(whole) // 2])
    (root / "own" / "image0004.png").write_text("no picture")
    (root / "outside.png").write_bytes(whole)
    os.symlink(root / "outside.png", root / "own" / "link.png")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        command = ["train", "--dataset", str(root / "own"), *SMALL, "--out", str(root / "run")]
        assert main(command) == 0
    return root, out.getvalue()


@pytest.fixture
def root(trained, tmp_path):
    """A copy, whose run knows where it is."""
    shutil.copytree(trained[0], tmp_path / "root", symlinks=True)
    config = tmp_path / "root" / "run" / "config.json"
    config.write_text(config.read_text().replace(str(trained[0]), str(tmp_path / "root")))
    return tmp_path / "root"


@pytest.mark.slow
def test_convolutions_learn_a_users_images(trained):
    root, out = trained
    lines = (root / "run" / "metrics.jsonl").read_text().splitlines()
    first, last = (json.loads(line)["train_bound"] for line in lines)
    assert last > first + 10
    assert "bits per dimension" in out
    # What could not be read is said, and written down.
    assert "3 files of" in out
    assert "image0004.png" in out
    record = json.loads((root / "run" / "config.json").read_text())["data"]
    assert len(record["skipped"]) == 3
    assert record["train"] + record["test"] == 38


@pytest.mark.slow
def test_a_run_is_used_from_elsewhere_and_without_its_images(root, capsys):
    assert main(["evaluate", "root/run", "--num-samples", "4"]) == 0
    assert "bits per dimension" in capsys.readouterr().out
    shutil.rmtree(root / "own")
    assert main(["sample", "root/run", "--count", "4"]) == 0
    assert main(["evaluate", "root/run", "--num-samples", "4"]) == 2
    assert "own does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_not_continued_on_other_data(root, capsys):
    save(root / "own", shapes(1, seed=5))
    before = (root / "run" / "config.json").read_text()
    assert main(["train", "--dataset", str(root / "own"), *SMALL, "--out", str(root / "run")]) == 2
    assert "was trained on other images" in capsys.readouterr().err
    assert main(["evaluate", str(root / "run"), "--num-samples", "4"]) == 2
    assert "was trained on other images" in capsys.readouterr().err
    assert (root / "run" / "config.json").read_text() == before


def test_sub_folders_train_and_test(tmp_path):
    save(tmp_path / "own" / "train" / "a", shapes(6))
    save(tmp_path / "own" / "test", shapes(3, seed=1))
    found = read_own(tmp_path / "own", Options(grey=True))
    assert found.train.shape == (6, 12, 12)
    assert found.test.shape == (3, 12, 12)


def test_every_mode_of_a_picture(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4, :, 0], rgba[:4, :, 3] = 255, 255  # red above, nothing below
    Image.fromarray(rgba).save(folder / "a.png")
    deep = np.full((8, 8), 40_000, np.uint16)
    Image.fromarray(deep).save(folder / "b.png")
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(folder / "c.png")
    Image.new("P", (8, 8), 3).save(folder / "d.png")
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(folder / "e.jpeg", quality=95)
    every = read_every(folder, Options())
    assert every.shape == (5, 8, 8, 3)
    assert every[0, 0, 0].tolist() == [255, 0, 0]
    assert every[0, 7, 7].tolist() == [255, 255, 255]
    assert every[1].min() == every[1].max() == 40_000 >> 8
    assert every[2].max() == 7


def test_sizes_differ_until_one_is_given(tmp_path):
    save(tmp_path / "own", shapes(4))
    save(tmp_path / "own", shapes(4, size=20), start=4)
    with pytest.raises(UserError, match=r"image0000\.png is 12x12, .*image0004\.png is 20x20"):
        read_own(tmp_path / "own", Options())
    assert read_own(tmp_path / "own", Options(image_size=10)).train.shape[1:] == (10, 10, 3)
    Image.fromarray(shapes(1, size=30)[0][:20]).save(tmp_path / "own" / "wide.png")
    cropped = read_own(tmp_path / "own", Options(image_size=10, crop=True))
    assert cropped.train.shape[1:] == (10, 10, 3)


def test_what_cannot_be_read_is_named(tmp_path):
    folder = tmp_path / "own"
    save(folder, shapes(40))
    whole = (folder / "image0003.png").read_bytes()
    (folder / "image0003.png").write_bytes(whole[: len(whole) // 2])
    (folder / "image0004.png").write_text("no picture")
    outside = tmp_path / "outside.png"
    outside.write_bytes(whole)
    os.symlink(outside, folder / "link.png")
    found = load_dataset(str(folder))
    assert len(found.train) + len(found.test) == 38
    assert [reason.partition(":")[0] for reason in found.skipped] == [
        "image0003.png", "image0004.png", "link.png",
    ]  # fmt: skip
    assert "a link that leaves the folder" in found.skipped[2]


def test_a_picture_too_large_is_skipped(tmp_path):
    folder = tmp_path / "own"
    save(folder, shapes(3))
    header = b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\rIHDR"
    size = (60_000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    check = zlib.crc32(b"IHDR" + size).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(header + size + check)
    skipped = read_own(folder, Options(test_share=0.4)).skipped
    assert skipped[0].startswith("bomb.png")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "holds no PNG or JPEG image that can be read"),
        (lambda p: p.write_text("x"), "is not a data set: give a folder of images"),
    ],
)
def test_nothing_to_read(tmp_path, write, message):
    write(tmp_path / "own")
    with pytest.raises(UserError, match=message):
        read_own(tmp_path / "own", Options())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([{"code": 1}], object), "Python objects, which are refused"),
        (np.full((4, 8, 8), np.nan), "256 pixels that are NaN or infinite, the first in image 0"),
        (np.full((4, 8, 8), -1.0), "pixels from -1 to -1"),
        (np.full((4, 8, 8), 300), "pixels from 300 to 300"),
        (np.zeros((4, 64), np.uint8), r"has shape \(4, 64\); images are"),
        (np.zeros((4, 3, 8, 8), np.uint8), r"has shape \(4, 3, 8, 8\); images are"),
        (np.array(["a"] * 4).reshape(4, 1, 1), "not numbers of pixels"),
        (np.zeros((1, 8, 8), np.uint8), "too few to set some aside"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, values, message):
    np.save(tmp_path / "own.npy", values, allow_pickle=values.dtype == object)
    with pytest.raises(UserError, match=message):
        read_own(tmp_path / "own.npy", Options())


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "bool"])
def test_arrays_of_every_type(tmp_path, kind):
    grey = shapes(10)[..., 0]
    values = {
        "uint8": grey,
        "uint16": grey.astype(np.uint16) << 8,
        "float32": (grey / 255).astype(np.float32),
        "bool": grey > 100,
    }[kind]
    np.savez(tmp_path / "own.npz", train=values, test=values[:2])
    found = read_own(tmp_path / "own.npz", Options())
    expected = grey if kind != "bool" else 255 * (grey > 100).astype(np.uint8)
    np.testing.assert_array_equal(found.train, expected)
    assert len(found.test) == 2


def test_archives_that_are_none_or_bombs(tmp_path, monkeypatch):
    path = tmp_path / "own.npz"
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UserError, match="truncated or corrupt"):
        read_own(path, Options())
    np.savez(path, one=np.zeros((4, 8, 8)), two=np.zeros((4, 8, 8)))
    with pytest.raises(UserError, match="holds one, two; name the arrays train and test"):
        read_own(path, Options())
    content = io.BytesIO()
    np.save(content, np.zeros((3000, 64, 64), np.uint8))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../train.npy", content.getvalue())
    monkeypatch.setattr("gdregs.vae.data.arrays._MAX_UNPACKED", 1 << 20)
    with pytest.raises(UserError, match="would unpack to"):
        read_own(path, Options())
    assert not (tmp_path.parent / "train.npy").exists()


def test_a_hugging_face_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(image) for image in shapes(12)]
    split = datasets.Dataset.from_dict(
        {"image": pictures, "label": list(range(12))},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int32")}),
    )
    split.save_to_disk(str(tmp_path / "own"))
    found = read_own(tmp_path / "own", Options(test_share=0.25))
    assert found.train.shape == (9, 12, 12, 3)
    datasets.DatasetDict({"train": split, "test": split.select(range(2))}).save_to_disk(
        str(tmp_path / "both")
    )
    assert read_own(tmp_path / "both", Options()).test.shape == (2, 12, 12, 3)


@pytest.mark.nightly
def test_convolutions_learn_coloured_shapes(tmp_path, capsys, optimised):
    """Two thousand images, to a bound and samples that a blank canvas does not reach."""
    save(tmp_path / "own", shapes(2000, size=16))
    arguments = [
        "train", "--dataset", "own", "--networks", "conv", "--epochs", "12", "--num-samples", "4",
        "--gradient-samples", "2", "--latent-size", "16", "--hidden-size", "64", "--num-layers",
        "1", "--channels", "8", "--learning-rate", "2e-3", "--out", "run",
    ]  # fmt: skip
    assert main(arguments) == 0
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1]["test_bound"] > rows[0]["test_bound"] + 150
    assert "bits per dimension" in capsys.readouterr().out

    samples = np.asarray(load("run").sample(jax.random.key(0), 64))
    brightest = samples.reshape(64, -1, 3).max(axis=1).max(axis=1)
    ground = np.median(samples, axis=(1, 2, 3))
    assert np.mean(brightest > 0.45) > 0.5  # squares are bright
    assert np.mean(np.abs(ground - 50 / 255) < 0.1) > 0.5  # on dark grounds
