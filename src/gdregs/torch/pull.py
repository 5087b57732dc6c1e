"""The pull: one backward pass through the chosen samples, which is the estimator."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gdregs.torch.autograd import Shares, Switch, align, fork
from gdregs.torch.hierarchy import Hierarchy, Walked, as_leaf, draw_and_walk, walk, walk_graph
from gdregs.torch.objectives import Objective
from gdregs.torch.reexpress import NoPriorPathError, NoReexpressionError
from gdregs.torch.support import move_into_support, settle
from gdregs.torch.weights import (
    Model,
    Weighed,
    check_draws,
    named,
    read_log_weights,
    unnamed,
    weigh,
)


class Walks(NamedTuple):
    """Latents that are leaves of autograd's graph, and what posterior and prior say of them."""

    leaves: dict[Any, Tensor]
    switch: Switch
    q: Walked
    p: Walked


def pull(model: Model, weighed: Weighed, posterior_row: Any, prior_row: Any) -> Tensor:
    """The surrogate S, whose gradient is the estimator.

    With `chunk_size` it is a sum over blocks of samples, each of which is evaluated anew on the way
    back: the networks' intermediate values are held for one block at a time.
    """
    size = model.chunk_size or len(weighed.v)
    if size >= len(weighed.v):
        return _pull(model, weighed, posterior_row, prior_row)
    blocks = [
        checkpoint(
            _pull, model, weighed.rows(start, size), posterior_row, prior_row, use_reentrant=False
        )
        for start in range(0, len(weighed.v), size)
    ]
    return torch.stack(blocks).sum(0)


def _pull(model: Model, weighed: Weighed, posterior_row: Any, prior_row: Any) -> Tensor:
    leaves, switch = {name: as_leaf(value) for name, value in weighed.z.items()}, Switch()
    with kept_for_two_passes():
        with naming_the_part("posterior"):
            q = walk(model.posterior, unnamed(leaves), posterior_row.has_path, switch)
        p = _walk_prior(model.prior, leaves, prior_row, switch)
    walks, shares = Walks(leaves, switch, q, p), Shares()
    log_likelihood = model.likelihood(_forked(walks, shares))
    return _surrogate(
        model, walks, shares, log_likelihood, weighed.v, weighed.r, posterior_row, prior_row
    )


def look_and_pull(
    model: Model, objective: Objective, posterior_row: Any, prior_row: Any
) -> tuple[Tensor, Tensor]:
    """The objective of all samples, and the surrogate, from one evaluation of each network."""
    size, switch = model.num_samples, Switch()
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
        return value, pull(model, weighed, posterior_row, prior_row)
    walks, shares = Walks(named(z), switch, q, p), Shares()
    log_likelihood = model.likelihood(_forked(walks, shares))
    with torch.no_grad():
        log_weights = read_log_weights(z, size, q.log_prob, p.log_prob, log_likelihood)
        value, (_, v, r) = weigh(objective, walks.leaves, log_weights)
    return value, _surrogate(model, walks, shares, log_likelihood, v, r, posterior_row, prior_row)


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


def _forked(walks: Walks, shares: Shares) -> Any:
    """The latents as the likelihood sees them."""
    paths = [named(part.path) for part in (walks.q, walks.p) if part.path is not None]
    return unnamed(
        {
            name: fork(value, shares, [path[name] for path in paths])
            for name, value in walks.leaves.items()
        }
    )


def _surrogate(
    model: Model,
    walks: Walks,
    shares: Shares,
    log_likelihood: Tensor,
    v: Tensor,
    r: Tensor,
    posterior_row: Any,
    prior_row: Any,
) -> Tensor:
    """S, once the samples are weighed."""
    _, _, q, p = walks
    alive = v != 0

    def weighted(terms: Tensor) -> Tensor:
        return torch.where(alive, v * torch.where(alive, terms, torch.zeros_like(terms)), 0 * v)

    of_likelihood, of_rest, paths = [], [], []
    if q.path is not None:
        share = sum((path.strength * path.share(r) for path in posterior_row.paths), 0 * r)
        of_likelihood.append(share)
        of_rest.append(share)
        paths.append(named(q.path))
    if p.path is not None:
        strength = 1 if isinstance(prior_row.mix, Mapping) else prior_row.path
        of_likelihood.append(strength * prior_row.likelihood_share(r))
        of_rest.append(strength * prior_row.rest_share(r))
        paths.append(named(p.path))
    shares.alive, shares.of_paths = alive, tuple(of_likelihood)
    terms = weighted(log_likelihood)
    gradients = _cotangents(model, walks, weighted) if paths else {}
    for name, gradient in gradients.items():
        if gradient is not None:
            rest = sum(
                align(share, gradient) * path[name]
                for share, path in zip(of_rest, paths, strict=True)
            )
            gradient = torch.where(align(alive, gradient), gradient, torch.zeros_like(gradient))
            terms = terms + (gradient * rest).reshape(*v.shape, -1).sum(-1)
    z = {name: value.detach() for name, value in walks.leaves.items()}
    for factor, part, walked in (
        (-posterior_row.density, model.posterior, q),
        (prior_row.density, model.prior, p),
    ):
        if isinstance(factor, (int, float)) and factor == 0:
            continue
        if isinstance(factor, Mapping):
            terms = terms + weighted(part.weighted_log_prob(z, factor))
            continue
        # Where latents are on a path, the density that is live must be one of constants.
        log_prob = walked.log_prob if walked.path is None else part.log_prob(unnamed(z))
        terms = terms + weighted(factor * log_prob)
    return terms.sum(0)


def _cotangents(model: Model, walks: Walks, weighted: Any) -> dict[Any, Tensor | None]:
    r"""$g = \nabla_z \sum v (\log p - \log q)$: a derivative by the leaves alone."""
    leaves, switch, q, p = walks
    density = weighted(p.log_prob - q.log_prob).sum()
    if not density.requires_grad:
        return {}
    try:
        found = differentiate_by_leaves(density, leaves, switch, shares_graph=True)
    except RuntimeError as error:
        if DONATED not in str(error):
            raise
        q_again = walk(model.posterior, unnamed(leaves), False, switch)
        p_again = walk(model.prior, unnamed(leaves), False, switch)
        density = weighted(p_again.log_prob - q_again.log_prob).sum()
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


DONATED = "compiled with non-empty donated buffers"
"""What PyTorch says of a network that it has compiled for a single backward pass.

One that was compiled inside of a bound is not (`kept_for_two_passes`); one that had been before
runs forward twice.
"""


def kept_for_two_passes() -> Any:
    """While networks are compiled, let their backward pass run twice: for density and path."""
    try:
        from torch._functorch import config
    except ImportError:
        return contextlib.nullcontext()
    if not hasattr(config, "donated_buffer"):
        return contextlib.nullcontext()
    return config.patch(donated_buffer=False)


@contextlib.contextmanager
def naming_the_part(name: str) -> Iterator[None]:
    """Say of an error which part has no path, and what to do."""
    try:
        yield
    except NoReexpressionError as error:
        if name == "prior":
            remedy = "prior_estimator='naive'"
            raise NoPriorPathError(f"prior: {error} Or use {remedy}.") from None
        remedy = "posterior_estimator='rws'"
        raise NoReexpressionError(f"posterior: {error} Or use {remedy}.") from None
