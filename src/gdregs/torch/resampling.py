r"""Optimal resampling: keep M of K weights without bias (Fearnhead and Clifford, 2003).

Sample k is kept with probability $\pi_k = \min(1, c|v_k|)$, where c makes the probabilities sum to
M; systematic sampling keeps exactly M.

Reference:
    Fearnhead and Clifford, On-line Inference for Hidden Markov Models via Particle Filters, 2003.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Kept(NamedTuple):
    """M of K samples.

    Attributes:
        index: Which samples, `[M, *batch]`, those with the largest scores first.
        probabilities: With what probability each was kept, `[M, *batch]`; 0 for an empty slot.
    """

    index: Tensor
    probabilities: Tensor


def resample(scores: Tensor, num_kept: int, offset: Tensor) -> Kept:
    r"""Keep M of K samples, with probability $\pi_k = \min(1, c s_k)$ each.

    Args:
        scores: Non-negative, `[K, *batch]`; here $|v_k|$.
        num_kept: M.
        offset: Uniform on [0, 1), `[*batch]`.

    Example:
        >>> import torch
        >>> kept = resample(torch.tensor([0.0, 0.6, 0.0, 0.4]), 2, torch.tensor(0.5))
        >>> kept.index.tolist(), kept.probabilities.tolist()
        ([1, 3], [1.0, 1.0])
    """
    epsilon = torch.finfo(scores.dtype).eps
    ordered = torch.topk(scores, num_kept, dim=0).values
    last = ordered[-1]
    num_equal_left = (scores >= last).sum(0) - num_kept
    rest = scores.masked_fill(scores >= last, 0).sum(0) + num_equal_left * last
    # With the n largest certain, c = (M - n) / tail_n must leave the next score below 1.
    tails = rest + ordered.flip(0).cumsum(0).flip(0)
    places = torch.arange(num_kept, 0, -1, dtype=scores.dtype, device=scores.device)
    places = places.reshape(-1, *(1,) * (scores.ndim - 1))
    is_certain = places * ordered >= tails
    infinity = torch.full_like(ordered, torch.inf)
    certain = torch.where(is_certain & (ordered > 0), ordered, infinity).amin(0)
    certain = certain * (1 - 16 * epsilon)
    num_drawn = num_kept - is_certain.to(scores.dtype).sum(0)
    tail = rest + ordered.masked_fill(is_certain, 0).sum(0)
    share = scores / torch.where(tail > 0, tail, torch.ones_like(tail))
    is_certain = scores >= certain
    probabilities = torch.where(
        is_certain, torch.ones_like(scores), (num_drawn * share).clamp(max=1)
    )
    mass = probabilities.masked_fill(is_certain, 0).cumsum(0)
    passed = torch.minimum((mass - offset).ceil().clamp(min=0), num_drawn)
    passed = torch.where(mass < num_drawn * (1 - 8 * epsilon), passed, num_drawn.expand_as(passed))
    before = torch.cat([torch.zeros_like(passed[:1]), passed[:-1]])
    kept = is_certain | (passed > before)
    chosen, index = torch.topk(torch.where(kept, scores, torch.zeros_like(scores)), num_kept, dim=0)
    index = torch.where(chosen > 0, index, index[:1])
    found = probabilities.gather(0, index)
    return Kept(index, torch.where(chosen > 0, found, torch.zeros_like(found)))


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """For each slot the entry of `values` (`[K, *batch, *event]`) at its position."""
    index = index.reshape(index.shape + (1,) * (values.ndim - index.ndim))
    return values.gather(0, index.expand(index.shape[0], *values.shape[1:]))
