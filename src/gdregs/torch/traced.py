"""The pull as PyTorch's compiler traces it, when `torch.compile` compiles what calls the bound.

Where a cotangent goes is a function's own business here, and nothing is decided during the backward
pass: the densities' derivative by the latents is one of their own evaluation, and paths have one.
What is the same in both, and in the look, the compiler finds and computes once.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gdregs.shared.tables import is_naive
from gdregs.torch.autograd import Shares
from gdregs.torch.batch_norm import count_batch_norms, refuse_new_batch_norms
from gdregs.torch.guards import check_same_weights_when_run
from gdregs.torch.hierarchy import Walked
from gdregs.torch.reexpress import reexpress
from gdregs.torch.surrogate import (
    Cotangents,
    Walks,
    fill,
    forked,
    naming_the_part,
    surrogate,
)
from gdregs.torch.weights import Model, Weighed, unnamed


def can_be_traced(model: Model, num_kept: int, prior_row: Any) -> bool:
    """Whether a compiler can do what is asked for.

    Blocks that are evaluated anew on the way back it cannot differentiate within; how much of a
    cotangent an alpha of each latent's own takes is found on the way back.
    """
    is_one_block = model.chunk_size is None or model.chunk_size >= num_kept
    return is_one_block and not isinstance(prior_row.mix, Mapping)


def traced_pull(model: Model, weighed: Weighed, posterior_row: Any, prior_row: Any) -> Tensor:
    """The surrogate S, whose gradient is the estimator."""
    if is_naive(posterior_row, prior_row):
        return _traced_pull(model, weighed, posterior_row, prior_row)
    from torch._dynamo.comptime import comptime

    comptime(count_batch_norms)
    surrogate = _traced_pull(model, weighed, posterior_row, prior_row)
    comptime(refuse_new_batch_norms)
    return surrogate


def _traced_pull(model: Model, weighed: Weighed, posterior_row: Any, prior_row: Any) -> Tensor:
    z = unnamed(weighed.z)
    with naming_the_part("posterior"):
        q = _walk(model.posterior, z, posterior_row)
    with naming_the_part("prior"):
        p = _walk(model.prior, z, prior_row)
    walks, shares = Walks(weighed.z, q, p), Shares()
    of_rest, _ = fill(shares, walks, weighed, posterior_row, prior_row)
    log_likelihood = model.likelihood(forked(walks, shares))
    if of_rest:
        cotangents, log_ratio = _cotangents(model, weighed)
    else:
        cotangents, log_ratio = {}, p.log_prob - q.log_prob
    if weighed.log_weights is not None:
        terms = log_likelihood, log_ratio
        check_same_weights_when_run(weighed.log_weights, terms, weighed.v != 0)
    rest = [Cotangents(cotangents, of_rest)]
    return surrogate(model, walks, weighed, log_likelihood, rest, posterior_row, prior_row)


def _walk(part: Any, z: Any, row: Any) -> Walked:
    if row.has_path:
        return Walked(None, reexpress(part, z))
    return Walked(part.log_prob(z), None)


def _cotangents(model: Model, weighed: Weighed) -> tuple[dict[Any, Tensor], Tensor]:
    r"""$g = \nabla_z \sum v (\log p - \log q)$, with all parameters constant; the difference."""

    def density(leaves: dict[Any, Tensor]) -> tuple[Tensor, Tensor]:
        z = unnamed(leaves)
        log_ratio = model.prior.log_prob(z) - model.posterior.log_prob(z)
        return weighed.weight(log_ratio).sum(), log_ratio

    found, log_ratio = torch.func.grad(density, has_aux=True)(dict(weighed.z))
    return {name: g.detach() for name, g in found.items()}, log_ratio
