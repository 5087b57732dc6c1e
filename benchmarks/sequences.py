"""What a step of a state-space model costs: a chain against a naive bound by one loop over time.

    python benchmarks/sequences.py [--lengths 10 100 300 1000] [--batch 8] [--out PATH]

K = 16 importance samples, batches of 8 unless told otherwise, latents of 4 numbers, networks with
32 hidden units: a posterior that reads the latent before and features of the data, a nonlinear
prior, a decoder for 10 numbers a step. "naive" is the same model by hand: one `lax.scan` that
draws, weighs and decodes.
Matrix products are counted in the compiled program, loops as often as they turn; times are from
rounds that alternate between the implementations.
"""

import argparse
import re
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
from gdregs.vae.files import write_json, write_text
from gdregs.vae.runs.provenance import provenance
from gdregs.vae.show.markdown import markdown_table
from speed import matrix_flops

SAMPLES, SIZE, HIDDEN, OBSERVED = 16, 4, 32, 10


def product(values, weight):
    with jax.numpy_rank_promotion("allow"):
        return values @ weight


class Network(eqx.Module):
    """A hidden layer of tanh units, with a second input that not every sample has its own of."""

    first: jax.Array
    second: jax.Array

    def __call__(self, values, given=None):
        hidden = product(values, self.first)
        if given is not None:
            with jax.numpy_rank_promotion("allow"):
                hidden = hidden + given
        return product(jnp.tanh(hidden), self.second)


class Step(eqx.Module):
    network: Network

    def parameters(self, previous, given):
        loc, raw = jnp.split(self.network(previous, given), 2, axis=-1)
        return 0.9 * previous + 0.3 * loc, 0.2 + jax.nn.softplus(raw)

    def __call__(self, previous, given):
        return dist.Normal(*self.parameters(previous, given)).to_event(1)


class Model(eqx.Module):
    posterior: Step
    prior: Step
    decoder: Network
    encoder: jax.Array


def make_model(key=jax.random.key(0)):
    keys = jax.random.split(key, 4)

    def network(key, before, after):
        one, two = jax.random.split(key)
        return Network(
            jax.random.normal(one, (before, HIDDEN)) / before**0.5,
            jax.random.normal(two, (HIDDEN, after)) / HIDDEN**0.5,
        )

    return Model(
        Step(network(keys[0], SIZE, 2 * SIZE)),
        Step(network(keys[1], SIZE, 2 * SIZE)),
        network(keys[2], SIZE, OBSERVED),
        jax.random.normal(keys[3], (OBSERVED, HIDDEN)) / OBSERVED**0.5,
    )


def make_data(length, batch=8):
    """`[T, batch, observed]`."""
    return jax.random.normal(jax.random.key(1), (length, batch, OBSERVED))


def first_latent(batch):
    return dist.Normal(jnp.zeros((batch, SIZE)), 1.0).to_event(1)


def log_likelihood(model, z, x):
    """x given z, both with the leading axis T; `[K, *batch]`."""
    with jax.numpy_rank_promotion("allow"):
        return dist.Normal(model.decoder(z), 0.5).log_prob(x).sum(-1)


@eqx.filter_value_and_grad
def chain_step(model, x, key, num_gradient_samples=None, options=()):
    """DReGs and GDReGs by `gdregs.Chain`."""
    (length, batch, _), options = x.shape, dict(options)
    features = product(x, model.encoder)
    forms = {name: options.pop(name) for name in ("path", "checkpoint") if name in options}
    posterior = gdregs.Chain(
        first_latent(batch), model.posterior, length=length, inputs=features, **forms
    )
    prior = gdregs.Chain(first_latent(batch), lambda_with(model.prior), length=length, **forms)

    def likelihood(z):
        return log_likelihood(model, jnp.moveaxis(z, 2, 0), x[:, None]).sum(0)

    return jnp.mean(
        gdregs.bound(
            posterior, prior, likelihood, key=key, num_samples=SAMPLES,
            num_gradient_samples=num_gradient_samples, **options,
        )
    )  # fmt: skip


class Unconditioned(eqx.Module):
    step: Step

    def __call__(self, previous, given):
        del given
        return self.step(previous, None)


def lambda_with(step):
    return Unconditioned(step)


@eqx.filter_value_and_grad
def naive_step(model, x, key):
    """The usual gradient: one loop that draws, weighs and decodes; every network once a step."""
    features = product(x, model.encoder)
    keys = jax.random.split(key, len(x))
    shape = (SAMPLES, x.shape[1], SIZE)

    def weigh(parameters, before, z, x):
        loc, scale = parameters
        posterior = dist.Normal(loc, scale).log_prob(z)
        if before is None:
            prior = dist.Normal(0.0, 1.0).log_prob(z)
        else:
            prior = dist.Normal(*model.prior.parameters(before, None)).log_prob(z)
        return (prior - posterior).sum(-1) + log_likelihood(model, z, x[None])

    def draw(key, loc, scale):
        return loc + scale * jax.random.normal(key, shape)

    def step(carry, inputs):
        before, total = carry
        key, given, x = inputs
        parameters = model.posterior.parameters(before, given)
        z = draw(key, *parameters)
        return (z, total + weigh(parameters, before, z, x)), None

    start = (jnp.zeros(shape), jnp.ones(shape))
    z = draw(keys[0], *start)
    total = weigh(start, None, z, x[0])
    (_, total), _ = jax.lax.scan(step, (z, total), (keys[1:], features[1:], x[1:]))
    return jnp.mean(jax.nn.logsumexp(total, axis=0) - np.log(SAMPLES))


STEPS = {
    "naive": naive_step,
    "M = K": chain_step,
    "M = K, loop": lambda *args: chain_step(*args, None, (("path", "loop"),)),
    "M = K, matrices": lambda *args: chain_step(*args, None, (("path", "matrices"),)),
    "M = K, checkpoint": lambda *args: chain_step(*args, None, (("checkpoint", True),)),
    "M = K / 4": lambda *args: chain_step(*args, SAMPLES // 4),
    "M = K / 8": lambda *args: chain_step(*args, SAMPLES // 8),
    "M = K / 8, loop": lambda *args: chain_step(*args, SAMPLES // 8, (("path", "loop"),)),
    "M = K / 8, matrices": lambda *args: chain_step(*args, SAMPLES // 8, (("path", "matrices"),)),
}


def build(name, length, batch=8):
    """The compiled step, and the seconds of tracing and of compiling it."""
    model, x = make_model(), make_data(length, batch)
    begun = time.perf_counter()
    step = STEPS[name]
    lowered = jax.jit(lambda *arguments: step(*arguments)).lower(model, x, jax.random.key(0))
    traced = time.perf_counter()
    program = lowered.compile()
    return program, (traced - begun, time.perf_counter() - traced)


def loop_flops(text):
    """FLOPs of all matrix products, those in loops as often as the loops turn."""
    bodies = re.split(r"\n(?=(?:ENTRY )?%[\w.-]+ \()", text)
    computations = {re.match(r"(?:ENTRY )?%([\w.-]+)", body).group(1): body for body in bodies[1:]}
    entry = next(name for name, body in computations.items() if body.startswith("ENTRY"))

    def count(name):
        body = computations[name]
        total = matrix_flops(body)
        for line in body.splitlines():
            times = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            called = re.findall(r"(?:calls|body|to_apply)=%([\w.-]+)", line)
            total += sum(count(one) for one in called) * (int(times.group(1)) if times else 1)
        return total

    return count(entry)


def measure_times(programs, arguments, rounds):
    times = {name: [] for name in programs}
    for program in programs.values():
        jax.block_until_ready(program(*arguments))
    for _ in range(rounds):
        for name, program in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            times[name].append(time.perf_counter() - begun)
    return times


def page(content):
    header = ["T", "step", "trace", "compile", "matrix products", "time", "memory"]
    rows = [
        [
            str(row["length"]),
            row["step"],
            f"{row['trace_seconds']:.1f} s",
            f"{row['compile_seconds']:.1f} s",
            f"{row['flops_ratio']:.2f}",
            f"{row['time_ratio']:.2f} ± {row['time_ratio_error']:.2f}",
            f"{row['temporary_megabytes']:.1f} MB",
        ]
        for row in content["rows"]
    ]
    origin = f"`{content['command']}`, {content['date']}, {content['hardware']}."
    return f"""# What a step of a state-space model costs

<!-- table -->
{markdown_table(header, rows)}

Matrix products (counted in the compiled program) and time are relative to naive, time with the
standard error of {content["rounds"]} rounds; batches of {content["batch"]}. {origin}
"""


def measure(length, rounds, batch):
    built = {name: build(name, length, batch) for name in STEPS}
    programs = {name: program for name, (program, _) in built.items()}
    arguments = (make_model(), make_data(length, batch), jax.random.key(0))
    times = measure_times(programs, arguments, rounds)
    naive = np.array(times["naive"])
    flops = {name: loop_flops(program.as_text()) for name, program in programs.items()}
    for name, (program, (trace, compile_)) in built.items():
        ratios = np.array(times[name]) / naive
        yield {
            "length": length,
            "step": name,
            "trace_seconds": trace,
            "compile_seconds": compile_,
            "megaflops": flops[name] / 1e6,
            "flops_ratio": flops[name] / flops["naive"],
            "milliseconds": 1e3 * float(np.median(times[name])),
            "time_ratio": float(np.median(ratios)),
            "time_ratio_error": float(ratios.std(ddof=1) / len(ratios) ** 0.5),
            "temporary_megabytes": program.memory_analysis().temp_size_in_bytes / 1e6,
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[10, 100, 300, 1000])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, default=Path("results/sequences-cost"))
    options = parser.parse_args()
    rows = []
    for length in tqdm(options.lengths, unit="length"):
        rows.extend(measure(length, options.rounds, options.batch))
    content = {
        **provenance(" ".join(["python", *sys.argv])),
        "batch": options.batch,
        "rounds": options.rounds,
        "rows": rows,
    }
    write_json(options.out.with_suffix(".json"), content)
    write_text(options.out.with_suffix(".md"), page(content))
    print(page(content))


if __name__ == "__main__":
    main()
