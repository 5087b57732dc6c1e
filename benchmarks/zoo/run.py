"""Train models as users write them by ours and by numpyro's objectives, from the same start.

    python benchmarks/zoo/run.py [NAME ...] [--steps 2000] [--draws 512] [--times] [--out PATH]

For each model of `models.py`, K = 8 particles: along our run (`gdregs.numpyro.SVI` with the
defaults of `Bound`) the total variance of the gradient by all parameters, of ours with the
strengths that it has learned by then, of our naive one, and of `RenyiELBO(alpha=0)` at the same
parameters; after it the bound with K = 1,000 of models trained by each objective; and the time of
a step, by `times.py`.
Results of a model replace those that the files have of it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
from numpyro import infer
from numpyro.infer.svi import _make_loss_fn
from page import draw_figure, page
from times import step_times_of_processes
from tqdm import tqdm
from training import SAMPLES, make_svis, trainer

import gdregs.numpyro
from gdregs.numpyro.svi import STATE
from gdregs.vae.files import write_json, write_text
from gdregs.vae.runs.provenance import provenance
from models import ZOO

MEASURED = (0, 10, 30, 100, 300, 1000, 2000)
BATCHES = 8
SEEDS = 3


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ZOO)}")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=512)
    parser.add_argument("--times", action="store_true", help="measure the times alone, once more")
    parser.add_argument("--out", type=Path, default=Path("results/numpyro-zoo"))
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(ZOO))
    if unknown:
        parser.error(f"there is no {unknown[0]!r} in the zoo: {', '.join(ZOO)}")
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
        "seeds": SEEDS,
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
