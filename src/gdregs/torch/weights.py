"""The look: draw all samples, weigh them, and choose those that matter."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gdregs.shared.checks import (
    check_draw,
    check_latent,
    check_likelihood,
    check_log_densities,
    check_part,
    positive_integer,
)
from gdregs.torch.autograd import Switch
from gdregs.torch.hierarchy import Latents, draw_and_walk
from gdregs.torch.noise import Noise, with_noise
from gdregs.torch.objectives import Objective
from gdregs.torch.resampling import resample, take_rows
from gdregs.torch.support import settle


class Model(NamedTuple):
    """The three parts of a latent-variable model, and K."""

    posterior: Any
    prior: Any
    likelihood: Any
    num_samples: int
    chunk_size: int | None
    noise: Noise | None = None

    def with_noise(self, noise: Noise) -> "Model":
        """The model, whose networks draw the same for a sample whenever it is evaluated."""
        return self._replace(
            posterior=with_noise(self.posterior, "posterior", noise),
            prior=with_noise(self.prior, "prior", noise),
            likelihood=with_noise(self.likelihood, "likelihood", noise),
            noise=noise,
        )


class HasFactors(NamedTuple):
    """Whether there are factors on densities."""

    posterior: bool
    prior: bool


class Weighed(NamedTuple):
    """Samples for the backward pass, with the constants that weigh them, `[M, *batch]`.

    Attributes:
        z: Latents.
        v: Their derivatives of the objective.
        r: The shares of the estimators' tables.
        log_weights: Where samples will be evaluated once more, what they must weigh then.
        index: Which of all samples they are; None where they are all, or one block of all.
        block: The number of that block.
        has_factors: Whether there are factors on the densities.
    """

    z: dict[Any, Tensor]
    v: Tensor
    r: Tensor
    log_weights: Tensor | None = None
    index: Tensor | None = None
    block: int = 0
    has_factors: HasFactors = HasFactors(False, False)

    def in_blocks(self, size: int) -> "list[Weighed]":
        """The samples, in blocks of this size; the last one may be smaller."""
        return [
            Weighed(
                {name: value[start : start + size] for name, value in self.z.items()},
                self.v[start : start + size],
                self.r[start : start + size],
                None if self.log_weights is None else self.log_weights[start : start + size],
                None if self.index is None else self.index[start : start + size],
                number,
                self.has_factors,
            )
            for number, start in enumerate(range(0, len(self.v), size))
        ]

    def weight(self, terms: Tensor) -> Tensor:
        """Terms times v, `[M, *batch]`; 0 where a sample has no weight."""
        alive = self.v != 0
        safe = torch.where(alive, terms, torch.zeros_like(terms))
        return torch.where(alive, self.v * safe, 0 * self.v)


def read_model(posterior, prior, likelihood, num_samples, chunk_size) -> Model:
    """Check everything that can be checked without computing, and say what is wrong."""
    like = "a torch distribution or a gdregs.torch.Hierarchy"
    check_part("posterior", posterior, ("sample", "log_prob"), like)
    check_part("prior", prior, ("log_prob",), like)
    check_likelihood(likelihood)
    num_samples = positive_integer("num_samples", num_samples)
    if chunk_size is not None:
        chunk_size = positive_integer("chunk_size", chunk_size)
    return Model(posterior, prior, likelihood, num_samples, chunk_size)


def sizes(model: Model) -> list[int]:
    """How many samples are looked at, block by block."""
    size = model.chunk_size or model.num_samples
    full, last = divmod(model.num_samples, size)
    return [size] * full + ([last] if last else [])


def look(model: Model) -> tuple[dict[Any, Tensor], Tensor, HasFactors]:
    """All samples, their log-weights, `[K, *batch]`, and whether densities have factors."""
    blocks = [look_at(model, size) for size in sizes(model)]
    z = {name: torch.cat([block[0][name] for block in blocks]) for name in blocks[0][0]}
    return z, torch.cat([block[1] for block in blocks]), blocks[0][2]


def look_at(model: Model, size: int) -> tuple[dict[Any, Tensor], Tensor, HasFactors]:
    """Draw and weigh some samples. A weight that is not a number is 0."""
    if model.noise is not None:
        model.noise.start_block(size)
    z, drawn = draw_and_walk(model.posterior, torch.Size([size]), False, Switch())
    check_draws(z, size)
    z, inside, log_prior, prior_has_factors = settle(model.prior, z)
    log_weights = read_log_weights(z, size, drawn.log_prob, log_prior, model.likelihood(z))
    if inside is not None:
        log_weights = log_weights.masked_fill(~inside, -math.inf)
    return named(z), log_weights, HasFactors(drawn.plain is not None, prior_has_factors)


def check_draws(z: Latents, size: int) -> None:
    """An error unless the latents are so many samples."""
    for value in named(z).values():
        check_draw(value.shape, size, f"posterior.sample(({size},))")


def read_log_weights(
    z: Latents, size: int, log_posterior: Any, log_prior: Any, log_likelihood: Any
) -> Tensor:
    """The log-weights; -inf for one that is not a number. Densities are checked."""
    densities = {
        "posterior.log_prob(z)": log_posterior,
        "prior.log_prob(z)": log_prior,
        "likelihood(z)": log_likelihood,
    }
    found = {
        name: tuple(value.shape) if isinstance(value, Tensor) else None
        for name, value in densities.items()
    }
    lead = check_log_densities(found, size)
    for value in named(z).values():
        check_latent(value.shape, lead)
    log_weights = (log_likelihood + log_prior - log_posterior).detach()
    return log_weights.masked_fill(log_weights.isnan(), -math.inf)


def weigh(
    objective: Objective, z: dict[Any, Tensor], log_weights: Tensor
) -> tuple[Tensor, Weighed]:
    """The value of the objective, and v and r of every sample; 0 where a sample has no weight."""
    value, v, c = objective.coefficients(log_weights)
    value = value.masked_fill((log_weights == -math.inf).all(0), -math.inf)
    alive = (log_weights > -math.inf) & v.isfinite() & c.isfinite() & (v != 0)
    zeros = torch.zeros_like(v)
    v = torch.where(alive, v, zeros)
    r = torch.where(alive, c / torch.where(alive, v, torch.ones_like(v)), zeros)
    return value, Weighed(z, v, r)


def choose(weighed: Weighed, num_kept: int) -> Weighed:
    r"""Keep M samples by Fearnhead-Clifford resampling on |v|, with $v \leftarrow v/\pi$."""
    z, v, r, log_weights = weighed[:4]
    index, probabilities = resample(v.abs(), num_kept, draw_offset(v))
    is_kept = probabilities > 0
    kept = take_rows(v, index) / torch.where(is_kept, probabilities, torch.ones_like(probabilities))
    return Weighed(
        {name: take_rows(value, index) for name, value in z.items()},
        torch.where(is_kept, kept, torch.zeros_like(kept)),
        take_rows(r, index),
        None if log_weights is None else take_rows(log_weights, index),
        index,
        has_factors=weighed.has_factors,
    )


def draw_offset(v: Tensor) -> Tensor:
    """The one random number of systematic resampling, `[*batch]`."""
    return torch.rand(v.shape[1:], dtype=v.dtype, device=v.device)


def named(z: Latents) -> dict[Any, Tensor]:
    """Latents as a dict; a single tensor has the name None."""
    return dict(z) if isinstance(z, Mapping) else {None: z}


def unnamed(z: dict[Any, Tensor]) -> Latents:
    """Latents as they were given."""
    return z.get(None, z)
