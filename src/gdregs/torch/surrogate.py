r"""The surrogate, whose gradient is the estimator, once samples are weighed and paths are known.

$$S = \sum v \log p(x|z^{fork}) + \sum a\, g \cdot z^q - \sum r\, g \cdot z^p
    - \sum d_q v \log q(z) + \sum d_p v \log p(z),$$

with $g = \nabla_z \sum v (\log p - \log q)$ a constant, and the shares and the factors d of the
tables in `gdregs.shared.tables`.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gdregs.torch.autograd import Shares, align, fork
from gdregs.torch.hierarchy import Walked
from gdregs.torch.reexpress import NoPriorPathError, NoReexpressionError
from gdregs.torch.weights import Model, Weighed, named, unnamed


class Walks(NamedTuple):
    """Latents, and what posterior and prior say of them."""

    leaves: dict[Any, Tensor]
    q: Walked
    p: Walked

    @property
    def paths(self) -> list[dict[Any, Tensor]]:
        """The latents on the path of each part that has one."""
        return [named(part.path) for part in (self.q, self.p) if part.path is not None]


def fill(
    shares: Shares, walks: Walks, weighed: Weighed, posterior_row: Any, prior_row: Any
) -> tuple[Any, ...]:
    """Tell forks what the tables say of the likelihood's cotangent.

    Returns:
        The share of the rest, g, that goes down each of `walks.paths`, `[M, *batch]`.
    """
    r = weighed.r
    of_likelihood, of_rest = [], []
    if walks.q.path is not None:
        share = sum((path.strength * path.share(r) for path in posterior_row.paths), 0 * r)
        of_likelihood.append(share)
        of_rest.append(share)
    if walks.p.path is not None:
        strength = 1 if isinstance(prior_row.mix, Mapping) else prior_row.path
        of_likelihood.append(strength * prior_row.likelihood_share(r))
        of_rest.append(strength * prior_row.rest_share(r))
    shares.alive, shares.of_paths = weighed.v != 0, tuple(of_likelihood)
    return tuple(of_rest)


def forked(walks: Walks, shares: Shares) -> Any:
    """The latents as the likelihood sees them."""
    return unnamed(
        {
            name: fork(value, shares, [path[name] for path in walks.paths])
            for name, value in walks.leaves.items()
        }
    )


def surrogate(
    model: Model,
    walks: Walks,
    weighed: Weighed,
    log_likelihood: Tensor,
    cotangents: Mapping[Any, Tensor | None],
    of_rest: tuple[Any, ...],
    posterior_row: Any,
    prior_row: Any,
) -> Tensor:
    """S, `[*batch]`.

    Args:
        model: The three parts.
        walks: Latents and their paths; the log-density of a part without a path, by which its
            parameters are differentiated.
        weighed: The constants v.
        log_likelihood: That of the forked latents, `[M, *batch]`.
        cotangents: g, of each latent; None where there is none.
        of_rest: The share of g that goes down each path, by `fill`.
        posterior_row: The estimator's row of the table.
        prior_row: Alike.
    """
    terms = weighed.weight(log_likelihood)
    alive = weighed.v != 0
    for name, g in cotangents.items():
        if g is not None:
            shares = zip(of_rest, walks.paths, strict=True)
            rest = sum(align(share, g) * path[name] for share, path in shares)
            g = torch.where(align(alive, g), g, torch.zeros_like(g))
            terms = terms + (g * rest).reshape(*weighed.v.shape, -1).sum(-1)
    z = {name: value.detach() for name, value in walks.leaves.items()}
    for factor, part, walked in (
        (-posterior_row.density, model.posterior, walks.q),
        (prior_row.density, model.prior, walks.p),
    ):
        if isinstance(factor, (int, float)) and factor == 0:
            continue
        if isinstance(factor, Mapping):
            terms = terms + weighed.weight(part.weighted_log_prob(z, factor))
            continue
        # Where latents are on a path, the density that is live must be one of constants.
        log_prob = walked.log_prob if walked.path is None else part.log_prob(unnamed(z))
        terms = terms + weighed.weight(factor * log_prob)
    return terms.sum(0)


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
