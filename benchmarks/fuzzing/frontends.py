"""The runner of each front-end; only that of one is imported."""

from collections.abc import Callable
from typing import Any

from fuzzing.program import Program


def set_up(frontend: str) -> None:
    """Settings for a process that runs programs of a front-end."""
    if frontend in ("core", "numpyro"):
        from fuzzing.jax_runner import compile_quickly

        compile_quickly()
    else:
        import logging

        import torch

        torch.set_num_threads(1)
        logging.disable(logging.INFO)  # Pyro's, of the plates that it found


def runner_of(frontend: str) -> Callable[[Program], Any]:
    """What sets up a program."""
    if frontend == "core":
        from fuzzing.core_runner import CoreRunner

        return CoreRunner
    if frontend == "numpyro":
        from fuzzing.numpyro_runner import NumPyroRunner

        return NumPyroRunner
    if frontend == "torch":
        from fuzzing.torch_runner import TorchRunner

        return TorchRunner
    from fuzzing.pyro_runner import PyroRunner

    return PyroRunner


def text_of(program: Program) -> str:
    """The program as code that can be pasted."""
    if program.frontend == "core":
        from fuzzing import core_text as module
    elif program.frontend == "numpyro":
        from fuzzing import numpyro_text as module
    elif program.frontend == "torch":
        from fuzzing import torch_text as module
    else:
        from fuzzing import pyro_text as module
    return module.render(program)
