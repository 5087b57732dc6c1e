r"""The bound: look at all samples, choose those that matter, pull the gradient through them.

The sample is a value; both of its gradient paths are re-expressions of that value. One evaluation
of the surrogate

$$S = \sum_k v_k \left[ \log p(x|z_k^{lik}) + \log p^\circ(z_k^{rest}) - \log q^\circ(z_k^{rest})
\right]$$

has, as its gradient, any pair of the estimators in `gdregs.estimators`: (8), (17) and (C.8) for
the posterior, (19) and (C.16) for the prior, and $v \nabla \log p_\lambda(x|z)$ for the likelihood.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from gdregs import resampling
from gdregs.checks import positive_integer
from gdregs.estimators import (
    PosteriorEstimator,
    PriorEstimator,
    find_posterior_estimator,
    find_prior_estimator,
)
from gdregs.objectives import IWAE, Objective, Shape
from gdregs.paths import align, fork, gated_density, with_path
from gdregs.reexpress import NoReexpressionError, reexpress
from gdregs.reparameterized import has_moving_support, is_reparameterized
from gdregs.weights import Block, Model, read_model


class Diagnostics(NamedTuple):
    r"""How the weight is spread over the importance samples of each datapoint.

    Attributes:
        effective_sample_size: $1 / \sum_k \tilde w_k^2$, between 1 and K, `[*batch]`.
        weight_kept: The share of $\sum_k |v_k|$ that belongs to the samples on which the backward
            pass runs, `[*batch]`.
    """

    effective_sample_size: Float[Array, "*batch"]
    weight_kept: Float[Array, "*batch"]


class Pulled(NamedTuple):
    """Samples for the backward pass, with the constants that weigh them."""

    z: PyTree
    v: Float[Array, "M *batch"]
    r: Float[Array, "M *batch"]


class Estimators(NamedTuple):
    """What the names in a call of `bound` stand for."""

    objective: Objective
    posterior: PosteriorEstimator
    prior: PriorEstimator
    samples_own_path: bool


def bound(
    posterior: Any,
    prior: Any,
    likelihood: Any,
    *,
    key: PRNGKeyArray,
    num_samples: Any,
    objective: Any = IWAE(),
    posterior_estimator: Any = "dregs",
    prior_estimator: Any = "gdregs",
    num_gradient_samples: Any = None,
    chunk_size: Any = None,
) -> Float[Array, "*batch"]:
    r"""A Monte Carlo objective whose `jax.grad` is the gradient estimator of your choice.

    The value is $F(\ell_1, \dots, \ell_K)$ with
    $\ell_k = \log p(x|z_k) + \log p(z_k) - \log q(z_k)$ and $z_k \sim q$. Its gradient by the
    posterior's parameters is $\sum_k c_k \nabla_{z_k} \log w_k \nabla_\phi T_q$ for `dregs` (8),
    (C.8); by the prior's, $\sum_k (v_k \nabla_{z_k} \log p(x|z_k) - c_k \nabla_{z_k} \log w_k)
    \nabla_\theta T_p$ for `gdregs` (19), (C.16); by the likelihood's, always
    $\sum_k v_k \nabla_\lambda \log p_\lambda(x|z_k)$. Parameters that the parts share get the sum.

    A weight that is 0 or NaN contributes nothing. A datapoint without any weight has the bound
    -inf and the gradient 0. (The derivative of the likelihood by parameters of its own must be
    finite there: 0 times a NaN that it returns is beyond reach.)

    Args:
        posterior: q, a pytree whose array leaves are all its parameters, with
            `sample(key, sample_shape)` and `log_prob(z)`, which gives `[K, *batch]`: a numpyro
            distribution, a `gdregs.Hierarchy`, or anything alike. z is any pytree of arrays with
            leading axes `[K, *batch]`.
        prior: p(z), a pytree like the posterior, with `log_prob(z)`, and a rule of
            `gdregs.reexpress` where `prior_estimator` is not `naive`.
        likelihood: A function z -> log p(x|z), `[K, *batch]`; it may close over anything.
        key: A JAX random key.
        num_samples: K, the number of importance samples.
        objective: `ELBO()`, `IWAE()`, `VRIWAE(alpha)`, `JVI()`, or an `Objective` of your own.
        posterior_estimator: `naive`, `stl` (biased for K > 1 unless the objective is the ELBO),
            `dregs`, `rws` (the wake-phase gradient of q, whose expectation is another one),
            `rws-dregs`, or `gdregs.interpolated_dregs(alpha)`.
        prior_estimator: `naive`, `gdregs`, or `gdregs.mixed_gdregs(alpha)`.
        num_gradient_samples: M. The backward pass runs on M of the K samples, resampled by weight
            without bias. None, or K and more: on all. A posterior that has no re-expression rule
            runs it on all.
        chunk_size: Hold at most this many samples in memory at a time. Value and gradient stay the
            same; samples are evaluated again where they are needed again. None holds all.

    Returns:
        `[*batch]`, in nats; larger is better.

    Raises:
        TypeError: If a part lacks a method, the prior has no re-expression rule, or the posterior
            cannot be reparameterized, where an estimator needs that.
        ValueError: If a name is unknown, a number is below 1, shapes differ, or, on
            differentiation, a stopped part hides parameters in a closure.

    Example:
        >>> import gdregs, jax, numpyro.distributions as dist
        >>> def objective(phi, theta):
        ...     return gdregs.bound(
        ...         dist.Normal(phi, 0.8),
        ...         dist.Normal(theta, 1.0),
        ...         lambda z: dist.Normal(z, 1.0).log_prob(2.0),
        ...         key=jax.random.key(0),
        ...         num_samples=64,
        ...         num_gradient_samples=8,
        ...     )
        >>> value, gradients = jax.value_and_grad(objective, argnums=(0, 1))(0.9, 0.0)
        >>> bool(-2.4 < value < -2.1), len(gradients)  # log p(x) = -2.27
        (True, 2)

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021.
        Tucker et al., Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2019.
    """
    value, _ = _evaluate(
        posterior,
        prior,
        likelihood,
        key,
        num_samples,
        objective,
        posterior_estimator,
        prior_estimator,
        num_gradient_samples,
        chunk_size,
        diagnose=False,
    )
    return value


def bound_with_diagnostics(
    posterior: Any,
    prior: Any,
    likelihood: Any,
    *,
    key: PRNGKeyArray,
    num_samples: Any,
    objective: Any = IWAE(),
    posterior_estimator: Any = "dregs",
    prior_estimator: Any = "gdregs",
    num_gradient_samples: Any = None,
    chunk_size: Any = None,
) -> tuple[Float[Array, "*batch"], Diagnostics]:
    """`bound`, and how its weight is spread: what to watch during training.

    Takes the arguments of `gdregs.bound`, for `jax.value_and_grad(..., has_aux=True)`.

    Returns:
        The bound, `[*batch]`, in nats, and its `Diagnostics`, without gradient.

    Example:
        >>> import gdregs, jax, numpyro.distributions as dist
        >>> q = p = dist.Normal(0.0, 1.0)
        >>> value, diagnostics = gdregs.bound_with_diagnostics(
        ...     q, p, lambda z: 0.0 * z, key=jax.random.key(0), num_samples=4
        ... )
        >>> float(diagnostics.effective_sample_size), float(diagnostics.weight_kept)
        (4.0, 1.0)
    """
    value, diagnostics = _evaluate(
        posterior,
        prior,
        likelihood,
        key,
        num_samples,
        objective,
        posterior_estimator,
        prior_estimator,
        num_gradient_samples,
        chunk_size,
        diagnose=True,
    )
    assert diagnostics is not None
    return value, diagnostics


def _evaluate(
    posterior,
    prior,
    likelihood,
    key,
    num_samples,
    objective,
    posterior_estimator,
    prior_estimator,
    num_gradient_samples,
    chunk_size,
    *,
    diagnose: bool,
) -> tuple[Float[Array, "*batch"], Diagnostics | None]:
    """Look, choose, pull."""
    posterior_row = find_posterior_estimator(posterior_estimator)
    prior_row = find_prior_estimator(prior_estimator)
    if not isinstance(objective, Objective):
        raise TypeError(
            "objective must be an instance of a gdregs.Objective, such as gdregs.IWAE() or one of"
            f" your own; got {objective!r}."
        )
    model, shape = read_model(posterior, prior, likelihood, key, num_samples, chunk_size)
    own_path = _check_paths(model, posterior_row, prior_row)
    estimators = Estimators(objective, posterior_row, prior_row, own_path)
    num_kept = shape.num_samples
    if num_gradient_samples is not None:
        num_kept = min(positive_integer("num_gradient_samples", num_gradient_samples), num_kept)

    look = _Look(model, shape, objective)
    value = look.value()
    if num_kept == shape.num_samples or own_path:
        surrogate, kept = _pull_all(look, estimators), jnp.ones(shape.batch, shape.dtype)
    else:
        pulled, kept = _choose(look, num_kept)
        surrogate = _pull(model, estimators, pulled)
    diagnostics = Diagnostics(look.effective_sample_size(), kept) if diagnose else None
    return with_path(value, surrogate), diagnostics


def _check_paths(model: Model, posterior: PosteriorEstimator, prior: PriorEstimator) -> bool:
    """Whether the posterior must use its own sampler as its path; errors where there is none."""
    z = jax.eval_shape(lambda: model.draw(0, model.num_samples))
    if prior.has_path:
        try:
            jax.eval_shape(lambda z: reexpress(model.prior, z), z)
        except NoReexpressionError as error:
            raise TypeError(f"prior: {error} Or use prior_estimator='naive'.") from None
    if not posterior.has_path:
        return False
    try:
        jax.eval_shape(lambda z: reexpress(model.posterior, z), z)
    except NoReexpressionError as error:
        if not is_reparameterized(model.posterior, model.key, model.num_samples):
            raise TypeError(
                f"posterior: {error} Its sampler is not reparameterized either. Only"
                f" posterior_estimator='rws' does without."
            ) from None
        is_stopped = not (isinstance(posterior.density, int) and posterior.density == 1)
        if is_stopped and has_moving_support(model.posterior, model.key, model.num_samples):
            raise TypeError(
                "posterior: the support of a Uniform depends on its parameters, which makes every"
                " estimator that stops its density biased. Use posterior_estimator='naive'."
            ) from None
        return True
    return False


class _Look:
    """All log-weights, without gradient, and what the objective makes of them."""

    def __init__(self, model: Model, shape: Shape, objective: Objective):
        self.model = model
        self.shape = shape
        self.objective = objective
        self._whole = model.look(0, shape.num_samples) if model.chunk_size is None else None
        self.summary = objective.summarize(self._fold_log_weights, shape)

    def block(self, start, size) -> Block:
        """A block of samples; if all are one block, it is looked at once."""
        return self.model.look(start, size) if self._whole is None else self._whole

    def fold(self, update, carry):
        """Pass every block to `update(carry, block)`."""
        return self.model.fold(
            lambda carry, *span: update(carry, self.block(*span)), carry, self.model.look_size
        )

    def _fold_log_weights(self, update, carry):
        return self.fold(lambda carry, b: update(carry, b.log_weights, b.start), carry)

    def value(self) -> Float[Array, "*batch"]:
        """F, with -inf for a datapoint without weight."""
        return jax.lax.stop_gradient(self.objective.value(self.summary))

    def coefficients(self, block: Block) -> tuple[Array, Array]:
        """The coefficients v and r of a block; 0 where a sample has no weight."""
        v, c = self.objective.coefficients(self.summary, block.log_weights, block.start)
        alive = (block.log_weights > -jnp.inf) & jnp.isfinite(v) & jnp.isfinite(c) & (v != 0)
        r = jnp.where(alive, c / jnp.where(alive, v, 1), 0)
        return jax.lax.stop_gradient((jnp.where(alive, v, 0), r))

    def effective_sample_size(self) -> Float[Array, "*batch"]:
        def add(carry, log_weights, start):
            return tuple(
                jnp.logaddexp(total, logsumexp(power * log_weights, axis=0))
                for power, total in zip((1, 2), carry, strict=True)
            )

        nothing = jnp.full(self.shape.batch, -jnp.inf, self.shape.dtype)
        total, total_of_squares = self._fold_log_weights(add, (nothing, nothing))
        alive = total > -jnp.inf
        return jnp.where(alive, jnp.exp(jnp.where(alive, 2 * total - total_of_squares, 0)), 0)


def _pull_all(look: _Look, estimators: Estimators) -> Float[Array, "*batch"]:
    """The surrogate on all K samples; streamed, with every block evaluated anew on the way back."""
    model = look.model

    def step(total, start, size):
        block = look.block(start, size)
        pulled = Pulled(block.z, *look.coefficients(block))
        own_path = model.draw(start, size) if estimators.samples_own_path else None
        return total + _pull(model, estimators, pulled, own_path)

    if model.chunk_size is not None:
        step = jax.checkpoint(step, static_argnums=2, prevent_cse=False)
    return model.fold(step, jnp.zeros(look.shape.batch, look.shape.dtype), model.chunk_size)


def _choose(look: _Look, num_kept: int) -> tuple[Pulled, Float[Array, "*batch"]]:
    r"""Keep M samples by Fearnhead-Clifford resampling on |v|, with $v \leftarrow v/\pi$."""
    model, (num_samples, batch, dtype) = look.model, look.shape

    def scores(block):
        return jnp.abs(look.coefficients(block)[0])

    largest = look.fold(
        lambda largest, block: resampling.merge_scores(largest, scores(block)),
        resampling.no_scores(num_kept, batch, dtype),
    )
    threshold = resampling.find_threshold(largest, num_samples)
    offset = jax.random.uniform(jax.random.fold_in(model.key, num_samples), batch, dtype)

    def fill(carry, block):
        sweep, chosen, probabilities = carry
        v, r = look.coefficients(block)
        sweep, positions, block_probabilities = resampling.sweep_block(
            sweep, threshold, jnp.abs(v), offset, num_kept
        )

        def take(values, empty):
            return resampling.take_filled(values, positions, empty)

        chosen = jax.tree.map(take, Pulled(block.z, v, r), chosen)
        return sweep, chosen, take(block_probabilities, probabilities)

    z = jax.eval_shape(lambda: model.draw(0, num_kept))
    ones = jnp.ones((num_kept, *batch), dtype)
    empty = Pulled(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), z), 0 * ones, 0 * ones)
    _, chosen, probabilities = look.fold(fill, (resampling.start_sweep(batch, dtype), empty, ones))
    total = jnp.sum(largest.scores, axis=0) + largest.rest
    kept = jnp.sum(jnp.abs(chosen.v), axis=0) / jnp.where(total > 0, total, 1)
    v = chosen.v / jnp.where(probabilities > 0, probabilities, 1)
    return chosen._replace(z=_replace_dead(chosen.z, v), v=v), kept


def _replace_dead(z: PyTree, v: Float[Array, "M *batch"]) -> PyTree:
    """Put the heaviest sample where one without weight stands, to keep its derivatives finite."""
    heaviest = jnp.argmax(jnp.abs(v), axis=0)[None]

    def replace(values):
        live = jnp.take_along_axis(values, align(heaviest, values), axis=0)
        return jnp.where(align(v != 0, values), values, live)

    return jax.tree.map(replace, z)


def _pull(
    model: Model, estimators: Estimators, pulled: Pulled, own_path: PyTree = None
) -> Float[Array, "*batch"]:
    """The surrogate S, whose gradient is the estimator."""
    z, v, r = pulled
    alive = v != 0
    posterior_row, prior_row = estimators.posterior, estimators.prior
    to_posterior, to_prior = (), ()
    if posterior_row.has_path:
        z_q = reexpress(model.posterior, z) if own_path is None else own_path
        to_posterior = ((z_q, posterior_row.share(r)),)
    if prior_row.has_path:
        to_prior = (reexpress(model.prior, z),)
    z_lik = fork(z, alive, *to_posterior, *((p, prior_row.likelihood_share(r)) for p in to_prior))
    z_rest = fork(z, alive, *to_posterior, *((p, prior_row.rest_share(r)) for p in to_prior))
    log_prior = gated_density(model.prior, prior_row.density, "prior")
    log_posterior = gated_density(model.posterior, posterior_row.density, "posterior")
    terms = model.likelihood(z_lik) + log_prior(z_rest) - log_posterior(z_rest)
    return jnp.sum(jnp.where(alive, v * jnp.where(alive, terms, 0), 0), axis=0)
