"""What programs draw from their keys, drawn once and before any of them runs."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core


class Draws:
    """Random numbers that several programs, one of which is to run, draw from the same keys.

    In the branches of `jax.lax.switch` each would draw them anew. A compiler that has them there
    may also fuse them into everything that uses them, and compute the same normal variables
    several times over.
    """

    def __init__(self):
        self._known: dict[Any, list[Any]] = {}

    def taken_from(self, program: core.ClosedJaxpr) -> Callable[..., list[Any]]:
        """Compute what depends on nothing but random keys, unless another program had it already.

        Args:
            program: As by `jax.make_jaxpr`, with its keys among the constants.

        Returns:
            The rest of the program: a function of its inputs, which returns its outputs.
        """
        jaxpr = program.jaxpr
        drawn: dict[core.Var, tuple[Any, Any]] = {  # the name that each goes by, and its value
            variable: (id(value), value)
            for variable, value in zip(jaxpr.constvars, program.consts, strict=True)
            if _is_key(variable.aval.dtype)
        }
        later, noise = [], []
        for equation in jaxpr.eqns:
            inputs = list(_variables(equation))
            if not inputs or equation.effects or not drawn.keys() >= set(inputs):
                later.append(equation)
                continue
            names, values = zip(*(drawn[one] for one in inputs), strict=True)
            key = (_settings(equation), names)
            if key not in self._known:
                alone = jaxpr.replace(
                    constvars=inputs, invars=[], outvars=equation.outvars, eqns=[equation]
                )
                self._known[key] = core.jaxpr_as_fun(core.ClosedJaxpr(alone, values))()
            for place, variable in enumerate(equation.outvars):
                drawn[variable] = (key, place), self._known[key][place]
                noise.append(variable)
        rest = jaxpr.replace(constvars=[*jaxpr.constvars, *noise], eqns=later)
        constants = [*program.consts, *(drawn[one][1] for one in noise)]
        return core.jaxpr_as_fun(core.ClosedJaxpr(rest, constants))


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
