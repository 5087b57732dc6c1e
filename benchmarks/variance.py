"""Gradient variance of the naive, the full and the resampled estimator on a trained MNIST model.

    python benchmarks/variance.py --data-dir DIR [--steps 1500] [--draws 1000]

Trains the papers' 2-layer VAE on MNIST, then fixes parameters and one binarised batch of 64 images
and measures, over fresh importance samples, the variance of each estimator's gradient, summed over
the parameters of each group. Standard errors come from 10 groups of draws. The estimators see the
same keys, so that ratios are less noisy than the variances themselves.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from gdregs.vae import Config, gradient_quality, load_dataset, make_epoch, make_state, make_task
from gdregs.vae.show.markdown import markdown_table
from report import save

GROUPS = ("posterior", "prior", "likelihood")
NUM_BATCHES = 10


def train(config, dataset, steps):
    task = make_task(config, dataset)
    state = make_state(config, task)
    run_epoch = make_epoch(config, task)
    per_epoch = task.train.shape[0] // config.batch_size
    for _ in tqdm(range(-(-steps // per_epoch)), unit="epoch", desc="training"):
        state, metrics = run_epoch(state)
    steps = int(state.epoch) * per_epoch
    return task, state.model, steps, {name: float(v) for name, v in metrics._asdict().items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--out", default="results/variance.json")
    options = parser.parse_args()

    config = Config(dataset="mnist")
    dataset = load_dataset(config.dataset, options.data_dir)
    # Epochs of 250 steps, so that the number of steps is what was asked for.
    config = dataclasses.replace(config, train_images=250 * config.batch_size)
    task, model, steps, last = train(config, dataset, options.steps)

    estimators = {
        "naive": {"posterior_estimator": "naive", "prior_estimator": "naive"},
        "dregs+gdregs, M = K": {},
        "dregs+gdregs, M = 8": {"gradient_samples": 8},
    }
    settings = {
        name: dataclasses.replace(config, **{"gradient_samples": 0, **changes})
        for name, changes in estimators.items()
    }
    variances = {name: {group: [] for group in GROUPS} for name in settings}
    for batch in tqdm(range(NUM_BATCHES), desc="measuring"):
        for name, setting in settings.items():
            key = jax.random.key(0)  # one batch of images; the draws differ from batch to batch
            quality = gradient_quality(
                model, setting, task, key,
                num_draws=options.draws // NUM_BATCHES, first_draw=batch * options.draws,
            )  # fmt: skip
            for group in GROUPS:
                variances[name][group].append(quality[group].variance)

    full = variances["dregs+gdregs, M = K"]
    rows, summary = [], {}
    for name, by_group in variances.items():
        row, summary[name] = [name], {}
        for group in GROUPS:
            values = np.array(by_group[group])
            ratios = values / np.array(full[group])
            entry = {
                "variance": values.mean(),
                "standard_error": values.std(ddof=1) / NUM_BATCHES**0.5,
                "ratio_to_full": ratios.mean(),
                "ratio_standard_error": ratios.std(ddof=1) / NUM_BATCHES**0.5,
            }
            summary[name][group] = {key: float(value) for key, value in entry.items()}
            row.append(
                f"{entry['variance']:.4g} ± {entry['standard_error']:.2g}"
                f" ({entry['ratio_to_full']:.3f} ± {entry['ratio_standard_error']:.3f})"
            )
        rows.append(row)
    print(markdown_table(["variance (ratio to M = K)", *GROUPS], rows))
    save(
        options.out,
        {"config": config.to_dict(), "steps": steps, "draws": options.draws,
         "last_training_epoch": last, "variances": summary},
    )  # fmt: skip


if __name__ == "__main__":
    main()
