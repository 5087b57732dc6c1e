"""A paper's statement, what we measured, and whether it holds."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from gdregs.papers.measures.looks import group_sequential
from gdregs.papers.measures.measure import Measured, of_few

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
NUM_ERRORS = 3.0
"""A verdict is given where the measurement clears its limit by so many standard errors.

Measurements over the seeds of trainings have the plan's test instead, see `judge`.
"""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One row of the page of claims.

    Attributes:
        source: Where the paper says it.
        statement: What it says, in our words.
        measured: What we measured, as text.
        value: The number that decides, where one number does.
        error: Its standard error.
        limit: What it is compared with, as text.
        verdict: `holds`, `does not hold` or `undecided`.
        note: What else is known, above all where it does not hold.
    """

    source: str
    statement: str
    measured: str
    value: float
    error: float
    limit: str
    verdict: str
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The claim as JSON can hold it."""
        return dataclasses.asdict(self)


def at_most(
    source: str, statement: str, what: str, measured: Measured, limit: float, note: str = ""
) -> Claim:
    """Holds where the number lies below the limit."""
    return _decide(source, statement, what, measured, limit - measured.value, f"< {limit:g}", note)


def at_least(
    source: str, statement: str, what: str, measured: Measured, limit: float, note: str = ""
) -> Claim:
    """Holds where the number lies above the limit."""
    return _decide(source, statement, what, measured, measured.value - limit, f"> {limit:g}", note)


def within(
    source: str,
    statement: str,
    what: str,
    measured: Measured,
    target: float,
    margin: float,
    note: str = "",
) -> Claim:
    """Holds where the number lies closer to the target than the margin.

    A rate that a theory gives for large K cannot be met exactly at finite K, so a margin is stated
    and equality up to it is tested.
    """
    distance = margin - abs(measured.value - target)
    return _decide(
        source, statement, what, measured, distance, f"{target:g} up to {margin:g}", note
    )


class Statement(NamedTuple):
    """What a paper says of numbers that several trainings have, to be judged over their seeds.

    Attributes:
        source: Where the paper says it.
        text: What it says, in our words.
        what: What the numbers are.
        values: The numbers, `[seeds]`, or `[parts, seeds]` where all of several have to lie
            between the limits.
        low: The lower limit.
        high: The upper limit.
        note: What else is known.
    """

    source: str
    text: str
    what: str
    values: np.ndarray
    low: float = -math.inf
    high: float = math.inf
    note: str = ""

    def distances(self) -> np.ndarray:
        """How far each number lies on the right side of each limit, `[parts, seeds]`."""
        values = np.atleast_2d(self.values)
        sides = [(values - self.low, self.low), (self.high - values, self.high)]
        return np.concatenate([distance for distance, limit in sides if math.isfinite(limit)])

    def limits(self) -> str:
        """The limits as text."""
        if math.isinf(self.low):
            return f"< {self.high:g}"
        return f"> {self.low:g}" if math.isinf(self.high) else f"{self.low:g} to {self.high:g}"


def judge(statements: list[Statement]) -> list[Claim]:
    """The verdicts on statements that are judged together, by `group_sequential`.

    A statement holds where all of its parts are decided to lie between the limits, and does not
    where one is decided not to. Its claim has the part that is worst in the mean, with the p-value.
    """
    distances = [statement.distances() for statement in statements]
    verdicts = {1: HOLDS, 0: UNDECIDED, -1: FAILS}
    found = []
    for statement, each, (p_value, sign) in zip(
        statements, distances, group_sequential(distances), strict=True
    ):
        parts = np.atleast_2d(statement.values)
        worst = of_few(parts[int(each.mean(axis=1).argmin()) % len(parts)])
        found.append(
            Claim(
                statement.source,
                statement.text,
                f"{statement.what} {worst} (p = {p_value:.2g})",
                worst.value,
                worst.error,
                statement.limits(),
                verdicts[sign],
                statement.note,
            )
        )
    return found


def no_outlier(
    source: str, statement: str, what: str, largest: float, threshold: float, note: str = ""
) -> Claim:
    """Holds where the largest of many z-scores is one that chance allows."""
    return Claim(
        source,
        statement,
        f"{what} {largest:,.2f} standard errors",
        largest,
        1.0,
        f"< {threshold:.2f}",
        HOLDS if largest < threshold else FAILS,
        note,
    )


def _decide(source, statement, what, measured, distance, limit, note) -> Claim:
    """`distance` is how far the number lies on the side where the claim holds."""
    if distance > NUM_ERRORS * measured.error:
        verdict = HOLDS
    elif -distance > NUM_ERRORS * measured.error:
        verdict = FAILS
    else:
        verdict = UNDECIDED
    text = f"{what} {measured}"
    return Claim(source, statement, text, measured.value, measured.error, limit, verdict, note)


def format_claims(claims: list[Claim]) -> str:
    """The claims as a Markdown table, with notes below."""
    lines = [
        "| source | the papers' statement | measured | limit | verdict |",
        "|---|---|---|---|---|",
    ]
    notes = []
    for claim in claims:
        mark = ""
        if claim.note:
            notes.append(claim.note)
            mark = f" ({len(notes)})"
        cells = (claim.source, claim.statement, claim.measured, claim.limit)
        lines.append(f"| {' | '.join(cells)} | **{claim.verdict}**{mark} |")
    text = "\n".join(lines) + "\n"
    if notes:
        text += "\n" + "\n".join(f"{i}. {note}" for i, note in enumerate(notes, 1)) + "\n"
    return text
