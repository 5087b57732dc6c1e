"""The plan's test over seeds: when it looks, at what level, and what counts as decided."""

import numpy as np
from scipy import special

from gdregs.papers.measures.measure import mean

LOOKS = {3: 0.01, 5: 0.015, 10: 0.025}
"""Two-sided levels by number of seeds: the plan adds seeds up to each look, and may stop there.

Between two looks nothing is decided, and what one look has decided stays so: else each further seed
would be one more look, and they would err more often together than the levels add up to.
"""


def describe_look(count: int) -> str:
    """Where so many seeds are judged, if that is not at all of them."""
    reached = [number for number in LOOKS if number <= count]
    if not reached:
        return f"; nothing is decided before {min(LOOKS)} seeds"
    if reached[-1] == count:
        return ""
    looks = ", ".join(map(str, LOOKS))
    return f" at the first {reached[-1]} of {count} seeds; looks are at {looks}"


def holm(p_values: list[float]) -> list[float]:
    """p-values of several tests, corrected so that any false one is as rare as one alone."""
    order = np.argsort(p_values)
    corrected, largest = np.ones(len(p_values)), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min((len(order) - place) * p_values[index], 1.0))
        corrected[index] = largest
    return corrected.tolist()


def group_sequential(differences: list[np.ndarray]) -> list[tuple[float, int]]:
    """The group-sequential test of several differences over seeds, with `LOOKS` as its levels.

    Args:
        differences: Of each comparison, its difference by seed, `[seeds]`. A comparison may have
            several parts, `[parts, seeds]`: it is above 0 where each of them is, and below 0 where
            one is.

    Returns:
        Of each, the p-value at its last look, and the sign of the first look that decided it, 0
        while none has.
    """
    p_values, signs = [1.0] * len(differences), [0] * len(differences)
    # Before the first look there are p-values, of which none decides.
    for number, level in ((min(LOOKS), None), *LOOKS.items()):
        seen = {
            place: _test_parts(np.atleast_2d(values)[:, :number])
            for place, values in enumerate(differences)
            if level is None or np.shape(values)[-1] >= number
        }
        corrected = holm([p_value for p_value, _ in seen.values()])
        for (place, (_, sign)), p_value in zip(seen.items(), corrected, strict=True):
            p_values[place] = p_value
            if level is not None and p_value <= level and not signs[place]:
                signs[place] = sign
    return list(zip(p_values, signs, strict=True))


def _test_parts(parts: np.ndarray) -> tuple[float, int]:
    """The p-value and the sign of a comparison with parts, `[parts, seeds]`.

    That all parts are above 0 errs at most as often as the test of one that is not: the largest
    p-value counts, without a correction. That one of them is below 0 errs wherever any test does,
    so that the least is multiplied by their number.
    """
    p_values = np.array([_p_value(part) for part in parts])
    below = parts.mean(axis=1) < 0
    if below.any():
        return min(1.0, len(parts) * float(p_values[below].min())), -1
    return float(p_values.max()), 1


def _p_value(differences: np.ndarray) -> float:
    """Of no difference, two-sided; 1 where a single seed cannot tell."""
    count = len(differences)
    if count < 2:
        return 1.0
    measured = mean(differences)
    if not measured.error > 0:
        return float(measured.value == 0)
    return float(2 * special.stdtr(count - 1, -abs(measured.value) / measured.error))
