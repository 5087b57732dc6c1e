r"""Pull the gradient through chosen samples: one surrogate for every pair of estimators.

$$S = \sum_k v_k \left[ \log p(x|z_k^{lik}) + \log p^\circ(z_k^{rest}) - \log q^\circ(z_k^{rest})
\right]$$
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from gdregs.evaluation.coupling import COUPLED, CoupledSamplesError, refuse_coupled
from gdregs.evaluation.fork import fork
from gdregs.evaluation.gates import gated, gated_density, log_density, log_density_without_indirect
from gdregs.evaluation.keys import Start, key_of_resampling
from gdregs.evaluation.look import Look
from gdregs.evaluation.meshes import SAMPLES, spread
from gdregs.evaluation.resampling import resample, take_rows
from gdregs.evaluation.weights import Model, Noise
from gdregs.reexpression.factors import path_with_factors, without_factors, without_scales
from gdregs.reexpression.paths import align, captured_once_differentiable
from gdregs.reexpression.reexpress import reexpress
from gdregs.reexpression.support import move_into_support
from gdregs.shared.tables import PosteriorEstimator, PosteriorMix, PriorEstimator


class Estimators(NamedTuple):
    """What the names in a call of `bound` stand for.

    Attributes:
        posterior: The posterior's row.
        prior: The prior's row.
        samples_own_path: The posterior has no re-expression rule and uses its own sampler.
        keeps_indirect_scores: Whether densities pass a gradient to the parents of each latent.
        has_factors: Whether a density enters the log-weight with a factor (a mask, a scale).
        couples_rightly: Whether samples may depend on each other: all of them are seen at once, and
            the gradient is the naive one.
    """

    posterior: PosteriorEstimator | PosteriorMix
    prior: PriorEstimator
    samples_own_path: bool
    keeps_indirect_scores: bool
    has_factors: bool = False
    couples_rightly: bool = False


class Weighed(NamedTuple):
    """Samples for the backward pass, with the constants that weigh them.

    Attributes:
        z: The samples, `[M, *batch, *event]`.
        noise: What parts with noise of their own are given beside them.
        v: What each weighs, over the probability with which it was kept.
        r: c / v.
    """

    z: PyTree
    noise: Noise
    v: Float[Array, "M *batch"]
    r: Float[Array, "M *batch"]


def pull_all(model: Model, look: Look, estimators: Estimators) -> Float[Array, "*batch"]:
    """The surrogate on all K samples; streamed, with every block drawn anew on the way back."""
    model = model._replace(posterior=look.posterior)

    def of_block(start: Start, size: int) -> Float[Array, "*batch"]:
        z = _drawn_again(model, start, size) if look.z is None else look.z
        v, r = (jax.lax.dynamic_slice_in_dim(rows, start, size) for rows in (look.v, look.r))
        weighed = Weighed(z, model.noise(start, size), v, r)
        span = (start, size) if estimators.samples_own_path else None
        return pull(model, estimators, weighed, span)

    if model.chunk_size is None:
        return of_block(0, model.num_samples)
    of_block = jax.checkpoint(of_block, static_argnums=1, prevent_cse=False)
    zero = jnp.zeros(model.batch, model.dtype)
    return model.fold(lambda total, *block: total + of_block(*block), zero)


def choose(model: Model, look: Look, num_kept: int) -> tuple[Weighed, Float[Array, "*batch"]]:
    r"""M of K samples by resampling on |v|, with $v \leftarrow v/\pi$, and the share they weigh."""
    scores = jnp.abs(look.v)
    index, probabilities = resample(key_of_resampling(model.key), scores, num_kept)
    index = spread(index, SAMPLES)
    is_full = probabilities > 0
    v, r, kept = (take_rows(rows, index) for rows in (look.v, look.r, scores))
    v = jnp.where(is_full, v / jnp.where(is_full, probabilities, 1), 0)
    total = jnp.sum(scores, axis=0)
    share = jnp.sum(jnp.where(is_full, kept, 0), axis=0) / jnp.where(total > 0, total, 1)
    noise = jax.tree.map(
        lambda keys: jnp.take_along_axis(keys, index, axis=0), model.noise(0, model.num_samples)
    )
    if look.z is not None:
        z = jax.tree.map(lambda rows: take_rows(rows, index), look.z)
    else:
        z = _chosen_again(model, index)
    return Weighed(z, noise, v, r), share


def _drawn_again(model: Model, start: Start, size: int) -> PyTree:
    """A block of samples as the look has seen them."""
    stopped = model._replace(posterior=gated(model.posterior, 0), prior=gated(model.prior, 0))
    z = stopped.draw(start, size)
    z, _ = move_into_support(stopped.with_noise(stopped.noise(start, size)).prior, z)
    return jax.lax.stop_gradient(z)


def _chosen_again(model: Model, index: Int[Array, "M *batch"]) -> PyTree:
    """The samples at these positions, picked from blocks that are drawn once more."""

    def pick(chosen, start, size):
        place = index - start
        is_here = (place >= 0) & (place < size)
        place = jnp.clip(place, 0, size - 1)

        def from_block(old, rows):
            return jnp.where(align(is_here, old), take_rows(rows, place), old)

        return jax.tree.map(from_block, chosen, _drawn_again(model, start, size))

    one = jax.eval_shape(lambda: _drawn_again(model, 0, 1))
    nothing = jax.tree.map(lambda leaf: jnp.zeros((len(index), *leaf.shape[1:]), leaf.dtype), one)
    return model.fold(pick, nothing)


def pull(
    model: Model, estimators: Estimators, weighed: Weighed, span: tuple[Start, int] | None = None
) -> Float[Array, "*batch"]:
    """The surrogate S, whose gradient is the estimator.

    Given the `span` of the samples, the posterior's path is its own sampler.
    """
    if estimators.has_factors:
        return _pull_with_factors(model, estimators, weighed, span)
    z, noise, v, r = weighed
    alive = v != 0
    drawing, model = model, model.with_noise(noise).without_dead(alive)
    posterior_row, prior_row = estimators.posterior, estimators.prior
    to_posterior, to_prior = [], ()
    for path in posterior_row.paths:
        z_q = _sampling_path(drawing, model.posterior, path.strength, z, span)
        to_posterior.append((z_q, path.share(r)))
    if prior_row.has_path:
        to_prior = (reexpress(gated(model.prior, prior_row.path), z),)
    z_lik = fork(z, alive, *to_posterior, *((p, prior_row.likelihood_share(r)) for p in to_prior))
    z_rest = fork(z, alive, *to_posterior, *((p, prior_row.rest_share(r)) for p in to_prior))
    log_prob = log_density if estimators.keeps_indirect_scores else log_density_without_indirect
    log_prior = gated_density(model.prior, prior_row.density, "prior", log_prob)
    log_posterior = gated_density(model.posterior, posterior_row.density, "posterior", log_prob)
    terms = (
        _log_likelihood(model, estimators, noise, z_lik) + log_prior(z_rest) - log_posterior(z_rest)
    )
    return jnp.sum(jnp.where(alive, v * jnp.where(alive, terms, 0), 0), axis=0)


def _log_likelihood(model: Model, estimators: Estimators, noise: Noise, z: PyTree) -> Array:
    """The log-likelihood, which cannot be differentiated twice and must not couple samples."""

    def check(program: Any) -> None:
        if estimators.couples_rightly:
            return
        try:
            refuse_coupled(program, [True] * len(program.jaxpr.invars))
        except CoupledSamplesError:
            raise ValueError(COUPLED) from None

    def evaluate(z: PyTree) -> Array:
        return model.log_likelihood(z, noise.likelihood)

    return captured_once_differentiable(evaluate, check)(z)


def _sampling_path(
    drawing: Model, posterior: Any, strength: Any, z: PyTree, span: tuple[Start, int] | None
) -> PyTree:
    """The samples as the posterior draws them."""
    posterior = gated(posterior, strength)
    if span is None:
        return reexpress(posterior, z)
    return drawing._replace(posterior=posterior).draw(*span)


def _pull_with_factors(
    model: Model, estimators: Estimators, weighed: Weighed, span: tuple[Start, int] | None
) -> Float[Array, "*batch"]:
    r"""The surrogate where densities have factors: $\ell = \log p(x|z) + a \log p - b \log q$.

    With the score of q or p, and $g = b v$ or $g = a v$, (13) gives, for the posterior's
    parameters, $(v - b (v - c)) \nabla_z \ell \cdot \nabla_\phi T_q$ and, for the prior's,
    $a [v \nabla_z \log (q/p) + (v - c) \nabla_z \ell] \cdot \nabla_\theta T_p$. Each node has
    factors of its own. A masked node of the prior is no part of p here.
    """
    z, noise, v, r = weighed
    alive = v != 0
    drawing, model = model, model.with_noise(noise).without_dead(alive)
    sampled, auxiliary = without_factors(model.posterior), without_scales(model.prior)
    posterior_row, prior_row = estimators.posterior, estimators.prior
    paths, to_prior = [], ()
    for path in posterior_row.paths:
        z_q = _sampling_path(drawing, sampled, path.strength, z, span)
        paths.append((z_q, path.share(jnp.ones_like(r))))
        if path.varies:
            posterior = gated(model.posterior, path.strength)
            z_b = path_with_factors(posterior, z, drops_masked=False)
            paths.append((z_b, path.share(r) - path.share(jnp.ones_like(r))))
    if prior_row.has_path:
        prior = gated(model.prior, prior_row.path)
        z_a = path_with_factors(prior, z, drops_masked=True)
        paths.append((z_a, 1 - r))
        to_prior = ((z_a, jnp.ones_like(r)),)
    z_l, z_score = fork(z, alive, *paths), fork(z, alive, *to_prior)
    log_prob = log_density if estimators.keeps_indirect_scores else log_density_without_indirect
    log_prior = gated_density(model.prior, prior_row.density, "prior", log_prob)
    log_posterior = gated_density(model.posterior, posterior_row.density, "posterior", log_prob)
    terms = _log_likelihood(model, estimators, noise, z_l) + log_prior(z_l) - log_posterior(z_l)
    if prior_row.has_path:
        log_sampled = gated_density(sampled, 0, "posterior", log_prob)
        log_auxiliary = gated_density(auxiliary, 0, "prior", log_prob)
        terms = terms + log_sampled(z_score) - log_auxiliary(z_score)
    return jnp.sum(jnp.where(alive, v * jnp.where(alive, terms, 0), 0), axis=0)
