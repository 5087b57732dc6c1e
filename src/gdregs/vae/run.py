"""A run folder: settings, metrics, checkpoint and pictures, always resumable."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

import gdregs
from gdregs.vae.config import Config, differences, read_config
from gdregs.vae.errors import UserError
from gdregs.vae.evaluation import make_evaluation
from gdregs.vae.files import write_atomically, write_json, write_text
from gdregs.vae.training import Task, TrainingState, make_epoch, make_state

CONFIG, METRICS, CHECKPOINT = "config.json", "metrics.jsonl", "checkpoint.eqx"


def open_run(folder: Path, config: Config) -> None:
    """Make a run folder, or check that the one that exists belongs to these settings.

    Raises:
        UserError: If the folder holds something else. Nothing in it is touched then.
    """
    if (folder / CONFIG).exists():
        saved = read_config(folder / CONFIG)
        different = differences(config, saved)
        if different:
            raise UserError(
                f"{folder} holds a run with {', '.join(different)}; choose another --out."
            )
        if config.epochs > saved.epochs:
            _write_config(folder, config)
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not a run folder; choose another --out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}).") from None
    _write_config(folder, config)


def _write_config(folder: Path, config: Config) -> None:
    versions = {"gdregs": gdregs.__version__, "jax": jax.__version__}
    write_json(folder / CONFIG, {"config": config.to_dict(), "versions": versions})


def load_state(folder: Path, config: Config, task: Task) -> TrainingState:
    """The state after the last finished epoch, or the initial one.

    Raises:
        UserError: If the checkpoint is truncated, corrupt or of another model.
    """
    initial = make_state(config, task)
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
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> TrainingState:
    """Train up to `config.epochs`, from wherever the run folder stands.

    After every epoch its metrics are appended and flushed, then the checkpoint is replaced: a
    process that is killed loses the epoch under way and nothing else.

    Args:
        folder: A folder that `open_run` has accepted.
        config: The settings.
        task: The data.
        report: Called with the metrics of every finished epoch.

    Returns:
        The state after the last epoch.
    """
    state = load_state(folder, config, task)
    first = int(state.epoch)
    rows = [row for row in read_metrics(folder) if row["epoch"] <= first]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_text(folder / METRICS, text)
    if first >= config.epochs:
        return state
    run_epoch = make_epoch(config, task)
    evaluate = make_evaluation(config, task, task.test)
    num_images = task.train.shape[0] // config.batch_size * config.batch_size
    for epoch in range(first + 1, config.epochs + 1):
        begun = time.perf_counter()
        state, metrics = jax.block_until_ready(run_epoch(state))
        seconds = time.perf_counter() - begun
        test = evaluate(state.model)
        row = {
            "epoch": epoch,
            "train_bound": float(metrics.bound),
            "test_bound": float(test.bound),
            "effective_sample_size": float(metrics.effective_sample_size),
            "weight_kept": float(metrics.weight_kept),
            "images_per_second": num_images / seconds,
            "seconds": seconds,
        }
        if state.mix is not None:
            row["alpha"] = {name: float(alpha) for name, alpha in state.mix.alpha.items()}
        with open(folder / METRICS, "a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
        save_state(folder, state)
        report(row)
    return state
