"""Train a model on arrays of images, in one call."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gdregs.vae.config import Config
from gdregs.vae.data.datasets import Dataset
from gdregs.vae.runs.folders import open_run, read_metrics, train
from gdregs.vae.runs.load import Run
from gdregs.vae.runs.record import check_data, describe
from gdregs.vae.training.task import make_stub, make_task


def fit(
    model: Any,
    images: Any,
    test_images: Any,
    config: Config = Config(),
    *,
    folder: Path | str | None = None,
    levels: int = 255,
    report: Callable[[dict[str, Any]], Any] = lambda row: None,
) -> tuple[Run, list[dict[str, Any]]]:
    """Train a model of your own, or the one that the settings name.

    Args:
        model: Untrained: a `gdregs.vae.OwnVAE`, a `VAE`, or anything with their methods; None for
            the one that the settings name.
        images: Training images, `uint8 [count, height, width]` or `[count, height, width, 3]`.
        test_images: Test images.
        config: The settings; its data set is not used.
        folder: The run folder, where training goes on if it was cut off. Without one nothing is
            kept.
        levels: The value of full ink.
        report: Called with the metrics of every finished epoch.

    Returns:
        The trained run and the metrics of all epochs.

    Raises:
        UserError: If the folder holds another run, or there are fewer images than fit a batch.
        DivergedError: If training diverges.
    """
    dataset = Dataset(
        config.dataset, np.asarray(images, np.uint8), np.asarray(test_images, np.uint8), levels
    )
    task = make_task(config, dataset)
    if model is not None:
        task = task._replace(observation=model.observation)
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(folder) if folder is not None else Path(temporary) / "run"
        check_data(run, dataset)
        open_run(run, config, data=describe(dataset, None))
        state = train(run, config, task, report, model=model)
        rows = read_metrics(run)
    stub = make_stub(config, dataset.train.shape[1:], levels, dataset.is_ink)
    stub = stub._replace(observation=task.observation)
    return Run(jax.device_get(state.model), config, stub, int(state.epoch)), rows
