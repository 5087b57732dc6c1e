"""Random numbers of a network's own: a sample has the same ones whenever it is evaluated.

A bound evaluates samples twice, without gradient to weigh them, and with. What likelihood and
conditionals draw meanwhile (dropout, simulators, subsampled data) belongs to the sample. Where a
block of samples is evaluated as it was, the generators start from where they stood; for a choice of
samples the outcomes are recorded, and those of the choice replayed.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from gdregs.torch.hierarchy import Hierarchy
from gdregs.torch.random_state import have_moved, set_states, standing_at, states
from gdregs.torch.replay import Drawn, Recorder, Replayer, Rows

_KNOWN_TO_DRAW: weakref.WeakSet[Any] = weakref.WeakSet()
"""Functions that have drawn; they are recorded at once, others after they have been found to."""


class Call(NamedTuple):
    """An evaluation of a network, which drew.

    Attributes:
        start: Where the generators stood.
        drawn: What was drawn, if it was recorded.
    """

    start: list[Tensor]
    drawn: list[Drawn]


Calls = dict[str, Call | None]
"""The first evaluation of each network, by its place in the model; None where it drew nothing."""


class Noise:
    """What networks draw for the samples of one bound.

    Args:
        records: Whether only some of the samples will be evaluated again.
    """

    def __init__(self, *, records: bool):
        self.records = records
        self.blocks: list[Calls] = []
        self.sizes: list[int] = []
        self.calls: Calls = {}
        self.index: Tensor | None = None

    def start_block(self, size: int) -> None:
        """The next evaluations are the first ones of so many samples."""
        self.calls = {}
        self.blocks.append(self.calls)
        self.sizes.append(size)

    @contextlib.contextmanager
    def of(self, number: int, index: Tensor | None) -> Iterator[None]:
        """Evaluate samples again: those of a block, or those with an index, `[M, *batch]`."""
        before = self.calls, self.index
        self.calls, self.index = self.blocks[number if index is None else 0], index
        try:
            yield
        finally:
            self.calls, self.index = before

    def evaluate(self, place: str, function: Callable[..., Any], arguments: Any) -> Any:
        """Call a network with the random numbers of the samples."""
        if self.index is not None:
            return self._for_rows(self.index, place, function, arguments)
        if place not in self.calls:
            result, self.calls[place] = self._first(place, function, arguments)
            return result
        call = self.calls[place]
        if call is None:
            return function(*arguments)
        with standing_at(call.start):
            return function(*arguments)

    def _first(self, place: str, function: Any, arguments: Any) -> tuple[Any, Call | None]:
        start, name = states(), _lasting(function)
        if not (self.records and name in _KNOWN_TO_DRAW):
            result = function(*arguments)
            if not have_moved(start):
                return result, None
            if not self.records:
                return result, Call(start, [])
            _KNOWN_TO_DRAW.add(name)
            set_states(start)
        with Recorder() as recorder:
            result = function(*arguments)
        if recorder.drawn:
            return result, Call(start, recorder.drawn)
        if not have_moved(start):
            return result, None
        raise ValueError(
            f"{place}: it moves PyTorch's random numbers on by something that cannot be recorded"
            f" (torch.manual_seed, a compiled extension), so that num_gradient_samples cannot give"
            f" the samples that it keeps the numbers that they had. Draw them by PyTorch's"
            f" operations, use evaluation mode, or leave num_gradient_samples out."
        )

    def _for_rows(self, index: Tensor, place: str, function: Any, arguments: Any) -> Any:
        calls = [block.get(place) for block in self.blocks]
        if not any(calls):
            return function(*arguments)
        drawn = [[] if call is None else call.drawn for call in calls]
        with standing_at(states()), Replayer(place, drawn, Rows(index, self.sizes)) as replayer:
            result = function(*arguments)
        replayer.check_end()
        return result


class WithNoise:
    """A network that draws the same for a sample whenever it is called."""

    def __init__(self, noise: Noise, place: str, function: Callable[..., Any]):
        self.noise, self.place, self.function = noise, place, function

    def __call__(self, *arguments: Any) -> Any:
        """Evaluate the network."""
        return self.noise.evaluate(self.place, self.function, arguments)


def with_noise(part: Any, place: str, noise: Noise) -> Any:
    """A likelihood or a hierarchy, whose networks draw the same for a sample whenever called."""
    if isinstance(part, Hierarchy):
        return part.with_conditionals(
            lambda name, conditional: WithNoise(noise, f"{place}, latent {name!r}", conditional)
        )
    return WithNoise(noise, place, part) if place == "likelihood" else part


def _lasting(function: Any) -> Any:
    """What remains of a function from one bound to the next."""
    return function if isinstance(function, nn.Module) else getattr(function, "__code__", _lasting)
