"""Tables of trained cells: what is read from the runs, and the verdicts on the papers' orders."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from gdregs.papers.grids.grid import GRIDS, Scale, shrink
from gdregs.papers.image_models import Only, write_results
from gdregs.papers.measures.looks import describe_look
from gdregs.papers.measures.measure import mean
from gdregs.papers.tables.cells import cell_from_dict, cell_from_rows, join
from gdregs.papers.tables.comparisons import (
    AGREES,
    DISAGREES,
    OPEN,
    compare,
    rank_correlation,
)
from gdregs.papers.tables.differences import difference_over_training, draw_differences
from gdregs.papers.tables.figures import CURVES, LAYOUTS, draw_cells
from gdregs.papers.tables.published import published_bound

LAST = 4


def make_cell(config, bounds, epochs=LAST):
    """Made-up metrics whose last test objectives are the given ones."""
    rows = tuple(
        [
            {
                "epoch": epoch,
                "train_bound": bound - (epochs - epoch) - 1,
                "test_bound": bound - (epochs - epoch),
                "kl": {"z1": 3.0, "z2": 1.5},
                "variance": {"posterior": 9.0 * epoch, "prior": 4.0, "likelihood": 2.0},
                "effective_sample_size": 2.5,
                "test_effective_sample_size": 2.0,
                "weight_kept": 1.0,
                "images_per_second": 700.0,
                "seconds": 1.0,
            }
            for epoch in range(1, epochs + 1)
        ]
        for bound in bounds
    )
    return cell_from_rows(config, range(len(bounds)), rows)


def row_of_table_1(shifts):
    """MNIST with 2 layers, at the published numbers plus a shift of each pair, with five seeds."""
    configs = Only(("mnist",), (2,)).choose(GRIDS["table1"].cells)
    noise = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])
    cells = []
    for config in configs:
        bounds = published_bound("table1", config).value + shifts.get(config.pair, 0.0) + noise
        cells.append(make_cell(config, list(np.array(bounds) + 1e-3 * len(cells) * noise)))
    return cells


def test_the_published_order_agrees_with_itself():
    cells = row_of_table_1({})
    comparisons = compare("table1", cells)
    assert len(comparisons) == 2 + 2 + 3
    verdicts = {(c.better, c.worse): c.verdict for c in comparisons}
    assert verdicts["dregs+naive", "naive+naive"] == AGREES
    assert verdicts["naive+gdregs", "naive+naive"] == AGREES
    assert DISAGREES not in verdicts.values()
    assert rank_correlation("table1", cells) == pytest.approx(1.0)


def test_a_reversed_order_disagrees_and_a_small_difference_is_undecided():
    verdicts = {
        (c.better, c.worse): c.verdict
        for c in compare("table1", row_of_table_1({"dregs+naive": -1.0, "naive+gdregs": -0.13}))
    }
    assert verdicts["dregs+naive", "naive+naive"] == DISAGREES
    assert verdicts["naive+gdregs", "naive+naive"] == OPEN
    # What the source itself leaves open can neither agree nor disagree: -38.24 against -38.20.
    assert published_bound("table1", GRIDS["table1"].cells[8]).value == -38.24
    assert rank_correlation("table1", row_of_table_1({"dregs+gdregs": -9.0})) < 0.5


def test_the_learned_mix_is_compared_with_both_that_it_mixes():
    cells = row_of_table_1({})
    mix = next(cell for cell in GRIDS["table1"].mixes if cell.task == cells[0].config.task)
    best = next(cell for cell in cells if cell.pair == "dregs+gdregs")
    gained = best.last["test_bound"] + np.array([0.3, 0.31, 0.29, 0.3, 0.3])[: len(best.seeds)]
    found = compare("table1", [*cells, make_cell(mix, list(gained))])
    mixed = [one for one in found if one.better == "dregs+gdregs-mix"]
    assert {one.worse for one in mixed} == {"dregs+naive", "dregs+gdregs"}
    assert all(one.published is None for one in mixed)
    assert {one.verdict for one in mixed} == {"agrees"}  # nothing published: above 0 is expected


def test_many_comparisons_need_more_than_one():
    """p = 0.02 over ten seeds decides a comparison that is alone, and not one of two like it."""
    configs = [c for c in GRIDS["digits"].cells if c.pair in ("naive+naive", "dregs+naive")]
    noise = np.linspace(-1, 1, 10)
    gain = stats.t.isf(0.01, 9) * noise.std(ddof=1) / 10**0.5
    pairs = [
        [make_cell(c, list(np.zeros(10) if c.pair == "naive+naive" else gain + noise)) for c in row]
        for row in (configs[:2], configs[2:4])
    ]
    (alone,) = compare("digits", pairs[0])
    assert (alone.p_value, alone.verdict) == (pytest.approx(0.02), AGREES)
    together = compare("digits", [*pairs[0], *pairs[1]])
    assert [c.p_value for c in together] == pytest.approx([0.04, 0.04])
    assert {c.verdict for c in together} == {OPEN}


def two_cells(differences, naive=0.0):
    """Digits with one layer: naive + naive, and DReGs, whose seeds differ from it by these."""
    configs = Only(("digits",), (1,), ("naive+naive", "dregs+naive")).choose(GRIDS["digits"].cells)
    bounds = np.full(len(differences), naive)
    return [make_cell(configs[0], list(bounds)), make_cell(configs[1], list(bounds + differences))]


def test_between_two_looks_nothing_is_decided():
    """Of all seeds so far, p is 0.083 at two, 0.017 at three, 0.0018 at four, 0.00016 at five."""
    differences = [1.0, 1.3, 1.6, 1.3, 1.3]
    for count, p_value, verdict in ((2, 0.083, OPEN), (3, 0.0173, OPEN), (4, 0.0173, OPEN)):
        (found,) = compare("digits", two_cells(differences[:count]))
        assert (found.p_value, found.verdict) == (pytest.approx(p_value, rel=0.02), verdict)
        assert found.ours.value == pytest.approx(np.mean(differences[:count]))
    assert describe_look(2) == "; nothing is decided before 3 seeds"
    assert describe_look(4) == " at the first 3 of 4 seeds; looks are at 3, 5, 10"
    assert describe_look(3) == describe_look(10) == ""
    (found,) = compare("digits", two_cells(differences))
    assert found.p_value < 0.015
    assert found.verdict == AGREES


def test_what_one_look_decides_stays_decided():
    """Even where later seeds take it back, or the seeds between two looks do."""
    clear, back = [1.0, 1.01, 0.99], [-3.0, -4.0]
    for later in ([], back[:1], back):
        (found,) = compare("digits", two_cells(clear + later))
        assert found.verdict == AGREES
    assert found.p_value > 0.05
    (found,) = compare("digits", two_cells([*clear[:2], *back, clear[2]]))
    assert found.verdict == OPEN


def test_the_poster_compares_objectives():
    cells = [
        make_cell(c, [-90.0 - i, -90.1 - i, -90.2 - i])
        for i, c in enumerate(Only(tasks=("mnist-L1",)).choose(GRIDS["poster"].cells))
    ]
    found = [(c.question, c.better, c.worse) for c in compare("poster", cells)]
    assert ("IWAE-DReGs against JVI-DReGs, φ", "dregs+naive", "dregs+naive, jvi") in found
    assert ("IWAE-DReGs against RWS-DReGs, φ", "dregs+naive", "rws-dregs+naive") in found
    assert len(found) == 6


def test_one_seed_decides_nothing():
    cells = [make_cell(cell.config, [cell.last["test_bound"][0]]) for cell in row_of_table_1({})]
    assert {comparison.verdict for comparison in compare("table1", cells)} == {OPEN}


def test_differences_are_taken_seed_by_seed():
    """Seeds that differ by 5 nats do not hide a difference of 0.1 in each of them."""
    seeds = np.array([-20.0, -15.0, -25.0])
    (comparison,) = compare("digits", two_cells([0.1, 0.11, 0.09], seeds))
    assert comparison.ours.value == pytest.approx(0.1)
    assert comparison.ours.error == pytest.approx(0.01 / 3**0.5)
    assert comparison.verdict == AGREES  # nothing is published; the papers say it is better


def test_the_difference_over_training_is_taken_seed_by_seed():
    seeds = np.array([-20.0, -15.0, -25.0])
    naive, dregs = two_cells([1.0, 2.0, 3.0], seeds)
    epochs, centre, width = difference_over_training(dregs, naive)
    assert epochs.tolist() == [1, 2, 3, 4]
    assert centre[-1] == pytest.approx(2)
    assert width[-1] == pytest.approx(4.3027 / 3**0.5, rel=1e-4)  # Student's t, two degrees
    naive, dregs = two_cells([1.0], -2.0)
    _, _, alone = difference_over_training(dregs, naive)
    assert np.isnan(alone).all()


def part(cell, *places):
    """A cell with only some of its seeds."""

    def only(metrics):
        return {name: values[list(places)] for name, values in metrics.items()}

    by_seed = only(cell.by_seed)
    return dataclasses.replace(
        cell,
        seeds=tuple(cell.seeds[place] for place in places),
        last=only(cell.last),
        curves={name: values.mean(axis=0) for name, values in by_seed.items()},
        by_seed=by_seed,
    )


def uneven_cell():
    """Three seeds whose metrics differ by more than a constant."""
    cell = make_cell(GRIDS["digits"].cells[0], [-20.0, -15.5, -25.25])
    cell.by_seed["test_bound"][:, 0] += [1.0, 3.0, -2.0]
    return part(cell, 0, 1, 2)


def test_seeds_that_were_added_later_are_as_if_they_had_been_there():
    whole = uneven_cell()
    written = json.loads(json.dumps(part(whole, 0, 2).to_dict()))
    joined = join(cell_from_dict(written), part(whole, 1))
    assert joined.to_dict() == whole.to_dict()
    with pytest.raises(ValueError, match="differ in their settings"):
        join(whole, make_cell(whole.config, [-1.0], epochs=3))


def test_an_interval_that_is_known_at_the_end_alone_is_drawn_there():
    """Results that were written before curves were kept by seed have means over seeds alone."""
    whole = uneven_cell()
    old = part(whole, 0, 2).to_dict()
    del old["by_seed"]
    joined = join(cell_from_dict(old), part(whole, 1))
    assert joined.by_seed is None
    np.testing.assert_allclose(joined.curves["test_bound"], whole.curves["test_bound"])
    twin = make_cell(GRIDS["digits"].cells[4], [-19.0, -14.0, -22.0])
    _, centre, width = difference_over_training(twin, joined)
    _, expected, known = difference_over_training(twin, whole)
    np.testing.assert_allclose(centre, expected)
    assert np.isnan(width[:-1]).all()
    assert width[-1] == pytest.approx(known[-1])
    assert len(draw_cells([joined], CURVES).axes) == len(CURVES)
    assert draw_differences([joined, make_cell(dregs_twin(joined.config), [-1.0, -2.0, -4.0])])


def dregs_twin(config):
    """The same cell with DReGs."""
    return dataclasses.replace(config, posterior_estimator="dregs")


def test_mean_of_one():
    assert np.isnan(mean(np.array([1.0])).error)


def test_results_have_a_json_a_figure_and_a_page(tmp_path):
    cells = [
        dataclasses.replace(c, epochs=LAST, train_images=640, test_images=107)
        for c in Only(("mnist",), (2,)).choose(GRIDS["table1"].cells)
    ]
    seeds = np.array([-39.0, -39.1, -39.2])
    measured = [make_cell(c, list(seeds - i)) for i, c in enumerate(cells)]
    twin = make_cell(dataclasses.replace(cells[-1], gradient_samples=8), list(seeds))
    lines = write_results(
        tmp_path, "table1", "A title", measured, [twin], "Scaled down: a lot.", {}
    )
    assert lines[0].startswith("A title: of 7 comparisons")
    assert "seeds" not in lines[0]
    content = json.loads((tmp_path / "table1.json").read_text())
    assert len(content["cells"]) == 6
    assert content["cells"][0]["last"]["variance.posterior"] == [36.0] * 3
    assert content["cells"][0]["curves"]["epoch"] == [1, 2, 3, 4]
    page = " ".join((tmp_path / "tables.md").read_text().split())  # columns are padded
    for text in (
        "Scaled down: a lot.", "mnist-conditional-L2", "-38.02 ± 0.02", "| **disagrees**",
        "3.00 + 1.50", "![A title](table1-curves.png)", "| 8 | -39.1", "(table1-differences.png)",
    ):  # fmt: skip
        assert text in page
    # Another grid joins the page; figures have none of their own on it.
    write_results(tmp_path, "figures", "Figures", measured, [], "At full scale.", {})
    assert (tmp_path / "figure6.png").exists()
    assert not (tmp_path / "figure7.png").exists()
    page = (tmp_path / "tables.md").read_text()
    assert "A title" in page
    assert "(Fig. 6)](figure6.png)" in page


def test_variances_are_relative_to_the_first_pair_of_a_row_without_naive(tmp_path):
    every = Only(("mnist",), (2,)).choose(GRIDS["table2"].cells)

    def page_of(*pairs):
        measured = []
        for index, config in enumerate(c for c in every if c.pair in pairs):
            cell = make_cell(config, [-39.0, -39.2])
            cell.last["variance.posterior"] = [8.0 * 2**index] * 2
            measured.append(cell)
        lines = write_results(
            tmp_path, "table2", "A title", measured, [], "Scaled down: a lot.", {}
        )
        assert lines[0].endswith("undecided; nothing is decided before 3 seeds")
        return " ".join((tmp_path / "tables.md").read_text().split())

    page = page_of("dregs+naive", "dregs+gdregs")
    assert "| mnist-L2 | dregs+naive | 1 | 1 | 1 |" in page
    assert "| | dregs+gdregs | 2 | 1 | 1 |" in page
    assert "or with the first pair of a row that has none" in page
    page = page_of("naive+naive", "naive+gdregs", "dregs+naive")
    assert "| mnist-L2 | naive+naive | 1 | 1 | 1 |" in page
    assert "| | dregs+naive | 4 | 1 | 1 |" in page
    assert "of a row that has none" not in page


def test_figures_have_a_panel_for_each_task_and_quantity():
    measured = [
        make_cell(shrink(c, Scale(LAST), 60_000, 10_000), [-39.0, -39.2])
        for c in Only(("mnist",), (1, 2)).choose(GRIDS["table1"].cells)
    ]
    figure = draw_cells(measured, LAYOUTS["figure6"].columns, LAYOUTS["figure6"].tasks)
    assert len(figure.axes) == 2 * 3
    assert [axes.get_title() for axes in figure.axes[:3]] == [
        "test objective", "variance, prior", "variance, posterior",
    ]  # fmt: skip
    assert all(len(axes.lines) == 6 for axes in figure.axes)
    assert len(draw_cells(measured, CURVES).axes) == 2 * len(CURVES)
    assert draw_cells(measured, CURVES, ("fashion-mnist-L3",)) is None


def test_no_two_lines_of_a_row_look_the_same():
    table = GRIDS["table1"]
    rows = [c for c in (*table.cells, *table.mixes) if c.task == "mnist-conditional-L2"]
    for samples in (0, 8):
        configs = [dataclasses.replace(c, gradient_samples=samples) for c in rows]
        figure = draw_cells([make_cell(c, [-39.0, -39.2]) for c in configs], CURVES[:1])
        assert len(_looks(figure)) == len(set(_looks(figure))) == 7
        # Nothing sets off what is the same in all.
        assert {style for _, style in _looks(figure)} == {"--", "-"}
    both = [dataclasses.replace(c, gradient_samples=samples) for c in rows for samples in (0, 8)]
    figure = draw_cells([make_cell(c, [-39.0, -39.2]) for c in both], CURVES[:1])
    assert len(set(_looks(figure))) == 14
    assert sum("M = 8" in line.get_label() for line in figure.axes[0].lines) == 7


def _looks(figure):
    return [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines]


def test_a_prior_without_parameters_has_an_empty_panel():
    cell = make_cell(GRIDS["poster"].cells[0], [-90.0, -90.5])
    cell.curves["variance.prior"][:] = 0
    figure = draw_cells([cell], CURVES)
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert not panels["variance, prior"].lines
    assert len(panels["variance, posterior"].lines) == 1
