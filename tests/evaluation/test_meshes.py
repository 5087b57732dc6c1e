"""One bound on eight devices is the bound on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import eight_devices
import gdregs

pytestmark = pytest.mark.slow

SCRIPT = Path(eight_devices.__file__)


@pytest.fixture(scope="module")
def found():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags}
    run = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("case", "mesh"),
    [
        *((case, mesh) for case, (_, meshes) in eight_devices.CASES.items() for mesh in meshes),
        *((case, "both") for case in (*eight_devices.CHAINS, *eight_devices.GAMMAS)),
    ],
)
def test_value_gradient_and_diagnostics_are_those_of_one_device(found, case, mesh):
    """Up to the order of additions, in float32."""
    assert found[f"{case}, {mesh}"] < 1e-4


@pytest.mark.parametrize("case", ["log_weights", "log_weights, streamed", "log_marginal"])
def test_log_weights_are_those_of_one_device(found, case):
    assert found[case] < 1e-5


def test_an_evaluation_is_that_of_one_device(found):
    assert found["evaluation"] < 1e-5


def test_collectives_are_counted(found):
    """Log-weights are gathered once, gradients are added up once."""
    counts = {case: (c["all-reduce"], c["all-gather"]) for case, c in found["collectives"].items()}
    others = {
        case: sum(n for kind, n in c.items() if kind not in ("all-reduce", "all-gather"))
        for case, c in found["collectives"].items()
    }
    assert set(others.values()) == {0}
    assert counts["bound"] == (0, 1)
    assert counts["plain, data=8"] == (1, 0)
    assert counts["plain, samples=8"] == (1, 1)
    assert counts["plain, both"] == (3, 1)
    # The compiler does not divide the search for the largest scores.
    assert counts["M = 4, data=8"] == (1, 2)
    assert counts["M = 4, samples=8"] == (1, 1)
    assert sum(counts["M = 4, both"]) <= 10


def test_what_does_not_divide_is_named(found):
    batch, samples, devices = found["errors"]
    assert batch == "A batch of 8 datapoints cannot be shared equally by 3 devices along data."
    assert samples == "num_samples = 16 cannot be shared equally by 5 devices."
    assert devices == "A mesh of seeds=1, data=9, samples=1 takes 9 devices; there are 8."


def test_bad_meshes():
    with pytest.raises(TypeError, match="data must be a whole number"):
        gdregs.make_mesh(data=1.5)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        gdregs.make_mesh(samples=0)
