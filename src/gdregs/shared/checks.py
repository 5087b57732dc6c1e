"""What an argument may be."""

import inspect
import operator
from typing import Any


def positive_integer(name: str, value: Any) -> int:
    """`value` as an int of at least 1; an error that names the argument otherwise."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number; got {value!r}.") from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1; got {number}.")
    return number


def num_arguments(function: Any) -> int | None:
    """How many arguments by position a function needs, not counting those with a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(
        one.kind in positional and one.default is inspect.Parameter.empty for one in parameters
    )


def check_part(name: str, part: Any, methods: tuple[str, ...], like: str) -> None:
    """An error if a posterior or prior lacks a method that distributions have."""
    missing = [method for method in methods if not callable(getattr(part, method, None))]
    if missing:
        raise TypeError(
            f"{name} must have the method(s) {', '.join(missing)}, as {like} does; got"
            f" {type(part).__name__}."
        )


def check_likelihood(likelihood: Any) -> None:
    """An error if the likelihood is not a function."""
    if not callable(likelihood):
        raise TypeError(
            "likelihood must be a function z -> log p(x|z) of shape [K, *batch]; got"
            f" {type(likelihood).__name__}."
        )


def check_draw(shape: tuple[int, ...], size: int, call: str) -> None:
    """An error if what was drawn does not have the importance samples in front."""
    if tuple(shape[:1]) != (size,):
        raise ValueError(
            f"{call} returned an array of shape {tuple(shape)}; its leading axis must be the {size}"
            f" importance samples."
        )


def check_log_densities(found: dict[str, Any], size: int) -> tuple[int, ...]:
    """`[K, *batch]`, the shape of all three log-densities; an error if it is not one."""
    first = next(iter(found.values()))
    if len(set(found.values())) > 1 or first is None or tuple(first[:1]) != (size,):
        listed = ", ".join(f"{name} has shape {shape}" for name, shape in found.items())
        raise ValueError(
            f"The log-densities do not broadcast to one array [K, *batch], K = {size}: {listed}."
            f" All three must be equal. Event axes are summed over by .to_event(...) or by a sum in"
            f" the likelihood."
        )
    return tuple(first)


def check_latent(shape: tuple[int, ...], lead: tuple[int, ...]) -> None:
    """An error if a latent does not have the axes of the log-densities in front."""
    if tuple(shape[: len(lead)]) != tuple(lead):
        raise ValueError(
            f"The posterior draws latents of shape {tuple(shape)}, but the log-densities have the"
            f" leading axes {tuple(lead)}: every latent must have the axes [K, *batch]."
        )


def check_objective(objective: Any, kind: type, module: str) -> None:
    """An error if the objective is none."""
    if not isinstance(objective, kind):
        raise TypeError(
            f"objective must be an instance of a {module}.Objective, such as {module}.IWAE() or one"
            f" of your own; got {objective!r}."
        )
