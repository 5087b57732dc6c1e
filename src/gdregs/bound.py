r"""The bound: look at all samples, choose those that matter, pull the gradient through them.

The sample is a value; both of its gradient paths are re-expressions of that value. One evaluation
of the surrogate

$$S = \sum_k v_k \left[ \log p(x|z_k^{lik}) + \log p^\circ(z_k^{rest}) - \log q^\circ(z_k^{rest})
\right]$$

(in `gdregs.pull`) has, as its gradient, any pair of the estimators in `gdregs.estimators`: (8),
(17) and (C.8) for the posterior, (19) and (C.16) for the prior, and
$v \nabla \log p_\lambda(x|z)$ for the likelihood.
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray

from gdregs.evaluation.gates import gate_by_latent, log_density_without_indirect
from gdregs.evaluation.look import look
from gdregs.evaluation.nesting import refuse_inside, refuse_new_noise, watched
from gdregs.evaluation.pull import Estimators, choose, pull, pull_all
from gdregs.evaluation.weights import Model, read_model, takes_keys
from gdregs.objectives import ELBO, IWAE, Objective
from gdregs.reexpression.factors import find_factors
from gdregs.reexpression.paths import with_path
from gdregs.reexpression.reexpress import NoReexpressionError, reexpress
from gdregs.reexpression.reparameterized import has_moving_support, is_reparameterized
from gdregs.shared.checks import check_objective, positive_integer
from gdregs.shared.graphs import check_mix
from gdregs.shared.tables import (
    PosteriorEstimator,
    PosteriorMix,
    PriorEstimator,
    find_posterior_estimator,
    find_prior_estimator,
    is_naive,
)


class Diagnostics(NamedTuple):
    r"""How the weight is spread over the importance samples of each datapoint.

    Attributes:
        effective_sample_size: $1 / \sum_k \tilde w_k^2$, between 1 and K, `[*batch]`.
        weight_kept: The share of $\sum_k |v_k|$ that belongs to the samples on which the backward
            pass runs, `[*batch]`.
    """

    effective_sample_size: Float[Array, "*batch"]
    weight_kept: Float[Array, "*batch"]


class Settings(NamedTuple):
    """How a bound is evaluated: the arguments of `bound` that are neither model nor samples."""

    objective: Any = IWAE()
    posterior_estimator: Any = "dregs"
    prior_estimator: Any = "gdregs"
    num_gradient_samples: Any = None
    chunk_size: Any = None
    indirect_scores: Any = "keep"


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
    indirect_scores: Any = "keep",
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
        likelihood: A function z -> log p(x|z), `[K, *batch]`; it may close over anything. With
            noise of its own it is a function of z and `keys` (without a default), one random key
            for each sample in z: `[K]`, or `[K, *batch]` if it maps over those. What it draws for
            sample k may depend on `keys[k]` alone.
        key: A JAX random key. Sample k is drawn with `fold_in(key, k)`.
        num_samples: K, the number of importance samples.
        objective: `ELBO()`, `IWAE()`, `VRIWAE(alpha)`, `JVI()`, or an `Objective` of your own.
        posterior_estimator: `naive`, `stl` (biased for K > 1 unless the objective is the ELBO),
            `dregs`, `rws` (the wake-phase gradient of q, whose expectation is another one),
            `rws-dregs`, `gdregs.interpolated_dregs(alpha)`, `gdregs.mixed_dregs(beta)`, or `auto`:
            naive, as long as nobody learns what to mix in (`gdregs.Auto`).
        prior_estimator: `naive`, `gdregs`, `gdregs-mix` (half of each), or
            `gdregs.mixed_gdregs(alpha)`, with an alpha for each stochastic layer if you like, or
            `auto`.
        num_gradient_samples: M. The backward pass runs on M of the K samples, resampled by weight
            without bias. None, or K and more: on all. A posterior that has no re-expression rule
            runs it on all; so does noise `[K]` that the datapoints of a batch share.
        chunk_size: Hold at most this many samples in memory at a time, and all K log-weights; the
            same samples are drawn and evaluated again where they are needed again. None holds all.
        indirect_scores: `keep`, or `drop` to study what is lost without the indirect score
            functions of a `gdregs.Hierarchy` (Sec. 3): the gradient is then biased.

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
        >>> value_and_grad = jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))
        >>> value, gradients = value_and_grad(0.9, 0.0)
        >>> bool(-2.4 < value < -2.1), len(gradients)  # log p(x) = -2.27
        (True, 2)

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021.
        Tucker et al., Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2019.
    """
    settings = Settings(
        objective,
        posterior_estimator,
        prior_estimator,
        num_gradient_samples,
        chunk_size,
        indirect_scores,
    )
    return evaluate(posterior, prior, likelihood, key, num_samples, settings)[0]


def bound_with_diagnostics(
    posterior: Any,
    prior: Any,
    likelihood: Any,
    *,
    key: PRNGKeyArray,
    num_samples: Any,
    **settings: Any,
) -> tuple[Float[Array, "*batch"], Diagnostics]:
    """`bound`, and how its weight is spread: what to watch during training.

    Takes the arguments of `gdregs.bound`, for `jax.value_and_grad(..., has_aux=True)`.

    Returns:
        The bound, `[*batch]`, in nats, and its `Diagnostics`, without gradient.

    Example:
        >>> import gdregs, jax, numpyro.distributions as dist
        >>> q = p = dist.Normal(0.0, 1.0)
        >>> @jax.jit
        ... def diagnose(key):
        ...     return gdregs.bound_with_diagnostics(q, p, lambda z: 0 * z, key=key, num_samples=4)
        >>> value, diagnostics = diagnose(jax.random.key(0))
        >>> float(diagnostics.effective_sample_size), float(diagnostics.weight_kept)
        (4.0, 1.0)
    """
    chosen = read_settings("bound_with_diagnostics", settings)
    return evaluate(posterior, prior, likelihood, key, num_samples, chosen)


bound_with_diagnostics.__signature__ = inspect.signature(bound).replace(  # pyright: ignore
    return_annotation=inspect.signature(bound_with_diagnostics).return_annotation
)


def read_settings(function: str, settings: Mapping[str, Any]) -> Settings:
    """The settings of a call by keyword; an error that names the function otherwise."""
    for name in settings:
        if name not in Settings._fields:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
    return Settings(**settings)


def evaluate(
    posterior: Any,
    prior: Any,
    likelihood: Any,
    key: PRNGKeyArray,
    num_samples: Any,
    settings: Settings,
) -> tuple[Float[Array, "*batch"], Diagnostics]:
    """Look, choose, pull."""
    objective = settings.objective
    posterior_row = find_posterior_estimator(settings.posterior_estimator)
    prior_row = find_prior_estimator(settings.prior_estimator)
    check_objective(objective, Objective, "gdregs")
    if settings.indirect_scores not in ("keep", "drop"):
        raise ValueError(
            f"indirect_scores must be 'keep' or 'drop'; got {settings.indirect_scores!r}."
        )
    is_graph = gate_by_latent.dispatch(type(prior)) is not gate_by_latent.dispatch(object)
    check_mix(prior_row.mix, prior, is_graph=is_graph, graphs="gdregs.Hierarchy or TopDown")
    refuse_inside(is_naive=is_naive(posterior_row, prior_row))
    is_linear = isinstance(objective, ELBO) or num_samples == 1
    if callable(likelihood):
        is_whole = settings.num_gradient_samples is None and settings.chunk_size is None
        likelihood = watched(likelihood, is_linear=is_linear, sees_same_noise=is_whole)
    model = read_model(posterior, prior, likelihood, key, num_samples, settings.chunk_size)
    model = model.only_once_differentiable()
    own_path = _check_paths(model, posterior_row, prior_row)
    given = model.with_noise(model.noise(0, model.num_samples))
    found = [find_factors(part, model.shapes) for part in (given.posterior, given.prior)]
    is_factored = found[0].points or any(one.factors for one in found)
    if found[0].points and prior_row.has_path:
        raise TypeError(
            "The posterior has a latent with a single value (Delta), which has no density by which"
            " the prior's samples could be reweighted. Use prior_estimator='naive'."
        )
    if is_factored and own_path and any(path.varies for path in posterior_row.paths):
        raise TypeError(
            "The posterior has a factor on its density (a mask, a scale) and no re-expression rule,"
            " so that it has no path to weigh. Use posterior_estimator='naive'."
        )
    keeps_indirect = settings.indirect_scores == "keep"
    if not keeps_indirect:
        _check_indirect_scores(posterior, prior)
    num_kept = model.num_samples
    if settings.num_gradient_samples is not None:
        kept_at_most = positive_integer("num_gradient_samples", settings.num_gradient_samples)
        num_kept = min(kept_at_most, num_kept)
    if own_path or model.shares_noise:
        num_kept = model.num_samples
    _refuse_new_noise(model, num_kept, is_linear=isinstance(objective, ELBO))

    is_whole = num_kept == model.num_samples
    estimators = Estimators(
        posterior_row, prior_row, own_path, keeps_indirect, is_factored,
        couples_rightly=is_naive(posterior_row, prior_row)
        and is_whole
        and model.chunk_size is None,
    )  # fmt: skip
    seen = look(model, objective, remembers=is_whole and not (own_path or is_factored))
    if is_whole:
        surrogate, kept = pull_all(model, seen, estimators), jnp.ones(model.batch, model.dtype)
    else:
        weighed, kept = choose(model, seen, num_kept)
        surrogate = pull(model, estimators, weighed)
    return with_path(seen.value, surrogate), Diagnostics(seen.effective_sample_size, kept)


def _refuse_new_noise(model: Model, num_kept: int, *, is_linear: bool) -> None:
    """An error if a part draws noise for each sample that the backward pass would not see."""
    z, sizes = model.shapes, {model.num_samples, num_kept, model.chunk_size} - {None}
    if not takes_keys(model.posterior):
        refuse_new_noise("posterior", model.posterior.log_prob, z, {1, *sizes})
    if len(sizes) > 1 and not is_linear:  # an ELBO is right on average over the noise
        if not takes_keys(model.prior):
            refuse_new_noise("prior", model.prior.log_prob, z, sizes)
        keys = (lambda size: model.noise(0, size).likelihood) if model.num_key_axes else None
        refuse_new_noise("likelihood", model.likelihood, z, sizes, keys)


def _check_indirect_scores(posterior: Any, prior: Any) -> None:
    """Those of a part of another kind could not be told apart, and would be kept silently."""
    kept = log_density_without_indirect.dispatch(object)
    for name, part in (("posterior", posterior), ("prior", prior)):
        known = log_density_without_indirect.dispatch(type(part)) is not kept
        if not known and not isinstance(part, dist.Distribution):  # a single one has none
            raise TypeError(
                "indirect_scores='drop' drops those of a gdregs.Hierarchy, Chain or TopDown; the"
                f" {name} is a {type(part).__name__}, in which they cannot be told apart."
            )


def _check_paths(
    model: Model, posterior: PosteriorEstimator | PosteriorMix, prior: PriorEstimator
) -> bool:
    """Whether the posterior must use its own sampler as its path; errors where there is none."""
    model, z = model.with_noise(model.noise(0, model.num_samples)), model.shapes
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
        return True
    is_live = isinstance(posterior.density, int) and posterior.density == 1
    if is_live and has_moving_support(model.posterior, z):
        return is_reparameterized(model.posterior, model.key, model.num_samples)
    return False
