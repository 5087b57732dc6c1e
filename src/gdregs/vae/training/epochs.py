"""Training: a whole epoch under one scan, with the data on the device."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from gdregs.bound import bound_with_diagnostics
from gdregs.estimators import mixed_gdregs
from gdregs.evaluation.meshes import DATA, SEEDS, gather, over, spread
from gdregs.mixing import LearnedMix, MixState
from gdregs.vae.config import Config
from gdregs.vae.networks.conv import ConvVAE
from gdregs.vae.networks.ladder import LadderVAE
from gdregs.vae.networks.model import VAE
from gdregs.vae.training.compiler import compiler_options
from gdregs.vae.training.task import Task


class TrainingState(NamedTuple):
    """All that an epoch starts from: saved after each, so that a run resumes bit for bit.

    Attributes:
        model: The model: a `VAE`, or another one with the same methods.
        optimiser: Adam's state.
        epoch: How many epochs are done.
        mix: The learned mix of prior estimators, if the run has one.
    """

    model: Any
    optimiser: Any
    epoch: Int[Array, ""]
    mix: MixState | None


def make_model(config: Config, task: Task, key: PRNGKeyArray) -> Any:
    """The model that the settings name, untrained."""
    if config.networks == "ladder":
        return LadderVAE(
            task.target_shape,
            num_layers=config.num_layers,
            latent_size=config.latent_size,
            channels=config.channels,
            precision=config.precision,
            observation=task.observation,
            key=key,
        )
    if config.networks == "conv":
        return ConvVAE(
            task.target_shape,
            context_shape=task.context_shape,
            num_layers=config.num_layers,
            latent_size=config.latent_size,
            hidden_size=config.hidden_size,
            channels=config.channels,
            precision=config.precision,
            initial_weights=config.initial_weights,
            observation=task.observation,
            key=key,
        )
    return VAE(
        task.train.shape[1] - task.num_context,
        num_context=task.num_context,
        num_layers=config.num_layers,
        latent_size=config.latent_size,
        hidden_size=config.hidden_size,
        precision=config.precision,
        initial_weights=config.initial_weights,
        observation=task.observation,
        key=key,
    )


def make_state(config: Config, task: Task, model: Any = None) -> TrainingState:
    """The state before the first epoch, of your own model or the one that the settings name."""
    if model is None:
        model = make_model(config, task, jax.random.fold_in(jax.random.key(config.seed), 0))
    parameters = eqx.filter(model, eqx.is_inexact_array)
    mix = learned_mix(config).init(parameters) if learns_mix(config) else None
    return TrainingState(model, _optimiser(config).init(parameters), jnp.asarray(0), mix)


class Seeds(NamedTuple):
    """Seeds that are trained in one program, their states stacked along a leading axis.

    Attributes:
        numbers: The seeds.
        vectorised: Whether they train together, under `vmap`, or one after another.
    """

    numbers: tuple[int, ...]
    vectorised: bool

    def map(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A function of one seed's state (or any pytree) as one of the stacked states."""
        return jax.vmap(function) if self.vectorised else functools.partial(jax.lax.map, function)

    def keys(self) -> Key[Array, " seeds"]:
        """The random key that each seed stands for."""
        return jnp.stack([jax.random.key(number) for number in self.numbers])


def make_states(config: Config, task: Task, seeds: Seeds) -> TrainingState:
    """The states before the first epoch of several seeds, stacked."""
    states = [make_state(dataclasses.replace(config, seed=seed), task) for seed in seeds.numbers]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def learns_mix(config: Config) -> bool:
    """Whether the run learns how much of which prior estimator to take."""
    return config.prior_estimator == "gdregs-mix"


def learned_mix(config: Config) -> LearnedMix:
    """The mix of a run, with an alpha for each stochastic layer."""
    latents = tuple(f"z{layer + 1}" for layer in range(config.num_layers))
    return LearnedMix(latents, where=lambda gradient: gradient.prior_networks)


def prior_estimator(config: Config, state: TrainingState) -> Any:
    """The prior estimator of the next step: the named one, or the mix as it has been learned."""
    return config.prior_estimator if state.mix is None else mixed_gdregs(state.mix.alpha)


def _optimiser(config: Config) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate)


class EpochMetrics(NamedTuple):
    """Means over an epoch's steps.

    Attributes:
        bound: The training objective, in nats per image.
        effective_sample_size: Of the K importance samples.
        weight_kept: Share of the weight that the backward pass ran on.
        diverged_at: The first step whose bound is not a number, or far worse than that of a uniform
            guess; 0 if there is none.
        worst: The bound of that step.
    """

    bound: Float[Array, ""]
    effective_sample_size: Float[Array, ""]
    weight_kept: Float[Array, ""]
    diverged_at: Int[Array, ""]
    worst: Float[Array, ""]


HOPELESS = 100
"""A bound so many times worse than that of a uniform guess has diverged."""


def loss_and_diagnostics(
    model: Any,
    config: Config,
    task: Task,
    images: Array,
    key: PRNGKeyArray,
    prior_estimator: Any = None,
):
    """Minus the bound, in nats per image, of one batch of images as the likelihood sees them.

    The estimators are those of the settings, unless `prior_estimator` is another one.
    """
    x, context = task.split(images)
    bound, diagnostics = bound_with_diagnostics(
        model.posterior(x, context),
        model.prior(context),
        model.likelihood(x),
        key=key,
        num_samples=config.num_samples,
        objective=config.make_objective(),
        posterior_estimator=config.posterior_estimator,
        prior_estimator=(config.prior_estimator if prior_estimator is None else prior_estimator),
        num_gradient_samples=config.num_gradient_samples,
    )
    return -jnp.mean(bound), jax.tree.map(jnp.mean, diagnostics)


def make_task_loss(config: Config, task: Task) -> Callable[[Any, Array, PRNGKeyArray], Any]:
    """Minus the bound as a function of a model, images as the likelihood sees them, and a key."""

    def loss(model, images, key):
        return loss_and_diagnostics(model, config, task, images, key, config.prior_estimator)[0]

    return loss


def over_mesh(
    function: Callable[[Any, Any], Any], mesh: Mesh | None, seeds: Seeds | None
) -> Callable[[Any, Any], Any]:
    """A function of (a state or stacked states, data) as one that a mesh works on together.

    Seeds have nothing to say to each other: each device trains its own.
    """
    if mesh is None:
        return function
    if seeds and mesh.shape[SEEDS] > 1:
        by_seed = PartitionSpec(SEEDS)
        return jax.shard_map(
            function, mesh=mesh, in_specs=(by_seed, PartitionSpec()), out_specs=by_seed,
            check_vma=False,
        )  # fmt: skip

    def divided(states, data):
        with over(mesh):
            return gather(function(states, data))

    return divided


class Steps(NamedTuple):
    """What an epoch is made of.

    Attributes:
        step: Maps a state and (a batch of grey images, a key) to the next state and what was
            measured; the first argument turns what stands for a batch into its images.
        summarise: Turns what the steps have measured into the epoch's metrics.
        order: Maps a seed's key and the number of an epoch to the images of each step,
            `[num_steps, batch_size]`, and the keys of the steps.
    """

    step: Callable[..., tuple[TrainingState, Any]]
    summarise: Callable[[Any], EpochMetrics]
    order: Callable[[PRNGKeyArray, Any], tuple[Array, PRNGKeyArray]]


def make_steps(config: Config, task: Task) -> Steps:
    """The steps of training, whether their images are on the device or not."""
    num_images = task.num_train
    num_steps = num_images // config.batch_size
    optimiser = _optimiser(config)
    values = 1 if task.observation.kind == "bernoulli" else task.levels
    floor = -HOPELESS * task.train.shape[1] * math.log(values + 1)

    def gradient(state, images, key):
        def of(estimator):
            loss = eqx.filter_value_and_grad(loss_and_diagnostics, has_aux=True)
            return loss(state.model, config, task, images, key, estimator)

        if state.mix is None:
            return of(config.prior_estimator), None
        return learned_mix(config).value_and_grad(of, state.mix)

    def step(images_of, state, inputs):
        batch, key = inputs
        binary_key, bound_key = jax.random.split(key)
        images = task.observe(binary_key, spread(images_of(batch), DATA))
        ((loss, diagnostics), gradients), mix = gradient(state, images, bound_key)
        updates, optimiser_state = optimiser.update(gradients, state.optimiser)
        model = eqx.apply_updates(state.model, updates)
        measured = (-loss, diagnostics.effective_sample_size, diagnostics.weight_kept)
        return TrainingState(model, optimiser_state, state.epoch, mix), measured

    def order(root, epoch):
        order_key, steps_key = jax.random.split(jax.random.fold_in(root, epoch))
        order = jax.random.permutation(order_key, num_images)[: num_steps * config.batch_size]
        return order.reshape(num_steps, config.batch_size), jax.random.split(steps_key, num_steps)

    def summarise(measured):
        bounds = measured[0]
        is_bad = ~(jnp.isfinite(bounds) & (bounds > floor))
        first = jnp.argmax(is_bad)
        diverged_at = jnp.where(jnp.any(is_bad), first + 1, 0)
        bound, size, kept = jax.tree.map(jnp.mean, measured)
        return EpochMetrics(bound, size, kept, diverged_at, bounds[first])

    return Steps(step, summarise, order)


def make_epoch(config: Config, task: Task, seeds: Seeds | None = None, mesh: Mesh | None = None):
    """The compiled function that maps a state to the next one and the epoch's metrics.

    Args:
        config: The settings.
        task: The data, on the device.
        seeds: Train these instead of the settings' seed; states and metrics are stacked then.
        mesh: A mesh of `gdregs.make_mesh` to train on; states and metrics are the same on every
            device along `data` and `samples`. One device unless given.
    """
    steps = make_steps(config, task)

    def epoch(state, root, train):
        step = functools.partial(steps.step, lambda batch: train[batch])
        state, measured = jax.lax.scan(step, state, steps.order(root, state.epoch + 1))
        return state._replace(epoch=state.epoch + 1), steps.summarise(measured)

    def epochs(states_and_roots, train):
        def one(pair):
            state, root = pair
            return epoch(state, jax.random.wrap_key_data(root), train)

        return (seeds.map(one) if seeds else one)(states_and_roots)

    root = jax.random.key(config.seed) if seeds is None else seeds.keys()
    root = np.asarray(jax.random.key_data(root))

    @functools.partial(
        jax.jit, donate_argnums=0, compiler_options=compiler_options(config.precision)
    )
    def run(state, root, train):
        return over_mesh(epochs, mesh, seeds)((state, root), train)

    return functools.partial(run, root=root, train=task.train)
