"""Run the cells of a grid: here, in processes of this machine, or on a cluster."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from gdregs.papers.grids.cells import Group, is_done, plan_groups, run_group
from gdregs.papers.grids.grid import Scale, cell_name, shrink
from gdregs.vae.config import Config
from gdregs.vae.data.datasets import Dataset, load_dataset
from gdregs.vae.errors import UserError
from gdregs.vae.runs.folders import read_metrics
from gdregs.vae.training.task import make_task


@dataclasses.dataclass(frozen=True)
class Where:
    """Where runs are kept and how they are run.

    Attributes:
        runs: The folder of all run folders.
        data_dir: The data sets' official files; None downloads them.
        executor: `inline` runs in this process; `local` and `slurm` submit jobs.
        options: What submitit's `update_parameters` takes, such as `slurm_partition`.
        jobs: How many jobs of the `local` executor run at a time.
        vectorised: Whether the seeds of a cell train under `vmap`, and not one after another.
    """

    runs: Path
    data_dir: Path | None = None
    executor: str = "inline"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    jobs: int = 1
    vectorised: bool = False


class Job(NamedTuple):
    """A group of seeds of one cell to be trained to the end."""

    group: Group
    config: Config
    data_dir: Path | None

    def __call__(self, report: Callable[[dict[str, Any]], Any] = lambda row: None) -> None:
        """Train."""
        dataset = load_dataset(self.config.dataset, self.data_dir)
        run_group(self.group, self.config, make_task(self.config, dataset), report)

    def checkpoint(self, *arguments: Any) -> Any:
        """What a cluster that stops the job early starts instead: the same, from where it is."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)

    @property
    def name(self) -> str:
        """The cell and its seeds."""
        return f"{cell_name(self.config)}/{self.group.folder.name}"

    def epochs_done(self) -> int:
        """How many epochs its metrics show."""
        rows = read_metrics(self.group.folder)
        return min(rows[-1]["epoch"], self.config.epochs) if rows else 0


def scale_cells(
    cells: Iterable[Config], scale: Scale, data_dir: Path | None
) -> tuple[list[Config], dict[str, Dataset]]:
    """The cells at a scale, and the data sets that they need.

    Raises:
        UserError: If a data set cannot be read.
    """
    cells = list(cells)
    names = dict.fromkeys(cell.dataset for cell in cells)
    datasets = {name: load_dataset(name, data_dir) for name in names}
    scaled = []
    for cell in cells:
        dataset = datasets[cell.dataset]
        scaled.append(shrink(cell, scale, len(dataset.train), len(dataset.test)))
    return scaled, datasets


def plan(
    cells: Iterable[Config],
    num_seeds: int,
    where: Where,
    known: Mapping[Config, Iterable[int]] = MappingProxyType({}),
) -> tuple[list[Job], int]:
    """The jobs that are left to do, and how many are done.

    Args:
        cells: The settings.
        num_seeds: Seeds of each.
        where: Where the runs are.
        known: By cell, seeds that are not to be trained: an earlier result has them.
    """
    jobs, done = [], 0
    for cell in cells:
        for group in plan_groups(
            where.runs, cell, num_seeds, where.vectorised, known.get(cell, ())
        ):
            if is_done(group, cell):
                done += 1
            else:
                jobs.append(Job(group, cell, where.data_dir))
    return jobs, done


def run_jobs(jobs: list[Job], where: Where) -> None:
    """Run jobs to the end, with a progress bar over epochs.

    Raises:
        UserError: If jobs have failed on a cluster; the others are finished all the same.
    """
    executor = None if where.executor == "inline" else _make_executor(where)
    if not jobs:
        return
    total = sum(job.config.epochs for job in jobs)
    begun = sum(job.epochs_done() for job in jobs)
    bar = tqdm(total=total, initial=begun, unit="epoch", dynamic_ncols=True)
    with bar:
        if executor is None:
            for job in jobs:
                bar.set_description(job.name)
                job(lambda row: bar.update())
                jax.clear_caches()  # each cell has programs of its own
        else:
            _submit(jobs, where, executor, bar)


def _submit(jobs: list[Job], where: Where, executor: Any, bar: tqdm) -> None:
    waiting, running, failed = list(jobs), [], []
    try:
        while waiting or running:
            while waiting and (where.executor == "slurm" or len(running) < where.jobs):
                job = waiting.pop(0)
                running.append((job, executor.submit(job)))
            time.sleep(0.5)
            for entry in [entry for entry in running if entry[1].done()]:
                running.remove(entry)
                error = entry[1].exception()
                if error is not None:
                    failed.append((entry[0], _reason(error)))
            bar.update(sum(job.epochs_done() for job in jobs) - bar.n)
    except KeyboardInterrupt:
        if where.executor == "local":
            for _, handle in running:
                handle.cancel()
        raise
    if failed:
        job, message = failed[0]
        raise UserError(
            f"{len(failed)} of {len(jobs)} jobs failed; the first, {job.name}, with: {message}"
            f" (logs are in {where.runs / 'jobs'}; the same command continues the others)."
        )


def _reason(error: BaseException) -> str:
    """The last line of the job's own traceback, which submitit frames by dashes."""
    text = str(error) or type(error).__name__
    trace = text.split("-" * 20)[1] if text.count("-" * 20) > 1 else text
    return [line for line in trace.splitlines() if line.strip("- ")][-1]


def _make_executor(where: Where) -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError(
            f"--executor {where.executor} needs submitit; run: pip install 'gdregs[cluster]'"
        ) from None
    try:
        executor = submitit.AutoExecutor(folder=where.runs / "jobs", cluster=where.executor)
        executor.update_parameters(name="gdregs", **{"timeout_min": 24 * 60, **where.options})
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--executor {where.executor}: {reason}") from None
    return executor
