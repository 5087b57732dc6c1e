"""What a run folder says of its data, so that it can be used without them."""

import json
from pathlib import Path
from typing import Any

from gdregs.vae.config import Config
from gdregs.vae.data.datasets import Dataset, load_dataset
from gdregs.vae.errors import UserError
from gdregs.vae.training.task import Task, make_stub, make_task

CONFIG = "config.json"


def describe(dataset: Dataset, data_dir: Path | None) -> dict[str, Any]:
    """What is written of a data set."""
    return {
        "fingerprint": dataset.fingerprint(),
        "folder": None if data_dir is None else str(data_dir.resolve()),
        "shape": list(dataset.train.shape[1:]),
        "levels": dataset.levels,
        "is_ink": dataset.is_ink,
        "train": len(dataset.train),
        "test": len(dataset.test),
        "skipped": list(dataset.skipped),
    }


def read_record(folder: Path) -> dict[str, Any] | None:
    """What a run folder says of its data; None in those that say nothing."""
    try:
        return json.loads((folder / CONFIG).read_text()).get("data")
    except (OSError, ValueError, AttributeError):
        return None


def check_data(folder: Path, dataset: Dataset) -> None:
    """An error if a run was trained on other data.

    Raises:
        UserError: If their fingerprints differ.
    """
    record = read_record(folder)
    if record and record["fingerprint"] != dataset.fingerprint():
        raise UserError(
            f"{folder} was trained on other images ({record['train']} and {record['test']}; here"
            f" {len(dataset.train)} and {len(dataset.test)}, or others of them); choose another"
            " folder."
        )


def load_data(folder: Path, config: Config, data_dir: Path | None = None) -> Dataset:
    """The data of a run, from where training had them unless another folder is given."""
    record = read_record(folder)
    if data_dir is None and record and record["folder"]:
        data_dir = Path(record["folder"])
        if not data_dir.is_dir():
            raise UserError(
                f"{folder} was trained on data in {data_dir}, which is not there any more; pass"
                f" --data-dir."
            )
    dataset = load_dataset(config.dataset, data_dir, options=config.options, stream=config.stream)
    check_data(folder, dataset)
    return dataset


def load_task(folder: Path, config: Config, data_dir: Path | None = None) -> Task:
    """The data of a run, on the device."""
    return make_task(config, load_data(folder, config, data_dir))


def load_stub(folder: Path, config: Config, data_dir: Path | None = None) -> Task:
    """A task of the shape of a run's images, without them where the run says what that is."""
    record = read_record(folder)
    if record is None:
        return load_task(folder, config, data_dir)
    return make_stub(config, tuple(record["shape"]), record["levels"], record["is_ink"])
