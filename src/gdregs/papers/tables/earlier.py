"""Seeds that results have, so that more can be added where their run folders are gone."""

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
    """What is taken from results.

    Attributes:
        cells: Some seeds of a cell, by its settings.
        origins: Commands, dates, hardware and versions of what is taken, and of what that was added
            to itself; empty where nothing is taken.
        paths: The results from which something is taken.
    """

    cells: Mapping[Config, Cell]
    origins: tuple[dict[str, Any], ...]
    paths: tuple[Path, ...]

    def seeds(self) -> dict[Config, tuple[int, ...]]:
        """The seeds that need not be trained."""
        return {config: cell.seeds for config, cell in self.cells.items()}


def is_result(path: Path) -> bool:
    """Whether a file is a grid's result, with cells that can be read."""
    content = read_result(path)
    if content is None or content.get("experiment") != path.stem:
        return False
    try:
        for part in _cells(content):
            cell_from_dict(part)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    return True


def _cells(content: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    return (*content.get("cells", ()), *content.get("resampled", ()))


def sizes(datasets: Mapping[str, Dataset]) -> Sizes:
    """The sizes of data sets, as a result keeps them."""
    return {name: [len(data.train), len(data.test)] for name, data in datasets.items()}


def read_earlier(
    paths: Iterable[Path], configs: Iterable[Config], num_seeds: int, images: Sizes, runs: Path
) -> Earlier:
    """The seeds below `num_seeds` that results have and that have no run folder.

    Args:
        paths: The results. One that does not say on how many images it was trained is left alone;
            where several have a cell, it is taken from the one with the most seeds.
        configs: The cells that are wanted.
        num_seeds: How many seeds.
        images: The sizes of the data sets at hand.
        runs: The folder of all run folders, which have more than a result.
    """
    found: dict[Config, tuple[Cell, Path]] = {}
    contents = {path: read_result(path) or {} for path in paths}
    for path, content in contents.items():
        written = content.get("datasets", {})
        for part in _cells(content):
            name = part["config"]["dataset"]
            if name not in images or written.get(name) != images[name]:
                continue
            cell = cell_from_dict(part)
            best = len(found[cell.config][0].seeds) if cell.config in found else 0
            if set(cell.seeds) <= set(range(num_seeds)) and len(cell.seeds) > best:
                found[cell.config] = cell, path
    taken: dict[Config, Cell] = {}
    seeds: dict[Path, set[int]] = {}
    for config in configs:
        if config not in found:
            continue
        cell, path = found[config]
        begun = {number for group in find_groups(runs, config) for number in group.seeds.numbers}
        if not set(cell.seeds) <= begun:
            taken[config] = cell
            seeds.setdefault(path, set()).update(cell.seeds)
    origins: list[dict[str, Any]] = []
    for path, numbers in seeds.items():
        content = contents[path]
        origin = {key: content[key] for key in ("command", "date", "hardware", "versions")}
        origin["seeds"] = sorted(numbers)
        for one in (*content.get("earlier", ()), origin):
            if one not in origins:
                origins.append(one)
    return Earlier(taken, tuple(origins), tuple(seeds))
