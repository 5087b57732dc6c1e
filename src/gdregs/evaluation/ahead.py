"""What several programs have in common, computed once and before one of them runs.

A compiler fuses what it finds in a branch of `jax.lax.switch` into everything that uses it there:
normal variables, which are then drawn several times over, or the scales of a mixture, which are
computed anew for each sample and datapoint. So what is drawn, and what depends neither on draws nor
on a program's inputs, goes before the branches. What depends on both draws and anything else stays,
since beside them the draws would be fused into it again.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from gdregs.evaluation.work import size_of, work_of

_ANYWHERE = frozenset(
    ["broadcast_in_dim", "convert_element_type", "iota", "reshape", "squeeze", "transpose"]
)
"""Operations that are cheaper done again than what they make is handed over."""

_VECTOR, _LITTLE = 16, 4000.0
"""So are those of at most so many entries, a vector unit's, and so much work, if not drawn."""


class _Operation(NamedTuple):
    """An operation; its number, which the same one has in other programs; whether it is drawn."""

    equation: core.JaxprEqn
    number: int | None
    is_drawn: bool


def compute_ahead(programs: Sequence[core.ClosedJaxpr]) -> list[Callable[..., list[Any]]]:
    """Compute what all programs draw from random keys, and what all know without a draw.

    Args:
        programs: As by `jax.make_jaxpr`, with what they close over among the constants.

    Returns:
        The rest of each program: a function of its inputs, which returns its outputs.
    """
    numbers: dict[Any, int] = {}
    numbered = [list(_number(program, numbers)) for program in programs]
    common = set.intersection(*({one.number for one in operations} for operations in numbered))
    common.discard(None)
    values: dict[int, list[Any]] = {}
    return [
        _rest(program, operations, common, values)
        for program, operations in zip(programs, numbered, strict=True)
    ]


def _number(program: core.ClosedJaxpr, numbers: dict[Any, int]) -> Iterator[_Operation]:
    """Number the operations that depend on constants: on keys alone, or on none of them."""
    known: dict[core.Var, tuple[int, set[bool]]] = {}  # its number, and whether it is drawn

    def number_of(name):
        return numbers.setdefault(name, len(numbers))

    for variable, value in zip(program.jaxpr.constvars, program.consts, strict=True):
        known[variable] = number_of(("constant", id(value))), {_is_key(variable.aval.dtype)}
    for equation in program.jaxpr.eqns:
        inputs = list(_variables(equation))
        number, kinds = None, set()
        if not equation.effects and known.keys() >= set(inputs):
            kinds = set().union(*(known[one][1] for one in inputs))
            if len(kinds) < 2:
                number = number_of((_settings(equation), *(known[one][0] for one in inputs)))
                for place, variable in enumerate(equation.outvars):
                    known[variable] = number_of((number, place)), kinds
        yield _Operation(equation, number, True in kinds)


def _rest(
    program: core.ClosedJaxpr,
    operations: list[_Operation],
    common: set[int],
    values: dict[int, list[Any]],
) -> Callable[..., list[Any]]:
    """A program without what is common; computes it where no program has yet."""
    jaxpr = program.jaxpr
    constants = dict(zip(jaxpr.constvars, program.consts, strict=True))
    later = [equation for equation, number, _ in operations if number not in common]
    for equation, number, _ in operations:
        if number is None or number not in common:
            continue
        if number not in values:
            inputs = list(_variables(equation))
            alone = jaxpr.replace(
                constvars=inputs, invars=[], outvars=equation.outvars, eqns=[equation]
            )
            known = [constants[one] for one in inputs]
            values[number] = core.jaxpr_as_fun(core.ClosedJaxpr(alone, known))()
        constants.update(zip(equation.outvars, values[number], strict=True))
    needed = {one for one in jaxpr.outvars if not isinstance(one, core.Literal)}
    needed.update(one for equation in later for one in _variables(equation))
    for one in reversed(operations):
        is_at_hand = one.number in common and not needed.isdisjoint(one.equation.outvars)
        if is_at_hand and _is_done_again(jaxpr, one):
            later.insert(0, one.equation)
            needed.difference_update(one.equation.outvars)
            needed.update(_variables(one.equation))
    handed = [variable for variable in constants if variable in needed]
    rest = jaxpr.replace(constvars=handed, eqns=later)
    return core.jaxpr_as_fun(core.ClosedJaxpr(rest, [constants[one] for one in handed]))


def _is_done_again(jaxpr: core.Jaxpr, operation: _Operation) -> bool:
    """Whether an operation is cheaper done again than what it makes is handed over."""
    equation = operation.equation
    if equation.primitive.name in _ANYWHERE:
        return True
    inputs = list(dict.fromkeys(_variables(equation)))
    if operation.is_drawn or size_of([*inputs, *equation.outvars]) > _VECTOR:
        return False
    alone = jaxpr.replace(constvars=[], invars=inputs, outvars=equation.outvars, eqns=[equation])
    return work_of(core.ClosedJaxpr(alone, [])) <= _LITTLE


def _is_key(dtype: Any) -> bool:
    """Whether it is a key's: a typed one's, or that of the numbers in a raw one."""
    return jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32


def _variables(equation: core.JaxprEqn) -> Iterator[core.Var]:
    return (one for one in equation.invars if not isinstance(one, core.Literal))


def _settings(equation: core.JaxprEqn) -> Any:
    """What tells two operations apart, apart from what varies between their inputs."""
    numbers = [str(one) if isinstance(one, core.Literal) else None for one in equation.invars]
    return (
        equation.primitive.name,
        *numbers,
        *((name, _setting(value)) for name, value in sorted(equation.params.items())),
    )


def _setting(value: Any) -> Any:
    """A value that compares; a program that is traced again is the same object."""
    try:
        hash(value)
    except TypeError:
        return object()  # equal to nothing else
    return value
