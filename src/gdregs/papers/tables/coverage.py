"""What length each cell of the papers' tables has had, and what the rest would take."""

from pathlib import Path
from typing import Any

from gdregs.papers.grids.budget import DEVICE, hours, label, lengths
from gdregs.papers.grids.grid import GRIDS, SEEDS
from gdregs.papers.measures.results import read_result
from gdregs.papers.tables.comparisons import OPEN
from gdregs.vae.show.markdown import markdown_table

PAGE = "coverage.md"
TITLE = "# What each cell of the tables has had"
PAPER_GRIDS = ("table1", "table2", "poster")


def read_all(folder: Path, name: str) -> list[dict[str, Any]]:
    """All results of a grid in a folder and the folders in it."""
    paths = [folder / f"{name}.json", *sorted(folder.glob(f"*/{name}.json"))]
    contents = [read_result(path) for path in paths if path.exists()]
    return [content for content in contents if content and content.get("experiment") == name]


def open_questions(folder: Path, name: str) -> dict[str, int]:
    """By row, how many comparisons of the longest run are undecided."""
    found: dict[str, int] = {}
    for content in read_all(folder, name):
        counts: dict[str, int] = {}
        for comparison in content["comparisons"]:
            row = comparison["row"].partition(",")[0]
            counts[row] = counts.get(row, 0) + (comparison["verdict"] == OPEN)
        found |= counts
    return found


def format_coverage(folder: Path) -> str:
    """The page: a row for each row of each table, a column for each pair."""
    parts = [
        TITLE,
        "Epochs × training images × seeds of the longest run of each cell, of the papers' 1,000"
        f" epochs of all images and {SEEDS} seeds. The last column has the hours that the row would"
        f" take at full length on {DEVICE}, from the operations of its matrix products, at the"
        " rate that one layer was measured at there; measurements and compilation come on top.",
    ]
    for name in PAPER_GRIDS:
        grid = GRIDS[name]
        known = lengths([*read_all(folder, name), *read_all(folder, "figures")])
        rows: dict[str, list[Any]] = {}
        for cell in grid.cells:
            rows.setdefault(cell.task, []).append(cell)
        labels = list(dict.fromkeys(label(cell) for cell in grid.cells))
        lines, had = [], 0
        for row, cells in rows.items():
            texts = dict.fromkeys(labels, "")
            for cell in cells:
                length = known.get((row, label(cell)))
                texts[label(cell)] = "—" if length is None else _text(length)
                had += length is not None
            total = sum(hours(cell, SEEDS) for cell in cells)
            lines.append([row, *texts.values(), f"{total:.1f}"])
        parts.append(f"## {grid.title}\n\n{had} of {len(grid.cells)} cells have been trained.")
        parts.append(markdown_table(["row", *labels, "hours"], lines))
    return "\n\n".join(parts) + "\n"


def _text(length: tuple[int, int, int]) -> str:
    epochs, images, seeds = length
    return f"{epochs} × {images:,} × {seeds}"
