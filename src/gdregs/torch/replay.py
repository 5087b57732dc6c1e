"""Random operations of a network: recorded for all samples, and replayed for some of them."""

import math
import sys
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from gdregs.torch.resampling import take_rows


class Drawn(NamedTuple):
    """What one random operation gave."""

    operation: Any
    values: list[Tensor]


class Rows(NamedTuple):
    """Some of the samples, of each datapoint.

    Attributes:
        index: Which ones, `[M, *batch]`.
        sizes: How many samples there were in each of the blocks that were recorded.
    """

    index: Tensor
    sizes: list[int]


class Recorder(TorchDispatchMode):
    """Keep what random operations give."""

    def __init__(self):
        super().__init__()
        self.drawn: list[Drawn] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and keep a copy of what it has drawn."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _is_random(func, args, kwargs):
            values = [value.clone() for value in _written(func, args, kwargs, result)]
            self.drawn.append(Drawn(func, values))
        return result


class Replayer(TorchDispatchMode):
    """Let random operations give what they gave before, for some of the samples.

    It works below autograd: derivatives are those of the operations with these outcomes.

    Args:
        place: What is evaluated, for errors.
        blocks: What was drawn in each block of samples.
        rows: The samples.
    """

    def __init__(self, place: str, blocks: list[list[Drawn]], rows: Rows):
        super().__init__()
        self.place, self.blocks, self.rows = place, blocks, rows
        self.position = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and replace what it has drawn."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _is_random(func, args, kwargs):
            self._refuse_what_draws_again(func)
            written = _written(func, args, kwargs, result)
            for now, *before in zip(written, *self._next(func, len(written)), strict=True):
                now.copy_(self._for_rows(func, list(before), now.shape))
        return result

    def check_end(self) -> None:
        """An error if less has been drawn than before."""
        if self.position < max(map(len, self.blocks)):
            raise ValueError(self._say_otherwise("a network"))

    def _refuse_what_draws_again(self, func: Any) -> None:
        """On the way back, when this has ended, it would draw other numbers."""
        again = None
        if any(argument.name == _DROPOUT for argument in func._schema.arguments):
            again = f"{func}, whose derivative draws them from a seed; use its math kernel"
        elif any(frame.f_code.co_filename == checkpoint.__file__ for frame in _frames()):
            again = "torch.utils.checkpoint, which runs once more; use chunk_size to save memory"
        if again is not None:
            raise ValueError(
                f"{self.place}: {_module_at_work()} draws random numbers within {again}, use"
                f" evaluation mode, or leave num_gradient_samples out."
            )

    def _next(self, func: Any, count: int) -> list[list[Tensor]]:
        found = []
        for drawn in self.blocks:
            one = drawn[self.position] if self.position < len(drawn) else None
            if one is None or one.operation is not func or len(one.values) != count:
                raise ValueError(self._say_otherwise(_module_at_work()))
            found.append(one.values)
        self.position += 1
        return found

    def _for_rows(self, func: Any, before: list[Tensor], shape: torch.Size) -> Tensor:
        index, sizes = self.rows
        batch, num_datapoints = index.shape[1:], math.prod(index.shape[1:])
        by_sample = [
            _with_samples_in_front(value, size, batch)
            for value, size in zip(before, sizes, strict=True)
        ]
        if all(value is not None for value in by_sample):
            rest = [value.shape[index.ndim :] for value in by_sample if value is not None]
            of_rows = torch.Size([*index.shape, *rest[0]])
            flat = torch.Size([len(index) * num_datapoints, *rest[0]])
            if shape in (of_rows, flat) and all(one == rest[0] for one in rest):
                everything = torch.cat(by_sample)  # pyright: ignore[reportArgumentType]
                return take_rows(everything, index).reshape(shape)
        if len(before) == 1 and before[0].shape == shape:
            return before[0]  # drawn once for all samples
        lead = ", ".join(map(str, (sum(sizes), *batch)))
        raise ValueError(
            f"{self.place}: {_module_at_work()} draws random numbers of shape"
            f" {tuple(before[0].shape)} by {func}, of which num_gradient_samples cannot take those"
            f" of the samples that it keeps: their first axes are not [{lead}]. Draw them with"
            f" these axes in front, use evaluation mode, or leave num_gradient_samples out."
        )

    def _say_otherwise(self, module: str) -> str:
        return (
            f"{self.place}: {module} draws other random numbers for the samples that"
            f" num_gradient_samples keeps than for all: what is drawn must not depend on which"
            f" samples there are. Use evaluation mode, or leave num_gradient_samples out."
        )


_DROPOUT = "dropout_p"
"""The argument of fused attention by which it draws; with 0 it does not."""


def _is_random(func: Any, args: Any, kwargs: Any) -> bool:
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == _DROPOUT:
            given = args[place] if place < len(args) else None
            return kwargs.get(_DROPOUT, argument.default_value if given is None else given) != 0
    return True


def _written(func: Any, args: Any, kwargs: Any, result: Any) -> list[Tensor]:
    """The tensors that an operation has returned or changed, each once."""
    found = list(result) if isinstance(result, (tuple, list)) else [result]
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[place] if place < len(args) else kwargs.get(argument.name))
    tensors = {id(value): value for value in found if isinstance(value, Tensor)}
    return list(tensors.values())


def _with_samples_in_front(value: Tensor, size: int, batch: torch.Size) -> Tensor | None:
    """A value as `[K, *batch, ...]`, also where these axes are one; None where they are not."""
    lead = (size, *batch)
    if tuple(value.shape[: len(lead)]) == lead:
        return value
    if value.ndim and value.shape[0] == math.prod(lead):
        return value.reshape(*lead, *value.shape[1:])
    return None


def _module_at_work() -> str:
    """The class of the innermost module that is being evaluated."""
    modules = (frame.f_locals.get("self") for frame in _frames())
    names = (type(one).__name__ for one in modules if isinstance(one, nn.Module))
    return next(names, "it")


def _frames() -> Iterator[types.FrameType]:
    """Those of the network that is evaluated, innermost first."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != "gdregs.torch.noise":
        yield frame
        frame = frame.f_back
