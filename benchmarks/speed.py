"""How near the training step is to the machine's matrix-multiply rate, and seeds under vmap.

    python benchmarks/speed.py [--rounds 9] [--steps 10] [--precision float32] [--seeds 5]

The papers' networks at B = 64, K = 64, the backward pass on all K samples, DReGs + GDReGs,
L = 1, 2, 3. What is timed is whole training as `gdregs train` runs it: shuffling, gathering,
binarisation, the gradient, Adam. Its FLOPs are those of the matrix products in the compiled
program, nothing else, and the rate that they are compared with is the best of several square and
oblong float32 products, measured in the same rounds. Seeds are trained in one program, under `vmap`
and one after another.
"""

import argparse
import re
import statistics
import time

import jax
import numpy as np
from tqdm import tqdm

from gdregs.vae.config import Config
from gdregs.vae.data.datasets import Dataset
from gdregs.vae.show.markdown import markdown_table
from gdregs.vae.training.compiler import compiler_options
from gdregs.vae.training.epochs import Seeds, make_epoch, make_state, make_states
from gdregs.vae.training.task import make_task
from report import save

PRODUCTS = ((2048, 2048, 2048), (4096, 4096, 1024), (4096, 300, 784), (4096, 784, 300))


def images(count):
    """Grey noise in the shape of MNIST: the speed does not depend on what the images show."""
    grey = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return Dataset("mnist", grey, grey[:64], 255)


def matrix_flops(text):
    """FLOPs of one execution of every matrix product that a compiled module names."""
    shapes = {
        name: [int(size) for size in sizes.split(",") if size]
        for name, sizes in re.findall(r"%([\w.-]+) = \w+\[([\d,]*)\]", text)
    }
    total = 0
    pattern = r"%([\w.-]+) = \w+\[[\d,]*\]\S* dot\(%([\w.-]+), .*?lhs_contracting_dims={([\d,]*)}"
    for name, left, contracted in re.findall(pattern, text):
        inner = [shapes[left][int(axis)] for axis in contracted.split(",") if axis]
        total += 2 * int(np.prod(shapes[name])) * int(np.prod(inner))
    return total


def make_product(rows, inner, columns):
    key = jax.random.key(0)
    left, right = jax.random.normal(key, (rows, inner)), jax.random.normal(key, (inner, columns))
    multiply = jax.jit(lambda a, b: a @ b)

    def run():
        begun = time.perf_counter()
        multiply(left, right).block_until_ready()
        return 2 * rows * inner * columns / (time.perf_counter() - begun)

    return run


def make_run(config, task, seeds=None):
    """A function that trains for an epoch and returns the seconds of a step, and the epoch."""
    epoch = make_epoch(config, task, seeds)
    state = [make_states(config, task, seeds) if seeds else make_state(config, task)]
    steps = task.train.shape[0] // config.batch_size * (len(seeds.numbers) if seeds else 1)

    def run():
        begun = time.perf_counter()
        state[0], _ = jax.block_until_ready(epoch(state[0]))
        return (time.perf_counter() - begun) / steps

    return run


def step_flops(config, task):
    """Of one training step: the loop's body stands once in the program of an epoch."""
    epoch = make_epoch(config, task)
    lowered = epoch.func.lower(make_state(config, task), **epoch.keywords)
    return matrix_flops(lowered.compile().as_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precision", default="float32", help="of matrix products")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", default="results/speed.json")
    options = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", options.precision)

    data = images(64 * options.steps)
    products = {shape: make_product(*shape) for shape in PRODUCTS}
    cells, runs = {}, {}
    for conditional in (False, True):
        for layers in (1, 2, 3):
            config = Config(
                dataset="mnist", conditional=conditional, num_layers=layers, gradient_samples=0
            )
            task = make_task(config, data)
            name = f"L={layers}, {'conditional' if conditional else 'unconditional'}"
            cells[name] = {"matrix_flops": step_flops(config, task)}
            runs[name] = make_run(config, task)
    together = {}
    config = Config(dataset="mnist", num_layers=2, gradient_samples=0)
    task = make_task(config, data)
    numbers = tuple(range(options.seeds))
    for name, vectorised in (("vmap", True), ("one after another", False)):
        together[name] = make_run(config, task, Seeds(numbers, vectorised))

    rates, seconds = {shape: [] for shape in products}, {name: [] for name in (*runs, *together)}
    for number in tqdm(range(options.rounds + 1)):
        for shape, product in products.items():
            rates[shape].append(max(product() for _ in range(3)))
        for name, run in (runs | together).items():
            seconds[name].append(run())
        if number == 0:  # the first round compiles
            rates = {shape: [] for shape in products}
            seconds = {name: [] for name in seconds}

    peak = max(statistics.median(values) for values in rates.values())
    rows = []
    for name, cell in cells.items():
        median = statistics.median(seconds[name])
        quartiles = statistics.quantiles(seconds[name], n=4)
        cell |= {
            "seconds": median,
            "quartiles": [quartiles[0], quartiles[2]],
            "images_per_second": 64 / median,
            "fraction_of_matrix_rate": cell["matrix_flops"] / median / peak,
        }
        rows.append(
            (
                name,
                f"{cell['matrix_flops'] / 1e9:.2f}",
                f"{1e3 * median:.1f} ({1e3 * quartiles[0]:.1f}-{1e3 * quartiles[2]:.1f})",
                f"{64 / median:.0f}",
                f"{cell['fraction_of_matrix_rate']:.2f}",
            )
        )
    print(f"matrix products: {peak / 1e9:.0f} GFLOP/s in {options.precision}")
    print(
        markdown_table(("model", "GFLOP a step", "ms a step", "images/s", "of matrix rate"), rows)
    )
    alone = statistics.median(seconds["L=2, unconditional"])
    several = {name: statistics.median(seconds[name]) / alone for name in together}
    for name, ratio in several.items():
        print(f"{options.seeds} seeds, L=2, {name}: {ratio:.2f} x the time of a step alone, a seed")
    save(
        options.out,
        {
            "batch": 64, "samples": 64, "steps": options.steps, "rounds": options.rounds,
            "precision": options.precision, "device": str(jax.devices()[0]),
            "compiler_options": compiler_options(), "matrix_flops_per_second": peak,
            "products": {
                "x".join(map(str, shape)): statistics.median(v) for shape, v in rates.items()
            },
            "cells": cells, "seeds": options.seeds, "time_a_seed_over_alone": several,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
