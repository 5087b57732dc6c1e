"""What a comparison of two estimators is judged by, whatever computed it."""

from statistics import NormalDist


def largest_by_chance(comparisons: int, false_alarm: float = 1e-3) -> float:
    """The size that the largest of so many z-scores exceeds with probability `false_alarm`.

    Bonferroni's bound, for two-sided comparisons.
    """
    return NormalDist().inv_cdf(1 - false_alarm / (2 * comparisons))
