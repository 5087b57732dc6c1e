"""Ctrl-C at any time ends training with its exit code and one line, and leaves a whole run."""

import signal
import subprocess
import time

import numpy as np
import pytest

from commands import start
from gdregs.vae import read_metrics

# The default settings, compiled as users have it: an epoch has to outlast the end of Python, about
# 3 s, for its program to be at work then. (Two of six interrupts ended in a segmentation fault so;
# with epochs of 2 s, none of ten.)
COMMAND = ["-m", "gdregs", "train", "--epochs", "100000"]
ENVIRONMENT = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "PYTHONUNBUFFERED": "1"}
LINE = "gdregs: interrupted; the same command continues from here."


def wait_until_it_trains(process, folder):
    """Returns after the first epoch, or where a continued run says so, or the process has ended."""
    for line in process.stdout:
        if line.startswith("Continuing"):
            return
        while line.startswith("Training") and process.poll() is None:
            if read_metrics(folder):
                return
            time.sleep(0.02)


@pytest.fixture
def can_be_interrupted():
    """What was started in the background ignores interrupts, and so do the processes it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("can_be_interrupted")
def test_interrupts_end_with_130_and_the_run_goes_on(tmp_path):
    """Ten of one run: after its first epoch, then while it starts, compiles and trains."""
    folder, codes, endings = tmp_path / "run", [], []
    for delay in (0, *np.linspace(1, 6, 9)):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = start(*COMMAND, "--out", folder, env=ENVIRONMENT, **pipes)
        try:
            wait_until_it_trains(process, folder)
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        codes.append(process.returncode)
        endings.append(errors.splitlines()[-1:])
        assert "Traceback" not in errors
    assert codes == [130] * 10
    assert endings == [[LINE]] * 10
    epochs = [row["epoch"] for row in read_metrics(folder)]
    assert epochs == list(range(1, len(epochs) + 1))
