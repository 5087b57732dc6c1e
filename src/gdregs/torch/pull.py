"""The pull: one backward pass through the chosen samples, which is the estimator."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from gdregs.torch.autograd import Switch, align, fork
from gdregs.torch.hierarchy import walk
from gdregs.torch.reexpress import NoPriorPathError, NoReexpressionError
from gdregs.torch.weights import Model, Weighed, named, unnamed


def pull(model: Model, weighed: Weighed, posterior_row: Any, prior_row: Any) -> Tensor:
    """The surrogate S, whose gradient is the estimator."""
    z, v, r = weighed
    alive = v != 0
    leaves = {name: value.detach().requires_grad_() for name, value in z.items()}
    switch = Switch()
    with kept_for_two_passes():
        q = _walk("posterior", model.posterior, leaves, posterior_row.has_path, switch)
        p = _walk("prior", model.prior, leaves, prior_row.has_path, switch)

    def weigh(terms: Tensor) -> Tensor:
        return torch.where(alive, v * torch.where(alive, terms, torch.zeros_like(terms)), 0 * v)

    to_posterior = sum((path.strength * path.share(r) for path in posterior_row.paths), 0 * r)
    to_prior = prior_row.path, r
    gradients = dict.fromkeys(z)
    if posterior_row.has_path or prior_row.has_path:
        density = weigh(p.log_prob - q.log_prob).sum()
        if density.requires_grad:
            try:
                found = _cotangents(density, leaves, switch, shares_graph=True)
            except RuntimeError as error:
                if DONATED not in str(error):
                    raise
                q_again = _walk("posterior", model.posterior, leaves, False, switch)
                p_again = _walk("prior", model.prior, leaves, False, switch)
                density = weigh(p_again.log_prob - q_again.log_prob).sum()
                found = _cotangents(density, leaves, switch, shares_graph=False)
            gradients = dict(zip(leaves, found, strict=True))
    path_q, path_p = (named(part.path) if part.path is not None else None for part in (q, p))
    forked, terms = {}, torch.zeros_like(v)
    strength, _ = to_prior
    for name, value in z.items():
        paths, rest = [], torch.zeros_like(value)
        if path_q is not None:
            paths.append((path_q[name], to_posterior))
            rest = rest + align(to_posterior, value) * path_q[name]
        if path_p is not None:
            share = strength * prior_row.likelihood_share(r)
            paths.append((path_p[name], share))
            rest = rest + align(strength * prior_row.rest_share(r), value) * path_p[name]
        forked[name] = fork(value, alive, paths)
        gradient = gradients[name]
        if gradient is not None:
            gradient = torch.where(align(alive, value), gradient, torch.zeros_like(gradient))
            terms = terms + (gradient * rest).reshape(*v.shape, -1).sum(-1)
    terms = terms + weigh(model.likelihood(unnamed(forked)))
    for factor, part, walked, has_path in (
        (-posterior_row.density, model.posterior, q, posterior_row.has_path),
        (prior_row.density, model.prior, p, prior_row.has_path),
    ):
        if isinstance(factor, (int, float)) and factor == 0:
            continue
        # Where latents are on a path, the density that is live must be one of constants.
        log_prob = part.log_prob(unnamed(z)) if has_path else walked.log_prob
        terms = terms + weigh(factor * log_prob)
    return terms.sum(0)


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


def _cotangents(
    density: Tensor, leaves: dict[Any, Tensor], switch: Switch, *, shares_graph: bool
) -> Any:
    """The derivative of a density by the latents, which are leaves."""
    switch.to_leaves = True
    try:
        return torch.autograd.grad(
            density, list(leaves.values()), retain_graph=shares_graph, allow_unused=True
        )
    finally:
        switch.to_leaves = False


def _walk(name: str, part: Any, leaves: dict[Any, Tensor], needs_path: bool, switch: Switch) -> Any:
    try:
        return walk(part, unnamed(leaves), needs_path, switch)
    except NoReexpressionError as error:
        if name == "prior":
            remedy = "prior_estimator='naive'"
            raise NoPriorPathError(f"prior: {error} Or use {remedy}.") from None
        remedy = "posterior_estimator='rws'"
        raise NoReexpressionError(f"posterior: {error} Or use {remedy}.") from None
