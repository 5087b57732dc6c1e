"""The state of PyTorch's random number generators."""

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

_TURNS = threading.RLock()
"""Threads that draw from generators of their own take turns: there is one state to stand in for."""


def generators() -> list[torch.Generator]:
    """PyTorch's own generators: the CPU's and, once they are in use, the GPUs'."""
    # While a CUDA graph is captured, nobody may ask where they stand.
    is_in_use = torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing()
    return [torch.default_generator, *(torch.cuda.default_generators if is_in_use else ())]


def states() -> list[Tensor]:
    """Where PyTorch's own generators stand."""
    return [generator.get_state() for generator in generators()]


def set_states(to: list[Tensor]) -> None:
    """Put PyTorch's own generators where they stood."""
    for generator, state in zip(generators(), to, strict=False):
        generator.set_state(state)


def have_moved(since: list[Tensor]) -> bool:
    """Whether random numbers have been drawn from PyTorch's own generators."""
    now = states()
    return len(now) != len(since) or not all(map(torch.equal, now, since))


@contextlib.contextmanager
def standing_at(place: list[Tensor]) -> Iterator[None]:
    """Draw from where PyTorch's own generators stood; afterwards they stand where they did."""
    with _TURNS:
        before = states()
        set_states(place)
        try:
            yield
        finally:
            set_states(before)


@contextlib.contextmanager
def drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """Let distributions, which know of no generator, draw from this one."""
    if generator is None:
        yield
        return
    on_gpu = generator.device.type == "cuda"
    with _TURNS, torch.random.fork_rng(devices=[generator.device] if on_gpu else []):
        if on_gpu:
            torch.cuda.set_rng_state(generator.get_state(), generator.device)
        else:
            torch.set_rng_state(generator.get_state())
        yield
        state = torch.cuda.get_rng_state(generator.device) if on_gpu else torch.get_rng_state()
        generator.set_state(state)
