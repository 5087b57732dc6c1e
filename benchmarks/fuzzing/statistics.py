"""Means of two samplers of rows against each other, in standard errors, until it is decided."""

import time
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

FEW = 30
"""Where fewer draws than this make up half of a sum of fourth powers, its mean is not normal."""


MOST_SECONDS = 60
"""After these no third look begins."""


class Verdict(NamedTuple):
    """What the draws say.

    Attributes:
        kind: `right`, `biased`, `undecided` or `nan`.
        text: The entry that says it most clearly.
        draws: How many there were.
    """

    kind: str
    text: str
    draws: int


class Moments:
    """Moments of rows.

    Args:
        by_block: Whether the last column, the value, is known as the mean of a block alone.
    """

    def __init__(self, by_block: bool = False):
        self.blocks: list[np.ndarray] = []
        self.by_block = by_block

    def add(self, rows: np.ndarray) -> None:
        """Take a block of rows."""
        self.blocks.append(rows)

    def summary(self, used: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Mean, squared standard error, and effective number of draws of each entry."""
        rows = np.concatenate(self.blocks)
        mean, error, effective = _summary(rows)
        if self.by_block:
            blocks = np.array([block[0, -1:] for block in self.blocks])
            mean[-1:], error[-1:], effective[-1:] = _summary(blocks)
        return mean[used], error[used], effective[used], len(rows)


def _summary(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, squared standard error, and how many draws make up the sum of fourth powers."""
    centred = rows - rows.mean(0)
    square = (centred**2).sum(0)
    effective = square**2 / np.maximum((centred**4).sum(0), 1e-300)
    return rows.mean(0), square / (len(rows) - 1) / len(rows), effective


def threshold(entries: int, false_alarm: float) -> float:
    """The size that the largest of so many z-scores exceeds with probability `false_alarm`."""
    return NormalDist().inv_cdf(1 - false_alarm / (2 * max(entries, 1)))


def compare(
    ours,
    peer,
    names,
    *,
    rounding: float,
    blocks: int = 64,
    looks: int = 3,
    by_block: bool = False,
) -> Verdict:
    """Draw from both until their means agree, or differ beyond doubt.

    The first look has `blocks` blocks, and each further one four times as many, drawn anew. A look
    that finds nothing with a false alarm of one in twenty ends it. What only the later ones find
    beyond one in ten thousand is a bias, if the draws are many enough for a normal law. Draws whose
    bound is not finite, as where no sample has a weight, are left out. Where a few draws make up
    the sums of more than half of the entries, nothing is decided.

    Args:
        ours: From a seed to rows.
        peer: The same.
        names: Of the columns.
        rounding: How large a relative difference of rounding may be.
        blocks: How many at first.
        looks: How many at most.
        by_block: As in `Moments`.
    """
    seed, count, text = 0, 0, ""
    begun = time.monotonic()
    for look in range(looks):
        if look > 1 and time.monotonic() - begun > MOST_SECONDS:
            break
        moments = Moments(by_block), Moments(by_block)
        num_drawn = num_kept = 0
        for _ in range(blocks * 4**look):
            seed += 1
            for of, block in zip(moments, (ours(2 * seed), peer(2 * seed + 1)), strict=True):
                is_finite = np.isfinite(block[:, -1])
                num_drawn += len(block)
                num_kept += is_finite.sum()
                if is_finite.any():
                    of.add(block[is_finite])
        if num_kept < 0.9 * num_drawn:
            return Verdict("undecided", "a tenth of the draws have no weight", count)
        rows = [np.concatenate(one.blocks) for one in moments]
        bad = [~np.isfinite(one).all(0) for one in rows]
        if (bad[0] & ~bad[1]).any():
            place = int(np.argmax(bad[0] & ~bad[1]))
            return Verdict("nan", f"{names[place]} is not finite", len(rows[0]))
        used = ~bad[1]
        if not used.any():
            return Verdict("undecided", "the evaluator is not finite", len(rows[0]))
        (mean, error, many, count), (other, other_error, other_many, _) = (
            one.summary(used) for one in moments
        )
        size = np.abs(np.concatenate(rows)[:, used]).mean(0)
        scale = np.sqrt(error + other_error) + rounding * size + 1e-300
        scores = np.abs(mean - other) / scale
        worst = int(np.argmax(scores))
        text = (
            f"{np.array(names)[used][worst]}: {mean[worst]:.5g} for {other[worst]:.5g},"
            f" {scores[worst]:.1f} standard errors"
        )
        few = np.minimum(many, other_many) < min(FEW, count / 20)
        if scores[worst] < threshold(len(scores), 0.05) and few.mean() <= 0.5:
            return Verdict("right", text, count)
        is_normal = min(many[worst], other_many[worst]) > FEW
        if look and is_normal and scores[worst] > threshold(len(scores), 1e-4):
            return Verdict("biased", text, count)
    return Verdict("undecided", text, count)
