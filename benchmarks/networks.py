"""Convolutions and multilayer perceptrons on Fashion-MNIST in equal time, on a core each.

Both are trained for so many minutes side by side, each pinned to a core of its own, from one seed:
one stochastic layer, K = 8, M = 2, a learning rate of 1e-3, dynamic binarisation. Then the bound
with K = 64 on all test images, and the difference image by image.

    pip install 'gdregs[cli]'
    python benchmarks/networks.py --data-dir DIR [--minutes 21] [--runs FOLDER] [--compare-only]
"""

import argparse
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

import gdregs
from gdregs.vae.config import read_config
from gdregs.vae.files import write_json
from gdregs.vae.runs.folders import load_state
from gdregs.vae.runs.provenance import provenance
from gdregs.vae.runs.record import load_task

SETTINGS = {
    "conv": ["--networks", "conv", "--channels", "8", "--hidden-size", "128"],
    "mlp": ["--networks", "mlp"],
}
SHARED = [
    "--dataset", "fashion-mnist", "--num-layers", "1", "--num-samples", "8", "--gradient-samples",
    "2", "--learning-rate", "1e-3", "--test-images", "2000", "--epochs", "400", "--record-every",
    "2",
]  # fmt: skip


def train(runs, data_dir, minutes):
    processes = []
    for core, (name, settings) in enumerate(SETTINGS.items()):
        processes.append(
            subprocess.Popen(
                [
                    sys.executable, "-m", "gdregs.cli", "train", *SHARED, *settings,
                    "--data-dir", str(data_dir), "--out", str(runs / name),
                ],
                env=os.environ | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"},
                preexec_fn=functools.partial(os.sched_setaffinity, 0, {core}),
            )
        )  # fmt: skip
    time.sleep(60 * minutes)
    for process in processes:
        process.send_signal(signal.SIGINT)
    for process in processes:
        process.wait()


def bounds(folder, data_dir, num_samples=64, batch=50):
    """The bound of every test image, in nats, and how many epochs the model has had."""
    config = dataclasses.replace(read_config(folder / "config.json"), test_images=0)
    task = load_task(folder, config, data_dir)
    state = load_state(folder, config, task)

    @jax.jit
    def of(images, number):
        x, _ = task.split(task.observe(jax.random.fold_in(jax.random.key(5), number), images))
        parts = state.model.posterior(x, None), state.model.prior(None), state.model.likelihood(x)
        return gdregs.log_marginal(
            *parts, key=jax.random.key(7), num_samples=num_samples, chunk_size=None
        )

    starts = range(0, len(task.test), batch)
    found = [of(task.test[start : start + batch], start) for start in starts]
    return np.concatenate(found), int(state.epoch)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=21)
    parser.add_argument("--runs", type=Path, default=Path("runs/networks"))
    parser.add_argument("--compare-only", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    if not options.compare_only:
        train(options.runs, options.data_dir, options.minutes)
    values, rows = {}, {}
    for name in SETTINGS:
        values[name], epochs = bounds(options.runs / name, options.data_dir)
        lines = (options.runs / name / "metrics.jsonl").read_text().splitlines()
        recorded = [json.loads(line) for line in lines]
        rows[name] = {
            "epochs": epochs,
            "test_bound_K64": float(values[name].mean()),
            "minutes_in_epochs": sum(row["seconds"] for row in recorded) / 60,
            "images_per_second": float(np.median([row["images_per_second"] for row in recorded])),
            "bounds_K8_of_2000": {
                str(row["epoch"]): round(row["test_bound"], 2)
                for row in recorded
                if "test_bound" in row
            },
        }
    difference = values["conv"] - values["mlp"]
    content = {
        **provenance("python benchmarks/networks.py --data-dir DIR"),
        "minutes": options.minutes,
        "images": len(difference),
        "conv_minus_mlp": {
            "value": float(difference.mean()),
            "error_over_images": float(difference.std(ddof=1) / len(difference) ** 0.5),
        },
        "networks": rows,
    }
    write_json(options.out / "networks.json", content)
    print(json.dumps(content["conv_minus_mlp"]), {n: r["test_bound_K64"] for n, r in rows.items()})


if __name__ == "__main__":
    main()
