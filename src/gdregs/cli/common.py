"""What several commands do."""

from pathlib import Path
from typing import Any

from gdregs.vae.config import Config, read_config
from gdregs.vae.errors import UserError


def describe(config: Config) -> str:
    """A run in a few words."""
    kind = "conditional" if config.conditional else "unconditional"
    name = config.dataset if config.is_named else Path(config.dataset).name
    networks = "" if config.networks == "mlp" else f" {config.networks},"
    return f"{name}, {kind},{networks} L={config.num_layers}, K={config.num_samples}, {config.pair}"


def load_dataset(config: Config, data_dir: Path | None) -> Any:
    """The data that the settings name; says what could not be read."""
    from gdregs.vae.data.datasets import load_dataset

    dataset = load_dataset(config.dataset, data_dir, options=config.options, stream=config.stream)
    if dataset.skipped:
        print(f"{len(dataset.skipped)} files of {config.dataset} were skipped:")
        for reason in dataset.skipped[:10]:
            print(f"  {reason}")
        if len(dataset.skipped) > 10:
            print(f"  ... and {len(dataset.skipped) - 10} more")
    return dataset


def load_run(run: Path, data_dir: Path | None, *, needs_data: bool = True) -> Any:
    """The settings, the data and the trained state of a run.

    Args:
        run: The run folder.
        data_dir: Where the data are, if not where training had them.
        needs_data: Whether images are needed, and not their shape alone.
    """
    from gdregs.vae.runs.folders import CHECKPOINT, CONFIG, load_state
    from gdregs.vae.runs.record import load_stub, load_task

    config = read_config(run / CONFIG)
    if not (run / CHECKPOINT).exists():
        raise UserError(f"{run} has no checkpoint yet; `gdregs train` writes one each epoch.")
    task = (load_task if needs_data else load_stub)(run, config, data_dir)
    return config, task, load_state(run, config, task)
