"""Ctrl-C at any time ends training with its exit code and one line, and leaves a whole run."""

import signal
import subprocess
import time

import numpy as np
import pytest

from commands import start
from gdregs.vae import read_metrics

# An epoch is one program, which has to outlast the end of Python, about 3 s, to be at work then:
# steps of few images each, compiled in little time. An array is read sooner than a named data set.
COMMAND = [
    "-m", "gdregs", "train", "--epochs", "100000", "--num-layers", "1", "--batch-size", "10",
]  # fmt: skip
IMAGES = {"train": 800, "test": 10}
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
    """Ten of one run: after its first epoch, then while it starts, compiles and trains.

    The moments are shares of the time to the first line, which say the same on any machine.
    """
    folder, codes, endings = tmp_path / "run", [], []
    draw = np.random.default_rng(0)
    images = {name: draw.integers(0, 256, (count, 8, 8)) for name, count in IMAGES.items()}
    np.savez(tmp_path / "images.npz", **{name: a.astype("uint8") for name, a in images.items()})
    command = [*COMMAND, "--dataset", tmp_path / "images.npz", "--out", folder]
    for share in (0, *np.linspace(0.2, 1.8, 9)):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        begun = time.monotonic()
        process = start(*command, env={"PYTHONUNBUFFERED": "1"}, **pipes)
        try:
            wait_until_it_trains(process, folder)
            time.sleep(share * (time.monotonic() - begun))
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
