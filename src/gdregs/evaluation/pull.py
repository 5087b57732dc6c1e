r"""Pull the gradient through chosen samples: one surrogate for every pair of estimators.

$$S = \sum_k v_k \left[ \log p(x|z_k^{lik}) + \log p^\circ(z_k^{rest}) - \log q^\circ(z_k^{rest})
\right]$$
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gdregs.evaluation.fork import fork
from gdregs.evaluation.gates import gated, gated_density, log_density, log_density_without_indirect
from gdregs.evaluation.look import Look, Weighed
from gdregs.evaluation.streams import Start
from gdregs.evaluation.weights import Model
from gdregs.reexpression.reexpress import reexpress
from gdregs.shared.tables import PosteriorEstimator, PosteriorMix, PriorEstimator


class Estimators(NamedTuple):
    """What the names in a call of `bound` stand for.

    Attributes:
        posterior: The posterior's row.
        prior: The prior's row.
        samples_own_path: The posterior has no re-expression rule and uses its own sampler.
        keeps_indirect_scores: Whether densities pass a gradient to the parents of each latent.
    """

    posterior: PosteriorEstimator | PosteriorMix
    prior: PriorEstimator
    samples_own_path: bool
    keeps_indirect_scores: bool


def pull_all(model: Model, look: Look, estimators: Estimators) -> Float[Array, "*batch"]:
    """The surrogate on all K samples; streamed, with every block evaluated anew on the way back."""
    model = model._replace(posterior=look.recall(model.posterior))

    def step(total, start, size):
        block = look.block(start, size)
        weighed = Weighed(block.z, *look.coefficients(block))
        span = (start, size) if estimators.samples_own_path else None
        return total + pull(model, estimators, weighed, span)

    if model.chunk_size is not None:
        step = jax.checkpoint(step, static_argnums=2, prevent_cse=False)
    return model.fold(step, jnp.zeros(look.shape.batch, look.shape.dtype), model.chunk_size)


def pull(
    model: Model, estimators: Estimators, weighed: Weighed, span: tuple[Start, int] | None = None
) -> Float[Array, "*batch"]:
    """The surrogate S, whose gradient is the estimator.

    Given the `span` of the samples, the posterior's path is its own sampler.
    """
    z, v, r = weighed
    alive = v != 0
    posterior_row, prior_row = estimators.posterior, estimators.prior
    to_posterior, to_prior = [], ()
    for path in posterior_row.paths:
        posterior = gated(model.posterior, path.strength)
        if span is None:
            z_q = reexpress(posterior, z)
        else:
            z_q = model._replace(posterior=posterior).draw(*span)
        to_posterior.append((z_q, path.share(r)))
    if prior_row.has_path:
        to_prior = (reexpress(gated(model.prior, prior_row.path), z),)
    z_lik = fork(z, alive, *to_posterior, *((p, prior_row.likelihood_share(r)) for p in to_prior))
    z_rest = fork(z, alive, *to_posterior, *((p, prior_row.rest_share(r)) for p in to_prior))
    log_prob = log_density if estimators.keeps_indirect_scores else log_density_without_indirect
    log_prior = gated_density(model.prior, prior_row.density, "prior", log_prob)
    log_posterior = gated_density(model.posterior, posterior_row.density, "posterior", log_prob)
    terms = model.likelihood(z_lik) + log_prior(z_rest) - log_posterior(z_rest)
    return jnp.sum(jnp.where(alive, v * jnp.where(alive, terms, 0), 0), axis=0)
