"""Densities whose own parameters are live, stopped, or anything between."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from gdregs.reexpression.paths import refuse_captured, separate


def gate(parameters: PyTree, strength: Any) -> PyTree:
    """Return `parameters`, and anything beside them, with their gradient times `strength`.

    1 leaves them live, 0 stops them, -1 flips the sign of their gradient. The parameters of a
    distribution of several latents can have a strength for each latent, in a mapping.
    """
    if isinstance(strength, Mapping):
        return gate_by_latent(parameters, strength)
    if isinstance(strength, (int, float)):
        if strength == 1:
            return parameters
        if strength == 0:
            return _each_array(jax.lax.stop_gradient, parameters)
    return _each_array(lambda leaf: _scale_gradient(leaf, strength), parameters)


def _each_array(function: Callable[[Array], Array], part: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: function(leaf) if eqx.is_inexact_array(leaf) else leaf, part)


@functools.singledispatch
def gate_by_latent(parameters: Any, strengths: Mapping[str, Any]) -> Any:
    """Return `parameters`, each behind the gate of the latent to which it belongs.

    Any assignment will do, as long as every parameter has one strength wherever it occurs: the
    estimators are linear in the strength of each.
    """
    raise TypeError(
        f"A strength for each latent, {', '.join(strengths)}, needs a distribution of several"
        f" latents, such as a gdregs.Hierarchy; got {type(parameters).__name__}."
    )


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
    return leaf, jnp.astype(strength, leaf_tangent.dtype) * leaf_tangent


def gated(part: Any, strength: Any) -> Any:
    """`part`, a pytree of parameters and anything else, with its parameters behind a `gate`."""
    return gate(part, strength)


def log_density(part: Any, z: PyTree) -> Array:
    """The log-density of `part` at z, in nats."""
    return part.log_prob(z)


@functools.singledispatch
def log_density_without_indirect(part: Any, z: PyTree) -> Array:
    r"""The log-density of `part` at z, whose gradient lacks the indirect score functions.

    In a `Hierarchy` no gradient passes from $\log p(z_l \mid \mathrm{pa}(l))$ to the parents by way
    of the distribution's parameters (the underlined term of Eq. (11)). That is biased; Sec. 3
    names it as an option, and it is here to be studied. Elsewhere there are none to drop.
    """
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
    parameters, with_parameters = separate(gate(part, strength))

    def evaluate(parameters, z):
        return log_prob(with_parameters(parameters), z)

    guarded = refuse_captured(evaluate, name)
    return lambda z: guarded(parameters, z)
