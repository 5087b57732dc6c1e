"""One page of HTML of a run, which needs no other file."""

import base64
import dataclasses
import html
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import gdregs
from gdregs.vae.config import Config
from gdregs.vae.runs.compare import PAPER_PAIRS, read_pair
from gdregs.vae.runs.load import Run
from gdregs.vae.show import pictures
from gdregs.vae.training.epochs import TrainingState
from gdregs.vae.training.evaluation import gradient_quality
from gdregs.vae.training.task import Task

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { text-align: left; padding: 0.2rem 1.2rem 0.2rem 0; border-bottom: 1px solid #ddd; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; display: block; }
p.note { color: #555; font-size: 0.9rem; }
.columns { columns: 2; column-gap: 3rem; }
@media (max-width: 40rem) { .columns { columns: 1; } }
"""


def make_page(
    folder: Path,
    config: Config,
    task: Task,
    state: TrainingState,
    rows: list[dict[str, Any]],
    draws: int,
) -> str:
    """The page.

    Args:
        folder: The run folder.
        config: Its settings.
        task: Its data.
        state: Its state after the last epoch.
        rows: Its metrics.
        draws: Draws of the gradient for the comparison of estimators; 0 leaves it out.
    """
    key = jax.random.key(config.seed)
    sections = [_summary(config, task, rows)]
    with tempfile.TemporaryDirectory() as temporary:
        picture = Path(temporary) / "picture.png"

        def drawn(title: str, draw: Any, note: str = "") -> None:
            draw(picture)
            sections.append(_figure(title, picture, note))

        if rows:
            drawn("Training", lambda path: pictures.draw_curve(path, rows, ""))
        drawn(
            "Completions" if task.num_context else "Samples",
            lambda path: pictures.draw_samples(path, state.model, task, key),
            "Expected pixels of samples of the prior.",
        )
        drawn(
            "Reconstructions",
            lambda path: pictures.draw_reconstructions(path, state.model, task, key),
            "Test images, and below each what the model makes of a sample of its posterior.",
        )
        if not task.num_context:
            run = Run(state.model, config, task, int(state.epoch))
            shape = (1, *task.shape, *(() if task.colours == 1 else (task.colours,)))
            means = run.encode(np.asarray(task.test[:1]).reshape(shape))
            means = {name: value[0] for name, value in means.items()}
            drawn(
                "Latent traversals",
                lambda path: pictures.draw_traversals(path, state.model, task, means),
                "One test image. In each row one stochastic layer, "
                f"{', '.join(list(means)[:12])} from the top, moves by -2.5 to 2.5 in all of its"
                " numbers together.",
            )
    if draws:
        sections.append(_estimators(config, task, state, draws))
    comparison = folder.parent / "comparison.json"
    if comparison.exists():
        sections.append(_comparison(comparison))
    sections.append(_settings(config))
    title = html.escape(folder.name)
    body = "\n".join(sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"{body}\n<p class=note>gdregs {gdregs.__version__}, jax {jax.__version__}</p>\n"
        f"</body>\n</html>\n"
    )


def _figure(title: str, picture: Path, note: str) -> str:
    content = base64.b64encode(picture.read_bytes()).decode()
    name = html.escape(title)
    text = f"<p class=note>{html.escape(note)}</p>\n" if note else ""
    return f'<h2>{name}</h2>\n{text}<img alt="{name}" src="data:image/png;base64,{content}">'


def _table(header: list[str], rows: list[list[Any]]) -> str:
    def cells(tag: str, values: list[Any]) -> str:
        parts = []
        for place, value in enumerate(values):
            kind = "" if place == 0 else ' class="number"'
            parts.append(f"<{tag}{kind}>{html.escape(str(value))}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    lines = [cells("th", header)] if header else []
    lines += [cells("td", row) for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _summary(config: Config, task: Task, rows: list[dict[str, Any]]) -> str:
    height, width = task.shape
    found: list[list[Any]] = [
        ["images", f"{task.num_train} for training, {len(task.test)} for tests, {width}x{height}"],
        ["estimators", config.pair],
        ["epochs", len(rows)],
    ]
    if rows:
        last = rows[-1]
        found.append(["training bound", f"{last['train_bound']:.2f} nats per image"])
        if "test_bound" in last:
            found.append(["test bound", f"{last['test_bound']:.2f} nats per image"])
            size = math.prod(task.target_shape)
            bits = task.observation.bits_per_dimension(last["test_bound"], size)
            if bits is not None:
                found.append(["test bits per dimension", f"{bits:.3f}"])
        size = f"{last['effective_sample_size']:.2f} of {config.num_samples}"
        found.append(["effective sample size", size])
        for name, value in last.get("kl", {}).items():
            found.append([f"KL of {name}", f"{value:.2f} nats"])
    return _table([], found)


def _estimators(config: Config, task: Task, state: TrainingState, draws: int) -> str:
    """The variance and SNR of each pair of estimators, at this model."""
    rows = []
    for pair in PAPER_PAIRS:
        posterior, prior = read_pair(pair)
        settings = dataclasses.replace(config, posterior_estimator=posterior, prior_estimator=prior)
        quality = jax.jit(
            lambda model, settings=settings: gradient_quality(
                model, settings, task, jax.random.key(0), num_draws=draws
            )
        )(state.model)
        rows.append(
            [
                pair,
                *(f"{float(quality[group].variance):.3g}" for group in ("posterior", "prior")),
                *(f"{float(quality[group].snr):.3f}" for group in ("posterior", "prior")),
            ]
        )
    header = ["pair", "variance, posterior", "variance, prior", "SNR, posterior", "SNR, prior"]
    note = (
        f"Of the gradient of one batch at this model, {draws} draws; stl is biased for the"
        f" importance-weighted bound."
    )
    return f"<h2>Estimators</h2>\n<p class=note>{note}</p>\n" + _table(header, rows)


def _comparison(path: Path) -> str:
    try:
        results = json.loads(path.read_text())["results"]
        rows = [
            [one["pair"], f"{one['train_bound']:.2f}", f"{one['test_bound']:.2f}"]
            for one in results
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return "<h2>Trained with each pair</h2>\n" + _table(["pair", "train bound", "test bound"], rows)


def _settings(config: Config) -> str:
    rows = [[name.replace("_", "-"), value] for name, value in config.to_dict().items()]
    return f'<h2>Settings</h2>\n<div class="columns">\n{_table([], rows)}\n</div>'
