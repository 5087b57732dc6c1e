"""Programs of Pyro made at random, and a biased one that must be found."""

import dataclasses

import pytest

pytest.importorskip("pyro", reason="pip install 'gdregs[pyro]'")

from fuzzing.frontends import runner_of, text_of
from fuzzing.grammar import generate
from fuzzing.judge import judge

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("clean")]


@pytest.mark.parametrize("seed", [5, 6, 13, 15, 17, 24])
def test_fixed_programs_are_right(seed):
    program = generate("pyro", seed)
    outcome = judge(program, runner_of("pyro"), blocks=12)
    assert outcome.kind == "right", f"{outcome}\n{text_of(program)}"


def test_a_biased_estimator_is_found():
    program = dataclasses.replace(
        generate("pyro", 24), estimators=("stl", "gdregs"), num_samples=4, objective="IWAE()"
    )
    assert judge(program, runner_of("pyro"), blocks=12).kind == "biased"
