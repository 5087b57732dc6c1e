"""What numbers an argument may be."""

import operator
from typing import Any


def positive_integer(name: str, value: Any) -> int:
    """`value` as an int of at least 1; an error that names the argument otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number; got {value!r}.") from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1; got {number}.")
    return number
