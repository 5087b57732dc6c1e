"""Leaves in the place of computed tensors, so that a derivative ends there."""

import copy
import functools
import types
from collections.abc import Mapping
from typing import Any

import torch.distributions as dist
from torch import Tensor, nn

from gdregs.torch.hierarchy import Hierarchy
from gdregs.torch.noise import WithNoise


class StandIns:
    """Copies of a model's parts, in which leaves stand for tensors that were computed.

    They are looked for in distributions, in what functions have closed over and in their defaults,
    and in containers there. Modules and other objects stay as they are.

    Attributes:
        originals: The tensors, by their leaves' `id`.
    """

    def __init__(self):
        self.originals: dict[int, Tensor] = {}
        self.leaves: list[Tensor] = []
        self._known: dict[int, tuple[Any, Any]] = {}  # with what they stand for, which keeps its id

    def of(self, value: Any) -> Any:
        """The value itself, if it has no such tensors."""
        if id(value) not in self._known:
            self._known[id(value)] = value, value  # while it is looked into, which may lead back
            self._known[id(value)] = value, self._make(value)
        return self._known[id(value)][1]

    def _make(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._leaf(value) if value.requires_grad and not value.is_leaf else value
        if isinstance(value, Hierarchy):
            return value.with_conditionals(lambda _, conditional: self.of(conditional), self.of)
        if isinstance(value, WithNoise):
            function = self.of(value.function)
            same = function is value.function
            return value if same else WithNoise(value.noise, value.place, function)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, functools.partial):
            parts = value.func, value.args, value.keywords
            func, args, keywords = found = tuple(map(self.of, parts))
            same = all(map(_is, found, parts))
            return value if same else functools.partial(func, *args, **keywords)
        if type(value) in (list, tuple, dict):
            return self._container(value)
        is_described = isinstance(value, (dist.Distribution, dist.Transform))
        if is_described and not isinstance(value, nn.Module):
            attributes = self.of(dict(value.__dict__))
            if all(_is(attributes[name], old) for name, old in value.__dict__.items()):
                return value
            other = copy.copy(value)
            other.__dict__.update(attributes)
            return other
        return value

    def _leaf(self, value: Tensor) -> Tensor:
        leaf = value.detach().requires_grad_()
        self.leaves.append(leaf)
        self.originals[id(leaf)] = value
        return leaf

    def _container(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            found = {name: self.of(one) for name, one in value.items()}
            return value if all(_is(found[name], one) for name, one in value.items()) else found
        found = [self.of(one) for one in value]
        return value if all(map(_is, found, value)) else type(value)(found)

    def _function(self, value: types.FunctionType) -> types.FunctionType:
        cells = value.__closure__ or ()
        others = tuple(map(self._cell, cells))
        defaults, keywords = self.of(value.__defaults__), self.of(value.__kwdefaults__)
        if (
            all(map(_is, others, cells))
            and defaults is value.__defaults__
            and keywords is value.__kwdefaults__
        ):
            return value
        other = types.FunctionType(
            value.__code__, value.__globals__, value.__name__, defaults, others or None
        )
        other.__kwdefaults__ = keywords
        other.__dict__.update(value.__dict__)
        return other

    def _cell(self, cell: types.CellType) -> types.CellType:
        try:
            old = cell.cell_contents
        except ValueError:  # it is empty
            return cell
        new = self.of(old)
        return cell if new is old else types.CellType(new)


def _is(one: Any, other: Any) -> bool:
    return one is other
