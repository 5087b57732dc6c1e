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
from jaxtyping import Array, Float, PyTree
from numpyro.distributions import transforms

from gdregs.paths import refuse_captured, with_path

PathOf = Callable[[Any, Array], Array]


class NoReexpressionError(TypeError):
    """Raised where a distribution has no rule of `reexpress`."""


@functools.singledispatch
def reexpress(distribution: Any, z: PyTree) -> PyTree:
    r"""Re-express a sample as if `distribution` had drawn it: Eqs. (C.10), (C.11).

    Extend it to a distribution of your own with `@gdregs.reexpress.register`: compute
    `path`, the forward transform of the stopped noise, and return `gdregs.with_path(z, path)`.

    Args:
        distribution: Any distribution with a rule: the location-scale and scale families of
            `numpyro.distributions`, LogNormal, MultivariateNormal, Independent, expanded and
            masked distributions, invertible transforms of all these, `gdregs.Hierarchy`, and
            distributions without array leaves (they have no parameters to differentiate).
        z: A sample, with leading axes `[K, *batch]`. It is a constant here: no gradient flows
            into it, only into the distribution.

    Returns:
        z, bit for bit, with the derivative of $T_p$ at the stopped noise
        $\tilde\epsilon = T_p^{-1}(z)$.

    Raises:
        TypeError: If the distribution has no rule.
        ValueError: If z does not have the shape of samples of the distribution.

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
    if not any(map(eqx.is_inexact_array, jax.tree.leaves(distribution))):
        return _without_parameters(distribution, z, name)
    raise NoReexpressionError(
        f"{name} has no re-expression rule. Rules exist for {', '.join(_known())}; add one with"
        f" @gdregs.reexpress.register({name})."
    )


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
    return sorted(cls.__name__ for cls in reexpress.registry if cls is not object)


def _rule(*families: type) -> Callable[[PathOf], PathOf]:
    """Register the function that maps (distribution, z) to the path for these families."""

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
            return with_path(jax.lax.stop_gradient(z), path_of(distribution, z))

        for family in families:
            reexpress.register(family, reexpressed)
        return path_of

    return register


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return jnp.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def _raise_rank(parameter: Any, ndim: int) -> Array:
    """Put axes of length 1 in front, for explicit broadcasting."""
    values = jnp.asarray(parameter)
    return jnp.reshape(values, (1,) * (ndim - values.ndim) + values.shape)


@_rule(dist.Cauchy, dist.Gumbel, dist.Laplace, dist.Logistic, dist.Normal, dist.SoftLaplace)
def _location_scale(distribution: Any, z: Array) -> Array:
    r"""$z = \mu + \sigma\epsilon$."""
    loc = _raise_rank(distribution.loc, jnp.ndim(z))
    scale = _raise_rank(distribution.scale, jnp.ndim(z))
    return loc + scale * jax.lax.stop_gradient((z - loc) / scale)


@_rule(dist.HalfCauchy, dist.HalfNormal)
def _scale(distribution: Any, z: Array) -> Array:
    r"""$z = \sigma\epsilon$."""
    scale = _raise_rank(distribution.scale, jnp.ndim(z))
    return scale * jax.lax.stop_gradient(z / scale)


@_rule(dist.Exponential)
def _exponential(distribution: dist.Exponential, z: Array) -> Array:
    r"""$z = \epsilon / \lambda$."""
    rate = _raise_rank(distribution.rate, jnp.ndim(z))
    return jax.lax.stop_gradient(z * rate) / rate


@_rule(dist.MultivariateNormal)
def _multivariate_normal(distribution: dist.MultivariateNormal, z: Array) -> Array:
    r"""$z = \mu + L\epsilon$."""
    loc = _raise_rank(distribution.loc, jnp.ndim(z))
    lower = _raise_rank(distribution.scale_tril, jnp.ndim(z) + 1)
    return loc + _multiply(lower, jax.lax.stop_gradient(_solve(lower, z - loc)))


@functools.partial(jnp.vectorize, signature="(d,d),(d)->(d)")
def _solve(lower: Float[Array, "d d"], vector: Float[Array, " d"]) -> Float[Array, " d"]:
    return jax.scipy.linalg.solve_triangular(lower, vector, lower=True)


@functools.partial(jnp.vectorize, signature="(d,d),(d)->(d)")
def _multiply(lower: Float[Array, "d d"], vector: Float[Array, " d"]) -> Float[Array, " d"]:
    return lower @ vector


@_rule(dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)
def _wrapped(distribution: Any, z: Array) -> Array:
    """The base distribution's own path: these wrappers only change how densities add up."""
    return reexpress(distribution.base_dist, z)


@_rule(dist.TransformedDistribution)
def _transformed(distribution: dist.TransformedDistribution, z: Array) -> Array:
    r"""$z = f_n(\dots f_1(T(\epsilon)))$, with every transform's own parameters on the path."""
    steps = _flatten(distribution.transforms)
    base = jax.lax.stop_gradient(z)
    for step in reversed(steps):
        if isinstance(step, transforms.AbsTransform) or not hasattr(step, "_inverse"):
            raise NoReexpressionError(
                f"{type(distribution).__name__} has no re-expression rule: its transform"
                f" {type(step).__name__} is not invertible."
            )
        base = step.inv(base)
    path = reexpress(distribution.base_dist, jax.lax.stop_gradient(base))
    for step in steps:
        path = step(path)
    return path


def _flatten(steps: Any) -> list[Any]:
    """The elementary transforms in a list of transforms and compositions of them."""
    flat = []
    for step in steps:
        is_composition = isinstance(step, transforms.ComposeTransform)
        flat.extend(_flatten(step.parts) if is_composition else [step])
    return flat
