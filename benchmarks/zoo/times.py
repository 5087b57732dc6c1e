"""The time of a step, relative to that of numpyro's objective.

    python benchmarks/zoo/times.py NAME

prints what one process finds of a model, as JSON, in rounds of 1,000 steps that alternate between
objectives. One process differs from the next by more than its rounds do: `run.py` asks several.
"""

import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
from training import make_svis, trainer

from models import ZOO

LATE, PROCESSES, ROUNDS = 4000, 3, 7


def step_times(svis, states, args, num_steps=1000):
    """Of the run of 2,000 steps, of its first half, and of 1,000 steps from step `LATE` on."""
    labels = [label for label in svis if label != "naive"]
    trainers = {label: trainer(svis[label], args, num_steps) for label in labels}

    def train(label, state):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(trainers[label](state))
        return state, time.perf_counter() - start

    late = {label: states[label] for label in labels}
    for _ in range(LATE // num_steps):
        late = {label: train(label, late[label])[0] for label in labels}
    times = {when: {label: [] for label in labels} for when in ("run", "first", "later")}
    for _ in range(ROUNDS):
        first = {label: train(label, states[label]) for label in labels}
        second = {label: train(label, first[label][0]) for label in labels}
        later = {label: train(label, late[label]) for label in labels}
        for label in labels:
            in_first, in_second = first[label][1], second[label][1]
            times["run"][label].append((in_first + in_second) / 2 / num_steps)
            times["first"][label].append(in_first / num_steps)
            times["later"][label].append(later[label][1] / num_steps)
    return {when: _against(times[when], labels[1]) for when in times}


def _against(times, other):
    ratios = np.array(times["ours"]) / np.array(times[other])
    return {
        "microseconds": {label: 1e6 * float(np.median(t)) for label, t in times.items()},
        "ratio": float(np.median(ratios)),
    }


def step_times_of_processes(name, cache):
    """The medians over processes of their own, which compile once."""
    command = [sys.executable, __file__, name]
    environment = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **os.environ,
    }
    found = []
    for _ in range(PROCESSES):
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        found.append(json.loads(run.stdout.splitlines()[-1]))
    return {when: _median_of([times[when] for times in found]) for when in found[0]}


def _median_of(times):
    ratios = sorted(one["ratio"] for one in times)
    labels = times[0]["microseconds"]
    return {
        "microseconds": {
            label: float(np.median([one["microseconds"][label] for one in times]))
            for label in labels
        },
        "ratio": float(np.median(ratios)),
        "ratios": ratios,
    }


def main():
    [name] = sys.argv[1:]
    entry = ZOO[name]()
    print(json.dumps(step_times(*make_svis(name, entry), entry.args)))


if __name__ == "__main__":
    main()
