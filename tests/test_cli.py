"""The command line, as a user meets it: commands, files, and mistakes with exit code 2."""

import gzip
import json
import os

import pytest
from PIL import Image

from commands import SMALL, copy_of_a_run, run
from gdregs import cli
from gdregs.vae import Config, open_run
from real_data import REAL


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def folder(tmp_path_factory, tmp_path):
    return copy_of_a_run(tmp_path_factory, tmp_path / "run")


@pytest.mark.parametrize("code", [0, 2, 130])
def test_the_script_ends_at_once_after_a_failure(monkeypatch, code):
    """XLA's threads may still run, and would end in a segmentation fault."""
    codes = []
    monkeypatch.setattr(cli, "main", lambda: code)
    monkeypatch.setattr(os, "_exit", codes.append)
    with pytest.raises(SystemExit):
        cli.run_script()
    assert codes == [code] * (code != 0)


@pytest.mark.slow
def test_train_leaves_its_files_and_says_what_it_reached(capsys, tmp_path):
    tiny = ["--num-layers", 1, "--gradient-samples", 0, "--test-images", 64, "--epochs", 1]
    assert run("train", *SMALL, *tiny) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "runs" / "digits-L1-dregs-gdregs-seed0"
    pictures = ("curve.png", "samples.png", "reconstructions.png")
    names = {"config.json", "metrics.jsonl", "checkpoint.eqx", *pictures}
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == names
    assert "effective sample size" in out
    assert "test bound" in out
    assert "% of the weight" in out
    for name in pictures:
        with Image.open(folder / name) as image:
            assert min(image.size) > 300


@pytest.mark.slow
def test_training_goes_on_and_is_evaluated_and_sampled(capsys, folder):
    # Again: nothing is left to do. With more epochs: it continues.
    assert run("train", *SMALL, "--epochs", 2, "--out", folder) == 0
    assert "is complete after 2 epochs" in capsys.readouterr().out
    assert run("train", *SMALL, "--epochs", 3, "--out", folder) == 0
    assert "Continuing" in capsys.readouterr().out
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3

    assert run("evaluate", folder, "--num-samples", 60, "--images", 70) == 0
    out = capsys.readouterr().out
    assert "test log p(x), K=60, 70 images" in out
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["log_marginal"]["value"] > evaluation["test"]["bound"] - 3

    assert run("sample", folder, "--count", 9, "--seed", 3) == 0
    assert (folder / "samples-seed3.png").exists()
    assert run("sample", folder, "--kind", "reconstructions") == 0
    assert (folder / "reconstructions-seed0.png").exists()
    assert run("complete", folder, "--image", folder / "samples.png") == 2
    assert "is unconditional; `gdregs train --conditional`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "dataset",
    [
        pytest.param("omniglot", marks=pytest.mark.slow),
        pytest.param("fashion-mnist", marks=pytest.mark.nightly),
        pytest.param("mnist", marks=pytest.mark.nightly),
    ],
)
def test_real_files_train(capsys, tmp_path, dataset):
    if not REAL.is_dir():
        pytest.skip(f"needs the real data sets in {REAL} (or in $GDREGS_DATA)")
    options = [*SMALL, "--dataset", dataset, "--data-dir", REAL, "--epochs", 1, "--out", "r"]
    assert run("train", *options, "--test-images", 128) == 0
    assert "test bound" in capsys.readouterr().out
    assert (tmp_path / "r" / "samples.png").exists()


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("gdregs 0.")


@pytest.mark.slow
def test_conditional_runs_complete_images(tmp_path):
    assert run("train", *SMALL, "--epochs", 1, "--conditional", "--num-layers", 1) == 0
    folder = tmp_path / "runs" / "digits-conditional-L1-dregs-gdregs-seed0"
    assert (folder / "samples.png").exists()
    assert run("sample", folder, "--out", tmp_path / "mine.png") == 0
    assert (tmp_path / "mine.png").exists()

    Image.new("L", (8, 8), 255).save(tmp_path / "top.png")
    assert run("complete", folder, "--image", tmp_path / "top.png", "--count", 5) == 0
    with Image.open(folder / "top-completed-seed0.png") as image:
        assert min(image.size) > 300
    before = (tmp_path / "top.png").read_bytes()
    options = ["--image", tmp_path / "top.png", "--out", tmp_path / "top.png"]
    assert run("complete", folder, *options) == 2
    assert (tmp_path / "top.png").read_bytes() == before


@pytest.mark.slow
def test_compare(capsys, tmp_path):
    pairs = ("naive+naive", "dregs+gdregs")
    options = [*SMALL, "--epochs", 1, "--gradient-samples", 0, "--test-images", 64]
    options += ["--seeds", 2, "--draws", 4, "--pairs", *pairs]
    assert run("compare", *options, "--out", "c") == 0
    table = capsys.readouterr().out
    for pair in pairs:
        assert pair in table
    assert "±" in table
    names = {"comparison.md", "comparison.json", "comparison.png"}
    names |= {f"{pair}-seed{seed}" for pair in pairs for seed in (0, 1)}
    assert {path.name for path in (tmp_path / "c").iterdir()} == names
    results = json.loads((tmp_path / "c" / "comparison.json").read_text())["results"]
    assert [row["pair"] for row in results] == list(pairs)
    assert all(row["posterior_variance"] > 0 and row["prior_snr"] > 0 for row in results)
    with Image.open(tmp_path / "c" / "comparison.png") as image:
        assert min(image.size) > 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--dataset", "cifar"], "unknown dataset 'cifar'; choose one of digits"),
        (["train", "--posterior-estimator", "dreg"], "must be one of 'naive'"),
        (["train", "--dataset", "mnist", "--data-dir", "nowhere"], "nowhere is not a folder"),
        (["train", "--dataset", "mnist", "--data-dir", "."], "has no train-images-idx3-ubyte.gz"),
        (["train", "--batch-size", "5000"], "--batch-size 5000 is more than the 1500"),
        (["train", "--num-samples", "0"], "--num-samples must be at least 1"),
        (["evaluate", "nowhere"], "nowhere is not a run folder"),
        (["sample", "nowhere"], "nowhere is not a run folder"),
        (["compare", "--pairs", "dregs"], "pair 'dregs' is not POSTERIOR+PRIOR"),
        (["compare", "--pairs", "dregs+dregs"], "prior_estimator must be one of"),
        (["compare", "--seeds", "0"], "--seeds must be at least 1"),
        (["complete", "nowhere", "--image", "a.png"], "nowhere is not a run folder"),
        (["reproduce", "table1", "--datasets", "cifar"], "it has --datasets mnist omniglot fash"),
        (["reproduce", "table1", "--quick"], "--epochs, --seeds and --subset make it smaller"),
        (["reproduce", "table2", "--epochs", "0"], "--epochs must be at least 1"),
        (["reproduce", "digits", "--jobs", "0"], "--jobs must be at least 1"),
        (["reproduce", "toy", "--epochs", "3"], "--epochs: only for table1"),
        (["reproduce", "digits", "--executor-options", "a=1"], "needs --executor local or slurm"),
        (
            ["reproduce", "digits", "--executor", "local", "--executor-options", "a"],
            "'a' is not NAME=VALUE",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, tmp_path, arguments, message):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("gdregs: ")
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["train", "--epochs", "many"], ["train", "--objective", "mse"], ["evaluate"]],
)
def test_unknown_words_exit_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err


def test_a_truncated_file_is_one_line_and_nothing_is_made(capsys, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    content = gzip.compress(bytes([0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(99))
    for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
        (data / name).write_bytes(content)
    assert run("train", "--dataset", "mnist", "--data-dir", data) == 2
    error = capsys.readouterr().err
    assert "train-images-idx3-ubyte.gz is truncated or corrupt" in error
    assert len(error.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_another_runs_folder_is_refused_and_untouched(capsys, tmp_path):
    """What `gdregs train` sees of a folder are its settings."""
    config = Config(train_images=128, epochs=1)
    open_run(tmp_path / "r", config)
    (tmp_path / "r" / "checkpoint.eqx").write_bytes(b"precious")
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()}
    options = ["--train-images", 128, "--epochs", 1, "--out", "r"]
    assert run("train", *options, "--seed", 1) == 2
    assert "r holds a run with --seed 0 (not 1); choose another folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "r").iterdir()} == before


def test_ctrl_c_says_how_to_continue(capsys, monkeypatch):
    """`tests/vae/test_interrupts.py` sends real ones."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("gdregs.vae.data.datasets.load_dataset", interrupt)
    assert run("train") == 130
    assert "interrupted; the same command continues from here" in capsys.readouterr().err


def test_missing_extras_are_named(capsys, monkeypatch):
    monkeypatch.setattr("gdregs.cli._EXTRAS", ("no_such_package",))
    assert run("train") == 2
    assert "pip install 'gdregs[cli]'" in capsys.readouterr().err
