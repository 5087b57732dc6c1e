"""`gdregs reproduce table1 | table2 | poster | digits | figures`: run, resume, collect, compare."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from gdregs.papers.grids.budget import DEVICE, within
from gdregs.papers.grids.grid import GRIDS, SEEDS, Grid, Scale
from gdregs.papers.grids.sweep import Where, plan, run_jobs, scale_cells
from gdregs.papers.measures.figures import save_figure
from gdregs.papers.measures.looks import describe_look
from gdregs.papers.measures.results import check_folder, read_result
from gdregs.papers.tables.cells import Cell, read_cell
from gdregs.papers.tables.comparisons import (
    AGREES,
    DISAGREES,
    OPEN,
    Comparison,
    compare,
    rank_correlation,
)
from gdregs.papers.tables.coverage import PAGE as COVERAGE
from gdregs.papers.tables.coverage import format_coverage, open_questions
from gdregs.papers.tables.differences import draw_differences
from gdregs.papers.tables.earlier import Earlier, is_result, read_earlier, sizes
from gdregs.papers.tables.figures import CURVES, LAYOUTS, draw_cells
from gdregs.papers.tables.page import TITLE, format_page
from gdregs.papers.tables.statements import read_cost
from gdregs.vae.config import Config
from gdregs.vae.data.datasets import Dataset
from gdregs.vae.data.omniglot import CHARDATA_TRAIN
from gdregs.vae.errors import UserError
from gdregs.vae.files import write_json, write_text
from gdregs.vae.runs.provenance import provenance

PAGE = "tables.md"
NAMES = (*GRIDS, "figures")


@dataclasses.dataclass(frozen=True)
class Only:
    """Which cells of a grid to run; an empty tuple means all.

    Attributes:
        datasets: Names of data sets.
        layers: Numbers of stochastic layers.
        pairs: Such as `dregs+gdregs`.
        tasks: Such as `mnist-conditional-L1`.
    """

    datasets: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    pairs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    def choose(self, cells: Iterable[Config]) -> tuple[Config, ...]:
        """The cells that are meant."""
        return tuple(
            cell
            for cell in cells
            if (not self.datasets or cell.dataset in self.datasets)
            and (not self.layers or cell.num_layers in self.layers)
            and (not self.pairs or cell.pair in self.pairs)
            and (not self.tasks or cell.task in self.tasks)
        )


def find_grid(name: str) -> Grid:
    """A grid by name; `figures` is all the cells that the papers' figures show."""
    if name in GRIDS:
        return GRIDS[name]
    tasks = {task for layout in LAYOUTS.values() for task in layout.tasks}
    cells = (*GRIDS["table1"].cells, *GRIDS["table2"].cells)
    chosen = tuple(cell for cell in cells if cell.task in tasks)
    return Grid("Figures 6, 7, G.1 and G.2", chosen, ())


def reproduce_images(
    name: str,
    folder: Path,
    scale: Scale,
    only: Only,
    where: Where,
    budget: float | None = None,
    earlier_results: Sequence[Path] = (),
) -> list[str]:
    """Train what is missing of a grid, and write results, figures and the page of tables.

    Args:
        name: One of `NAMES`.
        folder: Where the results go; those of the same name are replaced.
        scale: How much of the papers' computation to do.
        only: Which cells.
        where: Where the runs are and how they are run.
        budget: Only the rows that fit into so many hours on one accelerator, those first that
            decide most.
        earlier_results: More folders with results whose seeds are not trained again.

    Returns:
        Lines that say what was found and where it stands.

    Raises:
        UserError: If nothing is left to run, a file is in the way, a folder has no results, or jobs
            have failed.
    """
    _check_scale(scale)
    before = [*filter(is_result, _results_in(folder)), *_all_results_in(earlier_results)]
    grid = find_grid(name)
    again = grid.resampled if scale.gradient_samples is None else ()
    mixes = only.choose(grid.mixes) if only.pairs else ()
    originals = (*only.choose(grid.cells), *mixes), only.choose(again)
    if not any(originals):
        raise UserError(f"{name} has no such cells; {_describe_choice(grid)}.")
    _check_folder(folder, name)
    cells, datasets = scale_cells(originals[0], scale, where.data_dir)
    if budget is not None:
        cells, spent = within(cells, scale.seeds, budget, open_questions(folder, name))
        if not cells:
            raise UserError(f"--budget {budget:g}: no row of {name} takes so little time.")
        chosen = dict.fromkeys(cell.task for cell in cells)
        print(f"{', '.join(chosen)}: about {spent:.2g} hours on {DEVICE}.")
        originals = tuple(c for c in originals[0] if c.task in chosen), ()
    resampled, more = scale_cells(originals[1], scale, where.data_dir)
    datasets |= more
    images = sizes(datasets)
    every = [*cells, *resampled]
    earlier = read_earlier(before, every, scale.seeds, images, where.runs)
    jobs, done = plan(every, scale.seeds, where, earlier.seeds())
    text = describe_scale(grid, originals, scale, datasets)
    print(f"{name}: {len(every)} cells of {scale.seeds} seeds. {text}")
    if earlier.cells:
        have = "has" if len(earlier.paths) == 1 else "have"
        print(f"Seeds that {', '.join(map(str, earlier.paths))} {have} are not trained again.")
    print(f"{done} groups of seeds are done, {len(jobs)} to do in {where.runs}, {_how(where)}.")
    run_jobs(jobs, where)
    trained = _collect(where, cells, scale.seeds, earlier)
    trained_again = _collect(where, resampled, scale.seeds, earlier)
    origin = {"earlier": earlier.origins, "datasets": images}
    lines = write_results(folder, name, grid.title, trained, trained_again, text, origin)
    write_text(folder / COVERAGE, format_coverage(folder))
    return [
        *lines,
        f"{folder / PAGE}: ours beside the published tables",
        f"{folder / COVERAGE}: what length each cell has had",
    ]


def _results_in(folder: Path) -> list[Path]:
    """Files of all grids' names: `figures` shows cells that a table may have trained."""
    return [path for name in NAMES if (path := folder / f"{name}.json").exists()]


def _all_results_in(folders: Iterable[Path]) -> list[Path]:
    found = []
    for folder in folders:
        if not (there := _results_in(folder)):
            raise UserError(f"--earlier: {folder} has no results of {', '.join(NAMES)}.")
        for path in there:
            if not is_result(path):
                raise UserError(
                    f"--earlier: {path} is not a result of `gdregs reproduce {path.stem}`."
                )
        found += there
    return found


def _check_scale(scale: Scale) -> None:
    for flag, value in (
        ("--epochs", scale.epochs), ("--seeds", scale.seeds), ("--subset", scale.images),
    ):  # fmt: skip
        if value is not None and value < 1:
            raise UserError(f"{flag} must be at least 1; got {value}.")
    if scale.gradient_samples is not None and scale.gradient_samples < 0:
        raise UserError(f"--gradient-samples must not be negative; got {scale.gradient_samples}.")


def _describe_choice(grid: Grid) -> str:
    datasets = dict.fromkeys(cell.dataset for cell in grid.cells)
    layers = sorted({cell.num_layers for cell in grid.cells})
    pairs = dict.fromkeys(cell.pair for cell in (*grid.cells, *grid.mixes))
    tasks = dict.fromkeys(cell.task for cell in grid.cells)
    return (
        f"it has --datasets {' '.join(datasets)}, --layers {' '.join(map(str, layers))},"
        f" --pairs {' '.join(pairs)}, --tasks {' '.join(tasks)}"
    )


def _how(where: Where) -> str:
    seeds = "seeds under vmap" if where.vectorised else "seeds one after another"
    devices = jax.device_count()
    kind = f"{devices} {jax.default_backend()} device{'s' if devices > 1 else ''}"
    return f"executor {where.executor}, {seeds}, {kind}"


def describe_scale(
    grid: Grid, chosen: tuple[Any, Any], scale: Scale, datasets: dict[str, Dataset]
) -> str:
    """How much of the grid's own size a run is, in a sentence."""
    parts = []
    full_epochs = max(cell.epochs for cell in grid.cells)
    epochs = scale.epochs or full_epochs
    if epochs != full_epochs:
        parts.append(f"{epochs} of {full_epochs:,} epochs")
    if scale.seeds < SEEDS:
        parts.append(f"{scale.seeds} of {SEEDS} seeds")
    if scale.seeds > SEEDS:
        parts.append(f"{scale.seeds} seeds in place of {SEEDS}")
    if scale.images is not None:
        parts += [
            f"{scale.images:,} of {len(data.train):,} training images of {name} and the same share"
            " of its test images"
            for name, data in datasets.items()
            if scale.images < len(data.train)
        ]
    if scale.gradient_samples:
        parts.append(f"the backward pass on {scale.gradient_samples} of 64 samples")
    if scale.initial_weights not in (None, grid.cells[0].initial_weights):
        parts.append(f"initial weights {scale.initial_weights}")
    count, total = sum(map(len, chosen)), len(grid.cells) + len(grid.resampled)
    if count < total:
        parts.append(f"{count} of {total} cells")
    small_omniglot = [
        f"Omniglot is the part that was found ({len(data.train):,} training images,"
        f" not {CHARDATA_TRAIN:,})"
        for name, data in datasets.items()
        if name == "omniglot" and len(data.train) != CHARDATA_TRAIN
    ]
    text = f"Scaled down: {', '.join(parts)}." if parts else "At full scale."
    return " ".join([text, *(f"{note}." for note in small_omniglot)])


def _collect(where: Where, cells: list[Config], num_seeds: int, earlier: Earlier) -> list[Cell]:
    found = [read_cell(where.runs, cell, num_seeds, earlier.cells.get(cell)) for cell in cells]
    return [cell for cell in found if cell is not None]


def write_results(
    folder: Path,
    name: str,
    title: str,
    cells: list[Cell],
    resampled: list[Cell],
    scale: str,
    origin: Mapping[str, Any],
) -> list[str]:
    """Write `name.json`, its figures and the page of tables; returns lines for the user."""
    if name == "figures":
        drawn = {
            key: draw_cells(cells, layout.columns, layout.tasks) for key, layout in LAYOUTS.items()
        }
    else:
        drawn = {
            f"{name}-curves": draw_cells([*cells, *resampled], CURVES),
            f"{name}-differences": draw_differences(cells) if name in GRIDS else None,
        }
    figures = {key: figure for key, figure in drawn.items() if figure is not None}
    files = [f"{name}.json"]
    for key, figure in figures.items():
        files += save_figure(figure, folder, key)
    by_row: dict[str, list[Cell]] = {}
    for cell in cells if name in GRIDS else ():
        by_row.setdefault(cell.row_name, []).append(cell)
    comparisons = compare(name, cells) if name in GRIDS else []
    write_json(
        folder / f"{name}.json",
        {
            "experiment": name,
            "title": title,
            "titles": {key: _title(key, title) for key in figures},
            **provenance(" ".join(["gdregs", *sys.argv[1:]])),
            **origin,
            "scale": scale,
            "figures": files[1:],
            "comparisons": [_plain(comparison) for comparison in comparisons],
            "rank_correlation": {
                row: rank_correlation(name, members) for row, members in by_row.items()
            },
            "cells": [cell.to_dict() for cell in cells],
            "resampled": [cell.to_dict() for cell in resampled],
        },
    )
    contents = {key: read_result(folder / f"{key}.json") for key in NAMES}
    contents = {key: content for key, content in contents.items() if content}
    write_text(folder / PAGE, format_page(contents, read_cost(folder)))
    counts = Counter(comparison.verdict for comparison in comparisons)
    verdicts = ", ".join(f"{counts[v]} {v}" for v in (AGREES, DISAGREES, OPEN) if counts[v])
    lines = []
    if verdicts:
        look = describe_look(min(len(cell.seeds) for cell in cells))
        lines = [f"{title}: of {len(comparisons)} comparisons {verdicts}{look}"]
    return [*lines, f"  {folder}: {', '.join(files)}"]


def _title(figure: str, table: str) -> str:
    """What a figure shows."""
    if figure in LAYOUTS:
        return LAYOUTS[figure].title
    if figure.endswith("-differences"):
        return f"{table}: differences of the test objective over training, with 95% intervals"
    return table


def _plain(comparison: Comparison) -> dict[str, Any]:
    content = comparison._asdict()
    for name in ("ours", "published"):
        content[name] = content[name] and content[name]._asdict()
    return content


def _check_folder(folder: Path, name: str) -> None:
    figures = tuple(LAYOUTS) if name == "figures" else (f"{name}-curves", f"{name}-differences")
    check_folder(folder, {name: figures}, quick=False)
    page = folder / PAGE
    if page.exists() and not page.read_text().startswith(TITLE):
        raise UserError(f"{page} is not a page of tables; choose another --out.")
