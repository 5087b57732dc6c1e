"""The training step of one VAE, in this library and in its peers: one command, one table.

    pip install '.[bench]' && pip install -r benchmarks/peers/requirements.txt
    python benchmarks/suite/run.py [--data-dir FOLDER] [--quick]
    python benchmarks/suite/run.py --update --samples 64 --rounds 15  # these cells once more

Every implementation lives in a process of its own and takes its steps in turn with all others, so
that what else the machine does falls on all alike. A step is the bound, its gradients and a plain
gradient step, at B = 64; those on JAX run several under one scan, as training does. A library that
is not installed, or fails, is listed as such.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

sys.path.append(str(Path(__file__).parents[1]))

from implementations import BATCH, ESTIMATORS, IMPLEMENTATIONS
from page import page

from gdregs.vae import Config, gradient_quality, load_dataset, make_epoch, make_state, make_task
from gdregs.vae.files import write_text
from gdregs.vae.runs.folders import open_run, read_metrics
from gdregs.vae.runs.folders import train as train_run
from gdregs.vae.runs.provenance import provenance
from report import save

HERE = Path(__file__).parent


class Worker:
    """A process that holds one implementation."""

    def __init__(self, name):
        command = [sys.executable, str(HERE / "worker.py"), name]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **command):
        """The answer to a command; of a process that has died, an error."""
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            return {"error": "the process has died"}

    def close(self):
        self.process.kill()
        self.process.wait()


def matrix_rate(rounds=30):
    """FLOPs a second of the best of some float32 products, in JAX and, if it is there, PyTorch."""
    shapes = ((2048, 2048, 2048), (4096, 300, 784), (4096, 784, 300))
    best = 0.0
    try:
        import torch
    except ImportError:
        torch = None
    multiply = jax.jit(lambda a, b: a @ b)
    for rows, inner, columns in shapes:
        a, b = (
            np.random.default_rng(0).normal(size=size).astype(np.float32)
            for size in ((rows, inner), (inner, columns))
        )
        runs = [lambda a=jax.device_put(a), b=jax.device_put(b): multiply(a, b).block_until_ready()]
        if torch is not None:
            runs.append(lambda a=torch.tensor(a), b=torch.tensor(b): a @ b)
        for run in runs:
            for _ in range(rounds):
                begun = time.perf_counter()
                run()
                best = max(best, 2 * rows * inner * columns / (time.perf_counter() - begun))
    return best


def measure_steps(workers, num_layers, num_samples, rounds):
    """Interleaved times of all implementations at one number of layers and samples.

    Each takes several steps in a turn, where they are short: the first one also pays for fresh
    memory, which in training only the first step of an epoch does.
    """
    count = max(1, min(8, 256 // num_samples))
    results = {}
    for name, worker in workers.items():
        results[name] = worker.ask(make=[num_layers, BATCH, num_samples, count])
        results[name]["seconds"] = []
    for _ in range(rounds):
        for name, worker in workers.items():
            if "error" not in results[name]:
                time.sleep(0.05)  # until the threads of the one before have gone to sleep
                answer = worker.ask(run=1)
                results[name] |= {k: v for k, v in answer.items() if k != "seconds"}
                results[name]["seconds"].append(answer.get("seconds"))
    for result in results.values():
        if "error" not in result:
            quartiles = statistics.quantiles(result["seconds"], n=4)
            result["median"], result["spread"] = quartiles[1], [quartiles[0], quartiles[2]]
    return results


def load_task(data_dir, config):
    return make_task(config, load_dataset(config.dataset, data_dir))


def measure_variance(config, data_dir, num_layers, epochs, draws):
    """Variance of each estimator's gradient, summed by parameter group, relative to naive."""
    config = dataclasses.replace(config, num_layers=num_layers)
    task = load_task(data_dir, config)
    state = make_state(config, task)
    epoch = make_epoch(config, task)
    for _ in range(epochs):
        state, _ = epoch(state)
    found = {}
    for name, (posterior, prior, kept) in ESTIMATORS.items():
        settings = dataclasses.replace(
            config, posterior_estimator=posterior, prior_estimator=prior, gradient_samples=kept
        )
        quality = jax.jit(
            lambda model, settings=settings: gradient_quality(
                model, settings, task, jax.random.key(1), num_draws=draws
            )
        )(state.model)
        found[name] = {group: float(values.variance) for group, values in quality.items()}
    return found


def measure_time_to_target(config, data_dir, epochs, names):
    """Seconds of training until the test bound that naive IWAE ends with."""
    task = load_task(data_dir, config)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            posterior, prior, kept = ESTIMATORS[name]
            settings = dataclasses.replace(
                config,
                epochs=epochs,
                posterior_estimator=posterior,
                prior_estimator=prior,
                gradient_samples=kept,
            )
            run = Path(folder) / name.replace(" ", "")
            open_run(run, settings)
            train_run(run, settings, task)
            rows[name] = read_metrics(run)
    target = rows["naive"][-1]["test_bound"]
    found = {
        "target": target,
        "epochs": epochs,
        "learning_rate": config.learning_rate,
        "estimators": {},
    }
    for name, history in rows.items():
        # The first epoch compiles; epochs of one estimator all take as long.
        seconds = statistics.median(row["seconds"] for row in history[1:])
        reached = next((row["epoch"] for row in history if row["test_bound"] >= target), None)
        found["estimators"][name] = {
            "seconds_per_epoch": seconds,
            "epochs_to_target": reached,
            "seconds_to_target": reached and reached * seconds,
            "final_test_bound": history[-1]["test_bound"],
        }
    naive = found["estimators"]["naive"]["seconds_to_target"]
    for values in found["estimators"].values():
        values["ratio"] = values["seconds_to_target"] and values["seconds_to_target"] / naive
    return found


def measure_loops(images, num_samples):
    """Seconds of a training epoch in libraries with loops of their own, L = 1."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, images)
        for library in ("pythae", "multivae"):
            command = [sys.executable, str(HERE / "loops.py"), library, str(path), str(num_samples)]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            try:
                found[f"{library} IWAE"] = json.loads(run.stdout.splitlines()[-1])
            except (ValueError, IndexError):
                found[f"{library} IWAE"] = {"error": (run.stderr.splitlines() or ["?"])[-1]}
    return found


def our_loop(images, num_samples):
    """The same of this library."""
    from gdregs.vae.data.datasets import Dataset

    side = int(images.shape[1] ** 0.5)
    grey = images.reshape(-1, side, side).astype(np.uint8)
    found = {}
    for name in ("DReGs + GDReGs", "DReGs + GDReGs, M = 8"):
        config = Config(num_layers=1, num_samples=num_samples, gradient_samples=ESTIMATORS[name][2])
        task = make_task(config, Dataset("mnist", grey, grey[:64], 1))
        epoch, state, seconds = make_epoch(config, task), make_state(config, task), []
        for _ in range(4):
            begun = time.perf_counter()
            state, _ = jax.block_until_ready(epoch(state))
            seconds.append(time.perf_counter() - begun)
        found[f"gdregs, {name}"] = {"seconds_per_epoch": statistics.median(seconds[1:])}
    return found


def versions(*libraries):
    """Of those that are installed."""
    found = {}
    for library in libraries:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[library] = importlib.metadata.version(library)
    return found


def merge_cells(old, new):
    """Cells measured before, with those in their place that have been measured again."""
    merged = {(cell["num_layers"], cell["num_samples"]): cell for cell in [*old, *new]}
    return [merged[place] for place in sorted(merged)]


def measure_training(options):
    """Variances, times to a target and whole loops."""
    config = Config(dataset="digits", num_layers=2)
    # Until long after the estimators have parted. M = K takes naive's time for M = 8's epochs: on
    # MNIST it is left out.
    two = ["naive", "DReGs + GDReGs, M = 8"]
    three = ["naive", "DReGs + GDReGs", "DReGs + GDReGs, M = 8"]
    tasks = {"digits": (config, 30, three)}
    if options.data_dir:
        config = Config(dataset="mnist", num_layers=2, train_images=2048, test_images=1024)
        tasks["mnist"] = dataclasses.replace(config, learning_rate=1e-3), 60, two
    variance = {
        str(layers): measure_variance(config, options.data_dir, layers, 15, options.draws)
        for layers in tqdm(options.layers, desc="variances", unit="model")
    }
    targets = {
        name: measure_time_to_target(task, options.data_dir, options.epochs or epochs, names)
        for name, (task, epochs, names) in tqdm(tasks.items(), desc="time to target", unit="task")
    }
    images = (np.random.default_rng(0).random((512, 784)) < 0.3).astype(np.float32)
    loops = our_loop(images, 64)
    if not options.quick:
        loops |= measure_loops(images, 64)
    return {
        "variance": variance,
        "time_to_target": targets,
        "loops": loops,
        "loop_images": len(images),
        "loop_samples": 64,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="MNIST's files; without it, digits alone")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 16, 64, 512])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--epochs", type=int, help="for the time to the target; 30 and 60")
    parser.add_argument("--draws", type=int, default=30, help="for the variance")
    parser.add_argument("--only", nargs="+", help="implementations; all unless given")
    parser.add_argument(
        "--steps-only",
        action="store_true",
        help="no variances, training or loops of other libraries",
    )
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it runs")
    parser.add_argument(
        "--update", action="store_true", help="measure these cells again, in the file that is there"
    )
    parser.add_argument("--out", type=Path, default=Path("results/suite.json"))
    options = parser.parse_args()
    if options.quick:
        options.layers, options.samples, options.rounds = [1], [16], 3
        options.epochs, options.draws = 3, 3
        options.only = options.only or ["gdregs, M = 8", "gdregs, M = K", "JAX by hand"]
    chosen = options.only or list(IMPLEMENTATIONS)
    unknown = sorted(set(chosen) - set(IMPLEMENTATIONS))
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}; choose of {', '.join(IMPLEMENTATIONS)}.")

    if options.update and not options.out.exists():
        parser.error(f"--update: there is no {options.out}.")

    workers = {name: Worker(IMPLEMENTATIONS[name][0]) for name in chosen}
    cells = []
    try:
        grid = [(layers, k) for layers in options.layers for k in options.samples]
        for num_layers, num_samples in tqdm(grid, desc="steps", unit="cell"):
            results = measure_steps(workers, num_layers, num_samples, options.rounds)
            cells.append(
                {
                    "num_layers": num_layers,
                    "num_samples": num_samples,
                    "rounds": options.rounds,
                    "steps": results,
                }
            )
    finally:
        for worker in workers.values():
            worker.close()

    peers = versions("torch", "pyro-ppl", "tfp-nightly", "pythae", "multivae")
    if options.update:
        origin = provenance(" ".join(["python", *sys.argv]))
        for cell in cells:
            cell |= {
                "date": origin["date"],
                "hardware": origin["hardware"],
                "libraries": origin["versions"] | peers,
                "matrix_flops_per_second": matrix_rate(),
            }
        content = json.loads(options.out.read_text())
        content["cells"] = merge_cells(content["cells"], cells)
    else:
        content = {"batch": BATCH, "matrix_flops_per_second": matrix_rate(), "cells": cells}
        content |= {"peers": peers, "variance": {}, "time_to_target": {}, "loops": {}}
        content |= {} if options.steps_only else measure_training(options)
    save(options.out, content)
    text = page(json.loads(options.out.read_text()))
    write_text(options.out.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
