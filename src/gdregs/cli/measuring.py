"""`gdregs evaluate`, `encode` and `export`."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from gdregs.cli.common import load_run
from gdregs.vae.arguments import POSITIONAL
from gdregs.vae.errors import UserError


def evaluate(
    run: Annotated[Path, POSITIONAL],
    data_dir: Path | None = None,
    num_samples: int = 5000,
    images: int = 0,
    devices: int = 1,
) -> None:
    """Bounds of a trained run on its training and test images.

    Args:
        run: The run folder.
        data_dir: Folder with the data; by default where training had them.
        num_samples: K for the estimate of log p(x), streamed.
        images: Use the first so many test images for log p(x); 0 uses all.
        devices: How many devices share the batches, and the K samples of log p(x).
    """
    import jax
    from tqdm import tqdm

    from gdregs.evaluation.meshes import make_mesh
    from gdregs.vae.files import write_json
    from gdregs.vae.training.evaluation import evaluate_log_marginal, make_evaluation

    if num_samples < 1 or images < 0:
        raise UserError("--num-samples must be at least 1 and --images not negative.")
    mesh = None
    if devices != 1:
        if devices < 1 or devices > jax.device_count() or num_samples % devices:
            raise UserError(
                f"--devices must be between 1 and {jax.device_count()} and divide --num-samples"
                f" {num_samples}; got {devices}."
            )
        mesh = make_mesh(samples=devices)
    config, task, state = load_run(run, data_dir)
    rows: list[tuple[str, float, float | None]] = []
    content: dict[str, Any] = {"epoch": int(state.epoch)}
    chosen = task.test[: images or None]
    total = task.train.shape[0] + task.test.shape[0] + chosen.shape[0]
    is_plain = not sys.stderr.isatty()
    with tqdm(total=total, unit="image", dynamic_ncols=True, disable=is_plain) as bar:
        for name, data in (("train", task.train), ("test", task.test)):
            bar.set_description(f"{name} bound")
            if name == "train" and task.stream is not None:
                name = f"train ({data.shape[0]} of {task.num_train} images)"
            result = make_evaluation(config, task, data, mesh=mesh)(state.model)
            values: dict[str, Any] = jax.tree.map(float, result._asdict())
            rows.append(
                (f"{name} bound, K={config.num_samples}", values["bound"], values["standard_error"])
            )
            rows.append((f"{name} effective sample size", values["effective_sample_size"], None))
            rows += [(f"{name} KL, {layer}", kl, None) for layer, kl in values["kl"].items()]
            content[name.split()[0]] = values
            bar.update(data.shape[0])
        bar.set_description("log p(x)")
        value, error = evaluate_log_marginal(
            state.model, config, task, chosen, num_samples, bar.update, mesh
        )
    rows.append((f"test log p(x), K={num_samples}, {chosen.shape[0]} images", value, error))
    height, width, colours = task.target_shape
    bits = task.observation.bits_per_dimension(value, height * width * colours)
    if bits is not None:
        rows.append(("test bits per dimension, of log p(x)", bits, None))
        content["bits_per_dimension"] = bits
    content["log_marginal"] = {
        "num_samples": num_samples,
        "images": chosen.shape[0],
        "value": value,
        "standard_error": error,
    }
    write_json(run / "evaluation.json", content)
    width = max(len(row[0]) for row in rows)
    for label, value, spread in rows:
        print(
            f"{label.ljust(width)}  {value:9.2f}" + ("" if spread is None else f" ± {spread:.2f}")
        )
    print(f"nats per image, ± standard error over images; {run}: evaluation.json")


def encode(
    run: Annotated[Path, POSITIONAL],
    to: Path | None = None,
    images: Path | None = None,
    split: Literal["train", "test"] = "test",
    samples: bool = False,
    seed: int = 0,
    data_dir: Path | None = None,
) -> None:
    """Write the latents of images as an .npz file, with an array for each stochastic layer.

    Args:
        run: The run folder.
        to: The .npz file; by default latents-SPLIT.npz in the run folder.
        images: Your own images instead of those of the run: a folder, an .npy or an .npz file.
        split: Which images of the run.
        samples: Draw from the posterior instead of taking its means.
        seed: Seed of the samples.
        data_dir: Folder with the data; by default where training had them.
    """
    import jax
    import numpy as np

    from gdregs.vae.data.own import read_every
    from gdregs.vae.files import write_atomically
    from gdregs.vae.runs.load import load
    from gdregs.vae.runs.record import load_data

    loaded = load(run)
    if images is not None:
        chosen = read_every(images, loaded.config.options)
        name = images.stem
    else:
        chosen = getattr(load_data(run, loaded.config, data_dir), split)
        name = split
    key = jax.random.key(seed) if samples else None
    latents = loaded.encode(chosen, key)
    to = to or run / f"latents-{name}.npz"
    write_atomically(to, lambda file: np.savez_compressed(file, **latents))  # pyright: ignore
    shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in latents.items())
    print(f"{to}: {shapes}")


def export(run: Annotated[Path, POSITIONAL], to: Path | None = None) -> None:
    """Write a run's weights as a safetensors file, with its settings in the metadata.

    Args:
        run: The run folder.
        to: The file; by default weights.safetensors in the run folder.
    """
    import importlib.util

    from gdregs.vae.runs.load import export as write
    from gdregs.vae.runs.load import load

    if importlib.util.find_spec("safetensors") is None:
        raise UserError("safetensors is not installed; run: pip install 'gdregs[cli]'")
    to = to or run / "weights.safetensors"
    print(f"{to}: {write(load(run), to)} arrays")
