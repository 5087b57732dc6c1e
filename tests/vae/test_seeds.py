"""Several seeds in one program: each is the run that it would be alone, and resumes bitwise."""

import dataclasses
import json
import subprocess

import jax
import numpy as np
import pytest

from commands import start
from gdregs.papers.grids.cells import find_groups, is_done, plan_groups, run_group
from gdregs.papers.grids.grid import cell_name
from gdregs.vae import Config, UserError, load_dataset, make_task, open_run, read_metrics, train
from gdregs.vae.runs.folders import CHECKPOINT, METRICS
from gdregs.vae.training.epochs import Seeds

SMALL = Config(
    conditional=True, num_layers=1, latent_size=3, hidden_size=8, num_samples=4, gradient_samples=2,
    epochs=3, train_images=128, test_images=64, batch_size=64, variance_draws=2, record_every=2,
)  # fmt: skip
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def task():
    return make_task(SMALL, load_dataset("digits"))


def numbers(folder):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(folder)]


def run_whole(tmp_path_factory, task, vectorised):
    """Seeds 0 and 1, trained without interruption."""
    (group,) = plan_groups(tmp_path_factory.mktemp("whole"), SMALL, 2, vectorised)
    run_group(group, SMALL, task)
    return group


@pytest.fixture(scope="module")
def whole(tmp_path_factory, task):
    return run_whole(tmp_path_factory, task, vectorised=True)


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory, task):
    return run_whole(tmp_path_factory, task, vectorised=False)


@pytest.mark.slow
def test_each_seed_is_the_run_that_it_is_alone(whole, in_turn, tmp_path, task):
    config = dataclasses.replace(SMALL, seed=1)
    open_run(tmp_path / "alone", config)
    train(tmp_path / "alone", config, task)
    alone = numbers(tmp_path / "alone")
    assert [row["epoch"] for row in alone] == [1, 2, 3]
    assert ["test_bound" in row for row in alone] == [False, True, True]  # the last one always
    assert set(alone[-1]["kl"]) == {"z1"}
    for row in alone[1:]:
        assert set(row["variance"]) == {"posterior", "prior", "likelihood"}
        assert all(value > 0 for value in row["variance"].values())
    for group in (whole, in_turn):
        together = numbers(group.folder / "seed1")
        for ours, theirs in zip(together, alone, strict=True):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), ours, theirs)
        # Seeds differ from each other by far more.
        other = numbers(group.folder / "seed0")
        assert abs(together[-1]["test_bound"] - other[-1]["test_bound"]) > 0.01


@pytest.mark.slow
def test_an_interrupted_cell_resumes_bitwise(whole, tmp_path, task):
    """Cut off after the metrics of epoch 2 are written and before its checkpoint is."""
    (group,) = plan_groups(tmp_path, SMALL, 2, whole.seeds.vectorised)

    def cut_off(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_group(group, SMALL, task, cut_off)
    checkpoint = (group.folder / CHECKPOINT).read_bytes()
    with open(group.folder / METRICS, "a") as file:
        file.write('{"epoch": 3, "train_bou')  # a process killed in the middle of a line
    assert not is_done(group, SMALL)
    run_group(group, SMALL, task)
    assert is_done(group, SMALL)
    assert (group.folder / CHECKPOINT).read_bytes() != checkpoint
    for name in (".", "seed0", "seed1"):
        assert numbers(group.folder / name) == numbers(whole.folder / name)
        ours, theirs = (folder / name / CHECKPOINT for folder in (group.folder, whole.folder))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_more_seeds_join_those_that_are_there(whole):
    root = whole.folder.parent.parent
    assert plan_groups(root, SMALL, 1, False) == [whole]  # as it was begun, vectorised or not
    groups = plan_groups(root, SMALL, 4, False)
    assert groups[0] == whole
    assert groups[1].seeds == Seeds((2, 3), False)
    assert groups[1].folder.name == "seeds2-3"
    assert find_groups(root, SMALL) == [whole]
    assert find_groups(root, dataclasses.replace(SMALL, num_layers=2)) == []


@pytest.mark.slow
def test_a_shorter_run_is_read_off_where_it_was_measured(whole):
    assert is_done(whole, dataclasses.replace(SMALL, epochs=2))
    with pytest.raises(UserError, match="has 3 epochs and was not measured at epoch 1"):
        is_done(whole, dataclasses.replace(SMALL, epochs=1))
    # When a run is measured does not change what it learns, so that it may change.
    open_run(whole.folder, dataclasses.replace(SMALL, record_every=1), whole.seeds)


@pytest.mark.slow
def test_another_cells_folder_is_refused(whole, task):
    other = dataclasses.replace(SMALL, learning_rate=1e-3)
    assert cell_name(other) == cell_name(SMALL)
    with pytest.raises(UserError, match=r"holds a run with --learning-rate 0\.0003"):
        run_group(whole, other, task)
    with pytest.raises(UserError, match="holds a run of other seeds"):
        open_run(whole.folder, SMALL, Seeds((0, 2), True))


SPREAD = """
import json, sys, jax
from pathlib import Path
from gdregs.vae import Config, load_dataset, make_task, open_run, train
from gdregs.vae.training.epochs import Seeds
folder, config, seeds = Path(sys.argv[1]), Config(**json.loads(sys.argv[2])), Seeds((0, 1), True)
open_run(folder, config, seeds)
state = train(folder, config, make_task(config, load_dataset("digits")), seeds=seeds)
print(jax.device_count(), len(jax.tree.leaves(state.model)[0].sharding.device_set))
"""


@pytest.mark.slow
def test_seeds_are_spread_over_devices(whole, tmp_path):
    """On two devices, in a process of its own: the numbers are those of one device."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    arguments = ["-c", SPREAD, tmp_path / "run", json.dumps(SMALL.to_dict())]
    process = start(*arguments, env=flags, stdout=subprocess.PIPE)
    found, _ = process.communicate()
    assert found.split() == ["2", "2"]
    for ours, theirs in zip(numbers(tmp_path / "run"), numbers(whole.folder), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), ours, theirs)
