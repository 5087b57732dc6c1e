"""Seeds that a folder's result has, so that more can be added where their run folders are gone."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gdregs.papers.grids.cells import find_groups
from gdregs.papers.measures.results import read_result
from gdregs.papers.tables.cells import Cell, cell_from_dict
from gdregs.vae.config import Config
from gdregs.vae.data.datasets import Dataset

Sizes = dict[str, list[int]]
"""Numbers of training and test images by data set: settings do not tell parts of Omniglot apart."""


class Earlier(NamedTuple):
    """What is taken from a folder's result.

    Attributes:
        cells: Some seeds of a cell, by its settings.
        origins: Its command, date, hardware and versions, and those of what it was added to itself;
            empty where nothing is taken.
    """

    cells: Mapping[Config, Cell]
    origins: tuple[dict[str, Any], ...]

    def seeds(self) -> dict[Config, tuple[int, ...]]:
        """The seeds that need not be trained."""
        return {config: cell.seeds for config, cell in self.cells.items()}


def sizes(datasets: Mapping[str, Dataset]) -> Sizes:
    """The sizes of data sets, as a result keeps them."""
    return {name: [len(data.train), len(data.test)] for name, data in datasets.items()}


def read_earlier(
    path: Path, configs: Iterable[Config], num_seeds: int, images: Sizes, runs: Path
) -> Earlier:
    """The seeds below `num_seeds` that a result has and that have no run folder.

    Args:
        path: The result. It is left alone where it does not say on how many images it was trained.
        configs: The cells that are wanted.
        num_seeds: How many seeds.
        images: The sizes of the data sets at hand.
        runs: The folder of all run folders, which have more than a result.
    """
    content = read_result(path) or {}
    written = content.get("datasets", {})
    found = {}
    for part in (*content.get("cells", ()), *content.get("resampled", ())):
        name = part["config"]["dataset"]
        if name in images and written.get(name) == images[name]:
            cell = cell_from_dict(part)
            found[cell.config] = cell
    taken = {}
    for config in configs:
        cell = found.get(config)
        begun = {number for group in find_groups(runs, config) for number in group.seeds.numbers}
        if cell and set(cell.seeds) <= set(range(num_seeds)) and not set(cell.seeds) <= begun:
            taken[config] = cell
    if not taken:
        return Earlier({}, ())
    origin = {key: content[key] for key in ("command", "date", "hardware", "versions")}
    origin["seeds"] = sorted({seed for cell in taken.values() for seed in cell.seeds})
    before = [one for one in content["earlier"] if one != origin]
    return Earlier(taken, (*before, origin))
