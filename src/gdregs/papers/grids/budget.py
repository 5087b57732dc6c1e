"""What a cell costs, from counted operations, and which cells to spend a number of hours on."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from gdregs.vae.config import Config

PIXELS = {"digits": 64, "mnist": 784, "fashion-mnist": 784, "omniglot": 784}
IMAGES = {"digits": 1500, "mnist": 60_000, "fashion-mnist": 60_000, "omniglot": 24_345}

DEVICE = "one H100 at 20 TFLOP/s"
RATE = 20e12
"""Measured on one (80 GB, HBM3) on 2026-11-26: `mnist-conditional-L1`, DReGs and GDReGs, M = 8, ten
seeds under `vmap` train on 478,000 images a second, 43 MFLOP each, in steps of 1.34 ms, once the
program is compiled (37 s). Larger networks may do better."""


def operations_an_image(config: Config) -> float:
    """Floating-point operations in matrix products, of one image in one step of training.

    A network of P weights takes 2P operations for a sample forward. The look takes all K samples,
    the pull M samples forward and, at twice the cost, backward; where M = K the look is part of
    it. What the datapoint alone decides runs once.
    """
    pixels, hidden, latent = PIXELS[config.dataset], config.hidden_size, config.latent_size
    context = pixels // 2 if config.conditional else 0
    target, layers = pixels - context, config.num_layers

    def network(inputs: int, outputs: int) -> int:
        return inputs * hidden + hidden * hidden + hidden * outputs

    once = network(target + context, 2 * latent) + (network(context, 2 * latent) if context else 0)
    sampled = 2 * (layers - 1) * network(latent, 2 * latent) + network(layers * latent, target)
    once += (layers - 1) * (target + 2 * context) * hidden
    total, kept = config.num_samples, config.gradient_samples or config.num_samples
    looks = total if kept < total else 0
    return 2.0 * (sampled * (looks + 3 * kept) + 3 * once)


def hours(config: Config, num_seeds: int, num_images: int | None = None) -> float:
    """Of training a cell's seeds on `DEVICE`, without its measurements."""
    images = num_images or config.train_images or IMAGES[config.dataset]
    return num_seeds * config.epochs * images * operations_an_image(config) / RATE / 3600


def within(
    cells: Iterable[Config], num_seeds: int, budget: float, open_questions: Mapping[str, int]
) -> tuple[list[Config], float]:
    """The rows to train in so many hours, whole, in the order of evidence an hour.

    Args:
        cells: Settings, at their scale.
        num_seeds: Seeds of each.
        budget: Hours on `DEVICE`.
        open_questions: By row (`Config.task`), how many comparisons are undecided; a row that is
            not named counts as one that has never been run.

    Returns:
        The cells, and their hours.
    """
    rows: dict[str, list[Config]] = {}
    for cell in cells:
        rows.setdefault(cell.task, []).append(cell)
    costs = {row: sum(hours(cell, num_seeds) for cell in members) for row, members in rows.items()}
    never = 1 + max(open_questions.values(), default=0)
    order = sorted(rows, key=lambda row: -open_questions.get(row, never) / costs[row])
    chosen: list[Config] = []
    spent = 0.0
    for row in order:
        if spent + costs[row] <= budget:
            chosen += rows[row]
            spent += costs[row]
    return chosen, spent


def label(cell: Config) -> str:
    """A cell's column: its pair, and its objective where that is not IWAE."""
    return cell.pair if cell.objective == "iwae" else f"{cell.pair} ({cell.objective})"


def lengths(contents: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[int, int, int]]:
    """By row and column, the longest run that results files have: epochs, images, seeds."""
    found: dict[tuple[str, str], tuple[int, int, int]] = {}
    for content in contents:
        for cell in (*content["cells"], *content["resampled"]):
            config = cell["config"]
            known = dataclasses.fields(Config)
            settings = Config(**{f.name: config[f.name] for f in known if f.name in config})
            images = settings.train_images or _images(settings.dataset, content)
            length = (settings.epochs, images, len(cell["seeds"]))
            key = (settings.task, label(settings))
            if length[0] * length[1] * length[2] > _work(found.get(key)):
                found[key] = length
    return found


def _images(name: str, content: Mapping[str, Any]) -> int:
    """How many training images a run on all of them had: of Omniglot what was found."""
    part = re.search(r"found \(([\d,]+) training images", content.get("scale", ""))
    return int(part[1].replace(",", "")) if name == "omniglot" and part else IMAGES[name]


def _work(length: tuple[int, int, int] | None) -> int:
    return 0 if length is None else length[0] * length[1] * length[2]
