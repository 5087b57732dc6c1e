"""The pull: one backward pass through the chosen samples, which is the estimator."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gdregs.torch.autograd import Shares, Switch
from gdregs.torch.blocks import sum_of_blocks
from gdregs.torch.compiling import DONATED, kept_for_two_passes, untraced
from gdregs.torch.guards import check_same_weights
from gdregs.torch.hierarchy import Hierarchy, Walked, as_leaf, draw_and_walk, walk, walk_graph
from gdregs.torch.noise import Noise
from gdregs.torch.objectives import Objective
from gdregs.torch.support import move_into_support, settle
from gdregs.torch.surrogate import Walks, fill, forked, naming_the_part, surrogate
from gdregs.torch.weights import (
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
    noise = model.noise
    with contextlib.nullcontext() if noise is None else noise.of(weighed.block, weighed.index):
        leaves, switch = {name: as_leaf(value) for name, value in weighed.z.items()}, Switch()
        with kept_for_two_passes():
            with naming_the_part("posterior"):
                q = walk(model.posterior, unnamed(leaves), posterior_row.has_path, switch)
            p = _walk_prior(model.prior, leaves, prior_row, switch)
        walks, shares = Walks(leaves, q, p), Shares()
        log_likelihood = model.likelihood(forked(walks, shares))
        if weighed.log_weights is not None:
            terms = log_likelihood, p.log_prob, -q.log_prob
            check_same_weights(
                weighed.log_weights, terms, weighed.v != 0, lambda: _evaluate(model, weighed)
            )
        return _surrogate(
            model, walks, switch, weighed, log_likelihood, shares, posterior_row, prior_row
        )


def _evaluate(model: Model, weighed: Weighed) -> None:
    """Run all networks."""
    z = unnamed(weighed.z)
    for function in (model.posterior.log_prob, model.prior.log_prob, model.likelihood):
        function(z)


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
            p = _walk_prior(model.prior, named(z), prior_row, switch, looks=True)
    except OutsideError:
        with torch.no_grad():
            moved, inside, log_prior = settle(model.prior, z)
            log_weights = read_log_weights(
                moved, size, q.log_prob, log_prior, model.likelihood(moved)
            )
            if inside is not None:
                log_weights = log_weights.masked_fill(~inside, -torch.inf)
            value, weighed = weigh(objective, named(moved), log_weights)
            weighed = weighed._replace(log_weights=log_weights)
        return value, pull(model, weighed, posterior_row, prior_row)
    walks, shares = Walks(named(z), q, p), Shares()
    log_likelihood = model.likelihood(forked(walks, shares))
    with torch.no_grad():
        log_weights = read_log_weights(z, size, q.log_prob, p.log_prob, log_likelihood)
        value, weighed = weigh(objective, walks.leaves, log_weights)
    return value, _surrogate(
        model, walks, switch, weighed, log_likelihood, shares, posterior_row, prior_row
    )


class OutsideError(Exception):
    """Raised where a sample lies outside of the prior's support."""


def _walk_prior(
    prior: Any, leaves: dict[Any, Tensor], row: Any, switch: Switch, *, looks: bool = False
) -> Walked:
    """Walk along the prior; if it `looks`, see whether all samples lie in its support."""
    is_graph = isinstance(prior, Hierarchy) and type(prior).log_prob is Hierarchy.log_prob

    def check(distribution: Any, z: Any) -> None:
        if looks and move_into_support(distribution, z)[1] is not None:
            raise OutsideError

    with naming_the_part("prior"):
        if not is_graph or set(leaves) != set(prior.parents):
            check(prior, unnamed(leaves))
            return walk(prior, unnamed(leaves), row.has_path, switch)

        def leaf_of(name: str, conditional: Any) -> Tensor:
            check(conditional, leaves[name].detach())
            return leaves[name]

        # An alpha for each latent is a factor on its own parameters' part of the path.
        strengths = row.mix if isinstance(row.mix, Mapping) else None
        return walk_graph(prior, leaf_of, row.has_path, switch, strengths)


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
    of_rest = fill(shares, walks, weighed, posterior_row, prior_row)
    cotangents = _cotangents(model, walks, switch, weighed) if of_rest else {}
    return surrogate(
        model, walks, weighed, log_likelihood, cotangents, of_rest, posterior_row, prior_row
    )


def _cotangents(
    model: Model, walks: Walks, switch: Switch, weighed: Weighed
) -> dict[Any, Tensor | None]:
    r"""$g = \nabla_z \sum v (\log p - \log q)$: a derivative by the leaves alone."""
    leaves, q, p = walks
    density = weighed.weight(p.log_prob - q.log_prob).sum()
    if not density.requires_grad:
        return {}
    try:
        found = differentiate_by_leaves(density, leaves, switch, shares_graph=True)
    except RuntimeError as error:
        if DONATED not in str(error):
            raise
        q_again = walk(model.posterior, unnamed(leaves), False, switch)
        p_again = walk(model.prior, unnamed(leaves), False, switch)
        density = weighed.weight(p_again.log_prob - q_again.log_prob).sum()
        found = differentiate_by_leaves(density, leaves, switch, shares_graph=False)
    return dict(zip(leaves, found, strict=True))


def differentiate_by_leaves(
    density: Tensor, leaves: dict[Any, Tensor], switch: Switch, *, shares_graph: bool
) -> Any:
    """The derivative of a density by latents, which ends there and touches no parameter."""
    switch.to_leaves = True
    try:
        return torch.autograd.grad(
            density, list(leaves.values()), retain_graph=shares_graph, allow_unused=True
        )
    finally:
        switch.to_leaves = False
