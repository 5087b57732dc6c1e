"""Run folders in a user's hands: locks, divergence, latents, pages, weights, logs."""

import json
import os
import shutil
import subprocess
import time

import jax
import numpy as np
import pytest

from commands import SMALL, copy_of_a_run, run, start
from gdregs.vae import Config, DivergedError, UserError, load, load_dataset, open_run
from gdregs.vae.config import read_config
from gdregs.vae.runs.lock import locked
from gdregs.vae.show.progress import EpochReport


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path_factory, tmp_path):
    return copy_of_a_run(tmp_path_factory, tmp_path / "run")


HOLD = """
import sys, time, pathlib
from gdregs.vae.runs.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_folder_in_use_is_refused_until_its_holder_dies(tmp_path, capsys):
    open_run(tmp_path / "run", Config(epochs=3))
    holder = start("-c", HOLD, tmp_path / "run", stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert run("train", "--epochs", 3, "--out", "run") == 2
        error = capsys.readouterr().err
        assert f"is in use by process {holder.pid} on" in error
        assert not (tmp_path / "run" / "metrics.jsonl").exists()
        holder.kill()
        holder.wait()
        with locked(tmp_path / "run"):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_the_lock_is_free_again_after_an_error(tmp_path):
    def fail():
        with locked(tmp_path):
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fail()


@pytest.mark.slow
def test_a_diverging_run_stops_with_3_and_keeps_what_was_good(folder, capsys):
    checkpoint = (folder / "checkpoint.eqx").read_bytes()
    assert run("train", *SMALL, "--learning-rate", 1e6, "--epochs", 2, "--out", "bad") == 3
    error = capsys.readouterr().err
    assert "training diverged at step 2 of epoch 1, with a bound of" in error
    assert "Try a smaller --learning-rate" in error
    assert error.count("\n") == 1
    config = json.loads((folder / "config.json").read_text())
    config["config"]["learning_rate"] = 1e6
    (folder / "config.json").write_text(json.dumps(config))
    assert run("train", *SMALL, "--learning-rate", 1e6, "--epochs", 4, "--out", folder) == 3
    assert "the checkpoint of epoch 2 is kept" in capsys.readouterr().err
    assert (folder / "checkpoint.eqx").read_bytes() == checkpoint
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert issubclass(DivergedError, UserError)


@pytest.mark.slow
def test_evaluation_looks_where_training_had_the_files(folder, tmp_path, monkeypatch, capsys):
    """A downloaded or given folder is written down; nothing is downloaded again."""
    data = tmp_path / "files"
    data.mkdir()
    asked = []

    def load_dataset_from(name, data_dir=None, cache=None, options=None, stream=False):
        asked.append(data_dir)
        return load_dataset("digits")

    monkeypatch.setattr("gdregs.vae.data.datasets.load_dataset", load_dataset_from)
    monkeypatch.setattr("gdregs.vae.runs.record.load_dataset", load_dataset_from)
    arguments = ["train", "--dataset", "mnist", *SMALL, "--epochs", 0, "--out", "mnist"]
    assert run(*arguments, "--data-dir", data) == 0
    shutil.copy(folder / "checkpoint.eqx", "mnist")
    assert run("evaluate", "mnist", "--num-samples", 4, "--images", 64) == 0
    assert asked == [data, data]
    data.rmdir()
    assert run("evaluate", "mnist", "--num-samples", 4) == 2
    assert "which is not there any more; pass --data-dir" in capsys.readouterr().err


def test_quiet_and_a_line_an_epoch(capsys):
    row = {"train_bound": -1.5, "effective_sample_size": 2.0, "images_per_second": 9.0}
    for quiet in (True, False):
        with EpochReport(3, 1, quiet=quiet) as report:
            report(row | {"test_bound": -2.0})
            report(row)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) <= (0 if quiet else 2)
    assert lines[-1] == "epoch 3/3: bound -1.50, test -2.00, ESS 2.0, 9 images/s"


@pytest.mark.slow
def test_latents_of_images(folder, capsys):
    assert run("encode", folder) == 0
    assert "z1 [297, 3], z2 [297, 3]" in capsys.readouterr().out
    with np.load(folder / "latents-test.npz") as latents:
        means = {name: latents[name] for name in latents.files}
    loaded = load(folder)
    data = load_dataset("digits")
    for name, value in loaded.encode(data.test).items():
        np.testing.assert_array_equal(value, means[name])
    assert run("encode", folder, "--samples", "--split", "train", "--to", "z.npz") == 0
    with np.load("z.npz") as latents:
        assert latents["z2"].shape == (1500, 3)
    np.save("own.npy", data.test[:7] * 15)
    assert run("encode", folder, "--images", "own.npy") == 0
    with np.load(folder / "latents-own.npz") as latents:
        assert latents["z1"].shape == (7, 3)
    np.save("large.npy", np.zeros((7, 9, 9), np.uint8))
    assert run("encode", folder, "--images", "large.npy") == 2
    assert "do not fit this run" in capsys.readouterr().err


@pytest.mark.slow
def test_the_mean_latents_are_the_averages_of_samples(folder):
    """Of the first layer, whose mean does not go through a network of a latent."""
    loaded = load(folder)
    images = 16 * (load_dataset("digits").test[:4] > 8).astype(np.uint8)  # binary already
    means = loaded.encode(images)["z1"]
    many = np.tile(images, (300, 1, 1))
    draws = loaded.encode(many, jax.random.key(0), batch_size=len(many))["z1"]
    draws = draws.reshape(300, *means.shape)
    error = draws.std(axis=0) / len(draws) ** 0.5
    assert np.all(error > 0)
    assert np.abs(draws.mean(axis=0) - means).max() < 5 * error.max()


@pytest.mark.slow
def test_weights_as_safetensors(folder, capsys):
    from safetensors.numpy import load_file

    assert run("export", folder, "--to", "w.safetensors") == 0
    weights = load_file("w.safetensors")
    model = load(folder).model
    np.testing.assert_array_equal(weights["decoder.last"], model.decoder.last)
    assert len(weights) == len(jax.tree.leaves(model))
    assert "24 arrays" in capsys.readouterr().out


@pytest.mark.slow
def test_settings_from_a_file(capsys, tmp_path):
    with open("run.yaml", "w") as file:
        file.write("epochs: 0\nnum-samples: 4\nlatent_size: 3\nhidden-size: 8\n")
        file.write("train-images: 128\nlearning-rate: 1e-3\nout: from-file\n")
    assert run("train", "--config", "run.yaml", "--gradient-samples", 2) == 0
    config = read_config(tmp_path / "from-file" / "config.json")
    assert (config.epochs, config.learning_rate, config.gradient_samples) == (0, 1e-3, 2)
    assert run("train", "--config=from-file/config.json", "--out", "again", "--seed", 3) == 0
    config = read_config(tmp_path / "again" / "config.json")
    assert (config.hidden_size, config.seed) == (8, 3)


def test_files_that_are_no_settings(capsys):
    for text, message in (
        ("epoch: 3", "there is no setting 'epoch'"),
        ("epochs: many", "epochs must be int; got 'many'"),
        ("- a list", "must hold settings"),
        ("a: [", "is not YAML"),
    ):
        with open("bad.yaml", "w") as file:
            file.write(text)
        assert run("train", "--config", "bad.yaml") == 2
        assert message in capsys.readouterr().err
    assert run("train", "--config", "none.yaml") == 2
    assert run("sample", "--config", "run.yaml") == 2


@pytest.mark.slow
def test_tensorboard(folder, capsys):
    """All metrics are in its file; and a quiet run says nothing."""
    pytest.importorskip("tensorboardX")
    options = ["--epochs", 3, "--out", folder, "--tensorboard", "--quiet"]
    assert run("train", *SMALL, *options) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    (file,) = (folder / "tensorboard").iterdir()
    content = file.read_bytes()
    for name in (b"train_bound", b"test_bound", b"kl/z1"):
        assert name in content


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_nothing_is_lost(folder, capsys, monkeypatch):
    before = (folder / "checkpoint.eqx").read_bytes()

    def full(source, target):
        if str(target).endswith("checkpoint.eqx"):
            raise OSError(28, "No space left on device", str(target))
        return replace(source, target)

    replace = os.replace
    monkeypatch.setattr(os, "replace", full)
    assert run("train", *SMALL, "--epochs", 3, "--out", folder) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("checkpoint.eqx: No space left on device")
    monkeypatch.undo()
    assert (folder / "checkpoint.eqx").read_bytes() == before
    # (The lock's empty file may stay, as filelock's version has it; it is the lock that is free.)
    assert {path.name for path in folder.glob(".*")} <= {".lock"}
    assert load(folder).epoch == 2


def test_a_folder_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    assert run("train", *SMALL, "--epochs", 1, "--out", tmp_path / "file" / "run") == 2
    assert capsys.readouterr().err.count("\n") == 1

    def refuse(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("gdregs.vae.runs.folders.write_json", refuse)
    assert run("train", *SMALL, "--epochs", 1, "--out", "run") == 2
    assert "cannot be written to (Read-only file system)" in capsys.readouterr().err


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = copy_of_a_run(tmp_path_factory, tmp_path_factory.mktemp("page") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gdregs.vae.runs.report.PAPER_PAIRS", ("naive+naive", "dregs+gdregs"))
        assert run("show", folder, "--draws", 2) == 0
    return (folder / "report.html").read_text()


@pytest.mark.slow
def test_the_page_of_a_run(page):
    for heading in ("Training", "Samples", "Reconstructions", "Latent traversals", "Estimators"):
        assert f"<h2>{heading}</h2>" in page
    assert "dregs+gdregs" in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png;base64,") == 4


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_in_a_browser(page, tmp_path):
    """All four pictures are there, at a size, without an error in the console."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,3000",
    ]  # fmt: skip
    page = page.replace(
        "</body>",
        "<script>window.onload = () => { document.title = [...document.images].map("
        "i => i.complete && i.naturalWidth > 300 && i.clientWidth > 300).join() }</script></body>",
    )
    (tmp_path / "page.html").write_text(page)
    address = (tmp_path / "page.html").as_uri()
    found = subprocess.run(
        [*command, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True
    )
    assert "<title>true,true,true,true</title>" in found.stdout
    picture = tmp_path / "page.png"
    begun = time.monotonic()
    subprocess.run(
        [*command, f"--screenshot={picture}", address], capture_output=True, timeout=120, check=True
    )
    assert picture.stat().st_size > 50_000, time.monotonic() - begun
