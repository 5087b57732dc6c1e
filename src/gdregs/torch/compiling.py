"""What PyTorch's compiler must not look into, and what it must know."""

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def untraced(function: Function) -> Function:
    """Run a function as it stands, even inside of a program that `torch.compile` compiles.

    For what decides during the backward pass where a cotangent goes: a compiler would decide it
    when it traces the program, once and for all. Networks that a user has compiled stay compiled.
    """
    disabled: list[Any] = []

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        # The compiler takes seconds to import, and who has not imported it does not compile.
        if "torch._dynamo" not in sys.modules:
            return function(*arguments)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*arguments)

    return run  # pyright: ignore[reportReturnType]


DONATED = "compiled with non-empty donated buffers"
"""What PyTorch says of a network that it has compiled for a single backward pass.

One that was compiled inside of a bound is not (`kept_for_two_passes`); one that had been before
runs forward twice.
"""


def kept_for_two_passes() -> Any:
    """While networks are compiled, let their backward pass run twice: for density and path."""
    try:
        from torch._functorch import config
    except ImportError:
        return contextlib.nullcontext()
    if not hasattr(config, "donated_buffer"):
        return contextlib.nullcontext()
    return config.patch(donated_buffer=False)
