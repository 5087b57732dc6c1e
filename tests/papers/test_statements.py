"""What the paper says beside its tables, on made-up cells."""

import numpy as np
import pytest

from gdregs.papers.measures.claims import FAILS, HOLDS, UNDECIDED
from gdregs.papers.measures.measure import of_few
from gdregs.papers.tables.statements import judge_tables

NOISE = np.array([-0.01, -0.005, 0.0, 0.005, 0.01])
PAIRS = [f"{q}+{p}" for q in ("naive", "stl", "dregs") for p in ("naive", "gdregs")]


def make(row, pair, *, kl=4.0, posterior=1.0, prior=1.0, likelihood=1.0, epochs=30):
    """A cell as `Cell.to_dict` writes it, of five seeds that hardly differ."""
    last = {
        "kl.z1": kl / 2,
        "kl.z2": kl / 2,
        "variance.posterior": posterior,
        "variance.prior": prior,
        "variance.likelihood": likelihood,
    }
    noise = np.roll(NOISE, len(row) + len(pair))  # so that ratios differ by seed
    config = {"epochs": epochs, "train_images": 8192, "gradient_samples": 8}
    return {
        "row": row,
        "pair": pair,
        "config": config,
        "seeds": list(range(len(NOISE))),
        "last": {name: list(value * (1 + noise)) for name, value in last.items()},
    }


def verdicts(judged):
    return [claim.verdict for claim in judged]


def as_the_paper_says(pair):
    changes = {
        "naive+gdregs": {"posterior": 1.3, "prior": 0.9, "likelihood": 0.9},
        "dregs+gdregs": {"posterior": 0.9, "prior": 0.5, "likelihood": 0.9},
    }
    return make("mnist-conditional-L2", pair, **changes.get(pair, {}))


def test_cells_that_agree_with_every_statement():
    conditional = [as_the_paper_says(pair) for pair in PAIRS]
    unconditional = [make("mnist-L2", pair, kl=8.1) for pair in PAIRS]
    tables = {"table1": {"cells": conditional}, "table2": {"cells": unconditional}}
    judged = judge_tables(tables, None)
    assert len(judged) == 5  # of table 2 the closeness alone
    assert set(verdicts(judged)) == {HOLDS}


def test_cells_that_agree_with_none():
    changes = {
        "naive+gdregs": {"posterior": 0.8, "likelihood": 1.2},
        "dregs+gdregs": {"posterior": 1.3, "prior": 1.5},
    }
    cells = [make("mnist-conditional-L2", pair, **changes.get(pair, {})) for pair in PAIRS]
    others = [make("mnist-L2", pair, kl=4.0) for pair in PAIRS]
    judged = judge_tables({"table1": {"cells": cells}, "table2": {"cells": others}}, None)
    assert verdicts(judged) == [FAILS] * 5


def test_what_is_not_known_is_undecided():
    cells = [make("mnist-conditional-L2", pair) for pair in PAIRS]
    judged = judge_tables({"table1": {"cells": cells}}, None)
    assert [claim.verdict for claim in judged] == [UNDECIDED, HOLDS, UNDECIDED, UNDECIDED]


def test_only_runs_of_one_length_are_compared():
    cells = [make("mnist-conditional-L2", "dregs+gdregs")]
    longer = [make("mnist-L2", "dregs+gdregs", epochs=60)]
    assert judge_tables({"table1": {"cells": cells}, "table2": {"cells": longer}}, None) == []


def test_the_time_of_a_step():
    def steps(surrogates, ours):
        ratio = {"quartiles": [0.99, 1.01]}
        return {
            "steps": {
                "three surrogates": {"time_ratio": {"median": surrogates, **ratio}},
                "gdregs, M = K": {"time_ratio": {"median": ours, **ratio}},
            }
        }

    cost = {"repeats": 16, "cells": [steps(1.2, 0.8), steps(1.5, 1.0)]}
    judged = judge_tables({}, cost)
    assert [claim.verdict for claim in judged] == [FAILS, HOLDS]
    assert [claim.value for claim in judged] == [1.5, 1.0]


def test_few_trainings_have_a_wide_error():
    measured = of_few(np.array([1.0, 2.0, 3.0]))
    assert measured.value == 2
    assert measured.error == pytest.approx(4.303 / 2 / 3**0.5, rel=1e-3)  # t, two degrees
    assert of_few(np.array([1.0])).error == float("inf")
