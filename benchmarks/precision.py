"""What low-precision matrix products do to the gradient: its bias against float64, and its time.

    python benchmarks/precision.py [--draws 1000] [--epochs 8]

A two-layer VAE on the digits, DReGs + GDReGs, K = 16, eight images. Each draw of the gradient is
compared with one in float64 from the same noise: `gdregs.check_unbiased` says whether the mean of
the difference can be told from 0, and the table how large it is beside the gradient's mean and
beside the standard deviation of a single draw. TensorFloat-32, which CPUs do not have, is emulated
by rounding the factors of every product to 10 bits.
"""

import argparse
import functools
import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from tqdm import tqdm

import gdregs
from gdregs.vae import VAE, Config, load_dataset, make_epoch, make_state, make_task
from gdregs.vae.networks import mlp as networks
from gdregs.vae.show.markdown import markdown_table
from gdregs.vae.training.compiler import compiler_options
from report import save

PRECISIONS = ("float32", "tensorfloat32", "bfloat16")


class SameNoise(dist.Normal):
    """A Normal whose noise is drawn in float32, whatever the type of its parameters."""

    def sample(self, key, sample_shape=()):
        noise = jax.random.normal(key, sample_shape + self.batch_shape, jnp.float32)
        return self.loc + self.scale * noise.astype(self.loc.dtype)


@jax.custom_vjp
def _tensorfloat(left, right):
    return jnp.matmul(*(jax.lax.reduce_precision(x, 8, 10) for x in (left, right)))


_tensorfloat.defvjp(
    lambda left, right: (_tensorfloat(left, right), (left, right)),
    lambda factors, g: (_tensorfloat(g, factors[1].T), _tensorfloat(factors[0].T, g)),
)


def emulated(values, matrix, precision="float32"):
    """`networks.product`, with TensorFloat-32 on any machine."""
    if precision != "tensorfloat32":
        return PRODUCT(values, matrix, precision)
    rows = _tensorfloat(values.reshape(-1, values.shape[-1]), matrix)
    return rows.reshape(*values.shape[:-1], matrix.shape[-1])


PRODUCT = networks.product


def make_gradient(model, images, precision, dtype):
    """A function of a key: gradients by network group, in float64, and the bound."""
    model = set_precision(model, precision)
    model = jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, model)
    x = images.astype(dtype)

    def loss(model, key):
        parts = model.posterior(x), model.prior(), model.likelihood(x)
        return jnp.mean(gdregs.bound(*parts, key=key, num_samples=16))

    def gradient(key):
        value, found = eqx.filter_value_and_grad(loss)(model, key)
        groups = {
            "posterior": jax.tree.leaves(found.posterior_networks),
            "prior": jax.tree.leaves(found.prior_networks),
            "likelihood": jax.tree.leaves(found.decoder),
            "bound": [value],
        }
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), groups)

    return gradient


def set_precision(model, precision):
    """The same parameters in a model whose products have another precision."""
    template = VAE(
        model.decoder.last.shape[1],
        num_layers=len(model.posterior_networks),
        latent_size=model.latent_size,
        hidden_size=model.decoder.last.shape[0],
        precision=precision,
        key=jax.random.key(0),
    )
    return jax.tree.unflatten(jax.tree.structure(template), jax.tree.leaves(model))


def norm(tree):
    return float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))))


def measure_bias(model, images, num_draws):
    results = {}
    reference = make_gradient(model, images, "float32", jnp.float64)
    moments = gdregs.gradient_moments(reference, jax.random.key(1), num_draws, chunk_size=8)
    for precision in tqdm(PRECISIONS, desc="bias", unit="precision"):
        check = gdregs.check_unbiased(
            make_gradient(model, images, precision, jnp.float32),
            reference,
            jax.random.key(1),
            num_draws,
            chunk_size=8,
        )
        results[precision] = {
            "largest_z": float(check.largest),
            "threshold": check.threshold,
            "unbiased": bool(check.unbiased),
            "groups": {
                group: {
                    "bias": norm(check.difference.mean[group]),
                    "standard_error": norm(check.difference.standard_error[group]),
                    "mean": norm(moments.mean[group]),
                    "deviation": norm(jax.tree.map(jnp.sqrt, moments.variance[group])),
                }
                for group in ("posterior", "prior", "likelihood", "bound")
            },
        }
    return results


def measure_time(rounds):
    """Seconds of a step of the papers' two-layer model, by precision and M, interleaved."""
    import steps

    images, key = steps.binary_images(64), jax.random.key(0)
    programs, seconds = {}, {}
    for precision in ("float32", "bfloat16"):
        model = set_precision(steps.make_model(2), precision)
        for kept in (None, 8):
            program = jax.jit(
                lambda model, key, kept=kept: steps.gdregs_step(model, images, key, 64, kept),
                compiler_options=compiler_options(precision),
            )
            name = f"{precision}, M = {kept or 'K'}"
            programs[name] = functools.partial(program, model)
            seconds[name] = []
            jax.block_until_ready(programs[name](key))
    for _ in range(rounds):
        for name, program in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(key))
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.quantiles(values, n=4) for name, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default="results/precision.json")
    options = parser.parse_args()
    times = measure_time(options.rounds)

    config = Config(num_layers=2)
    task = make_task(config, load_dataset("digits"))
    state = make_state(config, task)
    epoch = make_epoch(config, task)
    for _ in tqdm(range(options.epochs), desc="training", unit="epoch"):
        state, _ = epoch(state)
    images = (task.train[:8] > task.levels / 2).astype(jnp.float32)
    networks.product = emulated
    jax.clear_caches()  # of networks that have been traced with the other product
    dist.Normal, normal = SameNoise, dist.Normal
    with jax.enable_x64(True):
        bias = measure_bias(state.model, images, options.draws)
    networks.product, dist.Normal = PRODUCT, normal

    rows = []
    for precision, result in bias.items():
        for group, values in result["groups"].items():
            rows.append(
                (
                    precision if group == "posterior" else "",
                    group,
                    f"{values['bias'] / values['mean']:.1e}"
                    f" ± {values['standard_error'] / values['mean']:.0e}",
                    f"{values['bias'] / values['deviation']:.1e}",
                    f"{result['largest_z']:.1f}" if group == "posterior" else "",
                )
            )
    print(
        markdown_table(
            ("products", "gradient of", "bias / mean", "bias / deviation of a draw", "largest z"),
            rows,
        )
    )
    print({name: f"{1e3 * quartiles[1]:.1f} ms" for name, quartiles in times.items()})
    save(options.out, {"draws": options.draws, "bias": bias, "step_seconds": times})


if __name__ == "__main__":
    main()
