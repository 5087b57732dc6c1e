"""Train models as users write them by ours and by numpyro's objectives, from the same start.

    python benchmarks/zoo/run.py [NAME ...] [--steps 2000] [--draws 512] [--times] [--out PATH]

For each model of `models.py`, K = 8 particles: along our run (`gdregs.numpyro.SVI` with the
defaults of `Bound`) the total variance of the gradient by all parameters, of ours with the
strengths that it has learned by then, of our naive one, and of `RenyiELBO(alpha=0)` at the same
parameters; after it the bound with K = 1,000 of models trained by each objective; and the time of
a step, in rounds of 1,000 steps that alternate between the objectives, from the start and later on.
Results of a model replace those that the files have of it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax
from numpyro import infer
from numpyro.infer.svi import _make_loss_fn
from tqdm import tqdm

import gdregs.numpyro
from gdregs.numpyro.svi import STATE
from gdregs.vae.files import write_json, write_text
from gdregs.vae.runs.provenance import provenance
from gdregs.vae.show.markdown import markdown_table
from models import ZOO

SAMPLES = 8
MEASURED = (0, 10, 30, 100, 300, 1000, 2000)
BATCHES = 8
SEEDS = 3
LATE, PROCESSES = 4000, 3


def objectives(name):
    """Ours, and numpyro's that take the model."""
    if name == "enumerated":  # RenyiELBO does not sum out
        return {"Trace_ELBO": infer.TraceEnum_ELBO(SAMPLES, max_plate_nesting=1)}
    return {
        "RenyiELBO": infer.RenyiELBO(alpha=0, num_particles=SAMPLES),
        "Trace_ELBO": infer.Trace_ELBO(SAMPLES),
    }


def make_svis(name, entry):
    optimiser = optax.adam(entry.learning_rate)
    bound = gdregs.numpyro.Bound(SAMPLES)
    svis = {
        "ours": gdregs.numpyro.SVI(entry.model, entry.guide, optimiser, bound),
        "naive": infer.SVI(entry.model, entry.guide, optimiser, bound),
        **{
            label: infer.SVI(entry.model, entry.guide, optimiser, loss)
            for label, loss in objectives(name).items()
        },
    }
    states = {label: svi.init(jax.random.key(0), *entry.args) for label, svi in svis.items()}
    return svis, states


def trainer(svi, args, num_steps):
    @jax.jit
    def train(state):
        def step(state, _):
            state, loss = svi.update(state, *args)
            return state, loss

        return jax.lax.scan(step, state, None, length=num_steps)

    return train


def gradients(svi, args, num_draws):
    """Draws of the gradient at the parameters of a state."""

    def loss_function(state, key):
        mutable = dict(state.mutable_state or {})
        learned = mutable.pop(STATE, None) if isinstance(svi, gdregs.numpyro.SVI) else None
        if learned is not None:
            return svi._mixed_loss(key, mutable or None, learned, args, {})
        return _make_loss_fn(
            svi.loss, key, svi.constrain_fn, svi.model, svi.guide, args, {}, svi.static_kwargs,
            mutable_state=mutable or None,
        )  # fmt: skip

    @jax.jit
    def draw(state, key):
        params = svi.optim.get_params(state.optim_state)

        def one(key):
            function = loss_function(state, key)
            return jax.grad(lambda params: function(params)[0])(params)

        keys = jax.random.split(key, num_draws)
        return jax.lax.map(one, keys, batch_size=32)

    return draw


def total_variances(draws):
    """The variance over draws, summed over parameters, in batches of draws."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(draws)]
    size = len(leaves[0]) // BATCHES
    return np.array(
        [
            sum(leaf[i * size : (i + 1) * size].var(0, ddof=1).sum() for leaf in leaves)
            for i in range(BATCHES)
        ]
    )


def ratio(ours, theirs):
    """The ratio of two mean variances, with its standard error over batches of draws."""
    value = ours.mean() / theirs.mean()
    error = (ours - value * theirs).std(ddof=1) / theirs.mean() / len(ours) ** 0.5
    return float(value), float(error)


def measure_variances(svis, states, args, num_steps, num_draws):
    rows, state, done = [], states["ours"], 0
    draws = {
        label: gradients(svis[label], args, num_draws) for label in svis if label != "Trace_ELBO"
    }
    for step in (step for step in MEASURED if step <= num_steps):
        if step > done:
            state, _ = trainer(svis["ours"], args, step - done)(state)
            done = step
        variances = {}
        for label, draw in draws.items():
            at = (
                state
                if label == "ours"
                else state._replace(
                    mutable_state={
                        k: v for k, v in (state.mutable_state or {}).items() if k != STATE
                    }
                    or None
                )
            )
            variances[label] = total_variances(draw(at, jax.random.key(step + 1)))
        best = min(
            (label for label in draws if label != "ours"), key=lambda label: variances[label].mean()
        )
        value, error = ratio(variances["ours"], variances[best])
        rows.append(
            {
                "step": step,
                "variance": {label: float(v.mean()) for label, v in variances.items()},
                "best_other": best,
                "ratio": value,
                "ratio_error": error,
            }
        )
    return rows


def final_bounds(svis, states, entry, num_steps):
    """The bound with K = 1,000 after training: means over seeds of the draws, same start."""
    bound = gdregs.numpyro.Bound(1000, chunk_size=100)
    found = {}
    for label in svis:
        if label == "naive":
            continue
        svi, train = svis[label], trainer(svis[label], entry.args, num_steps)
        judge = infer.SVI(entry.model, entry.guide, optax.adam(0.1), bound)
        judge.init(jax.random.key(0), *entry.args)

        @jax.jit
        def evaluate(params, keys, judge=judge):
            def one(key):
                return -bound.loss(key, params, judge.model, judge.guide, *entry.args)

            return jax.lax.map(one, keys)

        values = []
        for seed in range(SEEDS):
            state, _ = train(states[label]._replace(rng_key=jax.random.key(100 + seed)))
            params = svi.get_params(state)
            values.append(np.asarray(evaluate(params, jax.random.split(jax.random.key(7), 16))))
        values = np.array(values, np.float64)  # [seeds, draws]
        found[label] = {
            "mean": values.mean(),
            "error_of_draws": values.std(axis=1, ddof=1).mean() / values.size**0.5,
            "by_seed": values.mean(axis=1).tolist(),
        }
    return found


def step_times(svis, states, args, rounds=7, num_steps=1000):
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
    for _ in range(rounds):
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
    command = [sys.executable, __file__, name, "--one-process"]
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


def visit(name, num_steps, num_draws, cache):
    entry = ZOO[name]()
    svis, states = make_svis(name, entry)
    return {
        "about": entry.about,
        "learning_rate": entry.learning_rate,
        "variances": measure_variances(svis, states, entry.args, num_steps, num_draws),
        "bounds": final_bounds(svis, states, entry, num_steps),
        "step": step_times_of_processes(name, cache),
    }


def page(content):
    rows = []
    for found in content["models"].values():
        early = max((r for r in found["variances"] if r["step"] < 100), key=lambda r: r["ratio"])
        late = max((r for r in found["variances"] if r["step"] >= 100), key=lambda r: r["ratio"])
        last = found["variances"][-1]
        bounds = found["bounds"]
        rows.append(
            [
                found["about"],
                f"{early['ratio']:.2f} ± {early['ratio_error']:.2f}",
                f"{late['ratio']:.2f} ± {late['ratio_error']:.2f}",
                f"{last['ratio']:.2f} ± {last['ratio_error']:.2f}",
                *(
                    f"{bounds[k]['mean']:.2f} ± {_error(bounds[k]):.2f}" if k in bounds else ""
                    for k in ("ours", "RenyiELBO", "Trace_ELBO")
                ),
                *(_times_cell(found["step"].get(when)) for when in ("run", "first", "later")),
            ]
        )
    header = [
        "model", "before step 100", "from step 100", "at the end",
        "ours", "RenyiELBO", "Trace_ELBO", "time", "first half", "later",
    ]  # fmt: skip
    origin, times = (
        f"`{one['command']}`, {one['date']}, {one['hardware']}."
        for one in (content, content["times"])
    )
    return f"""# Models as users of NumPyro write them

{origin} K = {SAMPLES} particles, {content["steps"]:,} steps of Adam, all from the same start.

*Variance*: the total variance of the gradient with our defaults, along our run, relative to the
better of our naive gradient and `RenyiELBO(alpha=0)` at the same parameters: the largest ratio
before step 100 and from then on, and the last, with standard errors over {content["draws"]} draws.
*Bound*: with K = 1,000 after training by each objective, in nats, with the standard error over
{SEEDS} seeds and the draws. *Time* of a step on one core (`taskset -c 0`), relative to
`RenyiELBO`'s (to `TraceEnum_ELBO`'s where components are summed out), over a run of 2,000 steps,
over its first half, 156 steps of which learn from several gradients, and over 1,000 from step
4,000 on, of which 16 do: the median of {PROCESSES} processes of seven rounds each.
{times} A row without brackets is of one process on {content["hardware"]}.
Brackets hold the least and the largest process.

{markdown_table(header, rows)}

![Variance relative to the better of the naive gradients](numpyro-zoo.png)
"""


def _times_cell(times):
    if times is None:
        return ""
    if "ratios" not in times:
        return f"{times['ratio']:.2f}"
    return f"{times['ratio']:.2f} ({times['ratios'][0]:.2f}–{times['ratios'][-1]:.2f})"


def _error(bound):
    of_seeds = np.std(bound["by_seed"], ddof=1) / len(bound["by_seed"]) ** 0.5
    return float(np.hypot(of_seeds, bound["error_of_draws"]))


def draw_figure(content, path):
    models = content["models"]
    columns = 5
    rows = -(-len(models) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.6 * columns, 1.9 * rows), layout="constrained", squeeze=False,
        sharex=True,
    )  # fmt: skip
    for axis in axes.flat[len(models) :]:
        axis.axis("off")
    for axis, found in zip(axes.flat, models.values(), strict=False):
        steps = [row["step"] for row in found["variances"]]
        for label, style in (("naive", "C0o-"), ("RenyiELBO", "C7x--"), ("ours", "C2o-")):
            values = [row["variance"].get(label, np.nan) for row in found["variances"]]
            axis.plot(steps, values, style, markersize=3, linewidth=1, label=label)
        axis.set(xscale="symlog", yscale="log", title=found["about"])
        axis.title.set_fontsize(8)
        axis.set_xlim(-1, None)
        axis.tick_params(which="both", labelsize=7)
        axis.grid(alpha=0.2)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("total variance of the gradient", fontsize=9)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=3, fontsize=8)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ZOO)}")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=512)
    parser.add_argument("--times", action="store_true", help="measure the times alone, once more")
    parser.add_argument("--out", type=Path, default=Path("results/numpyro-zoo"))
    parser.add_argument("--one-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(ZOO))
    if unknown:
        parser.error(f"there is no {unknown[0]!r} in the zoo: {', '.join(ZOO)}")
    if options.one_process:
        [name] = options.names
        entry = ZOO[name]()
        print(json.dumps(step_times(*make_svis(name, entry), entry.args)))
        return
    path = options.out.with_suffix(".json")
    before = json.loads(path.read_text()) if path.exists() else {}
    old, origin = before.get("models", {}), provenance(" ".join(["python", *sys.argv]))
    times = origin
    if options.times:
        missing = sorted(set(options.names or ZOO) - set(old))
        if missing:
            parser.error(f"--times: {path} has nothing of {missing[0]!r} yet")
        times, origin = origin, {key: before[key] for key in origin}
    elif options.names and before:
        origin["command"] = before["command"]  # with these models measured once more
    content = {
        **origin,
        "samples": SAMPLES,
        "steps": options.steps,
        "draws": options.draws,
        "times": times,
        "models": old,
    }
    cache = tempfile.TemporaryDirectory()
    for name in tqdm(options.names or list(ZOO), unit="model"):
        if options.times:
            found = {**old[name], "step": step_times_of_processes(name, cache.name)}
        else:
            found = visit(name, options.steps, options.draws, cache.name)
        content["models"][name] = found
        content["models"] = {n: content["models"][n] for n in ZOO if n in content["models"]}
        write_json(path, content)
        tqdm.write(
            f"{name}: ratio of variances {max(r['ratio'] for r in found['variances']):.2f} at most,"
            f" time {found['step']['later']['ratio']:.2f}"
        )
    write_text(options.out.with_suffix(".md"), page(content))
    draw_figure(content, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
