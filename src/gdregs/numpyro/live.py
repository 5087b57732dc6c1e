r"""The naive gradient from one run of guide and model, in which everything is live.

Where both estimators are naive, nothing is stopped: with $\ell_k = \log p(x, z_k) - \log q(z_k)$
and $z_k$ along the guide's own sampler, the gradient is $\sum_k v_k \nabla \ell_k$. No path has to
be computed back from its samples, so that a flow is not inverted, and discrete latents are summed
out once. For other programs `gdregs.bound` is as fast, and for the smallest a little faster, since
there is nothing to be guarded.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray

from gdregs.evaluation.keys import keys_of_samples
from gdregs.numpyro.enumeration import EnumeratedModel
from gdregs.numpyro.programs import Guide, Model
from gdregs.objectives import Objective
from gdregs.reexpression.paths import only_once_differentiable, with_path
from gdregs.reexpression.reparameterized import is_reparameterized
from gdregs.reexpression.support import move_into_support


def pays(posterior: Guide, prior: Model, key: PRNGKeyArray) -> bool:
    """Whether the sampler can be differentiated, and is cheaper than a path from its samples."""
    is_costly = isinstance(prior, EnumeratedModel) or any(
        isinstance(fn, _COSTLY) for fn in posterior.families(key)
    )
    return is_costly and is_reparameterized(posterior, key, 1)


class TooCostlyError(ValueError):
    """A mix of estimators would make a step far longer than the naive gradient."""


def check_cost(posterior: Guide, prior: Model, key: PRNGKeyArray) -> None:
    """An error if discrete latents would be summed out twice, or a flow be inverted."""
    transforms = {
        type(transform)
        for fn in posterior.families(key)
        for transform in getattr(fn, "transforms", ())
    }
    has_flow = any(one.__module__ != dist.transforms.__name__ for one in transforms)
    if has_flow or isinstance(prior, EnumeratedModel):
        raise TooCostlyError


_COSTLY = (dist.TransformedDistribution, dist.LowRankMultivariateNormal)
"""Families whose noise, or whose density at given values, costs more than a draw does."""


def sum_of_bounds(
    posterior: Guide,
    prior: Model,
    key: PRNGKeyArray,
    num_samples: int,
    objective: Objective,
    guarded: Callable[[], Float[Array, "*batch"]],
) -> Float[Array, ""]:
    r"""The bounds of all datapoints, added up, with their naive gradient.

    It can be differentiated by whatever guide and model depend on.

    Args:
        posterior: A guide whose sampler can be differentiated.
        prior: The model.
        key: From which all samples are drawn.
        num_samples: K.
        objective: The objective.
        guarded: The same bounds by `gdregs.bound`'s own way, in which a sample without weight does
            no harm. Their gradient is taken where the live one is not finite.
    """

    def log_weights() -> Float[Array, "K *batch"]:
        each = keys_of_samples(key, 0, num_samples)
        z, log_posterior = jax.vmap(posterior.sample_and_log_prob)(each)
        z, inside = move_into_support(prior, z)
        found = prior.likelihood(z) + prior.log_prob(z) - log_posterior
        return found if inside is None else jnp.where(inside, found, -jnp.inf)

    both, sources = jax.closure_convert(lambda: (log_weights(), jnp.sum(guarded())))
    if not sources:
        return jnp.sum(guarded())
    fixed = jax.lax.stop_gradient(sources)
    try:
        found, pull = jax.vjp(lambda *sources: both(*sources)[0], *fixed)
        found = jax.lax.stop_gradient(jnp.where(jnp.isnan(found), -jnp.inf, found))
        value = jax.lax.stop_gradient(jnp.sum(objective(found)))
        v, _ = objective.coefficients(found)
        gradient = pull(jax.lax.stop_gradient(jnp.where(found > -jnp.inf, v, 0)))
    except ValueError:  # a loop that only forward mode can differentiate
        return jnp.sum(guarded())

    def otherwise() -> tuple[Array, ...]:
        return jax.grad(lambda sources: both(*sources)[1])(tuple(fixed))

    is_finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in gradient]))
    gradient = jax.lax.cond(is_finite, lambda: gradient, otherwise)
    gradient = jax.lax.stop_gradient(gradient)
    moving = only_once_differentiable(list(sources))
    terms = [jnp.sum(source * leaf) for source, leaf in zip(moving, gradient, strict=True)]
    return with_path(value, sum(terms, jnp.zeros_like(value)).astype(value.dtype))
