"""The pull: one backward pass through the chosen samples, which is the estimator."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gdregs.torch.autograd import Shares, Switch
from gdregs.torch.blocks import sum_of_blocks
from gdregs.torch.compiling import DONATED, kept_for_two_passes, untraced
from gdregs.torch.gates import POSTERIOR, PRIOR, Gates
from gdregs.torch.guards import check_same_weights
from gdregs.torch.hierarchy import Hierarchy, Walked, as_leaf, draw_and_walk, walk, walk_graph
from gdregs.torch.noise import Noise
from gdregs.torch.objectives import Objective
from gdregs.torch.support import move_into_support, settle
from gdregs.torch.surrogate import (
    Cotangents,
    Walks,
    fill,
    forked,
    gates_of,
    gates_of_prior,
    naming_the_part,
    surrogate,
)
from gdregs.torch.weights import (
    HasFactors,
    Model,
    Weighed,
    check_draws,
    named,
    read_log_weights,
    unnamed,
    weigh,
)


def pull(model: Model, weighed: Weighed, posterior_row: Any, prior_row: Any) -> Tensor:
    """The surrogate S, whose gradient is the estimator.

    With `chunk_size` it is a sum over blocks of samples: the networks' intermediate values are held
    for one block at a time.
    """

    def of_block(model: Model, block: Weighed) -> Tensor:
        return _pull(model, block, posterior_row, prior_row)

    size = model.chunk_size or len(weighed.v)
    if size >= len(weighed.v):
        return of_block(model, weighed)
    return sum_of_blocks(of_block, model, weighed.in_blocks(size))


@untraced
def _pull(model: Model, weighed: Weighed, posterior_row: Any, prior_row: Any) -> Tensor:
    noise, (of_q, of_p) = model.noise, gates_of(weighed, posterior_row, prior_row)
    with contextlib.nullcontext() if noise is None else noise.of(weighed.block, weighed.index):
        leaves, switch = {name: as_leaf(value) for name, value in weighed.z.items()}, Switch()
        with kept_for_two_passes():
            with naming_the_part("posterior"):
                q = walk(model.posterior, unnamed(leaves), posterior_row.has_path, switch, of_q)
            p = _walk_prior(model.prior, leaves, prior_row, switch, of_p)
        walks, shares = Walks(leaves, q, p, of_q.own is not None), Shares()
        log_likelihood = model.likelihood(forked(walks, shares))
        if weighed.log_weights is not None:
            terms = log_likelihood, p.log_prob, -q.log_prob
            check_same_weights(weighed.log_weights, terms, weighed.v != 0)
        return _surrogate(
            model, walks, switch, weighed, log_likelihood, shares, posterior_row, prior_row
        )


@untraced
def look_and_pull(
    model: Model, objective: Objective, posterior_row: Any, prior_row: Any
) -> tuple[Tensor, Tensor]:
    """The objective of all samples, and the surrogate, from one evaluation of each network."""
    size, switch, noise = model.num_samples, Switch(), Noise(records=False)
    model = model.with_noise(noise)
    noise.start_block(size)
    with kept_for_two_passes(), naming_the_part("posterior"):
        z, q = draw_and_walk(model.posterior, torch.Size([size]), posterior_row.has_path, switch)
    check_draws(z, size)
    try:
        with kept_for_two_passes():
            of_p = gates_of_prior(None, prior_row)
            p = _walk_prior(model.prior, named(z), prior_row, switch, of_p, looks=True)
        if q.plain is not None or p.plain is not None:
            raise AnotherWalkError
    except AnotherWalkError:
        with torch.no_grad():
            moved, inside, log_prior, prior_has_factors = settle(model.prior, z)
            log_weights = read_log_weights(
                moved, size, q.log_prob, log_prior, model.likelihood(moved)
            )
            if inside is not None:
                log_weights = log_weights.masked_fill(~inside, -torch.inf)
            value, weighed = weigh(objective, named(moved), log_weights)
            has_factors = HasFactors(q.plain is not None, prior_has_factors)
            weighed = weighed._replace(log_weights=log_weights, has_factors=has_factors)
        return value, pull(model, weighed, posterior_row, prior_row)
    walks, shares = Walks(named(z), q, p), Shares()
    log_likelihood = model.likelihood(forked(walks, shares))
    with torch.no_grad():
        log_weights = read_log_weights(z, size, q.log_prob, p.log_prob, log_likelihood)
        value, weighed = weigh(objective, walks.leaves, log_weights)
    return value, _surrogate(
        model, walks, switch, weighed, log_likelihood, shares, posterior_row, prior_row
    )


class AnotherWalkError(Exception):
    """Raised where a sample lies outside of the prior's support, or densities have factors."""


def _walk_prior(
    prior: Any,
    leaves: dict[Any, Tensor],
    row: Any,
    switch: Switch,
    gates: Gates,
    *,
    looks: bool = False,
) -> Walked:
    """Walk along the prior; if it `looks`, see whether all samples lie in its support."""
    is_graph = isinstance(prior, Hierarchy) and type(prior).log_prob is Hierarchy.log_prob

    def check(distribution: Any, z: Any) -> None:
        if looks and move_into_support(distribution, z)[1] is not None:
            raise AnotherWalkError

    with naming_the_part("prior"):
        if not is_graph or set(leaves) != set(prior.parents):
            check(prior, unnamed(leaves))
            return walk(prior, unnamed(leaves), row.has_path, switch, gates)

        def leaf_of(name: str, conditional: Any) -> Tensor:
            check(conditional, leaves[name].detach())
            return leaves[name]

        return walk_graph(prior, leaf_of, row.has_path, switch, gates)


def _surrogate(
    model: Model,
    walks: Walks,
    switch: Switch,
    weighed: Weighed,
    log_likelihood: Tensor,
    shares: Shares,
    posterior_row: Any,
    prior_row: Any,
) -> Tensor:
    """S, and the shares of the forks."""
    of_rest, of_plain = fill(shares, walks, weighed, posterior_row, prior_row)
    cotangents = []
    if of_rest:
        g = _cotangents(model, walks, switch, weighed, _log_ratio)
        cotangents.append(Cotangents(g, of_rest))
    if walks.have_factors and walks.p.path is not None:
        h = _cotangents(model, walks, switch, weighed, _plain_log_ratio)
        cotangents.append(Cotangents(h, of_plain))
    return surrogate(model, walks, weighed, log_likelihood, cotangents, posterior_row, prior_row)


def _log_ratio(q: Walked, p: Walked) -> Tensor:
    r"""$\log p - \log q$, with factors."""
    return p.log_prob - q.log_prob


def _plain_log_ratio(q: Walked, p: Walked) -> Tensor:
    r"""$\log q - \log p$, without factors."""
    log_q = q.log_prob if q.plain is None else q.plain
    return log_q - (p.log_prob if p.plain is None else p.plain)


def _cotangents(
    model: Model,
    walks: Walks,
    switch: Switch,
    weighed: Weighed,
    log_ratio: Callable[[Walked, Walked], Tensor],
) -> dict[Any, Tensor | None]:
    r"""$\nabla_z \sum v \log(p/q)$: a derivative by the leaves alone."""
    leaves, q, p = walks[:3]
    density = weighed.weight(log_ratio(q, p)).sum()
    if not density.requires_grad:
        return {}
    try:
        found = differentiate_by_leaves(density, leaves, switch, shares_graph=True)
    except RuntimeError as error:
        if DONATED not in str(error):
            raise
        q_again = walk(model.posterior, unnamed(leaves), False, switch, POSTERIOR)
        p_again = walk(model.prior, unnamed(leaves), False, switch, PRIOR)
        density = weighed.weight(log_ratio(q_again, p_again)).sum()
        found = differentiate_by_leaves(density, leaves, switch, shares_graph=False)
    return dict(zip(leaves, found, strict=True))


def differentiate_by_leaves(
    density: Tensor, leaves: dict[Any, Tensor], switch: Switch, *, shares_graph: bool
) -> Any:
    """The derivative of a density by latents, which ends there and touches no parameter."""
    with switch.ending_at_leaves():
        return torch.autograd.grad(
            density, list(leaves.values()), retain_graph=shares_graph, allow_unused=True
        )
