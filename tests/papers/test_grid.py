"""The grids of the papers' tables: every row that they print, with its published number."""

import dataclasses

import pytest

from gdregs.papers.command import IMAGE_GRIDS
from gdregs.papers.grids.grid import GRIDS, Scale, cell_name, shrink
from gdregs.papers.image_models import NAMES, Only, describe_scale, find_grid
from gdregs.papers.tables.figures import LAYOUTS
from gdregs.papers.tables.published import load_published, published_bound
from gdregs.vae.data.datasets import load_dataset
from gdregs.vae.runs.compare import PAPER_PAIRS


@pytest.mark.parametrize(("name", "count"), [("table1", 54), ("table2", 36)])
def test_every_published_number_has_a_cell_with_the_papers_settings(name, count):
    cells = GRIDS[name].cells
    assert len(cells) == count
    published = [published_bound(name, cell) for cell in cells]
    assert len({(value.value, value.error) for value in published}) > 0.8 * count
    rows = load_published()[name]["rows"]
    assert count == sum(len(row["bounds"]) for row in rows)
    for cell in cells:
        assert cell.conditional == load_published()[name]["conditional"]
        assert (cell.num_samples, cell.batch_size, cell.epochs) == (64, 64, 1000)
        assert (cell.hidden_size, cell.latent_size, cell.learning_rate) == (300, 50, 3e-4)
        assert cell.gradient_samples == 0  # the backward pass on all K samples
        assert cell.objective == "iwae"
        assert cell.train_images == cell.test_images == 0


def test_published_numbers():
    """Corners and middles of both tables, read from the source by eye."""
    corners = {
        ("table1", "mnist", 1, "naive+naive"): (-38.77, 0.01),
        ("table1", "mnist", 3, "dregs+gdregs"): (-38.04, 0.01),
        ("table1", "omniglot", 2, "stl+gdregs"): (-54.28, 0.02),
        ("table1", "fashion-mnist", 3, "dregs+naive"): (-102.46, 0.01),
        ("table2", "mnist", 2, "dregs+gdregs"): (-85.32, 0.02),
        ("table2", "omniglot", 3, "dregs+gdregs"): (-103.51, 0.06),
        ("table2", "fashion-mnist", 3, "dregs+gdregs"): (-229.87, 0.03),
    }
    for (table, dataset, layers, pair), (value, bar) in corners.items():
        cells = Only((dataset,), (layers,), (pair,)).choose(GRIDS[table].cells)
        assert len(cells) == 1
        found = published_bound(table, cells[0])
        assert found.value == value
        assert found.error == pytest.approx(bar / 1.96)
    assert published_bound("digits", GRIDS["digits"].cells[0]) is None


def test_the_poster_has_three_objectives_naive_and_doubly_reparameterized():
    cells = GRIDS["poster"].cells
    assert all((c.num_layers, c.hidden_size, c.latent_size) == (1, 200, 50) for c in cells)
    tasks = {(cell.dataset, cell.conditional) for cell in cells}
    assert tasks == {("mnist", False), ("omniglot", False), ("mnist", True)}
    for task in tasks:
        kinds = {
            (cell.objective, cell.posterior_estimator)
            for cell in cells
            if (cell.dataset, cell.conditional) == task
        }
        assert kinds >= {
            ("iwae", "naive"), ("iwae", "dregs"), ("iwae", "stl"), ("iwae", "rws"),
            ("iwae", "rws-dregs"), ("jvi", "naive"), ("jvi", "dregs"),
        }  # fmt: skip


def test_one_cell_of_each_task_is_repeated_with_the_resampled_backward_pass():
    for grid in GRIDS.values():
        originals = {dataclasses.replace(twin, gradient_samples=0) for twin in grid.resampled}
        assert originals
        assert originals <= set(grid.cells)
        assert all(twin.gradient_samples == 8 for twin in grid.resampled)


def test_every_row_of_the_tables_has_a_learned_mix():
    for name in ("table1", "table2"):
        grid = GRIDS[name]
        assert {cell.pair for cell in grid.mixes} == {"dregs+gdregs-mix"}
        assert sorted(c.task for c in grid.mixes) == sorted({c.task for c in grid.cells})


def test_names_tell_all_cells_and_scales_apart():
    cells = {
        cell for grid in GRIDS.values() for cell in (*grid.cells, *grid.resampled, *grid.mixes)
    }
    scaled = {shrink(cell, Scale(3, 2, 640), 60_000, 10_000) for cell in cells}
    other = {shrink(cell, Scale(None, 5, None, 4, "glorot"), 60_000, 10_000) for cell in cells}
    assert {(cell.gradient_samples, cell.initial_weights) for cell in other} == {(4, "glorot")}
    everything = cells | scaled | other
    assert len({cell_name(cell) for cell in everything}) == len(everything)


def test_the_command_line_knows_every_grid():
    assert set(IMAGE_GRIDS) == set(NAMES)


def test_figures_show_cells_of_the_tables():
    cells = find_grid("figures").cells
    assert {cell.task for cell in cells} == {
        task for layout in LAYOUTS.values() for task in layout.tasks
    }
    pairs = {(c.task, c.pair) for c in cells}
    assert len(pairs) == len(cells) == 6 * len({cell.task for cell in cells})
    assert {pair for _, pair in pairs} == set(PAPER_PAIRS)


def test_shrinking_keeps_the_share_of_test_images_and_measures_a_twentieth():
    cell = GRIDS["table1"].cells[0]
    small = shrink(cell, Scale(50, 2, 6_000), 60_000, 10_000)
    assert (small.epochs, small.train_images, small.test_images) == (50, 6_000, 1_000)
    assert small.record_every == 3
    assert shrink(cell, Scale(None, 5, 60_000), 60_000, 10_000).train_images == 0
    assert shrink(cell, Scale(), 60_000, 10_000).record_every == 50


def test_the_scale_is_always_said():
    grid, data = GRIDS["digits"], {"digits": load_dataset("digits")}
    everything = grid.cells, grid.resampled
    assert describe_scale(grid, everything, Scale(), data) == "At full scale."
    text = describe_scale(grid, (grid.cells[:2], ()), Scale(3, 2, 150), data)
    assert text == (
        "Scaled down: 3 of 120 epochs, 2 of 5 seeds, 150 of 1,500 training images of digits and the"
        " same share of its test images, 2 of 19 cells."
    )
    text = describe_scale(grid, everything, Scale(None, 5, None, 8, "glorot"), data)
    assert text == ("Scaled down: the backward pass on 8 of 64 samples, initial weights glorot.")


def test_cells_of_one_task():
    cells = Only(tasks=("mnist-conditional-L1",)).choose(GRIDS["poster"].cells)
    assert {(cell.dataset, cell.conditional) for cell in cells} == {("mnist", True)}
    assert len(cells) == 7
