"""The plan's test over seeds, and statements that are judged by it."""

import numpy as np
import pytest

from gdregs.papers.measures.claims import FAILS, HOLDS, UNDECIDED, Statement, judge
from gdregs.papers.measures.looks import group_sequential, holm

CLEAR = np.array([1.0, 1.01, 0.99])


def test_holms_procedure():
    """By hand: 3 x 0.01, 2 x 0.02, and never less than the one before."""
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([]) == []


def decided(rows, sign=None):
    """The share of rows, `[rows, ..., seeds]`, of which something is decided, or this sign."""
    signs = np.array([group_sequential([row])[0][1] for row in rows])
    return np.mean(signs != 0 if sign is None else signs == sign)


def test_looks_err_seldom_together():
    """500 rows without a difference, read at 3, 4, 5 and 10 seeds: at most 5% are decided."""
    draws = np.random.default_rng(0).normal(size=(500, 10))
    wrong = {count: decided(draws[:, :count]) for count in (3, 10)}
    assert wrong[3] <= wrong[10]
    assert wrong[3] == pytest.approx(0.01, abs=3 * 0.0044)
    assert 0.02 < wrong[10] < 0.05 + 3 * 0.0097
    few = draws[:100]
    assert decided(few[:, :3]) == decided(few[:, :4]) <= decided(few[:, :5])


def test_of_several_parts_all_have_to_be_above_and_one_below():
    above, open_, below = CLEAR, np.array([1.0, 3.0, -1.0]), -CLEAR
    parts = [[above, 2 * above], [above, open_], [above, below], [below, open_], [open_, open_]]
    found = [group_sequential([np.stack(two)])[0][1] for two in parts]
    assert found == [1, 0, -1, -1, 0]


def test_parts_err_no_more_often_than_one_difference():
    """Each wrong verdict is one-sided, so that 2.5% is what the looks allow."""
    draws = np.random.default_rng(1).normal(size=(500, 4, 10))
    far_above = np.array([0.0, 100.0, 100.0, 100.0])[:, None]
    assert 0.01 < decided(draws + far_above, sign=1) < 0.025 + 3 * 0.007
    assert 0.002 < decided(draws, sign=-1) < 0.025 + 3 * 0.007
    # Each part by itself is below as often as that, and any of the four more often.
    by_itself = [[group_sequential([part])[0][1] == -1 for part in row] for row in draws[:200]]
    assert np.any(by_itself, axis=1).mean() > 0.025 + 3 * 0.011


def statement(values, **limits):
    return Statement("Sec. 1", "It is so.", "ratio", np.asarray(values), **limits)


@pytest.mark.parametrize(
    ("limits", "text", "verdicts"),
    [
        ({"low": 2.0}, "> 2", (FAILS, HOLDS)),
        ({"high": 2.0}, "< 2", (HOLDS, FAILS)),
        ({"low": 0.5, "high": 1.5}, "0.5 to 1.5", (HOLDS, FAILS)),
        ({"low": 2.5, "high": 3.5}, "2.5 to 3.5", (FAILS, HOLDS)),
    ],
)
def test_a_statement_is_judged_by_its_limits(limits, text, verdicts):
    for values, verdict in zip((CLEAR, 3 * CLEAR), verdicts, strict=True):
        (claim,) = judge([statement(values, **limits)])
        assert (claim.limit, claim.verdict) == (text, verdict)
        assert claim.value == pytest.approx(values.mean())


def test_a_claim_shows_the_part_that_is_worst_in_the_mean():
    parts = np.stack([CLEAR, 3 * CLEAR, 2 * CLEAR])
    (low,) = judge([statement(parts, low=0.0)])
    (high,) = judge([statement(parts, high=9.0)])
    (both,) = judge([statement(parts, low=0.5, high=9.0)])
    assert [claim.value for claim in (low, high, both)] == pytest.approx([1.0, 3.0, 1.0])
    assert {claim.verdict for claim in (low, high, both)} == {HOLDS}
    assert low.measured == "ratio 1.000 ± 0.012 (p = 3.3e-05)"


def test_statements_are_judged_at_the_looks_and_corrected_together():
    """p of 0.0173 at three seeds, of which the fourth tells nothing, and 0.00016 at five."""
    values = np.array([1.0, 1.3, 1.6, 1.3, 1.3])
    verdicts = [judge([statement(values[:n], low=0.0)])[0].verdict for n in (1, 2, 3, 4, 5)]
    assert verdicts == [UNDECIDED] * 4 + [HOLDS]
    together = judge([statement(values, low=0.0)] * 100)
    assert {claim.verdict for claim in together} == {UNDECIDED}


def test_what_a_look_decides_of_a_statement_stays_decided():
    values = np.concatenate([CLEAR, [-3.0, -4.0]])
    (claim,) = judge([statement(values, low=0.0)])
    assert claim.verdict == HOLDS
    assert claim.value < 0
