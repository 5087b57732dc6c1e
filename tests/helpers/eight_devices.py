"""One bound on one device and on eight: run in a process of its own, prints JSON by case.

For every case and mesh: the largest difference of value, aux and gradients between the mesh and one
device, relative to the largest entry of each array; and how many collectives of each kind the
compiled program has.
"""

import json
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import gdregs
import models
import reference
from gdregs.evaluation import meshes
from gdregs.vae import VAE, Config, evaluate_log_marginal, make_evaluation, make_task
from gdregs.vae.data.datasets import Dataset

NUM_SAMPLES = 16
MESHES = {
    "data=8": {"data": 8},
    "samples=8": {"samples": 8},
    "both": {"data": 2, "samples": 4},
}


class Halves(gdregs.Objective):
    """An objective of a user's own."""

    def __call__(self, log_weights):
        first, second = jnp.split(log_weights, 2)
        return (gdregs.IWAE()(first) + gdregs.IWAE()(second)) / 2


CASES = {
    "plain": ({}, ("data=8", "samples=8", "both")),
    "M = 4": ({"num_gradient_samples": 4}, ("data=8", "both")),
    "M = 3": ({"num_gradient_samples": 3}, ("samples=8",)),
    "streamed": ({"chunk_size": 1}, ("both",)),
    "streamed, M = 4": ({"chunk_size": 1, "num_gradient_samples": 4}, ("samples=8",)),
    "ELBO": ({"objective": gdregs.ELBO()}, ("both",)),
    "JVI": ({"objective": gdregs.JVI()}, ("both",)),
    "VR-IWAE": ({"objective": gdregs.VRIWAE(0.3)}, ("samples=8",)),
    "own objective": ({"objective": Halves()}, ("both",)),
    "rws": ({"posterior_estimator": "rws", "prior_estimator": "naive"}, ("samples=8",)),
}
"""Options, and the meshes on which they are tried."""

*PARAMETERS, X = reference.init(0, batch=8, latents=("a", "b"))
KEY = jax.random.key(3)


def parts_of(parameters, x):
    phi, theta, lam = parameters
    return models.posterior(phi, x), models.prior(theta), models.likelihood(lam, x)


def make_loss(bound=gdregs.bound_with_diagnostics, **options):
    def loss(parameters, x, key):
        found = bound(*parts_of(parameters, x), key=key, num_samples=NUM_SAMPLES, **options)
        decay = 0.01 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(parameters))
        if bound is gdregs.bound:
            return decay - jnp.mean(found)
        return decay - jnp.mean(found[0]), jax.tree.map(jnp.mean, found[1])

    return loss


class Move(eqx.Module):
    weight: jax.Array

    def __call__(self, previous, given):
        with jax.numpy_rank_promotion("allow"):
            loc = jnp.tanh(previous @ self.weight)
            loc = loc if given is None else loc + given
        return dist.Normal(loc, 0.5 + 0.1 * loc**2).to_event(1)


CHAINS = {"chain": {}, "chain, M = 4": {"num_gradient_samples": 4}}
ROWS = np.random.default_rng(1).random((8, 6, 3), np.float32)
MATRICES = np.random.default_rng(2).normal(size=(2, 3, 3)).astype(np.float32)


def make_chain_loss(**options):
    """Of six rows of three numbers as a sequence; its leaves are two matrices."""

    def loss(leaves, batch, key):
        rows = jnp.moveaxis(batch, 1, 0)
        first = dist.Normal(jnp.zeros((rows.shape[1], 3)), 1.0).to_event(1)
        posterior = gdregs.Chain(first, Move(leaves[0]), length=6, inputs=rows, path="loop")
        prior = gdregs.Chain(first, Move(leaves[1]), length=6)

        def likelihood(z):
            with jax.numpy_rank_promotion("allow"):
                return dist.Normal(z, 0.7).log_prob(batch).sum((-2, -1))

        found = gdregs.bound_with_diagnostics(
            posterior, prior, likelihood, key=key, num_samples=NUM_SAMPLES, **options
        )
        return -jnp.mean(found[0]), jax.tree.map(jnp.mean, found[1])

    return loss


GAMMAS = {"gamma": {}, "gamma, M = 4": {"num_gradient_samples": 4}}


def make_gamma_loss(**options):
    """Of a posterior whose sampler does not draw row by row, and noise of the likelihood's own."""

    def loss(leaves, batch, key):
        x = batch[:, 0, 0]
        posterior = dist.Gamma(2 + jnp.tanh(leaves[0, 0, 0] * x), 1.5)
        prior = dist.Gamma(jnp.exp(leaves[1, 0, 0]) * jnp.ones(x.shape), 1.0)

        def likelihood(z, keys):
            noise = jax.vmap(lambda key: jax.random.exponential(key, x.shape))(keys)
            return -jnp.square(z - noise)

        found = gdregs.bound_with_diagnostics(
            posterior, prior, likelihood, key=key, num_samples=NUM_SAMPLES, **options
        )
        return -jnp.mean(found[0]), jax.tree.map(jnp.mean, found[1])

    return loss


def difference(expected, found):
    """The largest difference, relative to the largest entry of each array."""
    return max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / (np.max(np.abs(a)) + 1e-30))
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True)
    )


def collectives(function, *arguments):
    """Executions of each kind of collective in a compiled program."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    return {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}


def evaluations(mesh):
    """Every number of an evaluation on 100 images in batches of 16, and of log p(x)."""
    config = Config(num_layers=1, num_samples=4, batch_size=16, latent_size=3, hidden_size=8)
    model = VAE(36, num_layers=1, latent_size=3, hidden_size=8, key=jax.random.key(0))
    grey = np.random.default_rng(1).integers(0, 17, (100, 6, 6), dtype=np.uint8)
    task = make_task(config, Dataset("digits", grey, grey, 16))
    found = make_evaluation(config, task, task.test, mesh=mesh)(model)
    skip = lambda count: None  # noqa: E731
    return found, evaluate_log_marginal(model, config, task, task.test, 80, skip, mesh)


def main():
    jax.config.update("jax_disable_most_optimizations", True)
    results = {}
    for losses, arguments in (
        ({case: (make_loss(**of), names) for case, (of, names) in CASES.items()}, (PARAMETERS, X)),
        (
            {case: (make_chain_loss(**of), ("both",)) for case, of in CHAINS.items()},
            (MATRICES, ROWS),
        ),
        (
            {case: (make_gamma_loss(**of), ("both",)) for case, of in GAMMAS.items()},
            (MATRICES, ROWS),
        ),
    ):
        for case, (loss, names) in losses.items():
            expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(*arguments, KEY)
            for name in names:
                mesh = gdregs.make_mesh(**MESHES[name])
                function = jax.jit(gdregs.value_and_grad(loss, mesh, has_aux=True))
                results[f"{case}, {name}"] = difference(expected, function(*arguments, KEY))

    mesh = gdregs.make_mesh(samples=8)

    def on_mesh(function):
        def divided(x):
            with meshes.over(mesh):
                return meshes.gather(function(x))

        return divided

    def weights(x):
        parts = parts_of(PARAMETERS, x)
        return {
            "log_weights": gdregs.log_weights(*parts, key=KEY, num_samples=16),
            "log_weights, streamed": gdregs.log_weights(
                *parts, key=KEY, num_samples=16, chunk_size=1
            ),
            "log_marginal": gdregs.log_marginal(*parts, key=KEY, num_samples=80),
        }

    expected, found = jax.jit(weights)(X), jax.jit(on_mesh(weights))(X)
    results |= {case: difference(expected[case], found[case]) for case in expected}
    results["evaluation"] = difference(evaluations(None), evaluations(gdregs.make_mesh(data=8)))
    jax.config.update("jax_disable_most_optimizations", False)
    counted = {}
    for case, options, names in (
        ("plain", {}, ("data=8", "samples=8", "both")),
        ("M = 4", {"num_gradient_samples": 4}, ("data=8", "samples=8", "both")),
    ):
        loss = make_loss(gdregs.bound, **options)
        for name in names:
            function = gdregs.value_and_grad(loss, gdregs.make_mesh(**MESHES[name]))
            counted[f"{case}, {name}"] = collectives(function, PARAMETERS, X, KEY)
    forward = on_mesh(lambda x: gdregs.bound(*parts_of(PARAMETERS, x), key=KEY, num_samples=16))
    counted["bound"] = collectives(forward, X)
    results["collectives"] = counted

    results["errors"] = []
    for bad in (
        lambda: gdregs.value_and_grad(make_loss(), gdregs.make_mesh(data=3), has_aux=True),
        lambda: gdregs.value_and_grad(make_loss(), gdregs.make_mesh(samples=5), has_aux=True),
        lambda: gdregs.make_mesh(data=9),
    ):
        try:
            bad()(PARAMETERS, X, KEY)
        except ValueError as error:
            results["errors"].append(str(error))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
