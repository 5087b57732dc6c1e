"""The same model trained with several pairs of estimators from the same seeds."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from gdregs.shared.tables import find_posterior_estimator, find_prior_estimator
from gdregs.vae.config import Config
from gdregs.vae.errors import UserError
from gdregs.vae.networks.model import VAE
from gdregs.vae.runs.folders import open_run, read_metrics, train
from gdregs.vae.show.markdown import markdown_table
from gdregs.vae.training.epochs import loss_and_diagnostics, prior_estimator
from gdregs.vae.training.evaluation import gradient_quality
from gdregs.vae.training.task import Task

PAPER_PAIRS = (
    "naive+naive",
    "naive+gdregs",
    "stl+naive",
    "stl+gdregs",
    "dregs+naive",
    "dregs+gdregs",
)
"""The six pairs of Tables 1 and 2, posterior estimator first."""


def read_pair(pair: str) -> tuple[str, str]:
    """`dregs+gdregs` as its two names.

    Raises:
        UserError: If it is not two known names.
    """
    posterior, _, prior = pair.partition("+")
    try:
        find_posterior_estimator(posterior)
        find_prior_estimator(prior)
    except ValueError as error:
        raise UserError(f"pair {pair!r} is not POSTERIOR+PRIOR: {error}") from None
    return posterior, prior


def compare(
    folder: Path,
    config: Config,
    pairs: tuple[str, ...],
    num_seeds: int,
    task: Task,
    report: Callable[[str, dict[str, Any]], None],
    num_draws: int = 200,
) -> list[dict[str, Any]]:
    """Train every pair with every seed, in a run folder each, and measure their gradients.

    Args:
        folder: Holds one run folder for each pair and seed; runs that are done are not repeated.
        config: The settings that all runs share; its seed is the first one.
        pairs: Such as `dregs+gdregs`.
        num_seeds: How many seeds.
        task: The data.
        report: Called with the run's name and its metrics after each epoch.
        num_draws: Draws for the moments of the gradients.

    Returns:
        One row for each pair: means over seeds, with standard errors where there are several.
    """
    results = []
    models = []
    for pair in pairs:
        posterior, prior = read_pair(pair)
        runs = []
        for seed in range(config.seed, config.seed + num_seeds):
            settings = dataclasses.replace(
                config, posterior_estimator=posterior, prior_estimator=prior, seed=seed
            )
            name = f"{pair}-seed{seed}"
            open_run(folder / name, settings)
            state = train(folder / name, settings, task, lambda row, name=name: report(name, row))
            rows = read_metrics(folder / name)
            key = jax.random.key(seed)
            estimator = prior_estimator(settings, state)
            quality = gradient_quality(
                state.model, settings, task, key, num_draws=num_draws, prior_estimator=estimator
            )
            runs.append((rows, quality))
        results.append(_summarise(pair, runs))
        models.append((settings, state.model))
    for result, seconds in zip(results, time_steps(models, task), strict=True):
        result["seconds_per_step"] = seconds
    return results


def time_steps(models: list[tuple[Config, VAE]], task: Task, num_rounds: int = 15) -> list[float]:
    """The median time of one gradient step with each run's settings, in seconds.

    The steps take turns, so that all of them see what else the machine is doing.
    """
    steps = []
    for config, model in models:
        images = task.observe(jax.random.key(0), task.train[: config.batch_size])
        gradient = eqx.filter_value_and_grad(loss_and_diagnostics, has_aux=True)
        step = eqx.filter_jit(functools.partial(gradient, config=config, task=task, images=images))
        steps.append(functools.partial(step, model))
    seconds: list[list[float]] = [[] for _ in steps]
    for number in range(num_rounds + 1):
        for times, step in zip(seconds, steps, strict=True):
            begun = time.perf_counter()
            jax.block_until_ready(step(key=jax.random.key(number)))
            times.append(time.perf_counter() - begun)
    return [float(np.median(times[1:])) for times in seconds]  # the first round compiles


def _summarise(pair: str, runs: list) -> dict[str, Any]:
    result: dict[str, Any] = {
        "pair": pair,
        "epochs": [row["epoch"] for row in runs[0][0]],
        "test_curves": [[row["test_bound"] for row in rows] for rows, _ in runs],
    }
    for name in ("train_bound", "test_bound"):
        finals = np.array([rows[-1][name] for rows, _ in runs])
        result[name] = float(finals.mean())
        if len(finals) > 1:
            result[f"{name}_error"] = float(finals.std(ddof=1) / len(finals) ** 0.5)
    for group in ("posterior", "prior", "likelihood"):
        for quantity in ("variance", "snr"):
            values = [getattr(quality[group], quantity) for _, quality in runs]
            result[f"{group}_{quantity}"] = float(np.mean(values))
    return result


def format_table(results: list[dict[str, Any]]) -> str:
    """The comparison as a Markdown table."""
    header = (
        "pair (φ + θ)", "train bound", "test bound", "var φ", "var θ", "SNR φ", "SNR θ", "ms/step",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for result in results:
        bounds = []
        for name in ("train_bound", "test_bound"):
            error = result.get(f"{name}_error")
            bounds.append(f"{result[name]:.2f}" + (f" ± {error:.2f}" if error else ""))
        rows.append(
            (
                result["pair"],
                *bounds,
                *(f"{result[f'{group}_variance']:.3g}" for group in ("posterior", "prior")),
                *(f"{result[f'{group}_snr']:.3f}" for group in ("posterior", "prior")),
                f"{1000 * result['seconds_per_step']:.1f}",
            )
        )
    return markdown_table(header, rows)
