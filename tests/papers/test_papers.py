"""The experiments measure what they say, and their command leaves what it should."""

import dataclasses
import functools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from PIL import Image

import gdregs
from gdregs.cli import main
from gdregs.papers.experiments import (
    cross_entropy,
    linear_model,
    linear_trainings,
    linear_vae,
    mixing,
    toy,
)
from gdregs.papers.experiments.drawn import DrawnNormal
from gdregs.papers.grids.budget import hours, operations_an_image, within
from gdregs.papers.measures import claims
from gdregs.papers.measures.measure import Measured
from gdregs.papers.tables.coverage import format_coverage
from gdregs.vae import Config, load_dataset, make_state, make_task
from gdregs.vae.training.epochs import loss_and_diagnostics


def test_a_drawn_normal_is_the_normal_that_draws_the_same():
    loc, scale = (jax.device_put(np.float32([row])) for row in ([0.3, -1.0], [0.5, 2.0]))
    noise = jax.device_put(np.float32(np.random.default_rng(1).normal(size=(6, 1, 2))))

    class Same(DrawnNormal):
        """The same, spelled out."""

        def log_prob(self, z):
            deviation = (z - self.loc[None]) / self.scale[None]
            terms = -0.5 * deviation**2 - jnp.log(self.scale)[None] - 0.5 * jnp.log(2 * jnp.pi)
            return jnp.sum(terms, axis=-1)

    @gdregs.reexpress.register(Same)
    def _(q, z):
        noise = jax.lax.stop_gradient((z - q.loc[None]) / q.scale[None])
        return gdregs.with_path(z, q.loc[None] + q.scale[None] * noise)

    def value(cls, loc, scale):
        prior = dist.Normal(jnp.zeros((1, 1, 2)), 1.0).to_event(1)
        return jnp.sum(
            gdregs.bound(
                cls(loc, scale, noise), prior, lambda z: jnp.sum(jnp.sin(z), -1),
                key=jax.random.key(0), num_samples=6,
            )
        )  # fmt: skip

    @jax.jit
    def bounds(loc, scale):
        return [
            jax.value_and_grad(functools.partial(value, cls), argnums=(0, 1))(loc, scale)
            for cls in (DrawnNormal, Same)
        ]

    drawn, same = bounds(loc, scale)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), drawn, same)
    with pytest.raises(ValueError, match="There is noise"):
        DrawnNormal(loc, scale, noise).sample(jax.random.key(0), (7,))


TOY = toy.Settings(dim=3, num_data=8)


def test_toy_moments_by_the_means_are_those_by_a_and_b(float64):
    """A draw of the gradient by (A, b), directly, and by way of the gradients by the means."""

    @jax.jit
    def both(key):
        problem = jax.tree.map(lambda a: a.astype("float64"), toy.make_problem(TOY))
        # The noise of make_draw's only block.
        noise = jax.random.normal(jax.random.split(key, 1)[0], (5, 8, 3))

        def value(weight, bias):
            loc = problem.x @ weight.T + bias[None]
            posterior = DrawnNormal(loc, jnp.full((8, 3), (2 / 3) ** 0.5), noise)
            bound = gdregs.bound(
                posterior,
                dist.Normal(problem.theta[None, None], 1.0).to_event(1),
                lambda z: dist.Normal(z, 1.0).to_event(1).log_prob(problem.x[None]),
                key=key,
                num_samples=5,
                prior_estimator="naive",
            )
            return jnp.mean(bound)

        gradients, _ = toy.make_draw(5, block_size=8)(key, problem)
        zeros = jax.tree.map(jnp.zeros_like, gradients)
        (means, _), _ = toy.to_parameters(problem, (gradients, 0.0), (zeros, 0.0))
        directly = jax.grad(value, argnums=(0, 1))(problem.weight, problem.bias)
        return means["IWAE-DReGs"], directly

    found, (weight, bias) = both(jax.random.key(0))
    np.testing.assert_allclose(found[:, :3], weight, atol=1e-7)
    np.testing.assert_allclose(found[:, 3], bias, atol=1e-7)


def test_toy_starts_near_the_optimum():
    """At the optimum the posterior's mean is the exact one, (x + theta) / 2."""
    problem = jax.jit(lambda: toy.make_problem(toy.Settings(perturbation=0.0)))()
    x, theta, weight, bias = map(np.asarray, problem)
    np.testing.assert_allclose(x @ weight.T + bias, (x + theta) / 2, atol=1e-5)
    np.testing.assert_allclose(theta, x.mean(0), atol=1e-5)


def test_linear_vae_at_the_generating_parameters_is_exact():
    """Without noise all weights are p(x): the bound has no variance, and its value is known."""
    settings = linear_vae.Settings(num_data=16, perturbation=0.0)

    @jax.jit
    def bounds(key):
        x = linear_model.make_data(0, 16, settings.dim)
        model = linear_vae.generating_model(settings)
        found = jax.vmap(lambda x, key: model.bound(x, key, 4))(x, jax.random.split(key, 16))
        return found, dist.Normal(jnp.zeros(5), 3**0.5).to_event(1).log_prob(x)

    found, expected = bounds(jax.random.key(0))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_linear_vae_training_climbs_and_learns_a_mix():
    x = linear_model.make_data(0, 32, 5)
    learned = gdregs.LearnedMix(("z1", "z2"), where=lambda gradient: gradient.theta)
    model = linear_model.initial_model(1, 5)
    start = linear_model.Trained(model, learned.init(model))
    run = linear_model.make_training(x, num_samples=4, learning_rate=0.05, mix=learned)
    state, bounds = run(start, jax.random.key(0), 60)
    assert bounds[-10:].mean() > bounds[:10].mean() + 1
    assert state.mix.alpha["z1"] != 0.5
    assert state.mix.alpha["z2"] == 0.5  # the top has nothing to learn
    assert state.mix.count == 60


@pytest.mark.slow
def test_cross_entropy_judges_a_wrong_closed_form():
    """The page of claims would notice a closed form that is wrong by a fifth."""
    settings = cross_entropy.Settings(num_groups=2, num_draws=10_000)
    result = cross_entropy.run(settings)
    by_source = {claim.source: claim for claim in result.claims if "printed" not in claim.statement}
    assert by_source["(H.6)"].verdict == "holds"
    grid = settings.grid()
    variance = result.numbers["variance"]["naive"]["sigma"]
    z = [
        abs(point["value"] - 1.2 * truth) / point["error"]
        for point, truth in zip(variance, grid.naive_variance_sigma(), strict=True)
    ]
    assert max(z) > 6
    misprints = [claim for claim in result.claims if "printed" in claim.statement]
    assert [claim.verdict for claim in misprints] == ["does not hold"] * 2


def test_mixing_takes_the_learned_alpha_on_the_same_samples():
    point = mixing.Point(
        3,
        {"z1": 0.5},
        {
            "naive": {"z1": np.array([4.0, 4.2, 3.8])},
            "gdregs": {"z1": np.array([2.0, 2.1, 1.9])},
            "mix": {"z1": np.array([1.0, 1.05, 0.95])},
        },
    )
    ratio = mixing.ratio_to_better(point, "z1")
    np.testing.assert_allclose(ratio.value, 0.5, rtol=1e-6)


@pytest.fixture
def quicker(monkeypatch):
    """A quick run's linear VAEs with two values of K in place of three: each is a program."""

    def change(module, **changes):
        quick = module.quick
        monkeypatch.setattr(
            module, "quick", lambda settings: dataclasses.replace(quick(settings), **changes)
        )

    change(linear_vae, sizes=(1, 4), first_fitted=1, steps=20)
    change(linear_trainings, trained_with=(1,), sizes=(4,))


@pytest.fixture
def of_one_k(monkeypatch):
    """Draws with one K stand for those with any: each K is a program, and shows nothing new."""
    for module in (toy, linear_vae):
        # Two draws with every K, too.
        quick = module.quick
        monkeypatch.setattr(
            module,
            "quick",
            lambda settings, quick=quick: dataclasses.replace(quick(settings), budget=2),
        )
        compile_once = functools.cache(module.compile_measurement)
        monkeypatch.setattr(module, "compile_measurement", compile_once)
        monkeypatch.setattr(module, "make_draw", _only(module.make_draw, 4))


def _only(make_draw, num_samples):
    draws = []

    def make(*arguments):
        if not draws:
            draws.append(make_draw(*arguments[:-1], num_samples))
        return draws[0]

    return make


@pytest.mark.parametrize(
    "programs",
    [
        pytest.param("of_one_k", marks=pytest.mark.slow),
        pytest.param("quicker", marks=pytest.mark.nightly),
    ],
)
@pytest.mark.usefixtures("quicker")
def test_reproduce_leaves_results_figures_and_a_page(capsys, tmp_path, request, programs):
    request.getfixturevalue(programs)
    assert main(["reproduce", "all-analytic", "--quick", "--out", str(tmp_path / "r")]) == 0
    out = capsys.readouterr().out
    assert "claims.md: every claim with its measurement" in out
    names = {"toy", "linear-vae", "linear-vae-generating", "indirect-scores", "cross-entropy"}
    for name in names:
        with Image.open(tmp_path / "r" / f"{name}.png") as image:
            assert min(image.size) > 300
        assert (tmp_path / "r" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    page = (tmp_path / "r" / "claims.md").read_text()
    for title in (toy.TITLE, linear_vae.TITLE, cross_entropy.TITLE):
        assert f"## {title}" in page
    assert page.count("A quick run") == 3
    for name in ("toy", "linear-vae", "cross-entropy"):
        content = json.loads((tmp_path / "r" / f"{name}.json").read_text())
        assert content["quick"]
        assert len(content["claims"]) > 8
        assert content["draws"]

    # What is not ours stays.
    (tmp_path / "r" / "toy.json").write_text("{}")
    assert main(["reproduce", "toy", "--quick", "--out", str(tmp_path / "r")]) == 2
    assert "is not a result of `gdregs reproduce toy`" in capsys.readouterr().err
    assert (tmp_path / "r" / "toy.json").read_text() == "{}"
    assert main(["reproduce", "toy", "--seed", "-1"]) == 2
    assert "--seed must not be negative" in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.usefixtures("quicker")
def test_reproduce_several_trainings(tmp_path):
    assert main(["reproduce", "linear-vae-trainings", "--quick", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "linear-vae-trainings.json").read_text())
    assert set(content["trainings"]) == {"1"}
    trainings = content["trainings"]["1"]
    one, other = (training[linear_trainings.SNR_OF_STL]["4"] for training in trainings)
    assert one["value"] != other["value"]
    assert len(content["claims"]) == 4
    # The SNR is known at the K of the training as well, the ratios where estimators are compared.
    assert set(trainings[0][linear_trainings.SNR_OF_NAIVE]) == {"1", "4"}
    assert set(trainings[0][linear_trainings.SNR_OF_STL]) == {"4"}
    assert (tmp_path / "linear-vae-trainings.png").exists()


@pytest.mark.parametrize(("at_4", "verdict"), [(0.1, "holds"), (0.9, "does not hold")])
def test_the_dip_is_judged_against_the_least_of_all_other_k(at_4, verdict):
    trainings = [
        {
            linear_trainings.SNR_OF_NAIVE: {
                size: Measured(value * noise, 0.0)
                for size, value in {1: 0.4, 4: at_4, 16: 0.7}.items()
            }
        }
        for noise in (0.99, 1.0, 1.01)
    ]
    (claim,) = claims.judge([linear_trainings.find_dip(4, trainings)])
    np.testing.assert_allclose(claim.value, at_4 / 0.4)
    assert claim.verdict == verdict


def test_estimators_are_compared_between_trainings_and_at_every_k():
    def training(number, at_10):
        ratios = {10: at_10 + number, 100: 8.0 + number / 10}
        found = {size: Measured(value, 0.0) for size, value in ratios.items()}
        return dict.fromkeys(linear_trainings.RATIOS, found)

    def verdicts(at_10):
        statements = linear_trainings.compare_estimators(
            4, [training(number, at_10) for number in range(3)]
        )
        return claims.judge(statements)

    stl, variance, gain = verdicts(1.0)
    assert stl.value == gain.value == 2  # the smallest ratio, of three trainings: 1, 2 and 3
    np.testing.assert_allclose(2 * stl.error, 4.303 / 3**0.5, rtol=1e-3)  # t of 2 degrees
    assert (stl.verdict, gain.verdict) == ("undecided", "undecided")
    np.testing.assert_allclose(variance.value, 8.1)
    assert variance.verdict == "does not hold"  # it is larger at one K
    assert "K = 10: 1, 2, 3; K = 100: 8, 8.1, 8.2" in variance.note
    stl, variance, gain = verdicts(50.0)
    assert (stl.verdict, gain.verdict) == ("holds", "holds")


def test_early_in_training_is_judged_by_the_worst_of_the_first_measurements():
    def point(time, ratio):
        variance = {"naive": {"z1": np.ones(4)}, "gdregs": {"z1": np.full(4, ratio)}}
        return mixing.Point(time, {"z1": 0.5}, variance)

    claim = mixing.judge_early([point(0, 1.03), point(25, 1.23), point(50, 0.87)])
    np.testing.assert_allclose(claim.value, 1.23)
    assert claim.verdict == "does not hold"
    assert "step 50" in claim.note
    assert mixing.judge_early([point(0, 0.9), point(25, 0.8)]).verdict == "holds"


@pytest.mark.slow
def test_reproduce_mixing(tmp_path, monkeypatch):
    follow = functools.cache(mixing.follow_digits)
    # Training with the naive estimator has programs of its own, and nothing else that is new.
    monkeypatch.setattr(
        mixing, "follow_digits", lambda settings, _, progress: follow(settings, "dregs", progress)
    )
    assert main(["reproduce", "mixing", "--quick", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "mixing.json").read_text())
    assert set(content["runs"]) == {mixing.LINEAR, mixing.DIGITS, mixing.DIGITS_NAIVE}
    digits = content["runs"][mixing.DIGITS]
    assert digits[0]["alpha"] == {"z1": 0.5}
    variance = digits[0]["variance"]
    ends = variance["naive"]["z1"], variance["gdregs"]["z1"]
    assert variance["mix"]["z1"] <= np.mean(ends) * (1 + 1e-5)  # a variance is convex
    assert digits[-1]["alpha"]["z1"] != 0.5
    assert (tmp_path / "mixing.png").exists()


@pytest.mark.slow
def test_what_a_cell_costs_is_what_the_compiler_counts():
    """Operations of a training step, against XLA's count of its program."""
    settings = {"dataset": "digits", "num_layers": 2, "num_samples": 32, "batch_size": 16}
    data = load_dataset("digits")
    for changes in ({"gradient_samples": 0}, {"gradient_samples": 4, "conditional": True}):
        config = Config(**settings, **changes, epochs=1, train_images=16)
        task = make_task(config, data)
        images = task.observe(jax.random.key(0), task.train)
        step = jax.jit(
            lambda model, config=config, task=task, images=images: eqx.filter_grad(
                lambda model: loss_and_diagnostics(model, config, task, images, jax.random.key(0))[
                    0
                ]
            )(model)
        )
        counted = step.lower(make_state(config, task).model).compile().cost_analysis()["flops"]
        assert 0.75 < 16 * operations_an_image(config) / counted < 1.1, changes


def test_a_budget_buys_what_decides_most():
    cells = [
        Config(dataset="mnist", num_layers=count, posterior_estimator=pair)
        for count in (1, 2)
        for pair in ("naive", "dregs")
    ]
    costs = [hours(cell, 1) for cell in cells]
    both = sum(costs) * 1.01
    assert len(within(cells, 1, both, {})[0]) == 4
    chosen, spent = within(cells, 1, both / 2, {"mnist-L1": 0, "mnist-L2": 9})
    assert {cell.task for cell in chosen} <= {"mnist-L1", "mnist-L2"}
    assert spent <= both / 2
    chosen, _ = within(cells, 1, sum(costs[2:]) * 1.01, {"mnist-L1": 0, "mnist-L2": 9})
    assert {cell.task for cell in chosen} == {"mnist-L2"}


def test_the_page_of_lengths(tmp_path):
    cell = {
        "row": "mnist-L2", "pair": "dregs+gdregs", "seeds": [0, 1, 2],
        "config": Config(dataset="mnist", epochs=30, train_images=8192).to_dict(),
    }  # fmt: skip
    content = {"experiment": "table2", "cells": [cell], "resampled": [], "comparisons": []}
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "table2.json").write_text(json.dumps(content))
    page = format_coverage(tmp_path)
    assert "30 × 8,192 × 3" in page
    assert "1 of 36 cells have been trained" in page
    assert "0 of 54 cells have been trained" in page
    # Cells that a figure was trained for count as well.
    (tmp_path / "figures.json").write_text(json.dumps(content | {"experiment": "figures"}))
    (tmp_path / "part" / "table2.json").unlink()
    assert "1 of 36 cells have been trained" in format_coverage(tmp_path)


@pytest.mark.nightly
def test_reproduce_sequences(tmp_path):
    assert main(["reproduce", "sequences", "--quick", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "sequences.json").read_text())
    ratios = content["variance_over_naive"]["phi"]["DReGs + GDReGs"]
    assert set(ratios) == {"3", "10"}
    assert all(0 < ratio["value"] < 1 for ratio in ratios.values())
    right = [claim for claim in content["claims"] if "has the mean of" in claim["statement"]]
    assert [claim["verdict"] for claim in right] == ["holds", "holds"]
