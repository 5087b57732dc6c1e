"""Images that are read while a model trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from commands import start
from gdregs.cli import main
from gdregs.vae import Config, UserError, load_dataset, make_state, make_task
from gdregs.vae.data import own
from gdregs.vae.data.arrays import rows_of
from gdregs.vae.data.pictures import Options
from gdregs.vae.data.streams import open_stream
from gdregs.vae.training import segments
from gdregs.vae.training.epochs import make_epoch
from gdregs.vae.training.segments import make_streamed_epoch

pytest.importorskip("grain")

SMALL = [
    "--epochs", "2", "--batch-size", "8", "--num-samples", "4", "--gradient-samples", "2",
    "--num-layers", "1", "--latent-size", "3", "--hidden-size", "8", "--likelihood", "gaussian",
    "--test-share", "0.2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, 6, 5, 3), dtype=np.uint8)


def write(kind, images):
    """Save images in one of the ways that can be read in parts; some of a folder are grey."""
    if kind == "array":
        np.save("own.npy", images)
        return "own.npy"
    if kind == "numbers":
        np.save("own.npy", images / np.float32(255))
        return "own.npy"
    if kind == "huggingface":
        datasets = pytest.importorskip("datasets")
        split = [Image.fromarray(image) for image in images]
        split = datasets.Dataset.from_dict(
            {"image": split}, features=datasets.Features({"image": datasets.Image()})
        )
        split.save_to_disk("own")
        return "own"
    for number, image in enumerate(images):
        part = {"folder": "", "parts": "train" if number % 3 else "test"}[kind]
        os.makedirs(f"own/{part}", exist_ok=True)
        image = image if number % 4 else image[..., 0]
        Image.fromarray(image).save(f"own/{part}/{number:03d}.png")
    return "own"


@pytest.mark.parametrize("kind", ["array", "numbers", "huggingface", "folder", "parts"])
def test_a_stream_has_the_images_that_memory_has(kind):
    path = write(kind, pictures(23))
    if kind in ("folder", "parts"):
        with open("own/001.png" if kind == "folder" else "own/train/001.png", "wb") as file:
            file.write(b"no picture")
    memory = load_dataset(f"./{path}")
    stream = load_dataset(f"./{path}", stream=True)
    assert (len(stream.train), stream.train.shape) == (len(memory.train), memory.train.shape)
    np.testing.assert_array_equal(stream.train.all(), memory.train)
    np.testing.assert_array_equal(stream.test, memory.test)
    assert stream.skipped == memory.skipped
    assert len(stream.skipped) == (kind in ("folder", "parts"))


@pytest.mark.slow
def test_an_epoch_is_that_of_images_in_memory(monkeypatch):
    path = write("array", pictures(60))
    config = Config(
        f"./{path}", stream=True, likelihood="gaussian", batch_size=8, num_samples=4,
        gradient_samples=2, num_layers=1, latent_size=3, hidden_size=8, learning_rate=1e-2,
    )  # fmt: skip
    streamed = make_task(config, load_dataset(config.dataset, stream=True))
    held = make_task(config, load_dataset(config.dataset))
    assert streamed.num_train == len(held.train) == 54
    assert streamed.train.shape[0] == 8
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 8 * 90 * 4)  # segments of 3, 3 batches
    for make, task in ((make_epoch, held), (make_streamed_epoch, streamed)):
        epoch = make(config, task)
        state, first = epoch(make_state(config, task))
        state, second = epoch(state)
        assert second.bound > first.bound
        if make is make_epoch:
            expected = state, second
    assert int(state.epoch) == 2
    # Another program of the same numbers.
    for ours, theirs in zip(
        jax.tree.leaves((state, second)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-6)


@pytest.mark.slow
def test_the_command_trains_goes_on_evaluates_and_encodes(capsys):
    write("folder", pictures(40))
    train = ["train", "--dataset", "own", "--stream", *SMALL, "--out"]
    assert main([*train, "whole"]) == 0
    assert "32 images" in capsys.readouterr().out
    assert main([*train, "cut", "--epochs", "1"]) == 0
    assert main([*train, "cut"]) == 0
    for name in ("checkpoint.eqx", "samples.png"):
        with open(f"whole/{name}", "rb") as one, open(f"cut/{name}", "rb") as other:
            assert one.read() == other.read()
    assert main(["evaluate", "whole", "--num-samples", "8"]) == 0
    assert "train (8 of 32 images) bound" in capsys.readouterr().out
    assert set(json.loads(Path("whole/evaluation.json").read_text())) >= {"train", "test"}
    assert main(["show", "whole", "--draws", "0"]) == 0
    assert "32 for training, 8 for tests" in Path("whole/report.html").read_text()
    assert main(["encode", "whole", "--split", "train", "--to", "z.npz"]) == 0
    with np.load("z.npz") as latents:
        assert latents["z1"].shape == (32, 3)
    Image.fromarray(pictures(1, seed=5)[0]).save("own/009.png")
    assert main([*train, "whole"]) == 2
    assert "was trained on other images" in capsys.readouterr().err


def test_a_picture_that_vanishes_ends_reading_with_its_name():
    """In the thread that reads ahead, too."""
    write("folder", pictures(40))
    stream = load_dataset("./own", stream=True).train
    for file in os.listdir("own"):
        os.remove(f"own/{file}")
    message = r"\.png cannot be read any more: No such file"
    with pytest.raises(UserError, match=message):
        list(stream.batches(np.arange(36), 8))
    with pytest.raises(UserError, match=message):
        stream.all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "digits"], "--stream is for your own images; digits fits into memory"),
        (["--dataset", "own.npz"], "cannot be read in parts"),
        (["--dataset", "none.npy"], "does not exist"),
        (["--dataset", "text.npy"], "truncated or corrupt"),
        (["--dataset", "nan.npy"], "1 pixels that are NaN or infinite, the first in image 2"),
        (["--dataset", "empty"], "holds no PNG or JPEG image"),
        (["--dataset", "sizes"], "images differ in size"),
        (["--dataset", "few.npy"], "too few to set some aside"),
    ],
)
def test_what_cannot_be_streamed(arguments, message, capsys):
    np.savez("own.npz", pictures(3))
    values = np.zeros((4, 3, 3))
    values[2, 1, 1] = np.nan
    np.save("nan.npy", values)
    np.save("few.npy", values[:1])
    with open("text.npy", "w") as file:
        file.write("no array")
    os.makedirs("empty")
    os.makedirs("sizes")
    for size in (3, 4):
        Image.fromarray(np.zeros((size, 5), np.uint8)).save(f"sizes/{size}.png")
    assert main(["train", "--stream", *arguments, "--out", "run"]) == 2
    assert message in capsys.readouterr().err
    assert not os.path.exists("run")


def test_without_the_package_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(UserError, match=r"pip install 'gdregs\[stream\]'"):
        open_stream(Path("own.npy"), Options())


@pytest.mark.parametrize("kind", ["array", "folder"])
def test_more_images_than_memory_are_refused_without_it(kind, monkeypatch):
    path = write(kind, pictures(40))
    monkeypatch.setattr(own, "_memory", lambda: 4000)
    with pytest.raises(UserError, match="of memory; --stream reads images while training runs"):
        load_dataset(f"./{path}")
    assert len(load_dataset(f"./{path}", stream=True).train) == 36


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_a_mapped_array_are_its_rows(order):
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 5), np.uint8)
    np.save("own.npy", np.asarray(images, order=order))
    mapped = np.load("own.npy", mmap_mode="r")
    for array in (images, mapped, mapped[1:]):
        for first, last in ((0, 7), (2, 3), (5, 9)):
            np.testing.assert_array_equal(rows_of(array, first, last), array[first:last])
    assert type(rows_of(mapped, 2, 3)) is (np.ndarray if order == "C" else np.memmap)


def test_an_array_that_is_gone_is_named():
    np.save("own.npy", np.zeros((40, 4, 5), np.uint8))
    train, _, _ = open_stream(Path("own.npy"), Options())
    Path("own.npy").unlink()
    with pytest.raises(UserError, match=r"own\.npy cannot be read any more: No such file"):
        train.all()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images():
    """An array of 750 MB takes a quarter of that more, at most, than an array of 19 MB."""
    peaks = []
    for count in (2_500, 100_000):
        images = np.lib.format.open_memmap("own.npy", "w+", np.uint8, (count, 50, 50, 3))
        images[:: count // 1000] = 200
        del images
        program = (
            "import resource, sys; from gdregs.cli import main; code = main(sys.argv[1:]);"
            " print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
        )
        arguments = [
            "train", "--dataset", "./own.npy", "--stream", "--quiet", *SMALL, "--epochs", "1",
            "--batch-size", "100", "--train-images", "500",
            "--test-share", str(100 / count), "--out", f"run{count}",
        ]  # fmt: skip
        process = start("-c", program, *arguments, stdout=subprocess.PIPE)
        out, _ = process.communicate()
        assert process.returncode == 0
        peaks.append(1024 * int(out.split()[-1]))
    assert peaks[1] - peaks[0] < 0.19e9
