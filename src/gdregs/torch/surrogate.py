r"""The surrogate, whose gradient is the estimator, once samples are weighed and paths are known.

$$S = \sum v \log p(x|z^{fork}) + \sum a\, g \cdot z^q - \sum r\, g \cdot z^p
    - \sum d_q v \log q(z) + \sum d_p v \log p(z),$$

with $g = \nabla_z \sum v (\log p - \log q)$ a constant, and the shares and the factors d of the
tables in `gdregs.shared.tables`.

Where densities have factors, g is the derivative of the log-densities with their factors, and the
prior's path takes $(1 - r) g + h$, where $h = \nabla_z \sum v (\log q - \log p)$ is that of the
densities without. The derivative of a path by the parameters of node i is multiplied by the factor
$a_i$ in the prior, and by $a_0 + a_1 (1 - b_i (1 - r))$ in the posterior, whose share is then 1.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gdregs.shared.tables import is_naive
from gdregs.torch.autograd import Shares, align, fork
from gdregs.torch.gates import POSTERIOR, PRIOR, Gates, log_prob_of
from gdregs.torch.hierarchy import Walked
from gdregs.torch.reexpress import NoPriorPathError, NoReexpressionError
from gdregs.torch.weights import Model, Weighed, named, unnamed


class Walks(NamedTuple):
    """Latents, and what posterior and prior say of them.

    Attributes:
        leaves: The latents.
        q: The posterior's.
        p: The prior's.
        q_is_gated: Whether the shares of the posterior's path are in its gates.
    """

    leaves: dict[Any, Tensor]
    q: Walked
    p: Walked
    q_is_gated: bool = False

    @property
    def have_factors(self) -> bool:
        """Whether there are factors on the densities."""
        return self.q.plain is not None or self.p.plain is not None

    @property
    def paths(self) -> list[dict[Any, Tensor]]:
        """The latents on the path of each part that has one."""
        return [named(part.path) for part in (self.q, self.p) if part.path is not None]


class Cotangents(NamedTuple):
    """Derivatives of a density by latents, and their shares that go down each path.

    Attributes:
        of_latents: The derivatives; None where there is none.
        shares: For each of `Walks.paths` the share, `[M, *batch]`; None where it has none.
    """

    of_latents: Mapping[Any, Tensor | None]
    shares: tuple[Any, ...]


def fill(
    shares: Shares, walks: Walks, weighed: Weighed, posterior_row: Any, prior_row: Any
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Tell forks what the tables say of the likelihood's cotangent.

    Returns:
        The shares of g that go down each of `walks.paths`, `[M, *batch]`, and those of h.
    """
    r = weighed.r
    of_likelihood, of_rest, of_plain = [], [], []
    if walks.q.path is not None:
        share = sum((path.strength * path.share(r) for path in posterior_row.paths), 0 * r)
        share = torch.ones_like(r) if walks.q_is_gated else share
        of_likelihood.append(share)
        of_rest.append(share)
        of_plain.append(None)
    if walks.p.path is not None:
        strength = 1 if isinstance(prior_row.mix, Mapping) else prior_row.path
        of_likelihood.append(strength * prior_row.likelihood_share(r))
        with_factors = prior_row.likelihood_share(r)
        rest = with_factors if walks.have_factors else prior_row.rest_share(r)
        of_rest.append(strength * rest)
        of_plain.append(strength * torch.ones_like(r))
    shares.alive, shares.of_paths = weighed.v != 0, tuple(of_likelihood)
    return tuple(of_rest), tuple(of_plain)


def gates_of(weighed: Weighed, posterior_row: Any, prior_row: Any) -> tuple[Gates, Gates]:
    """What the tables say of densities with factors, in the posterior and in the prior."""
    if not any(weighed.has_factors):
        return POSTERIOR, gates_of_prior(None, prior_row)
    refuses = not is_naive(posterior_row, prior_row)
    constant = sum(path.strength * path.constant for path in posterior_row.paths)
    slope = sum(path.strength * path.slope for path in posterior_row.paths)

    def own(name: Any, factor: Any, r: Tensor) -> Any:
        del name
        return constant + slope * (1 - factor * (1 - r))

    needs_gates = (
        weighed.has_factors.posterior
        and any(path.varies for path in posterior_row.paths)
        and bool(((weighed.r != 1) & (weighed.v != 0)).any())  # it is 1 throughout for the ELBO
    )
    of_posterior = Gates(
        False, own if needs_gates else None, weighed.r, refuses,
        refuses_points=prior_row.has_path,
    )  # fmt: skip
    return of_posterior, gates_of_prior(weighed.r, prior_row)._replace(refuses=refuses)


def gates_of_prior(r: Tensor | None, prior_row: Any) -> Gates:
    """An alpha for each latent is a factor on its own parameters' part of the path, too.

    Args:
        r: The shares of the samples; None where densities have no factors.
        prior_row: The estimator's row of the table.
    """
    mix = prior_row.mix
    if isinstance(mix, Mapping):
        return PRIOR._replace(own=lambda name, factor, _: factor * mix[name], r=r)
    return PRIOR if r is None else PRIOR._replace(own=lambda _, factor, __: factor, r=r)


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
    cotangents: list[Cotangents],
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
        cotangents: g, and h where densities have factors.
        posterior_row: The estimator's row of the table.
        prior_row: Alike.
    """
    terms = weighed.weight(log_likelihood)
    alive = weighed.v != 0
    for of_latents, shares in cotangents:
        taken = [pair for pair in zip(shares, walks.paths, strict=True) if pair[0] is not None]
        for name, g in of_latents.items():
            if g is not None:
                rest = sum(align(share, g) * path[name] for share, path in taken)
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
        log_prob = walked.log_prob if walked.path is None else log_prob_of(part, unnamed(z))
        terms = terms + weighed.weight(factor * log_prob)
    return terms.sum(0)


@contextlib.contextmanager
def naming_the_part(name: str) -> Iterator[None]:
    """Say of an error which part has no path, and what to do."""
    try:
        yield
    except NoPriorPathError:
        raise
    except NoReexpressionError as error:
        if name == "prior":
            remedy = "prior_estimator='naive'"
            raise NoPriorPathError(f"prior: {error} Or use {remedy}.") from None
        remedy = "posterior_estimator='rws'"
        raise NoReexpressionError(f"posterior: {error} Or use {remedy}.") from None
