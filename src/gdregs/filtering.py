r"""Particle filters as bounds: the filtering variational objective (FIVO) of a `gdregs.Chain`.

$$F = \sum_b \log \frac1K \sum_k \exp \sum_{t \in b} \ell_{tk}, \qquad
\ell_{tk} = \log \frac{p(x_t|z_{tk})\, p(z_{tk}|z_{t-1,k})}{q(z_{tk}|z_{t-1,k}, x)}$$

Between the blocks b of steps, particles are drawn anew by their weights $v_b = \mathrm{softmax}_k
\sum_{t \in b} \ell_{tk}$. As is usual, the gradient leaves out the score functions of that choice:
it is the gradient of F along the paths, *not* of $\mathrm E[F]$. The estimators here have the mean
of that usual gradient, with less variance: given the particles of the blocks before, a step's
conditional has the parameters $(\phi, z_{t-1})$, and the identity (7) replaces

$$v\, \nabla_{\phi, z_{t-1}} \log q(z_t|z_{t-1}) \quad\text{by}\quad (v - v^2)\, \nabla_{z_t}
\ell\; \nabla_{\phi, z_{t-1}} T_q ,$$

where $\ell$ is the block's log-weight. So log q is stopped together with its dependence on
the last latent of the block before, the cotangents of latents within their own block are scaled by
v once more, and what later blocks send back along the path is left as it is.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from gdregs.chain import Chain
from gdregs.evaluation.resampling import take_rows
from gdregs.reexpression.paths import align, refuse_captured, with_path
from gdregs.reexpression.reexpress import reexpress
from gdregs.sequences.paths import stopped
from gdregs.sequences.walk import after, at
from gdregs.shared.checks import check_likelihood, positive_integer
from gdregs.shared.tables import find_posterior_estimator, find_prior_estimator

Likelihood = Callable[[Array, PyTree], Float[Array, "K *batch"]]


def fivo(
    posterior: Any,
    prior: Any,
    likelihood: Any,
    observations: PyTree,
    *,
    key: PRNGKeyArray,
    num_samples: Any,
    resample_every: Any = 1,
    posterior_estimator: Any = "dregs",
    prior_estimator: Any = "naive",
) -> Float[Array, "*batch"]:
    r"""The filtering variational objective, whose gradient is the estimator of your choice.

    The default of the prior is naive: GDReGs has more variance where data pin a latent to a small
    part of its prior, as they do within a step.

    Args:
        posterior: A Chain that runs forward, without mask and carried state.
        prior: A Chain of the same length, alike.
        likelihood: $(z_t, x_t) \mapsto \log p(x_t|z_t)$, `[K, *batch]`.
        observations: $x_1, \dots, x_T$, leaves `[T, *batch, ...]`.
        key: A JAX random key.
        num_samples: K, the number of particles.
        resample_every: Steps from one resampling to the next. A schedule that depends on the
            weights would be a choice whose derivative is left out as well, in a way that no
            estimator here accounts for; so there is none.
        posterior_estimator: `naive`, `stl` (biased), `dregs`, or a row of the table.
        prior_estimator: `naive`; or `gdregs` or a mix, where blocks are single steps.

    Returns:
        F, `[*batch]`, in nats. $\mathrm E\,F \le \log p(x_1, \dots, x_T)$.

    Raises:
        TypeError: If posterior or prior is not a Chain.
        ValueError: If they have masks, states, other directions or lengths, or a number is below 1;
            on differentiation, if a transition hides parameters in a closure.

    Example:
        >>> import gdregs, jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> def objective(slope, x, key):
        ...     prior = gdregs.Chain(
        ...         dist.Normal(0.0, 1.0), lambda z, u: dist.Normal(0.9 * z, 0.5), length=len(x))
        ...     start = jax.tree_util.Partial(lambda slope, x: dist.Normal(slope * x, 0.4), slope)
        ...     move = jax.tree_util.Partial(
        ...         lambda slope, z, x: dist.Normal(0.9 * z + slope * (x - 0.9 * z), 0.4), slope)
        ...     posterior = gdregs.Chain(start, move, length=len(x), inputs=x)
        ...     return gdregs.fivo(
        ...         posterior, prior, lambda z, x: dist.Normal(z, 0.5).log_prob(x), x, key=key,
        ...         num_samples=16)
        >>> x = jnp.array([0.3, 0.8, 1.1, 0.6])
        >>> gradient = jax.jit(jax.grad(objective))(0.2, x, jax.random.key(0))
        >>> bool(gradient > 0)
        True

    Reference:
        Maddison et al., Filtering Variational Objectives, 2017.
        Tucker et al., Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2019.
    """
    for name, part in (("posterior", posterior), ("prior", prior)):
        _check_part(name, part, posterior)
    check_likelihood(likelihood)
    for leaf in jax.tree.leaves(observations):
        if jnp.shape(leaf)[:1] != (posterior.length,):
            raise ValueError(
                f"observations must have the leading axis T = {posterior.length}; got an array of"
                f" shape {jnp.shape(leaf)}."
            )
    num_samples = positive_integer("num_samples", num_samples)
    block = positive_integer("resample_every", resample_every)
    rows = find_posterior_estimator(posterior_estimator), find_prior_estimator(prior_estimator)
    if block > 1 and rows[1].has_path:
        raise ValueError(
            "prior_estimator: with resample_every above 1 only 'naive' is at hand: within a block"
            " the path of a prior's latent would move those after it."
        )
    model = (posterior, prior, observations)
    z, before, ancestors, log_weights = jax.lax.stop_gradient(
        _look(stopped(model), likelihood, key, num_samples, block)
    )
    value, v = _weigh(log_weights, block)
    surrogate = _pull(model, likelihood, rows, z, before, ancestors, v, block)
    return with_path(value, surrogate)


def _check_part(name: str, part: Any, posterior: Any) -> None:
    if not isinstance(part, Chain):
        raise TypeError(f"{name} must be a gdregs.Chain; got {type(part).__name__}.")
    if part.reverse or part.mask is not None or part.state is not None:
        raise ValueError(
            f"{name}: a particle filter runs forward, on every step, from latent to latent: without"
            f" reverse, mask and state. gdregs.bound takes all of them."
        )
    if part.length != posterior.length:
        raise ValueError(
            f"posterior has T = {posterior.length} steps and prior {part.length}; they must be"
            f" equal."
        )


def _step(chain: Chain, previous: Array | None, step: PyTree) -> Any:
    """The distribution of a latent; without a latent before it, that of the first one."""
    if previous is not None:
        return chain.transition(previous, step)
    return chain.initial if hasattr(chain.initial, "log_prob") else chain.initial(step)


def _stopped_density(name: str, chain: Chain, previous: Array, step: PyTree, z: Array) -> Array:
    """The log-density of a latent, of which only the latents are live; refuses what hides."""
    parameters, rest = eqx.partition(chain, eqx.is_inexact_array)

    def evaluate(parameters: Any, previous: Array, z: Array) -> Array:
        return _step(eqx.combine(parameters, rest), previous, stopped(step)).log_prob(z)

    return refuse_captured(evaluate, name)(jax.lax.stop_gradient(parameters), previous, z)


def _densities(parts: Any, likelihood: Likelihood, z: Array, previous: Any, steps: Any) -> Any:
    """Log p(x|z), log p(z|previous) and log q(z|previous), `[K, *batch]` each."""
    (q, u_q), (p, u_p), x = parts[0], parts[1], steps
    return (
        likelihood(z, x),
        _step(p, previous, u_p).log_prob(z),
        _step(q, previous, u_q).log_prob(z),
    )


def _look(model: Any, likelihood: Likelihood, key: PRNGKeyArray, size: int, block: int) -> Any:
    """All particles: latents, those before them, ancestors, log-weights; `[T, K, *batch, ...]`."""
    posterior, prior, observations = model
    inputs = posterior.inputs, prior.inputs, observations
    draw_key, choose_key = jax.random.split(key)
    draw_keys = jax.random.split(draw_key, posterior.length)
    choose_keys = jax.random.split(choose_key, posterior.length)

    def weigh(z, previous, now):
        u_q, u_p, x = now
        log_x, log_p, log_q = _densities(
            ((posterior, u_q), (prior, u_p)), likelihood, z, previous, x
        )
        log_weight = log_x + log_p - log_q
        return jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)

    now = at(inputs, 0)
    first = _step(posterior, None, now[0])
    z = first.sample(draw_keys[0], (size,))
    log_weight = weigh(z, None, now)
    if z.shape[: log_weight.ndim] != log_weight.shape:
        first = first.expand(log_weight.shape[1:])
        z = first.sample(draw_keys[0], (size,))
        log_weight = weigh(z, None, now)

    def step(carry, xs):
        z, total = carry
        draw_key, choose_key, number, now = xs
        resampled = number % block == 0
        chosen = jax.random.categorical(choose_key, jnp.moveaxis(total, 0, -1), shape=total.shape)
        same = jnp.broadcast_to(align(jnp.arange(size), total), total.shape)
        ancestors = jnp.where(resampled, chosen, same)
        previous = take_rows(z, ancestors)
        z = _step(posterior, previous, now[0]).sample(draw_key)
        log_weight = weigh(z, previous, now)
        total = jnp.where(resampled, 0, total) + log_weight
        return (z, total), (z, previous, ancestors, log_weight)

    xs = (draw_keys[1:], choose_keys[1:], jnp.arange(1, posterior.length), after(inputs, 1))
    _, rest = jax.lax.scan(step, (z, log_weight), xs)
    nobody = jnp.zeros(log_weight.shape, rest[2].dtype)
    firsts = (z, jnp.zeros_like(z), nobody, log_weight)
    return tuple(jnp.concatenate([a[None], b]) for a, b in zip(firsts, rest, strict=True))


def _weigh(log_weights: Float[Array, "T K *batch"], block: int) -> tuple[Array, Array]:
    """F, and the weight that each particle has in its block, at each of the block's steps."""
    length, size = log_weights.shape[:2]
    number = jnp.arange(length) // block
    totals = jax.ops.segment_sum(log_weights, number, -(-length // block))
    value = jax.nn.logsumexp(totals, axis=1) - jnp.log(size)
    v = jax.nn.softmax(totals, axis=1)
    v = jnp.where(jnp.isfinite(totals), v, 0)
    return jnp.sum(value, axis=0), v[number]


def _pull(model: Any, likelihood: Likelihood, rows: Any, z, before, ancestors, v, block) -> Array:
    """The surrogate, `[*batch]`: one walk along all steps."""
    posterior, prior, observations = model
    posterior_row, prior_row = rows
    inputs = posterior.inputs, prior.inputs, observations
    fixed_posterior, fixed_prior = stopped((posterior, prior))

    def terms(path_before, z, before, v, now, inside):
        """What a step adds, and the path of its latents; `inside` where its block goes on."""
        u_q, u_p, x = now
        alive = v > 0

        def total(z, which):
            parts = ((fixed_posterior, stopped(u_q)), (fixed_prior, stopped(u_p)))
            log_x, log_p, log_q = _densities(parts, likelihood, z, before, stopped(x))
            return jnp.sum(jnp.where(alive, log_x if which == "x" else log_p - log_q, 0))

        by_x, by_rest = (
            jax.lax.stop_gradient(jax.grad(lambda z, which=which: total(z, which))(z))
            for which in ("x", "rest")
        )
        share = sum((path.strength * path.share(v) for path in posterior_row.paths), 0 * v)
        path = reexpress(_step(posterior, path_before, u_q), z)
        found = _inner(align(v * share, z) * (by_x + by_rest), path, v)
        log_x = likelihood(z, x)
        live = _step(prior, before, u_p).log_prob(z)
        found = found + _weighed(v, log_x + prior_row.density * live)
        outer = path_before
        if path_before is not None:
            # Within a block a latent before is one of the block's own; across, a parameter.
            outer = jnp.where(inside, jax.lax.stop_gradient(path_before), path_before)
            moved = _stopped_density("prior", prior, path_before, u_p, z)
            log_q = _stopped_density("posterior", posterior, path_before, u_q, z)
            found = found + _weighed(v * jnp.where(inside, share, 1), moved)
            found = found - _weighed(v * jnp.where(inside, share, 0), log_q)
        if not _is_nothing(posterior_row.density):
            log_q = _step(posterior, outer, u_q).log_prob(z)
            found = found - _weighed(v, posterior_row.density * log_q)
        if prior_row.has_path:
            path_p = reexpress(_step(prior, before, u_p), z)
            cotangent = align(v * prior_row.likelihood_share(v), z) * by_x
            cotangent = cotangent + align(v * prior_row.rest_share(v), z) * by_rest
            found = found + prior_row.path * _inner(cotangent, path_p, v)
        return path, jnp.sum(found, axis=0)

    path, first = terms(None, z[0], None, v[0], at(inputs, 0), False)

    def step(path, xs):
        z, before, ancestors, v, now, number = xs
        path_before = with_path(before, take_rows(path, ancestors))
        return terms(path_before, z, before, v, now, number % block != 0)

    numbers = jnp.arange(1, len(z))
    xs = (z[1:], before[1:], ancestors[1:], v[1:], after(inputs, 1), numbers)
    _, rest = jax.lax.scan(step, path, xs)
    return first + jnp.sum(rest, axis=0)


def _weighed(v: Array, terms: Array) -> Array:
    return v * jnp.where(v != 0, terms, 0)


def _inner(cotangent: Array, path: Array, v: Array) -> Array:
    """The inner product over events, of particles that have weight."""
    products = jnp.where(align(v > 0, path), cotangent, 0) * path
    return jnp.sum(products.reshape(*v.shape, -1), axis=-1)


def _is_nothing(factor: Any) -> bool:
    return isinstance(factor, (int, float)) and factor == 0
