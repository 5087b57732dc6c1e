"""Values that carry another value's derivative: the three tools that every estimator is made of."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

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


def fork(
    z: PyTree,
    alive: Bool[Array, "K *batch"],
    *paths: tuple[PyTree, Float[Array, "K *batch"]],
) -> PyTree:
    r"""Return `z`, bit for bit; send `share * cotangent` down each `(path, share)`.

    Each crossing from a density to a sampling path is scaled here, once. The sampling graphs
    themselves stay unscaled; factors put on z's own cotangent would compound along
    $z_1 \to z_2$ in a hierarchy.

    Args:
        z: Latents, each leaf `[K, *batch, *event]`.
        alive: Where a sample has weight. Elsewhere the cotangent is 0, whatever it was (NaN too).
        paths: Pairs of a re-expression of `z` and the share of the cotangent that it receives.
    """
    if not paths:
        return jax.lax.stop_gradient(z)

    def blend(value: Array, *path_values: Array) -> Array:
        mixed = sum(
            align(share, value) * path_value
            for path_value, (_, share) in zip(path_values, paths, strict=True)
        )
        return jnp.where(align(alive, value), mixed, jnp.zeros_like(value))

    blended = jax.tree.map(blend, z, *(path for path, _ in paths))
    return with_path(jax.lax.stop_gradient(z), blended)


def gate(parameters: PyTree, strength: Any) -> PyTree:
    """Return `parameters` unchanged with their gradient multiplied by `strength`.

    1 leaves them live, 0 stops them, -1 flips the sign of their gradient. The parameters of a
    `gdregs.Hierarchy` can have a strength for each latent, in a mapping.
    """
    if isinstance(strength, Mapping):
        conditionals = {
            name: gate(conditional, strength[name])
            for name, conditional in parameters.conditionals.items()
        }
        return eqx.tree_at(lambda hierarchy: hierarchy.conditionals, parameters, conditionals)
    if isinstance(strength, (int, float)):
        if strength == 1:
            return parameters
        if strength == 0:
            return jax.lax.stop_gradient(parameters)
    return jax.tree.map(lambda leaf: _scale_gradient(leaf, strength), parameters)


@jax.custom_jvp
def _scale_gradient(leaf: Array, strength: Any) -> Array:
    """`leaf`, with its derivative scaled.

    Unlike `with_path(leaf, strength * leaf)` it has no derivative by `strength` of its own: only
    its derivative by `leaf` has. That is what `gdregs.LearnedMix` differentiates.
    """
    del strength
    return leaf


@_scale_gradient.defjvp
def _scale_gradient_jvp(primals, tangents):
    (leaf, strength), (leaf_tangent, _) = primals, tangents
    return leaf, strength * leaf_tangent


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

    def guarded(*arguments):
        hoisted, values = jax.closure_convert(function, *arguments)
        return hoisted(*arguments, *map(guard, values))

    return guarded


def gated(part: Any, strength: Any) -> Any:
    """`part`, a pytree of parameters and anything else, with its parameters behind a `gate`."""
    parameters, rest = eqx.partition(part, eqx.is_inexact_array)
    return eqx.combine(gate(parameters, strength), rest)


def log_density(part: Any, z: PyTree) -> Array:
    """The log-density of `part` at z, in nats."""
    return part.log_prob(z)


def gated_density(
    part: Any,
    strength: Any,
    name: str,
    log_prob: Callable[[Any, PyTree], Array] = log_density,
) -> Callable[[PyTree], Array]:
    r"""The log-density of `part`, with the gradient of its own parameters scaled by `strength`.

    The pytree *leaves* are gated and never the distribution's parameters, so that
    $\log q(z_2 \mid z_1)$ still passes a gradient to $z_1$ (the indirect score functions, Sec. 3).

    Args:
        part: The posterior or the prior: a pytree with a method `log_prob(z)`.
        strength: 1 (live), 0 (stopped), or any factor.
        name: What to call the part in an error message.
        log_prob: Evaluates the log-density of a part at z.

    Returns:
        `z -> log_prob`, `[K, *batch]`, in nats.

    Raises:
        ValueError: On differentiation, if `part` holds a differentiated parameter in a closure
            while `strength` is not 1.
    """
    if isinstance(strength, (int, float)) and strength == 1:
        return lambda z: log_prob(part, z)
    parameters, rest = eqx.partition(part, eqx.is_inexact_array)
    parameters = gate(parameters, strength)

    def evaluate(parameters, z):
        return log_prob(eqx.combine(parameters, rest), z)

    guarded = refuse_captured(evaluate, name)
    return lambda z: guarded(parameters, z)
