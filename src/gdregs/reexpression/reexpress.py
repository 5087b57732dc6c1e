r"""Re-expression: the same sample, as if a given distribution had drawn it.

`reexpress(p, z)` maps z back to noise, stops the noise, and maps it forward again (Eqs. C.10,
C.11): $T_p(\mathrm{stop}(T_p^{-1}(z;\theta));\theta)$. The value is z, bit for bit; the derivative
by $\theta$ is that of the sampling path of p.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, PyTree

from gdregs.reexpression.paths import refuse_captured, refuse_differentiation, with_path

PathOf = Callable[[Any, Array], Array]

ON_SIGHT: dict[str, Callable[[], Any]] = {}
"""By package that is not always installed: what registers the rules of its distributions."""


class NoReexpressionError(TypeError):
    """Raised where a distribution has no rule of `reexpress`."""


class MovingSupportError(ValueError):
    """Raised where a sample is differentiated by a parameter on which the support depends."""


@functools.singledispatch
def reexpress(distribution: Any, z: PyTree) -> PyTree:
    r"""Re-express a sample as if `distribution` had drawn it: Eqs. (C.10), (C.11).

    Extend it to a distribution of your own with `@gdregs.reexpress.register`: compute
    `path`, the forward transform of the stopped noise, and return `gdregs.with_path(z, path)`.

    Args:
        distribution: Any distribution with a rule: the location-scale and scale families of
            `numpyro.distributions`, those with shape parameters, multivariate and truncated ones,
            mixtures, and independent, expanded, masked and invertibly transformed ones
            (`docs/families.md` lists all); any other scalar one with a differentiable `cdf`;
            `gdregs.Hierarchy`; the transformed ones of flowjax; and those without array leaves
            (they have no parameters to differentiate).
        z: A sample, with leading axes `[K, *batch]`. It is a constant here: no gradient flows
            into it, only into the distribution.

    Returns:
        z, bit for bit, with the derivative of $T_p$ at the stopped noise
        $\tilde\epsilon = T_p^{-1}(z)$.

    Raises:
        TypeError: If the distribution has no rule.
        ValueError: If z does not have the shape of samples of the distribution; on
            differentiation, if it is by a parameter on which the support depends.

    Example:
        >>> import gdregs, jax, numpyro.distributions as dist
        >>> def sample(scale):
        ...     return gdregs.reexpress(dist.Normal(0.0, scale), jax.numpy.array([3.0]))[0]
        >>> jax.value_and_grad(sample)(2.0)  # z = scale * 1.5
        (Array(3., dtype=float32), Array(1.5, dtype=float32, weak_type=True))

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, Sec. 4.
    """
    name = type(distribution).__name__
    if _registered_on_sight(distribution):
        return reexpress(distribution, z)
    if not any(map(eqx.is_inexact_array, jax.tree.leaves(distribution))):
        return _without_parameters(distribution, z, name)
    if _has_cdf(distribution):
        return rule()(by_cdf)(distribution, z)
    raise NoReexpressionError(
        f"{name} has no re-expression rule. Rules exist for {', '.join(_known())}, and for scalar"
        f" continuous numpyro distributions with a `cdf`; add one with"
        f" @gdregs.reexpress.register({name})."
    )


def _registered_on_sight(distribution: Any) -> bool:
    """Whether there is a rule now, which comes with a package that has only just been seen."""
    for package, register in ON_SIGHT.items():
        if any(cls.__module__.startswith(f"{package}.") for cls in type(distribution).__mro__):
            register()
            return reexpress.dispatch(type(distribution)) is not reexpress.registry[object]
    return False


def _has_cdf(distribution: Any) -> bool:
    """Whether this is a continuous scalar numpyro distribution that knows its own cdf."""
    return (
        isinstance(distribution, dist.Distribution)
        and not distribution.is_discrete
        and distribution.event_shape == ()
        and type(distribution).cdf is not dist.Distribution.cdf
    )


def by_cdf(distribution: Any, z: Array) -> Array:
    r"""The implicit path of a scalar family: $dz = -\partial_\theta F(z; \theta) / p(z)$."""
    density = jax.lax.stop_gradient(jnp.exp(distribution.log_prob(z)))
    probability = distribution.cdf(z)
    tiny = jnp.finfo(density.dtype).tiny
    path = z - (probability - jax.lax.stop_gradient(probability)) / jnp.maximum(density, tiny)
    return hold_support(distribution, path)


def _without_parameters(distribution: Any, z: PyTree, name: str) -> PyTree:
    """Nothing to differentiate: z is its own path, unless a parameter hides in a closure."""
    z = jax.lax.stop_gradient(z)
    if not hasattr(distribution, "log_prob"):
        return z
    zero = 0 * jnp.sum(refuse_captured(distribution.log_prob, name)(z))
    continuous, discrete = eqx.partition(z, eqx.is_inexact_array)
    path = jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), continuous)
    return eqx.combine(with_path(continuous, path), discrete)


def _known() -> list[str]:
    others = {cls for cls in reexpress.registry if not cls.__module__.startswith("gdregs.")}
    return sorted({cls.__name__ for cls in others - {object}} | {"Hierarchy", "Chain", "TopDown"})


def rule(*families: type) -> Callable[[PathOf], PathOf]:
    """Turn the function that maps (distribution, z) to the path into the rule of these families."""

    def register(path_of: PathOf) -> PathOf:
        def reexpressed(distribution: Any, z: Array) -> Array:
            shape = (*distribution.batch_shape, *distribution.event_shape)
            if not _broadcasts(shape, jnp.shape(z)):
                raise ValueError(
                    f"A value of shape {jnp.shape(z)} is not a batch of samples of"
                    f" {type(distribution).__name__} with batch shape {distribution.batch_shape}"
                    f" and event shape {distribution.event_shape}: samples have shape"
                    f" [..., *batch, *event]."
                )
            z = jax.lax.stop_gradient(jnp.asarray(z))
            return with_path(z, path_of(distribution, z))

        for family in families:
            reexpress.register(family, reexpressed)
        return reexpressed

    return register


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return jnp.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def raise_rank(parameter: Any, ndim: int) -> Array:
    """Put axes of length 1 in front, for explicit broadcasting."""
    values = jnp.asarray(parameter)
    return jnp.reshape(values, (1,) * (ndim - values.ndim) + values.shape)


def hold_support(distribution: Any, path: Array) -> Array:
    """`path`, which cannot be differentiated by a parameter on which the support depends.

    There the expected score is not 0, and every estimator that stops the density is biased.
    """
    try:
        support = distribution.support
    except (AttributeError, NotImplementedError):
        return path
    return hold(path, type(distribution).__name__, *jax.tree.leaves(support))


def hold(path: Array, name: str, *bounds: Any) -> Array:
    """`path`, which cannot be differentiated by `bounds` of the support of the family `name`."""
    error = MovingSupportError(
        f"The support of the {name} depends on a parameter that is being differentiated, which"
        f" makes every estimator that stops its density biased. Make the bound of the support a"
        f" constant. (That of a posterior can be learned with posterior_estimator='naive'.)"
    )
    for bound in filter(eqx.is_inexact_array, bounds):
        path = path + (0 * jnp.sum(refuse_differentiation(bound, error))).astype(path.dtype)
    return path


def finite(z: Array, low: float | None = None, high: float | None = None) -> Array:
    """Move z off the ends of its support, by the smallest step that its numbers can express."""
    info = jnp.finfo(z.dtype)
    if low is not None:
        z = jnp.maximum(z, low + info.tiny)
    if high is not None:
        z = jnp.minimum(z, high - info.epsneg)
    return z


def move(value: Array, *steps: tuple[Array, Array]) -> Array:
    """`value` with the derivative `sum(slope * d parameter)` over the pairs (slope, parameter)."""
    stop = jax.lax.stop_gradient
    value = stop(value)
    for slope, parameter in steps:
        value = value + stop(slope) * (parameter - stop(parameter))
    return value
