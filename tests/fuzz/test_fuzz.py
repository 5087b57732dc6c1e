"""Programs made at random: that they are reproducible, and what judges them."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
import pytest

import gdregs
from fuzzing import exact
from fuzzing.execution import run_text
from fuzzing.frontends import runner_of, text_of
from fuzzing.grammar import generate
from fuzzing.judge import is_refusal, judge
from fuzzing.minimise import minimise, reductions
from fuzzing.numpyro_families import SUPPORTS
from fuzzing.statistics import compare

FIXED = {"core": (19, 25), "numpyro": (3, 4)}
"""Seeds that compile in little time; with those of PyTorch and Pyro they are twenty."""


@pytest.fixture
def as_users_run():
    """Without the stricter settings of the tests, which are put back."""
    before = jax.config.jax_numpy_rank_promotion, jax.config.jax_enable_x64
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_rank_promotion", before[0])
    jax.config.update("jax_enable_x64", before[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("frontend", "seed"), [(name, seed) for name, seeds in FIXED.items() for seed in seeds]
)
def test_fixed_programs_are_right(frontend, seed, as_users_run):
    outcome = judge(generate(frontend, seed), runner_of(frontend), blocks=16)
    assert outcome.kind == "right", f"{outcome}\n{text_of(generate(frontend, seed))}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_biased_estimator_is_found(as_users_run):
    program = dataclasses.replace(
        generate("core", 6), estimators=("stl", "gdregs"), num_samples=4, objective="IWAE()"
    )
    assert judge(program, runner_of("core"), blocks=16).kind == "biased"


@pytest.mark.parametrize("frontend", ["core", "numpyro"])
def test_a_program_is_a_function_of_its_seed_and_can_be_compiled(frontend):
    for seed in range(30):
        program = generate(frontend, seed)
        assert program == generate(frontend, seed)
        compile(text_of(program), "<program>", "exec")
        for smaller in reductions(program):
            compile(text_of(smaller), "<smaller>", "exec")


def test_every_family_is_in_every_place():
    seen = set()
    for seed in range(1500):
        program = generate("core", seed)
        for latent in program.latents:
            for side in ("posterior", "prior"):
                density = getattr(latent, side)
                seen.add((density.family, side, bool(density.parents)))
    families = {
        (name, side)
        for support in SUPPORTS.values()
        for name in support.families
        for side in ("posterior", "prior")
    }
    assert families <= {(name, side) for name, side, _ in seen}


def rows(shift, spread=1.0):
    """A sampler of one entry and a value."""

    def draw(seed):
        rng = np.random.default_rng(seed)
        return shift + spread * rng.normal(size=(200, 2))

    return draw


def test_means_are_compared_until_they_are_decided():
    names = ["a", "value"]
    assert compare(rows(0.0), rows(0.0), names, rounding=0.0).kind == "right"
    verdict = compare(rows(0.05), rows(0.0), names, rounding=0.0)
    assert verdict.kind == "biased"
    assert verdict.draws == 4 * 64 * 200  # a second look, at four times the draws

    def heavy(seed):
        rng = np.random.default_rng(seed)
        return rng.pareto(0.5, size=(200, 2))

    assert compare(heavy, rows(0.0), names, rounding=0.0).kind == "undecided"


def test_what_is_not_finite_is_a_failure_where_the_evaluator_is():
    def broken(seed):
        found = rows(0.0)(seed)
        found[0, 0] = np.nan
        return found

    assert compare(broken, rows(0.0), ["a", "value"], rounding=0.0).kind == "nan"
    assert compare(broken, broken, ["a", "value"], rounding=0.0).kind == "right"


def test_a_constant_has_the_derivative_1_for_each_datapoint():
    program = dataclasses.replace(generate("core", 5), x=(0.1, 0.2))
    right = np.array([[2.0, -1.0], [2.0, -3.0]])
    assert exact.constant(program, ["constant", "value"], right) == ""
    assert "is 1.9" in exact.constant(program, ["constant", "value"], right - [0.1, 0.0])


def test_a_sentence_of_ours_is_a_refusal_and_an_error_of_another_is_not():
    def raised(call):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            call()
        return caught.value

    assert is_refusal(raised(lambda: gdregs.Hierarchy({"z": (None, ("y",))})))
    assert not is_refusal(raised(lambda: run_text("1 / 0", keeps_imports=True)))


class Broken:
    """A runner that fails wherever a program has a factor."""

    names: ClassVar = ["value"]
    rounding, blocks, by_block = 0.0, 1, False

    def __init__(self, program):
        self.program = program

    def ours(self, seed):
        if self.program.has_factors:
            raise IndexError("of another library")
        return self.peer(seed)

    def peer(self, seed):
        return np.random.default_rng(seed).normal(size=(10, 1))

    def properties(self):
        return ""


def test_what_fails_is_made_smaller_until_the_cause_is_left():
    program = next(
        made
        for made in (generate("core", seed) for seed in range(1000))
        if made.has_factors and len(made.latents) > 2
    )
    small = minimise(program, Broken)
    assert small.has_factors
    assert (len(small.latents), small.num_samples) == (1, 1)
    assert small.chunk_size is None
    assert small.observed.factor is None
