r"""The bound for PyTorch: look at all samples, choose those that matter, pull the gradient through.

With the chosen latents as leaves, $g = \nabla_z \sum v (\log p - \log q)$ is a derivative by the
latents alone: no parameter is touched, so that nothing has to be stopped, and a parameter that
hides in a closure does no harm. The rest is a surrogate, `gdregs.torch.surrogate`, of which a fork
scales the likelihood's cotangent into each path. Where all samples are kept, look and pull are one
evaluation.
"""

import math
from typing import Any

import torch
from torch import Tensor

from gdregs.shared.checks import check_objective, positive_integer
from gdregs.shared.graphs import check_mix
from gdregs.shared.tables import find_posterior_estimator, find_prior_estimator, is_naive
from gdregs.torch.autograd import with_gradient
from gdregs.torch.batch_norm import refusing_batch_norm
from gdregs.torch.hierarchy import Hierarchy
from gdregs.torch.noise import Noise
from gdregs.torch.objectives import IWAE, Objective
from gdregs.torch.pull import look_and_pull, pull
from gdregs.torch.random_state import drawing_from
from gdregs.torch.traced import can_be_traced, traced_pull
from gdregs.torch.weights import choose, look, look_at, read_model, sizes, weigh


def bound(
    posterior: Any,
    prior: Any,
    likelihood: Any,
    *,
    num_samples: Any,
    objective: Any = IWAE(),
    posterior_estimator: Any = "dregs",
    prior_estimator: Any = "gdregs",
    num_gradient_samples: Any = None,
    chunk_size: Any = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""A Monte Carlo objective whose gradient is the estimator of your choice: `gdregs.bound`.

    `(-bound).mean().backward()` fills `.grad` of every parameter in the three parts: for the
    posterior's with $\sum_k c_k \nabla_{z_k} \log w_k \nabla_\phi T_q$ for `dregs` (8), (C.8), for
    the prior's with (19), (C.16) for `gdregs`, for the likelihood's always with
    $\sum_k v_k \nabla_\lambda \log p_\lambda(x|z_k)$. A weight that is 0 or NaN adds nothing.

    Args:
        posterior: q: a `torch.distributions.Distribution`, a `gdregs.torch.Hierarchy`, or anything
            with `sample(sample_shape)`, `log_prob(z)` and a rule of `gdregs.torch.reexpress`.
        prior: p(z), alike; without a rule where `prior_estimator` is `naive`.
        likelihood: A function z -> log p(x|z), `[K, *batch]`.
        num_samples: K, the number of importance samples.
        objective: `ELBO()`, `IWAE()`, `VRIWAE(alpha)`, `JVI()`, or an `Objective` of your own.
        posterior_estimator: `naive`, `stl`, `dregs`, `rws`, `rws-dregs`, or a row of numbers.
        prior_estimator: `naive`, `gdregs`, `gdregs-mix`, or `gdregs.mixed_gdregs(alpha)`, with an
            alpha for each latent of a `Hierarchy` if you like.
        num_gradient_samples: M. The backward pass runs on M of the K samples, resampled by weight
            without bias. None, or K and more: on all.
        chunk_size: Run the networks on at most this many samples at a time. Those that are kept are
            then evaluated twice: to weigh them, and once more, one block after another, for the
            gradient.
        generator: Where random numbers come from; PyTorch's own generator unless given.

    Returns:
        `[*batch]`, in nats; larger is better. Under `torch.no_grad` it has no gradient.

    Raises:
        TypeError: If a part lacks a method, or has no re-expression rule where one is needed.
        ValueError: If a name is unknown, a number is below 1, or shapes differ.

    Example:
        >>> import gdregs.torch, torch
        >>> phi = torch.tensor(0.9, requires_grad=True)
        >>> theta = torch.tensor(0.0, requires_grad=True)
        >>> value = gdregs.torch.bound(
        ...     torch.distributions.Normal(phi, 0.8),
        ...     torch.distributions.Normal(theta, 1.0),
        ...     lambda z: torch.distributions.Normal(z, 1.0).log_prob(torch.tensor(2.0)),
        ...     num_samples=64,
        ...     num_gradient_samples=8,
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> value.backward()
        >>> bool(-2.5 < value < -2.1), bool(theta.grad != 0)  # log p(x) = -2.27
        (True, True)

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021.
        Tucker et al., Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2019.
    """
    posterior_row = find_posterior_estimator(posterior_estimator)
    prior_row = find_prior_estimator(prior_estimator)
    check_mix(
        prior_row.mix, prior, is_graph=isinstance(prior, Hierarchy),
        graphs="gdregs.torch.Hierarchy",
    )  # fmt: skip
    check_objective(objective, Objective, "gdregs.torch")
    model = read_model(posterior, prior, likelihood, num_samples, chunk_size)
    num_kept = model.num_samples
    if num_gradient_samples is not None:
        kept_at_most = positive_integer("num_gradient_samples", num_gradient_samples)
        num_kept = min(kept_at_most, num_kept)
    is_whole = num_kept == model.num_samples and len(sizes(model)) == 1
    is_traced = torch.compiler.is_compiling() and can_be_traced(model, num_kept, prior_row)
    if is_whole and torch.is_grad_enabled() and not is_traced:
        naive = is_naive(posterior_row, prior_row)
        parts = () if naive else (posterior, prior, likelihood)
        with drawing_from(generator), refusing_batch_norm(*parts, is_repeated=False):
            return with_gradient(*look_and_pull(model, objective, posterior_row, prior_row))
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        model = model.with_noise(Noise(records=num_kept < model.num_samples))
    with torch.no_grad(), drawing_from(generator):
        z, log_weights, has_factors = look(model)
        value, weighed = weigh(objective, z, log_weights)
        weighed = weighed._replace(log_weights=log_weights, has_factors=has_factors)
        if num_kept < model.num_samples:
            weighed = choose(weighed, num_kept)
    if not torch.is_grad_enabled():
        return value
    if is_traced and not any(has_factors):
        return with_gradient(value, traced_pull(model, weighed, posterior_row, prior_row))
    parts = () if torch.compiler.is_compiling() else (posterior, prior, likelihood)
    with refusing_batch_norm(*parts, is_repeated=True):
        return with_gradient(value, pull(model, weighed, posterior_row, prior_row))


def log_marginal(
    posterior: Any,
    prior: Any,
    likelihood: Any,
    *,
    num_samples: Any = 5000,
    chunk_size: Any = 50,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""An estimate of $\log p(x)$: the importance-weighted bound with many samples, streamed.

    Args:
        posterior: q.
        prior: p(z).
        likelihood: `z -> log p(x|z)`, `[K, *batch]`.
        num_samples: K.
        chunk_size: How many samples to hold in memory at a time; None holds all.
        generator: Where random numbers come from.

    Returns:
        `[*batch]`, in nats, without gradient.
    """
    model = read_model(posterior, prior, likelihood, num_samples, chunk_size)
    total = None
    with torch.no_grad(), drawing_from(generator):
        for size in sizes(model):
            block = torch.logsumexp(look_at(model, size)[1], 0)
            total = block if total is None else torch.logaddexp(total, block)
    assert total is not None
    return total - math.log(model.num_samples)
