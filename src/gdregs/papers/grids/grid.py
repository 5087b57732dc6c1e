"""The papers' image models as data: which cells each table has, and how to make them smaller."""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

from gdregs.vae.config import Config
from gdregs.vae.networks.mlp import InitialWeights
from gdregs.vae.runs.compare import PAPER_PAIRS, read_pair

PAPER_DATASETS = ("mnist", "omniglot", "fashion-mnist")
SEEDS = 5

_PAPER = Config(epochs=1000, gradient_samples=0, variance_draws=20, initial_weights="haiku")
"""Sec. 5.2 and App. G.2: what all cells of Tables 1 and 2 share. The backward pass takes
all K samples. The paper's Listing 1 builds its networks with Haiku's MLP and names no initial
weights, so that they are Haiku's."""
_POSTER = dataclasses.replace(_PAPER, num_layers=1, hidden_size=200)
"""The poster's networks; its length of training is not stated, so that we take the paper's."""
_DIGITS = dataclasses.replace(
    _PAPER, dataset="digits", conditional=True, hidden_size=50, latent_size=10, epochs=120
)
"""scikit-learn's 8x8 digits, whose 32 pixels to complete need no larger networks."""


_BEST = "dregs+gdregs"


class Grid(NamedTuple):
    """The cells of one table.

    Attributes:
        title: What the table shows.
        cells: Settings with the backward pass on all K samples, as the papers had it.
        resampled: Cells again, with the resampled backward pass on 8 of 64.
        mixes: Cells with the learned mix for the prior, which the papers do not have; they are
            trained where their pair is asked for by name.
    """

    title: str
    cells: tuple[Config, ...]
    resampled: tuple[Config, ...]
    mixes: tuple[Config, ...] = ()


def with_pair(config: Config, pair: str) -> Config:
    """The settings with a posterior and a prior estimator, such as `dregs+gdregs`."""
    posterior, prior = read_pair(pair)
    return dataclasses.replace(config, posterior_estimator=posterior, prior_estimator=prior)


def _six_pairs(
    base: Config, datasets: Iterable[str], conditional: bool, layers: Iterable[int]
) -> tuple[Config, ...]:
    return tuple(
        with_pair(
            dataclasses.replace(base, dataset=name, conditional=conditional, num_layers=count), pair
        )
        for name, count, pair in itertools.product(datasets, layers, PAPER_PAIRS)
    )


def _mixes(cells: Iterable[Config]) -> tuple[Config, ...]:
    """DReGs with the learned mix, in every row that has DReGs with GDReGs."""
    return tuple(
        dataclasses.replace(cell, prior_estimator="gdregs-mix")
        for cell in cells
        if cell.pair == _BEST
    )


def _resampled(*configs: Config) -> tuple[Config, ...]:
    return tuple(dataclasses.replace(config, gradient_samples=8) for config in configs)


def _poster_cells() -> tuple[Config, ...]:
    objectives = (
        ("iwae", ("naive+naive", "stl+naive", "dregs+naive")),
        ("iwae", ("rws+naive", "rws-dregs+naive")),
        ("jvi", ("naive+naive", "dregs+naive")),
    )
    tasks = (("mnist", False), ("omniglot", False), ("mnist", True))
    return tuple(
        with_pair(
            dataclasses.replace(_POSTER, dataset=name, conditional=conditional, objective=which),
            pair,
        )
        for name, conditional in tasks
        for which, pairs in objectives
        for pair in pairs
    )


_MNIST_2 = with_pair(dataclasses.replace(_PAPER, dataset="mnist", num_layers=2), _BEST)
_MNIST_1 = with_pair(dataclasses.replace(_POSTER, dataset="mnist"), "dregs+naive")

_TABLE_1 = _six_pairs(_PAPER, PAPER_DATASETS, True, (1, 2, 3))
_TABLE_2 = _six_pairs(_PAPER, PAPER_DATASETS, False, (2, 3))

GRIDS: dict[str, Grid] = {
    "table1": Grid(
        "Conditional image modelling (Table 1)",
        _TABLE_1,
        _resampled(dataclasses.replace(_MNIST_2, conditional=True)),
        _mixes(_TABLE_1),
    ),
    "table2": Grid(
        "Unconditional image modelling (Table 2)",
        _TABLE_2,
        _resampled(_MNIST_2),
        _mixes(_TABLE_2),
    ),
    "poster": Grid(
        "Single-layer models with IWAE, RWS and JVI (poster)",
        _poster_cells(),
        _resampled(_MNIST_1, dataclasses.replace(_MNIST_1, conditional=True)),
    ),
    "digits": Grid(
        "Conditional modelling of 8x8 digits",
        _six_pairs(_DIGITS, ("digits",), True, (1, 2, 3)),
        _resampled(with_pair(dataclasses.replace(_DIGITS, num_layers=2), _BEST)),
    ),
}


class Scale(NamedTuple):
    """How much of the papers' computation is done.

    Attributes:
        epochs: Instead of a cell's own; None keeps them.
        seeds: Runs of each cell.
        images: Training images, and the same share of the test images; None keeps all.
        gradient_samples: M, on how many of the K samples the backward pass of every cell runs;
            None keeps a cell's own.
        initial_weights: Instead of a cell's own; None keeps them.
    """

    epochs: int | None = None
    seeds: int = SEEDS
    images: int | None = None
    gradient_samples: int | None = None
    initial_weights: InitialWeights | None = None


def shrink(config: Config, scale: Scale, num_train: int, num_test: int) -> Config:
    """A cell's settings at a scale.

    A twentieth of the epochs passes between two measurements.

    Args:
        config: The cell.
        scale: What to change.
        num_train: Training images of the data set.
        num_test: Its test images.
    """
    epochs = scale.epochs or config.epochs
    changes: dict[str, Any] = {"epochs": epochs, "record_every": -(-epochs // 20)}
    if scale.gradient_samples is not None:
        changes["gradient_samples"] = scale.gradient_samples
    if scale.initial_weights is not None:
        changes["initial_weights"] = scale.initial_weights
    if scale.images is not None and scale.images < num_train:
        changes |= {
            "train_images": scale.images,
            "test_images": max(round(num_test * scale.images / num_train), 1),
        }
    return dataclasses.replace(config, **changes)


def cell_name(config: Config) -> str:
    """A folder's name, from all that tells the cells of the grids and their scales apart."""
    extras = [
        ("" if config.objective == "iwae" else config.objective),
        ("" if config.hidden_size != _POSTER.hidden_size else f"{config.hidden_size}units"),
        (f"M{config.gradient_samples}" if config.gradient_samples else ""),
        (f"{config.train_images}images" if config.train_images else ""),
        ("" if config.initial_weights == _PAPER.initial_weights else config.initial_weights),
    ]
    return "-".join([config.task, config.pair, *filter(None, extras)])
