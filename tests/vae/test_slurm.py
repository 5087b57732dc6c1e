"""A real Slurm of one machine, where it is installed: a step of two tasks, and a sweep's jobs."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from commands import run
from gdregs.vae import read_metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in ("slurmctld", "slurmd", "srun")),
        reason="Slurm is not installed (Debian: apt install slurmctld slurmd slurm-client)",
    ),
]

CONFIGURATION = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/node.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES State=UP
"""

SMALL = [
    "--num-layers", "1", "--latent-size", "3", "--hidden-size", "8", "--num-samples", "4",
    "--gradient-samples", "2", "--epochs", "2", "--train-images", "128", "--test-images", "40",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment of commands for a cluster of its own, on free ports."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    with contextlib.ExitStack() as free:
        sockets = [free.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    configuration = CONFIGURATION.format(
        host=socket.gethostname().split(".")[0], ports=ports, user=getpass.getuser(), folder=folder
    )
    (folder / "slurm.conf").write_text(configuration)
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    path = os.pathsep.join([str(Path(sys.executable).parent), own["PATH"]])
    environment = {**own, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    with contextlib.ExitStack() as daemons:
        for command in (["slurmctld", "-D"], ["slurmd", "-D", "-N", "localhost"]):
            log = daemons.enter_context((folder / f"{command[0]}.log").open("w"))
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            daemons.callback(daemon.wait, 30)
            daemons.callback(daemon.terminate)
        deadline = time.monotonic() + 60
        while _run(["sinfo", "-h", "-o", "%T"], environment).stdout.strip() != "idle":
            if time.monotonic() > deadline:
                logs = [(folder / f"{name}.log").read_text() for name in ("slurmctld", "slurmd")]
                pytest.fail("Slurm does not start: " + "\n".join(logs))
            time.sleep(0.2)
        yield environment


def _run(command, environment, timeout=240):
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_the_tasks_of_a_step_find_each_other(cluster, tmp_path):
    """`srun gdregs train` with two tasks trains what one process does."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    step = _run(["srun", "--ntasks=2", "gdregs", "train", *SMALL, "--out", str(together)], cluster)
    assert step.returncode == 0, step.stderr
    assert "2 devices in 2 processes: data over 2" in step.stdout
    assert run("train", *SMALL, "--out", alone) == 0
    for name in ("train_bound", "test_bound", "effective_sample_size"):
        series = [[row[name] for row in read_metrics(folder)] for folder in (together, alone)]
        assert len(series[0]) == 2
        np.testing.assert_allclose(*series, rtol=1e-3)


def test_a_sweep_runs_as_jobs(cluster, tmp_path):
    """`--executor slurm` submits the cells and gathers their results."""
    # The programs of tests/papers/test_sweep.py.
    command = (
        "gdregs reproduce digits --epochs 1 --seeds 2 --subset 64 --layers 1 --pairs dregs+gdregs"
        " --executor slurm --executor-options timeout_min=10"
    )
    folders = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "results")]
    sweep = _run([*command.split(), *folders], cluster)
    assert sweep.returncode == 0, sweep.stderr
    assert (tmp_path / "results" / "digits.json").is_file()
    jobs = _run(["scontrol", "show", "jobs", "-o"], cluster).stdout
    assert jobs.count("JobName=gdregs") == jobs.count("COMPLETED")
    assert "JobName=gdregs" in jobs
