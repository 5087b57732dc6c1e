"""How the cost of a training step grows with B, K, L and the number of devices.

    python benchmarks/scaling.py [--rounds 9]
    python benchmarks/scaling.py --large-k 1000 10000 100000 1000000 --out results/large-k.json

The papers' networks on 784 pixels, DReGs + GDReGs, M = 8. On CPU, devices are threads of one
machine that share its cores: what that part shows is what crosses between devices, counted in the
compiled program, and not a speed-up. `--large-k` streams value and gradient of the one-layer model
on 64 pixels over many samples, M = 64, spread over two devices, and reports the time and the most
memory that the process held.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

WIDTHS = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f64": 8, "pred": 1}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def make_step(
    num_layers, batch_size, num_samples, num_kept, mesh=None, chunk_size=None, num_pixels=784
):
    """A compiled step, and what it is called with."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    import gdregs
    import steps
    from gdregs.vae.training.compiler import compiler_options

    model = steps.make_model(num_layers, num_pixels)
    leaves, rest = eqx.partition(model, eqx.is_inexact_array)

    def loss(leaves, x, key):
        model = eqx.combine(leaves, rest)
        parts = model.posterior(x), model.prior(), model.likelihood(x)
        bound = gdregs.bound(
            *parts,
            key=key,
            num_samples=num_samples,
            num_gradient_samples=num_kept,
            chunk_size=chunk_size,
        )
        return -jnp.mean(bound)

    function = jax.value_and_grad(loss) if mesh is None else gdregs.value_and_grad(loss, mesh)
    arguments = leaves, steps.binary_images(batch_size, num_pixels), jax.random.key(0)
    jitted = jax.jit(function, compiler_options=compiler_options())
    return jitted.lower(*arguments).compile(), arguments


def collectives(text):
    """Number and bytes of each kind of collective in a compiled module."""
    found = {}
    for kind in KINDS:
        shapes = re.findall(rf"= (.*?) {kind}(?:-start)?\(", text)
        sizes = [
            sum(
                WIDTHS[dtype] * num_entries(dims)
                for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
            )
            for shape in shapes
        ]
        if shapes:
            found[kind] = {"count": len(shapes), "bytes": sum(sizes)}
    return found


def num_entries(dims):
    product = 1
    for size in dims.split(","):
        product *= int(size or 1)
    return product


BANDWIDTH, LATENCY = 50e9, 10e-6
"""Of one accelerator: bytes a second (400 Gbit/s), and seconds for one hop of a message."""


SUSTAINED = 50e12
"""FLOPs a second of one accelerator in this model."""


def projected_seconds(found, num_devices):
    """What counted collectives would take on so many accelerators, in rings and trees.

    A sum of n bytes moves 2 n through each device, in 2 log2(devices) hops; a gather moves what it
    ends with, in log2(devices).
    """
    hops = math.ceil(math.log2(num_devices))
    sums = found.get("all-reduce", {"count": 0, "bytes": 0})
    gathers = found.get("all-gather", {"count": 0, "bytes": 0})
    messages = 2 * sums["count"] + gathers["count"]
    return messages * hops * LATENCY + (2 * sums["bytes"] + gathers["bytes"]) / BANDWIDTH


def projections(cells, meshes, num_devices=1000):
    """Steps of the two-layer model on so many accelerators: to compute, to talk, and efficiency."""
    rows = []
    for data, samples in ((8, 1), (1, 8)):
        mesh = next(
            m
            for m in meshes
            if (m["data"], m["samples"], m["gradient_samples"]) == (data, samples, 8)
        )
        for num_samples in (64, 1024):
            cell = next(
                c
                for c in cells
                if (c["num_layers"], c["batch"], c["num_samples"]) == (2, 64, num_samples)
            )
            compute = cell["flops"] / SUSTAINED
            talk = projected_seconds(mesh["collectives"], num_devices)
            rows.append(
                {
                    "data": num_devices // samples,
                    "samples": samples,
                    "num_samples_a_device": num_samples,
                    "flops_a_device": cell["flops"],
                    "seconds_to_compute": compute,
                    "seconds_to_talk": talk,
                    "efficiency": compute / (compute + talk),
                }
            )
    return rows


def seconds_of(program, arguments, rounds):
    import jax

    jax.block_until_ready(program(*arguments))
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def on_devices(num_devices, rounds):
    """Meshes of so many devices: time, and what crosses between them. In a process of its own."""
    import gdregs

    rows = []
    halves = [(d, num_devices // d) for d in (1, 2, 4, 8) if num_devices % d == 0]
    for data, samples in halves:
        for kept in (8, None):
            mesh = gdregs.make_mesh(data=data, samples=samples)
            program, arguments = make_step(2, 64, 64, kept, mesh)
            rows.append(
                {
                    "data": data,
                    "samples": samples,
                    "gradient_samples": kept or 64,
                    "seconds": seconds_of(program, arguments, rounds),
                    "collectives": collectives(program.as_text()),
                }
            )
    return rows


def large(num_samples, chunk_size):
    """Value and gradient at one K, streamed over two devices. In a process of its own."""
    import jax

    import gdregs

    mesh = gdregs.make_mesh(samples=2)
    program, arguments = make_step(1, 64, num_samples, 64, mesh, chunk_size, num_pixels=64)
    begun = time.perf_counter()
    value, gradient = jax.block_until_ready(program(*arguments))
    seconds = time.perf_counter() - begun
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024
    leaves = [float(abs(leaf).max()) for leaf in jax.tree.leaves(gradient)]
    return {
        "num_samples": num_samples,
        "seconds": seconds,
        "megabytes": peak,
        "temporary_megabytes": program.memory_analysis().temp_size_in_bytes / 1e6,
        "bound": -float(value),
        "largest_gradient_entry": max(leaves),
    }


def in_a_process(num_devices, *arguments):
    """What this script prints with a hidden argument, on so many devices."""
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    run = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    return json.loads(run.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--large-k", type=int, nargs="+")
    parser.add_argument("--chunk", type=int, default=128, help="samples in memory on each device")
    parser.add_argument("--out", default="results/scaling.json")
    parser.add_argument("--on-devices", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one-large", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.on_devices:
        print(json.dumps(on_devices(options.on_devices, options.rounds)))
        return
    if options.one_large:
        print(json.dumps(large(options.one_large, options.chunk)))
        return

    from tqdm import tqdm

    from gdregs.vae.show.markdown import markdown_table
    from report import save

    if options.large_k:
        rows = []
        for num_samples in tqdm(options.large_k, desc="large K", unit="run"):
            rows.append(in_a_process(2, "--one-large", num_samples, "--chunk", options.chunk))
            save(options.out, {"batch": 64, "chunk": options.chunk, "rows": rows})
        print(
            markdown_table(
                ("K", "s", "peak MB", "bound"),
                [
                    (
                        f"{row['num_samples']:,}",
                        f"{row['seconds']:.1f}",
                        f"{row['megabytes']:.0f}",
                        f"{row['bound']:.2f}",
                    )
                    for row in rows
                ],
            )
        )
        return
    grid = [
        *((2, batch, 64) for batch in (16, 64, 256)),
        *((2, 64, samples) for samples in (16, 256, 1024)),
        (1, 64, 64),
        (3, 64, 64),
        (4, 64, 64),
    ]
    cells = []
    for layers, batch, samples in tqdm(grid, desc="B, K, L", unit="cell"):
        program, arguments = make_step(layers, batch, samples, 8)
        cells.append(
            {
                "num_layers": layers,
                "batch": batch,
                "num_samples": samples,
                "seconds": seconds_of(program, arguments, options.rounds),
                "flops": program.cost_analysis()["flops"],
                "temporary_megabytes": program.memory_analysis().temp_size_in_bytes / 1e6,
            }
        )
    meshes = [
        row
        for count in tqdm((1, 2, 8), desc="devices", unit="machine")
        for row in in_a_process(count, "--on-devices", count, "--rounds", options.rounds)
    ]
    print(
        markdown_table(
            ("L", "B", "K", "ms", "GFLOP", "temporary MB"),
            [
                (
                    str(c["num_layers"]),
                    str(c["batch"]),
                    str(c["num_samples"]),
                    f"{1e3 * c['seconds']:.1f}",
                    f"{c['flops'] / 1e9:.2f}",
                    f"{c['temporary_megabytes']:.0f}",
                )
                for c in cells
            ],
        )
    )
    print(
        markdown_table(
            ("data", "samples", "M", "ms", "collectives (kB)"),
            [
                (
                    str(m["data"]),
                    str(m["samples"]),
                    str(m["gradient_samples"]),
                    f"{1e3 * m['seconds']:.1f}",
                    ", ".join(
                        f"{c['count']} {kind} ({c['bytes'] / 1e3:.1f})"
                        for kind, c in m["collectives"].items()
                    )
                    or "none",
                )
                for m in meshes
            ],
        )
    )
    projected = projections(cells, meshes)
    print(
        markdown_table(
            ("data", "samples", "K a device", "ms to compute", "ms to talk", "efficiency"),
            [
                (
                    str(row["data"]),
                    str(row["samples"]),
                    str(row["num_samples_a_device"]),
                    f"{1e3 * row['seconds_to_compute']:.2f}",
                    f"{1e3 * row['seconds_to_talk']:.2f}",
                    f"{row['efficiency']:.2f}",
                )
                for row in projected
            ],
        )
    )
    save(options.out, {"cells": cells, "meshes": meshes, "thousand_accelerators": projected})


if __name__ == "__main__":
    main()
