"""The command line, called from a test or in a process of its own."""

import os
import shutil
import subprocess
import sys

from gdregs.cli import main

SMALL = [
    "--num-samples", "4", "--gradient-samples", "2", "--latent-size", "3", "--hidden-size", "8",
    "--train-images", "128",
]  # fmt: skip


def run(*arguments):
    """The exit code of `gdregs` with these arguments."""
    return main([str(argument) for argument in arguments])


_trained = []


def copy_of_a_run(tmp_path_factory, target):
    """A run folder after two epochs of `SMALL`, which are trained once for all tests."""
    if not _trained:
        folder = tmp_path_factory.mktemp("trained") / "run"
        assert run("train", *SMALL, "--epochs", 2, "--out", folder, "--quiet") == 0
        _trained.append(folder)
    shutil.copytree(_trained[0], target)
    return target


def start(*arguments, **options):
    """A process of Python that compiles as tests do: fast, and once for all processes."""
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **options.pop("env", {})}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, **options)
