"""Two real processes on this machine: the numbers of one, a death that is named, and going on."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest

from commands import start
from gdregs.vae import Config, load_dataset, make_task, open_run, read_metrics, train
from gdregs.vae.errors import UserError
from gdregs.vae.training.meshes import describe_mesh, read_mesh
from gdregs.vae.training.processes import start_processes

SMALL = Config(
    num_layers=1,
    latent_size=3,
    hidden_size=8,
    num_samples=4,
    gradient_samples=2,
    epochs=60,
    batch_size=32,
    train_images=64,
    test_images=40,
)

WORKER = """
import json, sys
from pathlib import Path
from gdregs.vae import Config, load_dataset, make_task, open_run, train
from gdregs.vae.training.meshes import read_mesh
from gdregs.vae.training.processes import is_first, noticing_deaths, start_processes
folder, config = Path(sys.argv[1]), Config(**json.loads(sys.argv[2]))
start_processes(f"127.0.0.1:{sys.argv[3]}", 2, int(sys.argv[4]), patience=6.0)
mesh = read_mesh("data=2,samples=2", config)
task = make_task(config, load_dataset(config.dataset))
if is_first():
    open_run(folder, config)
with noticing_deaths():
    train(folder, config, task, mesh=mesh)
"""


def start_worker(folder, port, rank):
    arguments = ["-c", WORKER, folder, json.dumps(SMALL.to_dict()), port, rank]
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    return start(*arguments, env=devices, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    "dead", [pytest.param(1, marks=pytest.mark.slow), pytest.param(0, marks=pytest.mark.nightly)]
)
def test_a_worker_dies_and_the_run_goes_on_elsewhere(tmp_path, dead):
    """Killed in the middle, the job stops with the worker's name; one device takes over."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "run"
    workers = [start_worker(folder, port, rank) for rank in (0, 1)]
    try:
        deadline = time.monotonic() + 240
        while len(read_metrics(folder)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        workers[dead].send_signal(signal.SIGKILL)
        _, errors = workers[1 - dead].communicate(timeout=120)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    done = len(read_metrics(folder))
    assert 2 <= done < SMALL.epochs
    assert workers[1 - dead].returncode not in (0, None)
    if dead == 1:  # the other may be told by the coordination service first, in its own words
        assert workers[0].returncode == 1
        assert (
            f"gdregs: process 1 ({socket.gethostname()}, pid {workers[1].pid}) has died" in errors
        )
        assert "the same command continues from the last checkpoint" in errors

    config = dataclasses.replace(SMALL, epochs=done + 2)
    task = make_task(config, load_dataset("digits"))
    train(folder, config, task)
    alone = tmp_path / "alone"
    open_run(alone, config)
    train(alone, config, task)
    rows, expected = read_metrics(folder), read_metrics(alone)
    assert [row["epoch"] for row in rows] == list(range(1, config.epochs + 1))
    for name in ("train_bound", "test_bound", "effective_sample_size"):
        series = [[row[name] for row in some] for some in (rows, expected)]
        np.testing.assert_allclose(series[0][:done], series[1][:done], rtol=1e-3)
        np.testing.assert_allclose(series[0][-1], series[1][-1], rtol=1e-2)


def test_meshes_are_read_and_refused():
    assert read_mesh("", SMALL) is None
    mesh = read_mesh("data=1, samples=1", SMALL)
    assert mesh is not None
    assert describe_mesh(mesh) == "1 devices"
    count = jax.device_count() + 1
    for text, message in (
        ("rows=2", r"--mesh is data=N, samples=N or both"),
        ("data=two", r"--mesh is data=N"),
        (f"data={count}", r"takes . devices; there are"),
    ):
        with pytest.raises(UserError, match=message):
            read_mesh(text, SMALL)


def test_flags_of_processes_go_together():
    start_processes()  # there are no others
    with pytest.raises(UserError, match="go together"):
        start_processes("127.0.0.1:1", 2)
    with pytest.raises(UserError, match="--process-id must be between 0 and 1; got 2"):
        start_processes("127.0.0.1:1", 2, 2)


def test_tasks_that_do_not_find_each_other(monkeypatch):
    """A step of two tasks without what Slurm says of them: one line."""
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(UserError, match="the processes did not find each other"):
        start_processes()
