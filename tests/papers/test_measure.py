"""Standard errors, rates, biases and verdicts of the experiments, on numbers with known answers."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from gdregs.papers.measures import claims
from gdregs.papers.measures.curves import (
    largest_z_score,
    relative_bias,
    summarise,
    table,
    variance_ratio,
)
from gdregs.papers.measures.measure import (
    Measured,
    Moments,
    bootstrap,
    compile_measurement,
    jackknife,
    slope,
    squared_norm,
    typical,
)
from gdregs.papers.measures.results import Result, check_folder, write_page, write_result
from gdregs.vae.errors import UserError


def test_groups_have_the_moments_of_their_draws():
    measurement = compile_measurement(
        lambda key, scale: {"g": 2 + scale * jax.random.normal(key, (3,))},
        num_draws=400,
        chunk_size=50,
        reduce=lambda mean, variance: (mean, variance),
    )
    costs = []
    moments = measurement.run(jax.random.key(0), 3.0, 5, costs.append, 7)
    assert costs == [7] * 5
    assert moments.mean["g"].shape == (5, 3)
    assert moments.num_draws == 400
    np.testing.assert_allclose(moments.mean["g"].mean(), 2, atol=4 * 3 / np.sqrt(6000))
    np.testing.assert_allclose(moments.variance["g"].mean(), 9, rtol=4 * np.sqrt(2 / 6000))
    assert len(np.unique(moments.mean["g"])) == 15  # groups and entries have their own draws


def test_memory_does_not_grow_with_the_draws():
    def memory(num_draws):
        measurement = compile_measurement(
            lambda key, scale: scale * jax.random.normal(key, (1000,)),
            num_draws=num_draws,
            chunk_size=10,
        )
        program = measurement.group.lower(jax.random.key(0), 1.0).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert memory(10_000) <= memory(20)


def test_jackknife_gives_the_error_of_a_mean_and_removes_bias():
    values = np.random.default_rng(0).normal(5, 2, size=40)
    mean = jackknife(lambda groups: values[groups].mean(), 40)
    np.testing.assert_allclose(mean.value, values.mean())
    np.testing.assert_allclose(mean.error, values.std(ddof=1) / np.sqrt(40))
    square = jackknife(lambda groups: values[groups].mean() ** 2, 40)
    np.testing.assert_allclose(square.value, values.mean() ** 2 - values.var(ddof=1) / 40)


def test_bootstrap_gives_the_error_of_a_median():
    rng = np.random.default_rng(3)
    errors, medians = [], []
    for _ in range(80):
        values = rng.normal(5, 2, size=41)
        found = bootstrap(lambda groups, values=values: np.median(values[groups]), 41)
        assert found.value == np.median(values)
        errors.append(found.error)
        medians.append(found.value)
    assert abs(np.mean(errors) / np.std(medians) - 1) < 0.25
    wild = np.full((9, 2), 3.0)
    wild[4] = 1e9
    np.testing.assert_array_equal(typical(wild), 3.0)


def test_squared_norm_is_unbiased():
    rng = np.random.default_rng(1)
    mean = np.array([3.0, -4.0])
    found = [squared_norm(mean + rng.normal(size=(6, 2))) for _ in range(4000)]
    error = np.std(found) / np.sqrt(4000)
    assert abs(np.mean(found) - 25) < 4 * error
    assert error < 0.1
    naive = [np.sum((mean + rng.normal(size=(6, 2))).mean(0) ** 2) for _ in range(4000)]
    assert abs(np.mean(naive) - 25) > 4 * error  # what it is there to avoid


def test_numbers_are_printed_with_the_digits_that_they_have():
    assert str(Measured(0.12345, 0.0123)) == "0.123 ± 0.012"
    assert str(Measured(1234.5, 30.0)) == "1,234 ± 30"
    assert str(Measured(3e-9, 2e-10)) == "3.00e-09 ± 2.0e-10"
    assert str(Measured(2.0, 0.0)) == "2"
    assert str(Measured(0.12345, float("inf"))) == "0.1235"  # of one training


def synthetic(power=0.5, bias=0.0, groups=8, parameters=50):
    """Two estimators of one gradient: `noisy` with variance K^-1, `quiet` with K^(-2 power - 1)."""
    rng = np.random.default_rng(2)
    truth = rng.normal(size=parameters)
    results = {}
    for size in (1, 10, 100, 1000):
        mean, variance = {}, {}
        for name, rate in (("noisy", 1.0), ("quiet", 2 * power + 1)):
            scale = size ** (-rate)
            draws = rng.normal(size=(groups, 20, parameters)) * scale**0.5 + truth / size
            mean[name], variance[name] = draws.mean(1), draws.var(1, ddof=1)
        draws = rng.normal(size=(groups, 20, parameters)) * 0.01 + bias
        mean["difference"], variance["difference"] = draws.mean(1), draws.var(1, ddof=1)
        results[size] = Moments(mean, variance, 20)
    return results


def test_curves_find_rates_that_were_put_in():
    results = synthetic(power=1.0)
    curves = summarise(results, {"noisy": "quiet", "quiet": "quiet"}, first_fitted=10)
    for name, quantity, expected in (
        ("noisy", "variance_slope", -1.0),
        ("quiet", "variance_slope", -3.0),
        ("noisy", "snr_slope", -0.5),
        ("quiet", "snr_slope", 0.5),
    ):
        found = curves[name][quantity]
        assert abs(found.value - expected) < max(4 * found.error, 0.02), (name, quantity, found)
        assert 0 < found.error < 0.1
    assert curves["noisy"]["sizes"] == [1, 10, 100, 1000]
    later = summarise(results, {"quiet": "quiet"}, first_fitted=10, least={"quiet": 10})
    assert later["quiet"]["sizes"] == [10, 100, 1000]
    ratio = variance_ratio(results, "quiet", "noisy")[100]
    assert abs(ratio.value - 1e-4) < 4 * ratio.error
    json.dumps(table(curves))
    np.testing.assert_allclose(slope([1, 10, 100], [5, 50, 500]), 1.0)


def test_bias_is_found_where_there_is_one_and_not_elsewhere():
    none, some = synthetic(bias=0.0), synthetic(bias=0.02)
    assert largest_z_score(none, "difference") < 4.5
    assert largest_z_score(some, "difference") > 20
    for results, biased in ((none, False), (some, True)):
        bias = relative_bias(results, "difference", "quiet")[100]
        assert (bias.value > 4 * bias.error) == biased


def test_verdicts_clear_three_standard_errors():
    def verdicts(value):
        measured = Measured(value, 0.1)
        return [
            claims.at_most("", "", "", measured, 1.0).verdict,
            claims.at_least("", "", "", measured, 1.0).verdict,
            claims.within("", "", "", measured, 1.0, 0.5).verdict,
        ]

    assert verdicts(0.6) == ["holds", "does not hold", "undecided"]
    assert verdicts(1.0) == ["undecided", "undecided", "holds"]
    assert verdicts(1.31) == ["does not hold", "holds", "undecided"]
    assert verdicts(2.0) == ["does not hold", "holds", "does not hold"]
    assert claims.no_outlier("", "", "", 3.0, 4.0).verdict == "holds"
    assert claims.no_outlier("", "", "", 5.0, 4.0).verdict == "does not hold"
    # Not a number decides nothing in its favour.
    assert claims.at_most("", "", "", Measured(float("nan"), 0.1), 1.0).verdict == "undecided"
    assert claims.no_outlier("", "", "", float("nan"), 4.0).verdict == "does not hold"


@dataclasses.dataclass(frozen=True)
class Settings:
    seed: int = 0


TOY = {"toy": ("toy",)}


def example(value=2.0):
    rows = [
        claims.at_least("Sec. 1", "It grows.", "slope:", Measured(value, 0.1), 0.0),
        claims.at_most("Sec. 2", "It falls.", "slope:", Measured(value, 0.1), 0.0, "Because."),
    ]
    return Result(Settings(), {"numbers": [1]}, rows, {})


def test_results_say_where_they_come_from_and_are_not_written_over(tmp_path):
    folder = tmp_path / "results"
    check_folder(folder, TOY, quick=False)
    assert write_result(folder, "toy", example(), seconds=1.0, quick=False) == ["toy.json"]
    content = json.loads((folder / "toy.json").read_text())
    assert content["settings"] == {"seed": 0}
    assert content["versions"]["jax"] == jax.__version__
    assert {"command", "date", "hardware", "seconds"} <= set(content)
    write_page(folder, {"toy": "Toy", "mixing": "Not there"})
    page = (folder / "claims.md").read_text()
    assert "| Sec. 1 | It grows. | slope: 2.00 ± 0.10 | > 0 | **holds** |" in page
    assert "**does not hold** (1)" in page
    assert "1. Because." in page
    assert "Not there" not in page

    check_folder(folder, TOY, quick=False)  # the same experiment may replace its own
    (folder / "toy.png").write_text("my own picture")
    with pytest.raises(UserError, match=r"toy.png is not a figure of `gdregs reproduce toy`"):
        check_folder(folder, TOY, quick=False)
    (folder / "toy.png").unlink()
    with pytest.raises(UserError, match="of a full run; choose another --out"):
        check_folder(folder, TOY, quick=True)
    (folder / "mixing.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match="is not a result of `gdregs reproduce mixing`"):
        check_folder(folder, {"mixing": ()}, quick=False)
    (folder / "claims.md").write_text("my own notes")
    with pytest.raises(UserError, match="is not a page of claims"):
        check_folder(folder, TOY, quick=False)
    with pytest.raises(UserError, match="cannot be made"):
        check_folder(folder / "toy.json" / "x", TOY, quick=False)
