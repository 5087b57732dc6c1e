"""What a training step costs: FLOPs, time, memory and compile time, as ratios.

    python benchmarks/cost.py [--batch 64] [--samples 64] [--repeats 15]

The papers' networks (two layers of 300 tanh units, 50 latents, 784 pixels), L = 1, 2, 3,
unconditional and conditional. The steps are run in turn, again and again, and ratios are taken
within each turn: absolute times depend on the machine and on what else it does. `naive` is the
best hand-written naive IWAE, each network evaluated once; `three surrogates` is the papers' own
implementation in one compiled function. (Without a context a single layer's prior has no
parameters, so that there only two surrogates are left.)
"""

import argparse
import statistics
import time

import jax
from tqdm import tqdm

import steps
from gdregs.vae.show.markdown import markdown_table
from report import save


def variants(num_samples):
    return {
        "naive": lambda m, x, k: steps.naive_step(m, x, k, num_samples),
        "three surrogates": lambda m, x, k: steps.surrogates_step(m, x, k, num_samples),
        "gdregs, M = K": lambda m, x, k: steps.gdregs_step(m, x, k, num_samples),
        "gdregs, M = 8": lambda m, x, k: steps.gdregs_step(m, x, k, num_samples, 8),
    }


def measure(model, x, num_samples, repeats):
    key = jax.random.key(0)
    results = {}
    programs = {}
    for name, step in variants(num_samples).items():
        begun = time.perf_counter()
        programs[name] = jax.jit(step).lower(model, x, key).compile()
        results[name] = {
            "compile_seconds": time.perf_counter() - begun,
            "flops": programs[name].cost_analysis()["flops"],
            "temporary_megabytes": programs[name].memory_analysis().temp_size_in_bytes / 1e6,
            "seconds": [],
        }
        jax.block_until_ready(programs[name](model, x, key))
    for number in range(repeats):
        for name, program in programs.items():
            key = jax.random.key(number)
            begun = time.perf_counter()
            jax.block_until_ready(program(model, x, key))
            results[name]["seconds"].append(time.perf_counter() - begun)
    for result in results.values():
        result["flops_ratio"] = result["flops"] / results["naive"]["flops"]
        ratios = [
            ours / naive
            for ours, naive in zip(result["seconds"], results["naive"]["seconds"], strict=True)
        ]
        quartiles = statistics.quantiles(ratios, n=4)
        result["time_ratio"] = {"median": quartiles[1], "quartiles": [quartiles[0], quartiles[2]]}
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", default="results/cost.json")
    options = parser.parse_args()
    x = steps.binary_images(options.batch)
    rows, content = [], []
    cells = [(layers, conditional) for conditional in (False, True) for layers in (1, 2, 3)]
    for num_layers, conditional in tqdm(cells):
        model = steps.make_model(num_layers, conditional=conditional)
        results = measure(model, x, options.samples, options.repeats)
        kind = "conditional" if conditional else "unconditional"
        content.append({"num_layers": num_layers, "kind": kind, "steps": results})
        for name, result in results.items():
            quartiles = result["time_ratio"]["quartiles"]
            rows.append(
                (
                    f"L={num_layers}, {kind}" if name == "naive" else "",
                    name,
                    f"{result['flops_ratio']:.3f}",
                    f"{result['time_ratio']['median']:.2f} ({quartiles[0]:.2f}-{quartiles[1]:.2f})",
                    f"{result['temporary_megabytes']:.0f}",
                    f"{result['compile_seconds']:.1f}",
                )
            )
    header = (
        "model", "step", "FLOPs / naive", "time / naive (quartiles)", "temporary MB", "compile s",
    )  # fmt: skip
    print(markdown_table(header, rows))
    save(
        options.out,
        {"batch": options.batch, "samples": options.samples, "repeats": options.repeats,
         "cells": content},
    )  # fmt: skip


if __name__ == "__main__":
    main()
