"""One cell of a grid: several seeds of the same settings, in one folder, always resumable."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gdregs.papers.grids.grid import cell_name
from gdregs.vae.config import Config
from gdregs.vae.errors import UserError
from gdregs.vae.files import write_text
from gdregs.vae.runs.folders import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    open_run,
    read_metrics,
    read_seeds,
    save_state,
    train,
)
from gdregs.vae.training.epochs import Seeds
from gdregs.vae.training.task import Task


class Group(NamedTuple):
    """Consecutive seeds that train in one program, and where."""

    folder: Path
    seeds: Seeds


def find_groups(root: Path, config: Config) -> list[Group]:
    """The groups of a cell that have been begun."""
    groups = []
    for folder in sorted((root / cell_name(config)).glob("seeds*-*")):
        seeds = read_seeds(folder) if (folder / CONFIG).exists() else None
        if seeds:
            groups.append(Group(folder, seeds))
    return groups


def plan_groups(
    root: Path, config: Config, num_seeds: int, vectorised: bool, known: Iterable[int] = ()
) -> list[Group]:
    """Groups that cover seeds 0, ..., `num_seeds` - 1: those that exist, and one for the rest.

    Args:
        root: The folder of all run folders.
        config: The cell's settings.
        num_seeds: How many seeds.
        vectorised: Whether the seeds of a new group train together.
        known: Seeds that need no new group: an earlier result has them.
    """
    existing = find_groups(root, config)
    covered = {number for group in existing for number in group.seeds.numbers}
    wanted = set(range(num_seeds))
    groups = [group for group in existing if wanted & set(group.seeds.numbers)]
    missing = np.array(sorted(wanted - covered - set(known)), int)
    for run in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1) if missing.size else ():
        numbers = tuple(run.tolist())
        folder = root / cell_name(config) / f"seeds{numbers[0]}-{numbers[-1]}"
        groups.append(Group(folder, Seeds(numbers, vectorised)))
    return groups


def is_done(group: Group, config: Config) -> bool:
    """Whether a group has finished all epochs and its single runs are written out.

    Raises:
        UserError: If it went on for longer and was not measured where it should now end.
    """
    rows = read_metrics(group.folder)
    if not rows or rows[-1]["epoch"] < config.epochs:
        return False
    if not any(row["epoch"] == config.epochs and "test_bound" in row for row in rows):
        raise UserError(
            f"{group.folder} has {rows[-1]['epoch']} epochs and was not measured at epoch"
            f" {config.epochs}; choose other --epochs or another --runs."
        )
    return all(
        (group.folder / f"seed{number}" / CHECKPOINT).exists() for number in group.seeds.numbers
    )


def run_group(
    group: Group,
    config: Config,
    task: Task,
    report: Callable[[dict[str, Any]], Any] = lambda row: None,
) -> None:
    """Train a group to the end, from wherever it stands, and write each seed out as a run.

    Each seed's folder is one that `gdregs evaluate`, `sample` and `complete` accept.
    """
    config = dataclasses.replace(config, seed=group.seeds.numbers[0])
    open_run(group.folder, config, group.seeds)
    state = train(group.folder, config, task, report, group.seeds)
    rows = read_metrics(group.folder)
    for place, number in enumerate(group.seeds.numbers):
        folder = group.folder / f"seed{number}"
        open_run(folder, dataclasses.replace(config, seed=number))
        lines = [_of_seed(row, place) for row in rows]
        write_text(folder / METRICS, "".join(f"{json.dumps(line)}\n" for line in lines))
        save_state(folder, jax.tree.map(lambda leaf, place=place: leaf[place], state))


def _of_seed(row: dict[str, Any], place: int) -> dict[str, Any]:
    """One seed's part of a row of metrics."""

    def is_list(value):
        return isinstance(value, list)

    return jax.tree.map(lambda v: v[place] if is_list(v) else v, row, is_leaf=is_list)
