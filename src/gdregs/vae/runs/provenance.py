"""What every results file says of where its numbers come from."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax

import gdregs

LIBRARIES = ("jax", "jaxlib", "numpy", "numpyro", "equinox", "optax")
"""What the numbers depend on."""


def provenance(command: str) -> dict[str, Any]:
    """The command, the date, the hardware and the versions."""
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "hardware": f"{_processor()}, {os.cpu_count()} cores, {_device()}",
        "versions": {
            "gdregs": gdregs.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
    }


def _device() -> str:
    """What JAX runs on: cpu, or the accelerators by name."""
    backend = jax.default_backend()
    if backend == "cpu":
        return backend
    return f"{backend} ({jax.device_count()} x {jax.devices()[0].device_kind})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
