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
OPTIMISED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
LINE = "gdregs: interrupted; the same command continues from here."


def wait_for_an_epoch(process, folder, done):
    """Returns when there are more epochs than that, or the process has ended."""
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        if len(read_metrics(folder)) > done:
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
    """At six moments of an epoch and what follows it; XLA's threads may be at work in any."""
    folder, codes, endings = tmp_path / "run", [], []
    for delay in np.linspace(0, 0.4, 6):
        done = len(read_metrics(folder))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = start(*COMMAND, "--out", folder, env=OPTIMISED, **pipes)
        try:
            wait_for_an_epoch(process, folder, done)
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        codes.append(process.returncode)
        endings.append(errors.splitlines()[-1:])
        assert len(read_metrics(folder)) > done, errors
    assert codes == [130] * 6
    assert endings == [[LINE]] * 6
    assert "Traceback" not in errors
    epochs = [row["epoch"] for row in read_metrics(folder)]
    assert epochs == list(range(1, len(epochs) + 1))
