"""Pictures that a run leaves: curves, samples, completions, and comparisons of estimators."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gdregs.vae.files import write_atomically
from gdregs.vae.training.task import Task

matplotlib.use("Agg")


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150))


def draw_curve(path: Path, rows: list[dict[str, Any]], title: str) -> None:
    """Train and test bound by epoch, and how the importance weight is spread."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    bounds, weights = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) < 20 else None
    names = {"train_bound": "train", "test_bound": "test"}
    for name, label in names.items():
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        bounds.plot(*zip(*points, strict=True), label=label, marker=marker, ms=3)
    _zoom_on_the_end(bounds, [row[name] for row in rows for name in names if name in row])
    figure.suptitle(title)
    bounds.set(xlabel="epoch", ylabel="bound (nats per image)")
    bounds.legend()
    sizes = [row["effective_sample_size"] for row in rows]
    weights.plot(epochs, sizes, color="C2", marker=marker, ms=3)
    weights.set(xlabel="epoch", ylabel="effective sample size", ylim=(0, 1.1 * max(*sizes, 1)))
    kept = weights.twinx()
    kept.plot(epochs, [100 * row["weight_kept"] for row in rows], color="C3", marker=marker, ms=3)
    kept.set(ylim=(0, 105))
    kept.set_ylabel("weight on the backward pass (%)", color="C3")
    weights.yaxis.label.set_color("C2")
    for axes in (bounds, weights):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, path)


def _zoom_on_the_end(axes, values: list[float]) -> None:
    """Leave the steep first epochs out of the picture once they would flatten the rest."""
    finite = [value for value in values if np.isfinite(value)]
    if len(finite) < 20:
        return
    low, high = np.quantile(finite, 0.05), max(finite)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _draw_sheet(
    path: Path, images: np.ndarray, rows: int, title: str, *, is_ink: bool = True
) -> None:
    """A grid of images `[count, height, width, colours]` in [0, 1]; ink is black on white."""
    count, height, width, colours = images.shape
    columns = -(-count // rows)
    sheet = np.zeros((rows * (height + 1) + 1, columns * (width + 1) + 1, colours))
    for number, image in enumerate(images):
        top, left = (number // columns) * (height + 1) + 1, (number % columns) * (width + 1) + 1
        sheet[top : top + height, left : left + width] = image
    inches = 6.0
    figure = Figure(figsize=(inches, inches * sheet.shape[0] / sheet.shape[1] + 0.35))
    axes = figure.add_axes((0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    shown = 1 - sheet if is_ink else sheet
    shown = shown[..., 0] if colours == 1 else np.clip(shown, 0, 1)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    figure.suptitle(title, y=1 - 0.06 / figure.get_figheight(), va="top", fontsize=10)
    _save(figure, path)


def _sheet(task: Task, pixels: Any) -> np.ndarray:
    """Flat pixels, `[..., values]`, as images, `[count, height, width, colours]`."""
    return np.asarray(pixels).reshape(-1, *task.shape, task.colours)


@eqx.filter_jit
def _sample_pixels(
    model: Any, context: Float[Array, "batch context"] | None, count: int, key: PRNGKeyArray
) -> Float[Array, "count pixels"]:
    """Expected pixels, of `count` samples or of one for each context."""
    z = model.prior(context).sample(key, () if context is not None else (count,))
    return model.pixels(z)


def draw_samples(
    path: Path, model: Any, task: Task, key: PRNGKeyArray, count: int = 100, title: str = ""
) -> None:
    """Samples of the prior; for a conditional model, completions of test images' top halves.

    The pixels are shown by their expected value. A conditional model's sheet has a
    column per image: the image, its given half, and completions below.
    """
    if not task.num_context:
        pixels = _sample_pixels(model, None, count, key)
        rows = max(int(count**0.5), 1)
        _draw_sheet(path, _sheet(task, pixels), rows, title, is_ink=task.is_ink)
        return
    columns, completions = 12, 6
    image_key, *keys = jax.random.split(key, completions + 1)
    # Spread over the test set, which may be sorted.
    chosen = jnp.linspace(0, task.test.shape[0] - 1, columns).astype(int)
    observed = task.observe(image_key, task.test[chosen])
    images = task.observation.to_network(observed)
    context = images[:, : task.num_context]
    rows = [images, jnp.pad(context, ((0, 0), (0, images.shape[1] - context.shape[1])))]
    for completion_key in keys:
        completed = _sample_pixels(model, context, len(images), completion_key)
        rows.append(jnp.concatenate([context, completed], axis=1))
    _draw_sheet(path, _sheet(task, jnp.concatenate(rows)), len(rows), title, is_ink=task.is_ink)


@eqx.filter_jit
def _reconstruct_pixels(
    model: Any, x: Float[Array, "batch pixels"], context: Any, key: PRNGKeyArray
) -> Float[Array, "batch pixels"]:
    """Expected pixels, given a sample of the posterior."""
    z = model.posterior(x, context).sample(key, (1,))
    return model.pixels(z)[0]


def draw_reconstructions(
    path: Path, model: Any, task: Task, key: PRNGKeyArray, title: str = ""
) -> None:
    """Test images as the model sees them, and below each what it makes of a posterior sample."""
    columns, blocks = 12, 4
    image_key, sample_key = jax.random.split(key)
    chosen = jnp.linspace(0, task.test.shape[0] - 1, columns * blocks).astype(int)
    observed = task.observe(image_key, task.test[chosen])
    images = task.observation.to_network(observed)
    x, context = task.split(observed)
    pixels = _reconstruct_pixels(model, x, context, sample_key)
    if context is not None:
        pixels = jnp.concatenate([context, pixels], axis=1)
    pairs = [values.reshape(blocks, columns, -1) for values in (images, pixels)]
    sheet = np.stack([np.asarray(values) for values in pairs], axis=1)
    _draw_sheet(path, _sheet(task, sheet), 2 * blocks, title, is_ink=task.is_ink)


def draw_completions(
    path: Path,
    model: Any,
    task: Task,
    context: Float[Array, " context"],
    key: PRNGKeyArray,
    count: int,
    title: str = "",
) -> None:
    """One given top half, and several completions by the model."""
    given = jnp.broadcast_to(context[None], (count, context.shape[0]))
    pixels = _sample_pixels(model, given, count, key)
    completed = jnp.concatenate([given, pixels], axis=1)
    alone = jnp.pad(context, (0, completed.shape[1] - context.shape[0]))[None]
    sheet = _sheet(task, jnp.concatenate([alone, completed]))
    _draw_sheet(path, sheet, max(round((count + 1) ** 0.5), 1), title, is_ink=task.is_ink)


@eqx.filter_jit
def _traverse(model: Any, z: dict[str, Array], name: str, steps: Float[Array, " steps"]) -> Array:
    """The pixels where the largest direction of one latent takes these values."""
    value = z[name]
    by = jnp.broadcast_to(steps.reshape(-1, *(1,) * value.ndim), (len(steps), *value.shape))
    moved = value[None] + by
    others = {
        other: jnp.broadcast_to(values[None], (len(steps), *values.shape))
        for other, values in z.items()
    }
    return model.pixels({**others, name: moved})


def draw_traversals(
    path: Path, model: Any, task: Task, means: Mapping[str, Any], title: str = ""
) -> None:
    """For one test image, a row for each stochastic layer: its latent moved from low to high.

    Args:
        path: The PNG file.
        model: An unconditional model.
        task: The data.
        means: The latents of one image, by layer, without leading axes.
        title: Above the picture.
    """
    steps = jnp.linspace(-2.5, 2.5, 9)
    z = {name: jnp.asarray(value) for name, value in means.items()}
    shown = list(z)[:12]
    rows = [_traverse(model, z, name, steps) for name in shown]
    _draw_sheet(path, _sheet(task, jnp.concatenate(rows)), len(rows), title, is_ink=task.is_ink)


def draw_comparison(path: Path, results: list[dict[str, Any]], title: str) -> None:
    """Test bound by epoch, gradient variance, SNR and time per step of several estimator pairs."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    figure.suptitle(title)
    curve, variance, snr, seconds = figure.subplots(2, 2).ravel()
    names = [result["pair"] for result in results]
    for result in results:
        curves = np.array(result["test_curves"])
        (line,) = curve.plot(result["epochs"], curves.mean(axis=0), label=result["pair"])
        if len(curves) > 1:
            spread = curves.std(axis=0, ddof=1) / len(curves) ** 0.5
            mean = curves.mean(axis=0)
            curve.fill_between(
                result["epochs"], mean - spread, mean + spread, alpha=0.2, color=line.get_color()
            )
    _zoom_on_the_end(curve, [v for r in results for c in r["test_curves"] for v in c])
    curve.set(xlabel="epoch", ylabel="test bound (nats per image)")
    curve.xaxis.set_major_locator(MaxNLocator(integer=True))
    curve.legend(fontsize=8)
    places = np.arange(len(names))
    for axes, quantity, label in (
        (variance, "variance", "gradient variance (sum)"),
        (snr, "snr", "gradient SNR (mean)"),
    ):
        for shift, group in ((-0.2, "posterior"), (0.2, "prior")):
            values = [result[f"{group}_{quantity}"] for result in results]
            axes.bar(places + shift, values, 0.38, label=group)
        axes.set(yscale="log", ylabel=label)
        axes.legend(fontsize=8)
    seconds.bar(places, [1000 * result["seconds_per_step"] for result in results], 0.6, color="C4")
    seconds.set(ylabel="time per step (ms)")
    for axes in (variance, snr, seconds):
        axes.set_xticks(places, names, rotation=20, ha="right", fontsize=8)
    _save(figure, path)
