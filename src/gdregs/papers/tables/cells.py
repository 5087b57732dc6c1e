"""A cell's metrics over its seeds: from run folders, from an earlier result, or from both."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gdregs.papers.grids.cells import find_groups
from gdregs.papers.measures.measure import Measured, mean
from gdregs.vae.config import Config
from gdregs.vae.runs.folders import read_metrics


@dataclasses.dataclass(frozen=True)
class Cell:
    """The metrics of a cell's seeds, nested ones by names such as `kl.z1`.

    Attributes:
        config: Its settings.
        seeds: The seeds.
        epochs: Those that were measured; the last one is the end of training.
        last: Each metric at the end, by seed, `[seeds]`.
        curves: Each metric by measured epoch, means over seeds, `[epochs]`.
        by_seed: The same seed by seed, `[seeds, epochs]`; None where an earlier result that a part
            of the seeds comes from kept means alone.
        images_per_second: Images that training took a second.
    """

    config: Config
    seeds: tuple[int, ...]
    epochs: tuple[int, ...]
    last: dict[str, np.ndarray]
    curves: dict[str, np.ndarray]
    by_seed: dict[str, np.ndarray] | None
    images_per_second: float

    @property
    def pair(self) -> str:
        """Posterior and prior estimator."""
        return self.config.pair

    @property
    def row_name(self) -> str:
        """The row of the table that the cell stands in."""
        objective = "" if self.config.objective == "iwae" else f", {self.config.objective}"
        return self.config.task + objective

    def bound(self) -> Measured:
        """The mean test objective and its standard error over seeds."""
        return mean(self.last["test_bound"])

    def to_dict(self) -> dict[str, Any]:
        """What was measured, as JSON can hold it; `cell_from_dict` reads it."""
        content = {
            "row": self.row_name,
            "pair": self.pair,
            "config": self.config.to_dict(),
            "seeds": list(self.seeds),
            "test_bound": self.bound()._asdict(),
            "last": {name: _short(values) for name, values in self.last.items()},
            "curves": {
                "epoch": list(self.epochs),
                **{name: _short(values) for name, values in self.curves.items()},
            },
            "images_per_second": _short(self.images_per_second),
        }
        if self.by_seed is not None:
            content["by_seed"] = {name: _short(values) for name, values in self.by_seed.items()}
        return content


def cell_from_rows(
    config: Config, seeds: Sequence[int], rows: Sequence[list[dict[str, Any]]]
) -> Cell:
    """A cell from the rows of metrics of each of its seeds, up to the end of training."""
    recorded = [[flatten(row) for row in series if "test_bound" in row] for series in rows]
    names = [name for name in recorded[0][-1] if name != "epoch"]
    by_seed = {
        name: np.array([[row[name] for row in series] for series in recorded]) for name in names
    }
    speeds = [row["images_per_second"] for series in rows for row in series]
    return Cell(
        config,
        tuple(seeds),
        tuple(row["epoch"] for row in recorded[0]),
        {name: values[:, -1] for name, values in by_seed.items()},
        {name: values.mean(axis=0) for name, values in by_seed.items()},
        by_seed,
        float(np.median(speeds)),
    )


def cell_from_dict(content: dict[str, Any]) -> Cell:
    """A cell from what `Cell.to_dict` wrote, to six digits."""
    curves = {name: np.array(values) for name, values in content["curves"].items()}
    by_seed = content.get("by_seed")
    return Cell(
        Config(**content["config"]),
        tuple(content["seeds"]),
        tuple(curves.pop("epoch").tolist()),
        {name: np.array(values) for name, values in content["last"].items()},
        curves,
        by_seed and {name: np.array(values) for name, values in by_seed.items()},
        float(content["images_per_second"]),
    )


def join(one: Cell, other: Cell) -> Cell:
    """Two parts of a cell, which have other seeds each, as one.

    Raises:
        ValueError: If they are not of the same settings, or were measured at other epochs.
    """
    if one.config != other.config or one.epochs != other.epochs:
        raise ValueError(f"{one.config.task}, {one.pair}: the parts differ in their settings.")
    order = np.argsort(one.seeds + other.seeds)
    shares = np.array([len(one.seeds), len(other.seeds)]) / len(order)

    def stack(first: dict[str, np.ndarray], second: dict[str, np.ndarray]):
        return {name: np.concatenate([first[name], second[name]])[order] for name in first}

    return Cell(
        one.config,
        tuple(sorted(one.seeds + other.seeds)),
        one.epochs,
        stack(one.last, other.last),
        {name: shares @ np.stack([one.curves[name], other.curves[name]]) for name in one.curves},
        stack(one.by_seed, other.by_seed) if one.by_seed and other.by_seed else None,
        float(shares @ np.array([one.images_per_second, other.images_per_second])),
    )


def read_cell(
    runs: Path, config: Config, num_seeds: int, earlier: Cell | None = None
) -> Cell | None:
    """The cell of seeds 0, ..., `num_seeds` - 1; None where one of them is missing or unfinished.

    Args:
        runs: The folder of all run folders.
        config: The cell's settings.
        num_seeds: How many seeds.
        earlier: The seeds that are taken from an earlier result, and not from run folders.
    """
    by_seed = {}
    known = () if earlier is None else earlier.seeds
    wanted = set(range(num_seeds)) - set(known)
    for group in find_groups(runs, config):
        for number in wanted & set(group.seeds.numbers):
            rows = read_metrics(group.folder / f"seed{number}")
            rows = [row for row in rows if row["epoch"] <= config.epochs]
            if rows and rows[-1]["epoch"] == config.epochs:
                by_seed[number] = rows
    if wanted != set(by_seed):
        return None
    if not wanted:
        return earlier
    numbers = sorted(wanted)
    trained = cell_from_rows(config, numbers, [by_seed[number] for number in numbers])
    return trained if earlier is None else join(earlier, trained)


def flatten(row: dict[str, Any]) -> dict[str, Any]:
    """Nested metrics as one dict, with names such as `kl.z1`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): value
        for path, value in jax.tree.leaves_with_path(row)
    }


def _short(values: Any) -> Any:
    """Numbers as JSON can hold them, to six digits."""
    if np.ndim(values):
        return [_short(value) for value in values]
    return float(f"{values:.6g}")
