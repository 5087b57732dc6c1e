"""From the call of `run` to its result: trace, compilation and 2,000 steps, relative to numpyro's.

    python benchmarks/zoo/totals.py [NAME ...] [--out results/numpyro-zoo-totals.json]

For each model of `models.py`, a process for each of `gdregs.numpyro.SVI` with its defaults and
numpyro's objective at the same K of 8, one after the other, with nothing compiled before.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
from numpyro import infer
from tqdm import tqdm
from training import SAMPLES, objectives

import gdregs.numpyro
from gdregs.vae.files import write_json
from gdregs.vae.runs.provenance import provenance
from gdregs.vae.show.markdown import markdown_table
from models import ZOO

STEPS = 2000


def seconds_of(name, label):
    """Of one run, and the mean loss of its last hundred steps."""
    entry = ZOO[name]()
    optimiser = optax.adam(entry.learning_rate)
    if label == "ours":
        svi = gdregs.numpyro.SVI(entry.model, entry.guide, optimiser, gdregs.numpyro.Bound(SAMPLES))
    else:
        svi = infer.SVI(entry.model, entry.guide, optimiser, objectives(name)[label])
    jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))  # the backend is up
    begun = time.perf_counter()
    result = svi.run(jax.random.key(0), STEPS, *entry.args, progress_bar=False)
    losses = np.asarray(result.losses)
    return {"seconds": time.perf_counter() - begun, "loss": float(losses[-100:].mean())}


def in_a_process(name, label):
    command = [sys.executable, __file__, name, "--one", label]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(ZOO))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", default="results/numpyro-zoo-totals.json")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(seconds_of(options.names[0], options.one)))
        return
    command = "python benchmarks/zoo/totals.py"
    rows = {}
    for name in tqdm(options.names, unit="model"):
        theirs = next(iter(objectives(name)))
        found = {"ours": in_a_process(name, "ours"), theirs: in_a_process(name, theirs)}
        ratio = found["ours"]["seconds"] / found[theirs]["seconds"]
        rows[name] = {"ratio": ratio, "runs": found}
        ratios = [row["ratio"] for row in rows.values()]
        content = {"median": statistics.median(ratios), "largest": max(ratios), "models": rows}
        write_json(Path(options.out), {**provenance(command), "steps": STEPS, **content})
    table = [
        [name, *(f"{run['seconds']:.1f}" for run in row["runs"].values()), f"{row['ratio']:.2f}"]
        for name, row in rows.items()
    ]
    print(markdown_table(["model", "ours, s", "numpyro's, s", "ratio"], table))
    print(f"median {content['median']:.2f}, largest {content['largest']:.2f}")


if __name__ == "__main__":
    main()
