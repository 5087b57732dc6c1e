"""Programs of PyTorch made at random, and a biased one that must be found."""

import dataclasses

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

from fuzzing.frontends import runner_of, text_of  # noqa: E402
from fuzzing.grammar import generate  # noqa: E402
from fuzzing.judge import judge  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _same_default():
    """Programs choose the precision of the process."""
    default = torch.get_default_dtype()
    yield
    torch.set_default_dtype(default)


@pytest.mark.parametrize("seed", [0, 5, 7, 8, 10, 12, 14, 16, 17, 30])
def test_fixed_programs_are_right(seed):
    program = generate("torch", seed)
    outcome = judge(program, runner_of("torch"), blocks=4)
    assert outcome.kind == "right", f"{outcome}\n{text_of(program)}"


def test_a_biased_estimator_is_found():
    program = dataclasses.replace(
        generate("torch", 5), estimators=("stl", "gdregs"), num_samples=4, objective="IWAE()"
    )
    assert judge(program, runner_of("torch"), blocks=4).kind == "biased"
