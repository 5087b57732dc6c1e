"""Leave no trace: random numbers and running statistics as they were."""

import contextlib
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from gdregs.torch.batch_norm import modules_of
from gdregs.torch.digits import warned_anew
from gdregs.torch.random_state import standing_at, states


@contextlib.contextmanager
def restoring(*parts: Any, generator: torch.Generator | None = None) -> Iterator[None]:
    """Afterwards random numbers and the buffers of modules are as they were before.

    Meanwhile there are no warnings.

    Args:
        parts: Posterior, prior and likelihood, or programs.
        generator: A generator besides PyTorch's own.
    """
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in modules_of(parts)
        for name, buffer in module.named_buffers(recurse=False)
    ]
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    own = None if generator is None else generator.get_state()
    try:
        with standing_at(states()), warned_anew(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
        if generator is not None and own is not None:
            generator.set_state(own)
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
                module._buffers[name] = buffer
