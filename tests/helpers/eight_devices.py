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
    "plain": {},
    "M = 4": {"num_gradient_samples": 4},
    "M = 3": {"num_gradient_samples": 3},
    "streamed": {"chunk_size": 1},
    "streamed, M = 4": {"chunk_size": 1, "num_gradient_samples": 4},
    "ELBO": {"objective": gdregs.ELBO()},
    "JVI": {"objective": gdregs.JVI()},
    "VR-IWAE": {"objective": gdregs.VRIWAE(0.3)},
    "own objective": {"objective": Halves()},
    "rws": {"posterior_estimator": "rws", "prior_estimator": "naive"},
}


def meshes_of(case):
    """All meshes for the two main cases, the one with both axes for the others."""
    return MESHES if case in ("plain", "M = 4") else ("both",)


MODEL = VAE(36, num_layers=2, latent_size=3, hidden_size=8, key=jax.random.key(0))
LEAVES, REST = eqx.partition(MODEL, eqx.is_inexact_array)
IMAGES = jnp.asarray(np.random.default_rng(0).random((8, 36)) < 0.3, jnp.float32)
KEY = jax.random.key(3)


def make_loss(bound=gdregs.bound_with_diagnostics, **options):
    def loss(leaves, images, key):
        model = eqx.combine(leaves, REST)
        parts = model.posterior(images), model.prior(), model.likelihood(images)
        found = bound(*parts, key=key, num_samples=NUM_SAMPLES, **options)
        decay = 0.01 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(leaves))
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


def make_chain_loss(**options):
    """Of six rows of six pixels as a sequence; its leaves are two matrices."""

    def loss(leaves, images, key):
        rows = jnp.moveaxis(images.reshape(-1, 6, 6), 1, 0)
        first = dist.Normal(jnp.zeros((rows.shape[1], 6)), 1.0).to_event(1)
        posterior = gdregs.Chain(first, Move(leaves[0]), length=6, inputs=rows, path="loop")
        prior = gdregs.Chain(first, Move(leaves[1]), length=6)

        def likelihood(z):
            with jax.numpy_rank_promotion("allow"):
                return dist.Normal(z, 0.7).log_prob(jnp.moveaxis(rows, 0, 1)).sum((-2, -1))

        found = gdregs.bound_with_diagnostics(
            posterior, prior, likelihood, key=key, num_samples=NUM_SAMPLES, **options
        )
        return -jnp.mean(found[0]), jax.tree.map(jnp.mean, found[1])

    return loss


def difference(expected, found):
    """The largest difference, relative to the largest entry of each array."""
    return max(
        float(jnp.max(jnp.abs(jnp.asarray(a) - b)) / (jnp.max(jnp.abs(jnp.asarray(a))) + 1e-30))
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True)
    )


def collectives(function, *arguments):
    """Executions of each kind of collective in a compiled program."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    kinds = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    return {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in kinds}


def gamma_draws():
    """Log-weights of two equal datapoints, each on its device, from a sampler that splits keys."""

    def on_device(x):
        posterior, prior = (dist.Gamma(shape * jnp.ones(x.shape), 1.0) for shape in (2.0, 3.0))
        likelihood = dist.Normal(0.0, 1.0).log_prob
        return gdregs.log_weights(posterior, prior, likelihood, key=KEY, num_samples=4)

    place = jax.sharding.PartitionSpec("data")
    spread = jax.shard_map(
        on_device,
        mesh=gdregs.make_mesh(data=2),
        in_specs=place,
        out_specs=jax.sharding.PartitionSpec(None, "data"),
        check_vma=False,
    )
    return np.asarray(spread(jnp.ones(2))).ravel().tolist()


def evaluations(mesh):
    """Every number of an evaluation on 100 images in batches of 16, and of log p(x)."""
    config = Config(num_layers=2, num_samples=4, batch_size=16, latent_size=3, hidden_size=8)
    grey = np.random.default_rng(1).integers(0, 17, (100, 6, 6), dtype=np.uint8)
    task = make_task(config, Dataset("digits", grey, grey, 16))
    found = make_evaluation(config, task, task.test, mesh=mesh)(MODEL)
    skip = lambda count: None  # noqa: E731
    return found, evaluate_log_marginal(MODEL, config, task, task.test, 80, skip, mesh)


def main():
    jax.config.update("jax_disable_most_optimizations", True)
    results = {}
    for case, options in CASES.items():
        loss = make_loss(**options)
        expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(LEAVES, IMAGES, KEY)
        for name in meshes_of(case):
            mesh = gdregs.make_mesh(**MESHES[name])
            function = jax.jit(gdregs.value_and_grad(loss, mesh, has_aux=True))
            found = function(LEAVES, IMAGES, KEY)
            results[f"{case}, {name}"] = difference(expected, found)

    matrices = jax.random.normal(jax.random.key(5), (2, 6, 6))
    for case, options in CHAINS.items():
        loss = make_chain_loss(**options)
        expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(matrices, IMAGES, KEY)
        function = gdregs.value_and_grad(loss, gdregs.make_mesh(**MESHES["both"]), has_aux=True)
        results[f"{case}, both"] = difference(expected, jax.jit(function)(matrices, IMAGES, KEY))

    mesh = gdregs.make_mesh(samples=8)

    def on_mesh(function):
        place = jax.sharding.PartitionSpec()
        return jax.shard_map(function, mesh=mesh, in_specs=place, out_specs=place, check_vma=False)

    def parts(x):
        return MODEL.posterior(x), MODEL.prior(), MODEL.likelihood(x)

    for case, function in {
        "log_weights": lambda x: gdregs.log_weights(*parts(x), key=KEY, num_samples=16),
        "log_weights, streamed": lambda x: gdregs.log_weights(
            *parts(x), key=KEY, num_samples=16, chunk_size=1
        ),
        "log_marginal": lambda x: gdregs.log_marginal(*parts(x), key=KEY, num_samples=80),
    }.items():
        found = jax.jit(on_mesh(function))(IMAGES)
        results[case] = difference(jax.jit(function)(IMAGES), found)

    results["gamma"] = gamma_draws()
    results["evaluation"] = difference(evaluations(None), evaluations(gdregs.make_mesh(data=8)))
    jax.config.update("jax_disable_most_optimizations", False)
    counted = {}
    for case, options in {"plain": {}, "M = 4": {"num_gradient_samples": 4}}.items():
        loss = make_loss(gdregs.bound, **options)
        for name, sizes in MESHES.items():
            function = gdregs.value_and_grad(loss, gdregs.make_mesh(**sizes))
            counted[f"{case}, {name}"] = collectives(function, LEAVES, IMAGES, KEY)
    forward = on_mesh(lambda x: gdregs.bound(*parts(x), key=KEY, num_samples=16))
    counted["bound"] = collectives(forward, IMAGES)
    results["collectives"] = counted

    results["errors"] = []
    for bad in (
        lambda: gdregs.value_and_grad(make_loss(), gdregs.make_mesh(data=3), has_aux=True),
        lambda: gdregs.value_and_grad(make_loss(), gdregs.make_mesh(samples=5), has_aux=True),
        lambda: gdregs.make_mesh(data=9),
    ):
        try:
            bad()(LEAVES, IMAGES, KEY)
        except ValueError as error:
            results["errors"].append(str(error))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
