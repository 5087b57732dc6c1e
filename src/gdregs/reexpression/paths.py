"""Values that carry another value's derivative, and values that refuse to be differentiated."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.extend
import jax.numpy as jnp
from jaxtyping import Array

T = TypeVar("T")


@jax.custom_jvp
def with_path(value: T, path: T) -> T:
    r"""Return `value`, bit for bit, with the derivative of `path`.

    This is how a sample is re-expressed (Eqs. C.9-C.11): its value stays what it was and only
    the computation that it is differentiated through is another one.

    Args:
        value: What is returned; a pytree of arrays.
        path: Arrays of the same structure and shapes, whose values do not matter.

    Returns:
        `value`.

    Example:
        >>> import gdregs, jax
        >>> five = jax.numpy.array(5.0)
        >>> jax.value_and_grad(lambda x: gdregs.with_path(five, x**2))(3.0)
        (Array(5., dtype=float32, weak_type=True), Array(6., dtype=float32, weak_type=True))

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, App. C.
    """
    del path
    return value


@with_path.defjvp
def _with_path_jvp(primals, tangents):
    return primals[0], tangents[1]


def align(values: Array, like: Array) -> Array:
    """Append axes of length 1 until `values` (`[K, *batch]`) broadcasts against a latent `like`."""
    return jnp.reshape(values, values.shape + (1,) * (like.ndim - values.ndim))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def refuse_differentiation(value: Array, error: Exception) -> Array:
    """`value`, which raises `error` if it is differentiated."""
    del error
    return value


def _refuse(error, primals, tangents):
    if not isinstance(tangents[0], jax.custom_derivatives.SymbolicZero):
        raise type(error)(*error.args)
    return primals[0], tangents[0]


refuse_differentiation.defjvp(_refuse, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def once_differentiable(value: Array, error: Exception) -> Array:
    """`value`, which raises `error` if it is differentiated twice.

    The gradient of a surrogate is an estimator; its second derivative is none.
    """
    del error
    return value


@once_differentiable.defjvp
def _once_differentiable_jvp(error, primals, tangents):
    return primals[0], tangents[0] * _one(primals[0], error)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _one(value: Any, error: Exception) -> Array:
    """The first derivative of `value`, a number or an array, by itself: there is no second one."""
    del error
    return jnp.ones_like(value)


_one.defjvp(_refuse, symbolic_zeros=True)


def separate(part: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The parameters of a pytree of them and anything else, and the pytree as a function of them.

    (numpyro's masked distributions cannot be taken apart by `equinox.partition`.)
    """
    leaves, structure = jax.tree.flatten(part)
    places = [place for place, leaf in enumerate(leaves) if eqx.is_inexact_array(leaf)]

    def with_parameters(parameters: list[Any]) -> Any:
        new = dict(enumerate(leaves)) | dict(zip(places, parameters, strict=True))
        return structure.unflatten(new.values())

    return [leaves[place] for place in places], with_parameters


NO_SECOND_DERIVATIVE = NotImplementedError(
    "gdregs.bound has no second derivative: the gradient of its surrogate is an estimator, and the"
    " surrogate's Hessian is not one. Differentiate gdregs.log_weights for that."
)


def only_once_differentiable(part: Any, error: Exception = NO_SECOND_DERIVATIVE) -> Any:
    """A pytree that raises if anything is differentiated twice by its arrays."""
    parameters, with_parameters = separate(part)
    return with_parameters(
        [
            once_differentiable(leaf, error) if isinstance(leaf, jax.Array) else leaf
            for leaf in parameters  # a constant of numpy's is not differentiated at all
        ]
    )


def captured_once_differentiable(
    function: Callable[..., Array], check: Callable[[Any], None]
) -> Callable[..., Array]:
    """`function`, which raises if it is differentiated twice by a value that it captures.

    Args:
        function: Of arrays, to one array.
        check: What to do with its traced program.
    """
    return _guard_captured(
        function, lambda value: once_differentiable(value, NO_SECOND_DERIVATIVE), check
    )


def _guard_captured(
    function: Callable[..., Array],
    guard: Callable[[Array], Array],
    check: Callable[[Any], None] = lambda program: None,
) -> Callable[..., Array]:
    def guarded(*arguments):
        # A function that is new each time: what is traced of a known one is cached.
        program = jax.make_jaxpr(lambda *new: function(*new))(*arguments)
        check(program)
        captured = map(jnp.asarray, program.consts)  # float64 of numpy's becomes float32
        captured = [guard(value) if eqx.is_inexact_array(value) else value for value in captured]
        program = jax.extend.core.ClosedJaxpr(program.jaxpr, captured)
        (result,) = jax.extend.core.jaxpr_as_fun(program)(*jax.tree.leaves(arguments))
        return result

    return guarded


def refuse_captured(function: Callable[..., Array], part: str) -> Callable[..., Array]:
    """`function`, which raises if it is differentiated by a value that is not an argument."""

    def guard(value: Array) -> Array:
        error = ValueError(
            f"The {part} uses a parameter that is being differentiated but is not one of its pytree"
            f" leaves (an array of shape {jnp.shape(value)}, probably captured in a closure). This"
            f" estimator stops the parameters of the {part}, and one that is hidden cannot be"
            f" stopped, so the gradient would be silently biased. Make it a leaf of the {part}: a"
            f" field of an equinox.Module, or an argument bound with jax.tree_util.Partial."
        )
        return refuse_differentiation(value, error)

    return _guard_captured(function, guard)
