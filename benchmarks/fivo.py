"""What is right of the gradient of a particle filter's bound, and how noisy the estimators are.

A nonlinear state-space model with T = 4 steps, K = 4 particles, a batch of 2, resampled after every
step. "With scores" is a filter written out here, whose gradient has the score functions of the
choice of ancestors: that of the expectation of F. The usual gradient (naive) drops them.

    python benchmarks/fivo.py [--draws 400000] [--out results]
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from tqdm import tqdm

import gdregs
from gdregs.vae.files import write_json
from gdregs.vae.runs.provenance import provenance

T, K = 4, 4
X = jnp.array([[0.3, -1.0], [0.9, 0.2], [1.4, -0.4], [0.2, 0.8]])  # [T, batch]
PARAMETERS = {"gain": 0.35, "log_q": -0.7, "slope": 0.8, "log_p": -0.3, "log_x": -0.5}
POSTERIOR, PRIOR = ("gain", "log_q"), ("slope", "log_p")


def start(q, x):
    return dist.Normal(q["gain"] * x, jnp.exp(q["log_q"]))


def follow(q, z, x):
    return dist.Normal(0.7 * z + q["gain"] * (x - z), jnp.exp(q["log_q"]))


def move(p, z, _):
    return dist.Normal(p["slope"] * jnp.tanh(z), jnp.exp(p["log_p"]))


def chains(parameters, x):
    """Posterior and prior of the latents of a series, `[T, batch]`."""
    q, p = ({name: parameters[name] for name in names} for names in (POSTERIOR, PRIOR))
    partial = jax.tree_util.Partial
    posterior = gdregs.Chain(partial(start, q), partial(follow, q), length=len(x), inputs=x)
    first = dist.Normal(jnp.zeros(x.shape[1:]), 1.0)
    return posterior, gdregs.Chain(first, partial(move, p), length=len(x))


def ours(parameters, key, **options):
    posterior, prior = chains(parameters, X)

    def likelihood(z, x):
        return dist.Normal(z, jnp.exp(parameters["log_x"])).log_prob(x[None])

    return jnp.sum(gdregs.fivo(posterior, prior, likelihood, X, key=key, num_samples=K, **options))


def with_scores(parameters, key, scores=True):
    """A filter by hand, multinomial resampling after every step but the last."""
    total, score, before = jnp.zeros(2), jnp.zeros(2), None
    for t, step_key in enumerate(jax.random.split(key, T)):
        noise_key, choice_key = jax.random.split(step_key)
        x = X[t][None]
        q = start(parameters, x) if before is None else follow(parameters, before, x)
        p = dist.Normal(0.0, 1.0) if before is None else move(parameters, before, None)
        z = q.loc + q.scale * jax.random.normal(noise_key, (K, 2))
        log_weights = (
            dist.Normal(z, jnp.exp(parameters["log_x"])).log_prob(x) + p.log_prob(z) - q.log_prob(z)
        )
        total = total + jax.nn.logsumexp(log_weights, axis=0) - np.log(K)
        if t < T - 1:
            chosen = jax.random.categorical(choice_key, log_weights, axis=0, shape=(K, 2))
            log_share = jnp.take_along_axis(jax.nn.log_softmax(log_weights, axis=0), chosen, axis=0)
            score = score + jnp.sum(log_share, axis=0)
            before = jnp.take_along_axis(z, chosen, axis=0)
    if not scores:
        return jnp.sum(total)
    held = jax.lax.stop_gradient(total)
    return jnp.sum(total + held * score - jax.lax.stop_gradient(held * score))


GRADIENTS = {
    "naive": lambda *a: ours(*a, posterior_estimator="naive", prior_estimator="naive"),
    "dregs": lambda *a: ours(*a, posterior_estimator="dregs", prior_estimator="naive"),
    "dregs + gdregs": lambda *a: ours(*a, posterior_estimator="dregs", prior_estimator="gdregs"),
    "dregs + gdregs-mix": lambda *a: ours(
        *a, posterior_estimator="dregs", prior_estimator="gdregs-mix"
    ),
    "stl": lambda *a: ours(*a, posterior_estimator="stl", prior_estimator="naive"),
    "naive, by hand": lambda *a: with_scores(*a, scores=False),
    "with scores, by hand": with_scores,
}


def moments(objective, draws, seed, block=20_000):
    """Mean and variance of each gradient, by parameter."""

    @jax.jit
    def run(keys):
        def gradient(key):
            return jnp.stack(list(jax.grad(objective)(PARAMETERS, key).values()))

        return jax.lax.map(gradient, keys, batch_size=2000)

    total, squares = 0.0, 0.0
    keys = jax.random.split(jax.random.key(seed), draws)
    for first in range(0, draws, block):
        found = np.asarray(run(keys[first : first + block]), float)
        total, squares = total + found.sum(axis=0), squares + (found**2).sum(axis=0)
    mean = total / draws
    return mean, squares / draws - mean**2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=400_000)
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    names = sorted(PARAMETERS)  # as JAX orders a dict
    found = {
        name: moments(objective, options.draws, seed)
        for seed, (name, objective) in enumerate(tqdm(GRADIENTS.items()))
    }
    groups = {"posterior": POSTERIOR, "prior": PRIOR}
    rows = {}
    for name, (mean, variance) in found.items():
        against = {}
        for other in ("naive", "with scores, by hand"):
            if name != other:
                error = np.sqrt((variance + found[other][1]) / options.draws)
                z = np.abs(mean - found[other][0]) / error
                against[other] = dict(zip(names, z.round(1).tolist(), strict=True))
        rows[name] = {
            "z_against": against,
            "variance_relative_to_naive": {
                group: float(
                    sum(variance[names.index(one)] for one in members)
                    / sum(found["naive"][1][names.index(one)] for one in members)
                )
                for group, members in groups.items()
            },
        }
    content = {
        **provenance(" ".join(["python", *sys.argv])), "draws": options.draws, "rows": rows,
    }  # fmt: skip
    write_json(options.out / "fivo.json", content)
    for name, row in rows.items():
        print(name, row)


if __name__ == "__main__":
    main()
