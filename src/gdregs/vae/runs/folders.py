"""A run folder: settings, metrics, checkpoint and pictures, always resumable."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh

import gdregs
from gdregs.evaluation.meshes import SEEDS, make_mesh
from gdregs.vae.config import Config, differences, read_config
from gdregs.vae.errors import DivergedError, UserError
from gdregs.vae.files import write_atomically, write_json, write_text
from gdregs.vae.runs.lock import HOLDER, LOCK, locked
from gdregs.vae.runs.record import CONFIG
from gdregs.vae.training.epochs import (
    EpochMetrics,
    Seeds,
    TrainingState,
    make_epoch,
    make_state,
    make_states,
)
from gdregs.vae.training.evaluation import make_evaluation, make_gradient_variance
from gdregs.vae.training.loops import loops_are_slow
from gdregs.vae.training.meshes import fetch, spread
from gdregs.vae.training.processes import from_first, is_first
from gdregs.vae.training.segments import make_stepwise_epoch, make_streamed_epoch
from gdregs.vae.training.task import Task

METRICS, CHECKPOINT = "metrics.jsonl", "checkpoint.eqx"


def open_run(
    folder: Path,
    config: Config,
    seeds: Seeds | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """Make a run folder, or check that the one that exists belongs to these settings.

    Args:
        folder: The run folder.
        config: The settings.
        seeds: Of a run of several seeds.
        data: What `gdregs.vae.runs.record.describe` says of the data.

    Raises:
        UserError: If the folder holds something else. Nothing in it is touched then.
    """
    if (folder / CONFIG).exists():
        saved = read_config(folder / CONFIG)
        different = differences(config, saved)
        if different:
            raise UserError(
                f"{folder} holds a run with {', '.join(different)}; choose another folder."
            )
        if read_seeds(folder) != seeds:
            raise UserError(f"{folder} holds a run of other seeds; choose another folder.")
        if config.epochs > saved.epochs:
            _write_config(folder, config, seeds, data)
        return
    if folder.exists() and (not folder.is_dir() or _has_files(folder)):
        raise UserError(f"{folder} exists and is not a run folder; choose another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}).") from None
    try:
        _write_config(folder, config, seeds, data)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}).") from None


def _has_files(folder: Path) -> bool:
    return any(file.name not in (LOCK, HOLDER) for file in folder.iterdir())


def _write_config(
    folder: Path, config: Config, seeds: Seeds | None, data: dict[str, Any] | None
) -> None:
    versions = {"gdregs": gdregs.__version__, "jax": jax.__version__}
    content = {"config": config.to_dict(), "versions": versions}
    if seeds:
        content["seeds"] = seeds._asdict()
    if data:
        content["data"] = data
    write_json(folder / CONFIG, content)


def read_seeds(folder: Path) -> Seeds | None:
    """The seeds of a run folder of several; None for a run of one.

    Raises:
        UserError: If the settings cannot be read.
    """
    try:
        saved = json.loads((folder / CONFIG).read_text()).get("seeds")
        return Seeds(tuple(saved["numbers"]), bool(saved["vectorised"])) if saved else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG} is not the settings of a run ({error}).") from None


def load_state(
    folder: Path,
    config: Config,
    task: Task,
    seeds: Seeds | None = None,
    model: Any = None,
) -> TrainingState:
    """The state after the last finished epoch, or the initial one.

    Args:
        folder: The run folder.
        config: The settings.
        task: The data.
        seeds: Of a run of several seeds, whose states are stacked.
        model: A model of your own, untrained; the one that the settings name unless given.

    Raises:
        UserError: If the checkpoint is truncated, corrupt or of another model.
    """
    initial = _initial_state(config, task, seeds, model)
    path = folder / CHECKPOINT
    if not path.exists():
        return initial
    try:
        return eqx.tree_deserialise_leaves(path, initial)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} is truncated, corrupt or of another model ({reason}); delete it to train from"
            f" the start."
        ) from None


def _initial_state(
    config: Config, task: Task, seeds: Seeds | None, model: Any = None
) -> TrainingState:
    return make_state(config, task, model) if seeds is None else make_states(config, task, seeds)


def save_state(folder: Path, state: TrainingState) -> None:
    """Replace the checkpoint, atomically."""
    write_atomically(folder / CHECKPOINT, lambda file: eqx.tree_serialise_leaves(file, state))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The metrics of all finished epochs; a line that was cut off is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def train(
    folder: Path,
    config: Config,
    task: Task,
    report: Callable[[dict[str, Any]], Any] = lambda row: None,
    seeds: Seeds | None = None,
    mesh: Mesh | None = None,
    model: Any = None,
) -> TrainingState:
    """Train up to `config.epochs`, from wherever the run folder stands.

    After every epoch its metrics are appended and flushed, then the checkpoint is replaced: a
    process that is killed loses the epoch under way and nothing else. A checkpoint of one mesh
    goes on on any other. One process at a time works in a folder.

    Args:
        folder: A folder that `open_run` has accepted. Of several processes, only the first one
            reads and writes it.
        config: The settings.
        task: The data.
        report: Called with the metrics of every finished epoch.
        seeds: Train these in one program instead of the settings' seed. States are stacked, and
            the metrics are lists with an entry a seed.
        mesh: A mesh of `gdregs.make_mesh`. Without one, vectorised seeds are spread over as many
            devices as divide their number, and anything else trains on one device.
        model: A model of your own, such as `gdregs.vae.OwnVAE`, untrained.

    Returns:
        The state after the last epoch.

    Raises:
        UserError: If another process holds the folder.
        DivergedError: If the bound is not a number any more, or hopeless. The epoch leaves nothing
            behind.
    """
    with locked(folder) if is_first() else contextlib.nullcontext():
        return _train(folder, config, task, report, seeds, mesh, model)


def _train(folder, config, task, report, seeds, mesh, model) -> TrainingState:
    state = from_first(
        lambda: load_state(folder, config, task, seeds, model),
        lambda: _initial_state(config, task, seeds, model),
    )
    first = epochs_done(state)
    if is_first():
        rows = [row for row in read_metrics(folder) if row["epoch"] <= first]
        write_text(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
    if first >= config.epochs:
        return state
    if mesh is None and seeds and seeds.vectorised:
        mesh = _mesh_of_seeds(len(seeds.numbers))
    if mesh is not None:
        state = spread(state, mesh, *([SEEDS] if seeds else []))
        train_images, test_images = spread((task.train, task.test), mesh)
        task = task._replace(train=train_images, test=test_images)
    if task.stream is not None and seeds is not None:
        raise UserError("--stream is for one seed at a time.")
    one_by_one = seeds is None and mesh is None and loops_are_slow(config, task, state.model)
    if task.stream is not None:
        run_epoch = make_streamed_epoch(config, task, mesh, one_by_one=one_by_one)
    elif one_by_one:
        run_epoch = make_stepwise_epoch(config, task)
    else:
        run_epoch = make_epoch(config, task, seeds, mesh)
    measure = _make_measurement(config, task, seeds, mesh)
    num_images = task.num_train // config.batch_size * config.batch_size
    num_images *= len(seeds.numbers) if seeds else 1
    for epoch in range(first + 1, config.epochs + 1):
        begun = time.perf_counter()
        state, metrics = jax.block_until_ready(run_epoch(state))
        seconds = time.perf_counter() - begun
        _refuse_divergence(folder, config, epoch, fetch(metrics))
        row = {
            "epoch": epoch,
            "train_bound": metrics.bound,
            "effective_sample_size": metrics.effective_sample_size,
            "weight_kept": metrics.weight_kept,
            "images_per_second": num_images / seconds,
            "seconds": seconds,
        }
        if state.mix is not None:
            row["alpha"] = state.mix.alpha
        if epoch % config.record_every == 0 or epoch == config.epochs:
            row |= measure(state)
        row = jax.tree.map(lambda value: np.asarray(value).tolist(), fetch(row))
        saved = fetch(state)
        if is_first():
            with open(folder / METRICS, "a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
            save_state(folder, saved)
        report(row)
    return fetch(state)


def _refuse_divergence(folder: Path, config: Config, epoch: int, metrics: EpochMetrics) -> None:
    """An error if any step of an epoch, of any seed, has diverged."""
    steps = np.atleast_1d(metrics.diverged_at)
    if not steps.any():
        return
    seed = int(np.flatnonzero(steps)[0])
    worst = float(np.atleast_1d(metrics.worst)[seed])
    kept = f"the checkpoint of epoch {epoch - 1} is kept" if epoch > 1 else "no epoch was finished"
    raise DivergedError(
        f"{folder}: training diverged at step {int(steps[seed])} of epoch {epoch}, with a bound of"
        f" {worst:.3g} nats; {kept}. Try a smaller --learning-rate (now {config.learning_rate:g}),"
        f" more --num-samples (now {config.num_samples}), or look for extreme values in the data."
    )


def epochs_done(state: TrainingState) -> int:
    """How many epochs a state, or stacked states, have behind them."""
    return int(np.max(np.asarray(state.epoch)))


def _mesh_of_seeds(num_seeds: int) -> Mesh | None:
    """As many devices as divide the seeds."""
    count = max(n for n in range(1, jax.device_count() + 1) if num_seeds % n == 0)
    return None if count == 1 else make_mesh(seeds=count)


def _make_measurement(config: Config, task: Task, seeds: Seeds | None, mesh: Mesh | None):
    """What is measured on a schedule: the test bound, the KL of each layer, the variances."""
    evaluate = make_evaluation(config, task, task.test, seeds, mesh)
    vary = None
    if config.variance_draws:
        vary = make_gradient_variance(config, task, seeds, mesh)

    def measure(state):
        test = evaluate(state.model)
        measured = {
            "test_bound": test.bound,
            "test_effective_sample_size": test.effective_sample_size,
            "kl": test.kl,
        }
        return measured if vary is None else measured | {"variance": vary(state)}

    return measure
