"""Batch norm in training mode, by which the log-weight of a sample depends on other samples."""

import contextlib
import functools
import itertools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch.distributions as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gdregs.torch.dependence import dependence_of

_FOREIGN = ("torch", "pyro", "numpy", "gdregs")
"""Packages whose functions hold no network of a user."""

_LEAVES = (Tensor, type, types.ModuleType, types.BuiltinFunctionType, str, int, float)
"""Values that hold no network."""

DEPTH, MOST = 8, 100
"""How deep values are looked into, and how many of a container's."""


@contextlib.contextmanager
def refusing_batch_norm(*parts: Any, is_repeated: bool) -> Iterator[None]:
    """An error if a network meanwhile normalises over samples.

    Batch norm of what does not depend on latents is none of that.

    Args:
        parts: Posterior, prior and likelihood, or programs.
        is_repeated: Whether networks have seen these samples before: their running statistics then
            stay as they are.
    """
    found = [one for one in modules_of(parts) if isinstance(one, _BatchNorm) and one.training]
    if not found:
        yield
        return
    seen: set[nn.Module] = set()

    def check(module: nn.Module, arguments: Any) -> None:
        seen.add(module)
        if any(isinstance(one, Tensor) and dependence_of(one).on_latents for one in arguments):
            raise _error(type(module).__name__)

    before = [(one, one.momentum, _count_of(one)) for one in found]
    handles = [one.register_forward_pre_hook(check) for one in found]
    try:
        if is_repeated:
            for one in found:
                one.momentum = 0.0
        yield
        for one, _, count in before:
            # (A network that is compiled calls no hooks.)
            if one not in seen and _version(one) != count[1]:
                raise _error(type(one).__name__)
    finally:
        for handle in handles:
            handle.remove()
        for one, momentum, count in before:
            one.momentum = momentum
            if is_repeated and one.num_batches_tracked is not None and _version(one) != count[1]:
                one.num_batches_tracked.copy_(count[0])


def count_batch_norms(context: Any) -> None:
    """While PyTorch's compiler traces a program: remember how many there are until now."""
    graph = context.graph()
    graph.num_batch_norms = _num_batch_norms(graph)


def refuse_new_batch_norms(context: Any) -> None:
    """An error if there are more than there were."""
    graph = context.graph()
    if _num_batch_norms(graph) > graph.num_batch_norms:
        raise _error("BatchNorm")


def _num_batch_norms(graph: Any) -> int:
    return sum(
        getattr(node.target, "__name__", "") == "batch_norm" and node.args[5] is True
        for node in graph.nodes
    )


def _error(name: str) -> ValueError:
    return ValueError(
        f"The likelihood, or a conditional, normalises over the importance samples or datapoints"
        f" ({name} in training mode), so that a log-weight depends on other"
        f" samples, and the gradient would be silently biased. Use group or layer norm, batch norm"
        f" of x alone, or evaluation mode; with both estimators 'naive' and all samples at once it"
        f" is right."
    )


def _count_of(module: _BatchNorm) -> tuple[Any, int | None]:
    """How many batches a module has seen, and the version of that number."""
    count = module.num_batches_tracked
    return (None if count is None else count.clone()), _version(module)


def _version(module: _BatchNorm) -> int | None:
    count = module.num_batches_tracked
    return None if count is None else count._version


def modules_of(value: Any) -> list[nn.Module]:
    """The modules that parts hold, or that their functions use."""
    found: dict[nn.Module, None] = {}
    seen: set[int] = set()
    rest: list[Any] = [value]
    for _ in range(DEPTH):
        above, rest = rest, []
        for one in above:
            if id(one) in seen or isinstance(one, _LEAVES):
                continue
            seen.add(id(one))
            if isinstance(one, nn.Module):
                found.update(dict.fromkeys(one.modules()))
            rest.extend(itertools.islice(_inside(one), MOST))
    return list(found)


def _inside(value: Any) -> Iterator[Any]:
    """What a value is made of, as far as it may hold networks."""
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        if (value.__module__ or "").split(".")[0] not in _FOREIGN:
            yield from _used_by(value)
    elif isinstance(value, dist.Distribution) or not hasattr(value, "__dict__"):
        return
    else:
        yield from (one for name, one in vars(value).items() if not name.startswith("_"))


def _used_by(function: types.FunctionType) -> Iterator[Any]:
    """What a function has closed over, has as defaults, and calls by global names."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is empty
            yield cell.cell_contents
    yield from (function.__defaults__ or ())
    yield from (function.__kwdefaults__ or {}).values()
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        yield from (function.__globals__.get(name) for name in code.co_names)
        codes.extend(one for one in code.co_consts if isinstance(one, types.CodeType))
