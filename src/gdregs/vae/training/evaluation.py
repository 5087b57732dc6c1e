"""Bounds of a trained model on whole data sets, and the moments of its gradients."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt8

from gdregs.diagnostics import gradient_moments
from gdregs.evaluation.meshes import DATA, make_mesh, spread
from gdregs.objectives import IWAE
from gdregs.vae.config import Config
from gdregs.vae.training.compiler import compiler_options
from gdregs.vae.training.epochs import (
    Seeds,
    TrainingState,
    loss_and_diagnostics,
    over_mesh,
    prior_estimator,
)
from gdregs.vae.training.loops import loops_are_slow
from gdregs.vae.training.task import Task
from gdregs.weights import log_marginal

TEST_KEY = 20_000
"""Binarises test images and draws their samples: the same for every run."""


class Evaluation(NamedTuple):
    r"""Means over a data set.

    Attributes:
        bound: Eq. (2) with the run's K, in nats per image.
        standard_error: Of `bound`, over images.
        effective_sample_size: Of the K importance samples.
        kl: By stochastic layer, the average of $\log q(z_l|\cdot) - \log p(z_l|\cdot)$ over samples
            of the posterior, in nats per image; their sum is the KL from posterior to prior.
    """

    bound: Float[Array, ""]
    standard_error: Float[Array, ""]
    effective_sample_size: Float[Array, ""]
    kl: dict[str, Float[Array, ""]]


def make_evaluation(
    config: Config,
    task: Task,
    images: UInt8[Array, "count pixels"],
    seeds: Seeds | None = None,
    mesh: Mesh | None = None,
):
    """The compiled function that maps a model to its `Evaluation` on grey images.

    The bound is (2), whatever objective the model was trained on.

    Args:
        config: The settings.
        task: What is modelled of an image.
        images: Grey images.
        seeds: Map the stacked models of these.
        mesh: Devices that share the batches among them.
    """

    def per_image(model: Any, x, context, key):
        posterior, prior = model.posterior(x, context), model.prior(context)
        z = posterior.sample(key, (config.num_samples,))
        log_q, log_p = posterior.log_probs(z), prior.log_probs(z)
        log_ratios = {name: log_q[name] - log_p[name] for name in model.latents}
        log_weights = model.likelihood(x)(z) - sum(log_ratios.values())
        weights = jax.nn.softmax(log_weights, axis=0)
        kl = {name: jnp.mean(ratio, axis=0) for name, ratio in log_ratios.items()}
        return IWAE()(log_weights), 1 / jnp.sum(weights**2, axis=0), kl

    def summarise(bounds, sizes, kl):
        error = jnp.std(bounds) / jnp.sqrt(bounds.shape[0])
        return Evaluation(jnp.mean(bounds), error, jnp.mean(sizes), jax.tree.map(jnp.mean, kl))

    def evaluate_all(models, images):
        def one(model):
            found = _over_batches(per_image, model, task, images, config.batch_size)
            return summarise(*found)

        return (seeds.map(one) if seeds else one)(models)

    run = jax.jit(over_mesh(evaluate_all, mesh, seeds))
    run_batch = jax.jit(_on_batch(per_image, task))

    def evaluate(model):
        if mesh is not None or seeds is not None or not loops_are_slow(config, task, model):
            return run(model, images)
        size, found = config.batch_size, []
        for number, start in enumerate(range(0, images.shape[0], size)):
            found.append(run_batch(model, images[start : start + size], number))
        return summarise(*jax.tree.map(lambda *values: jnp.concatenate(values), *found))

    return evaluate


def evaluate_log_marginal(
    model: Any,
    config: Config,
    task: Task,
    images: UInt8[Array, "count pixels"],
    num_samples: int,
    progress,
    mesh: Mesh | None = None,
) -> tuple[float, float]:
    r"""The streamed estimate of $\log p(x)$, in nats per image, and its standard error.

    Args:
        model: The VAE.
        config: Its settings.
        task: What is modelled of an image.
        images: Grey images.
        num_samples: K.
        progress: Called with the number of images done after each batch.
        mesh: Devices that share the K samples, whatever its axes.
    """
    if mesh is not None:
        mesh = make_mesh(samples=mesh.size, devices=mesh.devices.flat)

    @jax.jit
    def batch_bound(model, images, number):
        return over_mesh(estimate, mesh, None)(model, (images, number))

    def estimate(model, batch):
        images, number = batch
        key = jax.random.fold_in(jax.random.key(TEST_KEY), number)
        binary_key, sample_key = jax.random.split(key)
        x, context = task.split(task.observe(binary_key, images))
        return log_marginal(
            model.posterior(x, context),
            model.prior(context),
            model.likelihood(x),
            key=sample_key,
            num_samples=num_samples,
        )

    bounds = []
    for start in range(0, images.shape[0], config.batch_size):
        batch = images[start : start + config.batch_size]
        number = start // config.batch_size
        bounds.append(jax.block_until_ready(batch_bound(model, batch, number)))
        progress(batch.shape[0])
    values = jnp.concatenate(bounds)
    return float(jnp.mean(values)), float(jnp.std(values) / jnp.sqrt(values.shape[0]))


def _on_batch(function, task):
    """`function` of a model and a batch of grey images, binarised by the number of the batch."""
    base = jax.random.key(TEST_KEY)

    def run(model, batch, number):
        binary_key, sample_key = jax.random.split(jax.random.fold_in(base, number))
        x, context = task.split(task.observe(binary_key, spread(batch, DATA)))
        return function(model, x, context, sample_key)

    return run


def _over_batches(function, model, task, images, batch_size):
    """Binarise by key, and map `function` over batches under one scan; the last may be short."""
    num_full, last = divmod(images.shape[0], batch_size)
    run = functools.partial(_on_batch(function, task), model)

    parts = []
    if num_full:
        full = images[: num_full * batch_size].reshape(num_full, batch_size, images.shape[1])
        found = jax.lax.map(lambda number: run(full[number], number), jnp.arange(num_full))
        parts.append(jax.tree.map(lambda values: values.reshape(-1), found))
    if last:
        parts.append(run(images[num_full * batch_size :], num_full))
    return jax.tree.map(lambda *values: jnp.concatenate(values), *parts)


class GradientQuality(NamedTuple):
    """Average moments of one parameter group's gradient.

    Attributes:
        variance: Sum over the group's parameters of the gradient's variance.
        snr: Mean over the group's parameters of |mean| / standard deviation.
    """

    variance: Float[Array, ""]
    snr: Float[Array, ""]


def gradient_quality(
    model: Any,
    config: Config,
    task: Task,
    key: PRNGKeyArray,
    *,
    num_draws: int = 200,
    first_draw: Any = 0,
    chunk_size: int = 2,
    prior_estimator: Any = None,
) -> dict[str, GradientQuality]:
    """Variance and SNR of the estimator's gradient, at fixed parameters and one fixed batch.

    The first training images are binarised once; only the importance samples (and the resampling)
    vary from draw to draw.

    Args:
        model: The VAE.
        config: Its settings, among them the estimators.
        task: The data.
        key: Decides the binarisation and, with `first_draw`, the draws.
        num_draws: How many draws.
        first_draw: A number that makes these draws other ones than those of other numbers.
        chunk_size: How many draws are held in memory at a time.
        prior_estimator: Instead of the one that the settings name.

    Returns:
        For `posterior`, `prior` and `likelihood`, the `GradientQuality`.
    """
    batch_key, draw_key = jax.random.split(key)
    draw_key = jax.random.fold_in(draw_key, first_draw)
    images = task.observe(batch_key, task.train[: config.batch_size])
    images = spread(images, DATA)

    def gradient(key: PRNGKeyArray) -> PyTree:
        gradients, _ = eqx.filter_grad(loss_and_diagnostics, has_aux=True)(
            model, config, task, images, key, prior_estimator
        )
        return gradients.groups

    moments = gradient_moments(gradient, draw_key, num_draws, chunk_size=chunk_size)
    return {
        group: _average(moments.variance[group], moments.snr[group]) for group in moments.variance
    }


def make_gradient_variance(
    config: Config, task: Task, seeds: Seeds | None = None, mesh: Mesh | None = None
):
    """The compiled function that maps a training state to the variances of its next gradient.

    Args:
        config: The settings; `variance_draws` says how many draws.
        task: The data.
        seeds: Map the stacked states of these.
        mesh: Devices that share the images and importance samples of each draw.

    Returns:
        A function of a state, whose values are sums of variances by parameter group.
    """

    def measure(state: TrainingState, images):
        quality = gradient_quality(
            state.model,
            config,
            task._replace(train=images),
            jax.random.key(TEST_KEY),
            num_draws=config.variance_draws,
            first_draw=state.epoch,
            chunk_size=1,
            prior_estimator=prior_estimator(config, state),
        )
        return {group: values.variance for group, values in quality.items()}

    def measure_all(states, images):
        def one(state):
            return measure(state, images)

        return (seeds.map(one) if seeds else one)(states)

    options = compiler_options(config.precision)
    run = jax.jit(over_mesh(measure_all, mesh, seeds), compiler_options=options)
    return lambda states: run(states, task.train)


def _average(variance: PyTree, snr: PyTree) -> GradientQuality:
    variances, snrs = jax.tree.leaves(variance), jax.tree.leaves(snr)
    count = sum(leaf.size for leaf in snrs)
    if not count:
        return GradientQuality(jnp.asarray(0.0), jnp.asarray(jnp.nan))
    return GradientQuality(
        jnp.sum(jnp.stack([jnp.sum(leaf) for leaf in variances])),
        jnp.sum(jnp.stack([jnp.sum(leaf) for leaf in snrs])) / count,
    )
