"""`gdregs sample`, `complete` and `show`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from gdregs.cli.common import describe, load_run
from gdregs.vae.arguments import POSITIONAL
from gdregs.vae.config import read_config
from gdregs.vae.errors import UserError


def sample(
    run: Annotated[Path, POSITIONAL],
    data_dir: Path | None = None,
    kind: Literal["samples", "reconstructions"] = "samples",
    count: int = 100,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Draw a sheet of a trained run's samples (completions of top halves) or reconstructions.

    Args:
        run: The run folder.
        data_dir: Folder with the data, where they are needed; by default where training had them.
        kind: samples, or reconstructions of test images.
        count: How many samples (other sheets have a fixed layout).
        seed: Seed of the samples.
        out: The PNG file; by default KIND-seedN.png in the run folder.
    """
    import jax

    from gdregs.vae.show.pictures import draw_reconstructions, draw_samples

    if count < 1:
        raise UserError("--count must be at least 1.")
    config = read_config(run / "config.json")
    needs_data = kind == "reconstructions" or config.conditional
    config, task, state = load_run(run, data_dir, needs_data=needs_data)
    out = out or run / f"{kind}-seed{seed}.png"
    key = jax.random.key(seed)
    if kind == "samples":
        draw_samples(out, state.model, task, key, count, describe(config))
    else:
        draw_reconstructions(out, state.model, task, key, describe(config))
    print(out)


def complete(
    run: Annotated[Path, POSITIONAL],
    image: Path,
    data_dir: Path | None = None,
    ink: Literal["auto", "dark", "light"] = "auto",
    count: int = 24,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Complete the top half of an image of your own with a conditional run, as a PNG sheet.

    Args:
        run: The run folder of a conditional model.
        image: A PNG file with a top half, or with a whole image whose top half is taken.
        data_dir: Folder with the data of runs that do not say what shape they have.
        ink: dark ink on light paper, light ink on dark, or auto: the one that covers less.
        count: How many completions.
        seed: Seed of the binarisation and of the completions.
        out: The PNG file; by default NAME-completed-seedN.png in the run folder.
    """
    import jax
    import jax.numpy as jnp

    from gdregs.vae.data.user_image import read_top_half
    from gdregs.vae.show.pictures import draw_completions

    if count < 1:
        raise UserError("--count must be at least 1.")
    config = read_config(run / "config.json")
    if not config.conditional:
        raise UserError(
            f"{run} is unconditional; `gdregs train --conditional` makes one that fits."
        )
    config, task, state = load_run(run, data_dir, needs_data=False)
    top = read_top_half(image, task.shape, ink)
    out = out or run / f"{image.stem}-completed-seed{seed}.png"
    if out.exists() and out.samefile(image):
        raise UserError(f"{out} is the image itself; choose another --out.")
    image_key, sample_key = jax.random.split(jax.random.key(seed))
    if task.colours != 1 or not task.is_ink:
        raise UserError(f"{run} is not a model of ink on paper, which `complete` is for.")
    observation = dataclasses.replace(task.observation, levels=255)
    context = observation.observe(image_key, jnp.asarray(top.reshape(1, -1)))
    context = observation.to_network(context)[0]
    draw_completions(out, state.model, task, context, sample_key, count, describe(config))
    print(out)


def show(
    run: Annotated[Path, POSITIONAL],
    out: Path | None = None,
    draws: int = 50,
    data_dir: Path | None = None,
) -> None:
    """Make one page of HTML of a run: settings, curves, images, latents, estimators.

    Args:
        run: The run folder.
        out: The page; by default report.html in the run folder.
        draws: Draws of the gradient for the comparison of estimators; 0 leaves it out.
        data_dir: Folder with the data; by default where training had them.
    """
    from gdregs.vae.files import write_text
    from gdregs.vae.runs.folders import read_metrics
    from gdregs.vae.runs.report import make_page

    if draws < 0 or draws == 1:
        raise UserError("--draws must be 0 or at least 2.")
    config, task, state = load_run(run, data_dir)
    page = make_page(run, config, task, state, read_metrics(run), draws)
    out = out or run / "report.html"
    write_text(out, page)
    print(out)
