"""What many layers cost: to compile a `Hierarchy`, and a step of a ladder as one `TopDown`.

    python benchmarks/ladders.py [--layers 16 64] [--rungs 8 16 30] [--images] [--out PATH]

K = 16 importance samples, batches of 8, latents of 4 numbers, networks with 32 hidden units.
"naive" is the same model by hand: one Python loop over layers that draws and weighs. The first
table compiles a hierarchy in which each latent is given the one above; the second counts the matrix
products of a ladder whose layers read one top-down state, M = K, relative to naive's. With
--images, a ladder of 40 layers of convolutions is trained on images of 32x32 pixels in colour, and
timed.
"""

import argparse
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from tqdm import tqdm

import gdregs
from gdregs.vae import Config, LadderVAE, Observation
from gdregs.vae.files import write_json, write_text
from gdregs.vae.runs.provenance import provenance
from gdregs.vae.show.markdown import markdown_table
from sequences import BATCH, HIDDEN, SAMPLES, SIZE, Network, loop_flops


def network(key, before, after):
    one, two = jax.random.split(key)
    return Network(
        jax.random.normal(one, (before, HIDDEN)) / before**0.5,
        jax.random.normal(two, (HIDDEN, after)) / HIDDEN**0.5,
    )


class Given(eqx.Module):
    """A normal given a latent or a state, and features of the data for the posterior."""

    network: Network
    features: jax.Array | None = None

    def parameters(self, values):
        loc, raw = jnp.split(self.network(values, self.features), 2, axis=-1)
        return loc, 0.2 + jax.nn.softplus(raw)

    def __call__(self, values):
        return dist.Normal(*self.parameters(values)).to_event(1)


def first_latent():
    return dist.Normal(jnp.zeros((BATCH, SIZE)), 1.0).to_event(1)


def log_likelihood(decoder, z, x):
    with jax.numpy_rank_promotion("allow"):
        return dist.Normal(decoder(z), 0.5).log_prob(x).sum(-1)


class Layers(eqx.Module):
    posterior: list
    prior: list
    advance: list
    decoder: Network

    def __init__(self, count, key=jax.random.key(0)):
        keys = iter(jax.random.split(key, 3 * count + 1))
        self.posterior = [network(next(keys), SIZE, 2 * SIZE) for _ in range(count)]
        self.prior = [network(next(keys), SIZE, 2 * SIZE) for _ in range(count)]
        self.advance = [network(next(keys), 2 * SIZE, SIZE) for _ in range(count)]
        self.decoder = network(next(keys), SIZE, 10)


def draw(key, loc, scale):
    return loc + scale * jax.random.normal(key, (SAMPLES, BATCH, SIZE))


def log_ratio(prior, posterior, z):
    return (dist.Normal(*prior).log_prob(z) - dist.Normal(*posterior).log_prob(z)).sum(-1)


@eqx.filter_value_and_grad
def hierarchy_step(model, x, features, key):
    count = len(model.prior)

    def part(networks, features):
        nodes = {f"z{count}": (first_latent(), ())}
        for i in range(count - 1, 0, -1):
            nodes[f"z{i}"] = (Given(networks[i], features), (f"z{i + 1}",))
        return gdregs.Hierarchy(nodes)

    return jnp.mean(
        gdregs.bound(
            part(model.posterior, features), part(model.prior, None),
            lambda z: log_likelihood(model.decoder, z["z1"], x), key=key, num_samples=SAMPLES,
        )
    )  # fmt: skip


@eqx.filter_value_and_grad
def naive_hierarchy_step(model, x, features, key):
    count = len(model.prior)
    keys = jax.random.split(key, count)
    start = (jnp.zeros((BATCH, SIZE)), jnp.ones((BATCH, SIZE)))
    with jax.numpy_rank_promotion("allow"):
        z, total = draw(keys[0], *start), 0.0
        for i in range(count - 1, 0, -1):
            posterior = Given(model.posterior[i], features).parameters(z)
            prior = Given(model.prior[i]).parameters(z)
            z = draw(keys[i], *posterior)
            total = total + log_ratio(prior, posterior, z)
        total = total + log_likelihood(model.decoder, z, x)
    return jnp.mean(jax.nn.logsumexp(total, axis=0) - np.log(SAMPLES))


class Merge(eqx.Module):
    network: Network

    def __call__(self, state, z):
        return state + self.network(jnp.concatenate([state, z], axis=-1))


@eqx.filter_value_and_grad
def ladder_step(model, x, features, key):
    count = len(model.prior)

    def part(networks, features):
        layers = {}
        for i in range(count - 1, -1, -1):
            layers[f"z{i}"] = (Given(networks[i], features), Merge(model.advance[i]))
        return gdregs.TopDown(layers, jnp.zeros((BATCH, SIZE)))

    return jnp.mean(
        gdregs.bound(
            part(model.posterior, features), part(model.prior, None),
            lambda z: log_likelihood(model.decoder, z["z0"], x), key=key, num_samples=SAMPLES,
        )
    )  # fmt: skip


@eqx.filter_value_and_grad
def naive_ladder_step(model, x, features, key):
    count = len(model.prior)
    keys = jax.random.split(key, count)
    with jax.numpy_rank_promotion("allow"):
        state, total = jnp.zeros((SAMPLES, BATCH, SIZE)), 0.0
        for i in range(count - 1, -1, -1):
            posterior = Given(model.posterior[i], features).parameters(state)
            prior = Given(model.prior[i]).parameters(state)
            z = draw(keys[i], *posterior)
            total = total + log_ratio(prior, posterior, z)
            if i:
                state = Merge(model.advance[i])(state, z)
        total = total + log_likelihood(model.decoder, z, x)
    return jnp.mean(jax.nn.logsumexp(total, axis=0) - np.log(SAMPLES))


def build(step, count):
    """The compiled step, and the seconds of tracing and of compiling it."""
    model, x = Layers(count), jax.random.normal(jax.random.key(1), (BATCH, 10))
    features = jax.random.normal(jax.random.key(2), (BATCH, HIDDEN))
    arguments = (model, x, features, jax.random.key(0))
    begun = time.perf_counter()
    lowered = jax.jit(lambda *arguments: step(*arguments)).lower(*arguments)
    traced = time.perf_counter()
    program = lowered.compile()
    return program, arguments, (traced - begun, time.perf_counter() - traced)


def measure_compilation(count, rounds):
    """Medians over rounds that alternate."""
    steps = {"naive": naive_hierarchy_step, "Hierarchy": hierarchy_step}
    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            jax.clear_caches()
            seconds[name].append(build(step, count)[2])
    middle = {name: np.median(times, axis=0) for name, times in seconds.items()}
    whole = [sum(a) / sum(b) for a, b in zip(seconds["Hierarchy"], seconds["naive"], strict=True)]
    return {
        "layers": count,
        "naive_seconds": middle["naive"].tolist(),
        "seconds": middle["Hierarchy"].tolist(),
        "ratio": float(np.median(whole)),
        "ratios": whole,
    }


def measure_ladder(count, rounds=11):
    (naive, arguments, _), (ladder, _, seconds) = (
        build(step, count) for step in (naive_ladder_step, ladder_step)
    )
    times = {}
    for name, program in (("naive", naive), ("TopDown", ladder)):
        jax.block_until_ready(program(*arguments))
        times[name] = []
    for _ in range(rounds):
        for name, program in (("naive", naive), ("TopDown", ladder)):
            begun = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            times[name].append(time.perf_counter() - begun)
    ratios = np.array(times["TopDown"]) / np.array(times["naive"])
    return {
        "layers": count,
        "products": loop_flops(ladder.as_text()) / loop_flops(naive.as_text()),
        "time": float(np.median(ratios)),
        "time_error": float(ratios.std(ddof=1) / rounds**0.5),
        "trace_and_compile_seconds": sum(seconds),
    }


def measure_images(layers=40, steps=20, batch=16):
    """Seconds of compiling and of a step of a ladder of convolutions on 32x32 images in colour."""
    from gdregs.vae.training.epochs import make_state
    from gdregs.vae.training.segments import make_stepwise_epoch
    from gdregs.vae.training.task import Task

    draws = np.random.default_rng(0)
    images = jnp.asarray(draws.integers(0, 256, (steps * batch, 32 * 32 * 3), dtype=np.uint8))
    observation = Observation("discretised-logistic-mixture", 255, 3)
    config = Config(
        dataset="./none.npy", networks="ladder", num_layers=layers, latent_size=8, channels=16,
        num_samples=4, gradient_samples=2, batch_size=batch, learning_rate=1e-3,
        likelihood="discretised-logistic-mixture",
    )  # fmt: skip
    task = Task(images, images[:batch], 255, 0, (32, 32), observation, False)
    model = LadderVAE(
        (32, 32, 3), num_layers=layers, latent_size=8, channels=16, observation=observation,
        key=jax.random.key(0),
    )  # fmt: skip
    count = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)))
    epoch = make_stepwise_epoch(config, task)  # as `gdregs train` on a CPU
    begun = time.perf_counter()
    state, first = jax.block_until_ready(epoch(make_state(config, task, model)))
    compiled = time.perf_counter()
    _, second = jax.block_until_ready(epoch(state))
    seconds = time.perf_counter() - compiled
    return {
        "layers": layers,
        "parameters": count,
        "batch": batch,
        "num_samples": 4,
        "gradient_samples": 2,
        "seconds_to_trace_and_compile": compiled - begun - seconds,
        "seconds_a_step": seconds / steps,
        "bound_of_passes": [float(first.bound), float(second.bound)],
    }


def page(content):
    compilation = markdown_table(
        ["layers", "naive by hand", "Hierarchy", "ratio"],
        [
            [
                str(row["layers"]),
                f"{sum(row['naive_seconds']):.1f} s",
                f"{sum(row['seconds']):.1f} s",
                f"{row['ratio']:.2f}",
            ]
            for row in content["compilation"]
        ],
    )
    ladders = markdown_table(
        ["layers", "matrix products", "time", "trace and compile"],
        [
            [
                str(row["layers"]),
                f"{row['products']:.2f}",
                f"{row['time']:.2f} ± {row['time_error']:.2f}",
                f"{row['trace_and_compile_seconds']:.1f} s",
            ]
            for row in content["ladders"]
        ],
    )
    images = ""
    if content["images"]:
        row = content["images"]
        images = (
            f"\nA ladder of {row['layers']} layers of convolutions ({row['parameters']:,}"
            f" parameters) on 32x32 images in colour, batches of {row['batch']},"
            f" K = {row['num_samples']}, M = {row['gradient_samples']}:"
            f" {row['seconds_to_trace_and_compile']:.0f} s to trace and compile,"
            f" {row['seconds_a_step']:.2f} s a step.\n"
        )
    origin = f"`{content['command']}`, {content['date']}, {content['hardware']}."
    return f"""# What many layers cost

<!-- tables -->
Trace and compilation of a step of a hierarchy in which each latent is given the one above,
M = K, and of the naive bound by hand:

{compilation}

A ladder whose layers read one top-down state, as a `TopDown`, M = K, relative to the naive bound
by hand:

{ladders}
{images}
Medians over {content["rounds"]} alternating rounds for the first table, over 11 for the second.
{origin}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--rungs", type=int, nargs="*", default=[8, 16, 30])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/ladders"))
    options = parser.parse_args()
    content = {
        **provenance(" ".join(["python", *sys.argv])),
        "rounds": options.rounds,
        "compilation": [
            measure_compilation(count, options.rounds) for count in tqdm(options.layers)
        ],
        "ladders": [measure_ladder(count) for count in tqdm(options.rungs)],
        "images": measure_images() if options.images else None,
    }
    write_json(options.out.with_suffix(".json"), content)
    write_text(options.out.with_suffix(".md"), page(content))
    print(page(content))


if __name__ == "__main__":
    main()
