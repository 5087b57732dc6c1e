r"""A deep ladder of image-shaped latents, in the manner of VDVAE: one top-down state, `TopDown`."""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from equinox import Module
from jaxtyping import Array, Float, PRNGKeyArray

from gdregs.topdown import TopDown
from gdregs.vae.networks.convolutions import Convolution, Residual, double, halvings
from gdregs.vae.networks.gaussians import Gaussian
from gdregs.vae.networks.image_model import ImageModel
from gdregs.vae.networks.mlp import Precision, softplus
from gdregs.vae.networks.observations import Observation


class Rung(Module):
    """What one stochastic layer consists of.

    Attributes:
        to_posterior: From the state and the image's features to the posterior's parameters.
        to_prior: From the state to the prior's.
        from_latent: From the latent to what it adds to the state.
        block: What the state becomes then.
    """

    to_posterior: Convolution
    to_prior: Convolution
    from_latent: Convolution
    block: Residual

    def __init__(
        self,
        channels: int,
        latent_size: int,
        depth: int,
        *,
        precision: Precision = "float32",
        key: PRNGKeyArray,
    ):
        convolution = functools.partial(Convolution, precision=precision)
        posterior, prior, latent, block = jax.random.split(key, 4)
        self.to_posterior = convolution(2 * channels, 2 * latent_size, 3, gain=0.3, key=posterior)
        self.to_prior = convolution(channels, 2 * latent_size, 3, gain=0.1, key=prior)
        gain = 1 / math.sqrt(depth)
        self.from_latent = convolution(latent_size, channels, 1, gain=gain, key=latent)
        self.block = Residual(channels, precision=precision, key=block)


class ReadPosterior(Module):
    r"""$q(z_l \mid h_l, x)$."""

    network: Convolution
    features: Float[Array, "batch height width channels"]

    def __call__(self, state: Float[Array, "..."]) -> dist.Distribution:
        """The distribution given the state."""
        features = self.features.reshape(
            (1,) * (state.ndim - self.features.ndim) + self.features.shape
        )
        features = jnp.broadcast_to(features, state.shape)
        return _gaussian(self.network(jnp.concatenate([state, features], axis=-1)))


class ReadPrior(Module):
    r"""$p(z_l \mid h_l)$."""

    network: Convolution

    def __call__(self, state: Float[Array, "..."]) -> dist.Distribution:
        """The distribution given the state."""
        return _gaussian(self.network(state))


class Advance(Module):
    """The state of the next layer, of twice the size where that layer is finer."""

    from_latent: Convolution
    block: Residual
    next_shape: tuple[int, int] = eqx.field(static=True)

    def __call__(self, state: Float[Array, "..."], z: Float[Array, "..."]) -> Array:
        """The state after the latent z."""
        state = self.block(state + self.from_latent(z))
        return state if state.shape[-3:-1] == self.next_shape else double(state, self.next_shape)


def _gaussian(parameters: Array) -> dist.Distribution:
    loc, raw = jnp.split(parameters, 2, axis=-1)
    return Gaussian(loc, softplus(raw + 0.5) + 1e-3, validate_args=False).to_event(3)


class LadderVAE(ImageModel):
    """A ladder of stochastic layers, image-shaped, from a quarter or less of the image to half.

    Bottom-up features are computed once a datapoint. The top-down state is that of posterior and
    prior both, and the likelihood reads the last one.

    Args:
        shape: Height, width and colours.
        num_layers: L, the number of stochastic layers, shared out over the sizes.
        latent_size: Channels of each latent.
        channels: Of all convolutions.
        precision: Of all convolutions.
        observation: The likelihood.
        key: For the initial weights.

    Reference:
        Sønderby et al., Ladder Variational Autoencoders, 2016.
        Child, Very Deep VAEs Generalize Autoregressive Models, 2021.
    """

    rungs: tuple[Rung, ...]
    downs: tuple[Convolution, ...]
    blocks: tuple[Residual, ...]
    state: Float[Array, "height width channels"]
    last_block: Residual
    last: Convolution
    observation: Observation = eqx.field(static=True)
    shape: tuple[int, int, int] = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        num_layers: int = 8,
        latent_size: int = 8,
        channels: int = 16,
        precision: Precision = "float32",
        observation: Observation = Observation(),
        key: PRNGKeyArray,
    ):
        convolution = functools.partial(Convolution, precision=precision)
        residual = functools.partial(Residual, precision=precision)
        sizes = halvings(shape[:2])[1:] or [shape[:2]]
        down, rungs, last, block = jax.random.split(key, 4)
        keys = jax.random.split(down, 2 * len(sizes))
        self.downs = tuple(
            convolution(shape[2] if i == 0 else channels, channels, 4, stride=2, key=keys[2 * i])
            for i in range(len(sizes))
        )
        self.blocks = tuple(residual(channels, key=keys[2 * i + 1]) for i in range(len(sizes)))
        self.rungs = tuple(
            Rung(channels, latent_size, num_layers, precision=precision, key=one)
            for one in jax.random.split(rungs, num_layers)
        )
        self.shape, self.observation = shape, observation
        self.state = jnp.zeros((*self._sizes()[0], channels))
        self.last_block = residual(channels, key=block)
        outputs = observation.num_outputs(shape[2])
        self.last = convolution(channels, outputs, 3, gain=0.5, key=last)

    def _sizes(self) -> list[tuple[int, int]]:
        """Height and width of each layer, top first: coarse ones before fine ones."""
        sizes = (halvings(self.shape[:2])[1:] or [self.shape[:2]])[::-1]
        count = len(self.rungs)
        return [sizes[layer * len(sizes) // count] for layer in range(count)]

    @property
    def latents(self) -> tuple[str, ...]:
        """The names of the stochastic layers, bottom first: z1, ..., zL."""
        return tuple(f"z{layer + 1}" for layer in range(len(self.rungs)))

    @property
    def prior_networks(self) -> Any:
        """What the prior's layers are made of, the top-down state included."""
        return self.groups["prior"]

    @property
    def groups(self) -> dict[str, Any]:
        """The parameters of posterior, prior and likelihood; of a gradient, its parts.

        What computes the top-down state is part of all three, and counted as the prior's.
        """
        own = [(rung.to_prior, rung.from_latent, rung.block) for rung in self.rungs]
        return {
            "posterior": ([rung.to_posterior for rung in self.rungs], self.downs, self.blocks),
            "prior": (own, self.state),
            "likelihood": (self.last_block, self.last),
        }

    def _layers(self, read: Callable[[int, Rung], Any]) -> TopDown:
        sizes = self._sizes()
        layers = {}
        for number, (name, rung) in enumerate(zip(self.latents[::-1], self.rungs, strict=True)):
            next_shape = sizes[min(number + 1, len(sizes) - 1)]
            advance = Advance(rung.from_latent, rung.block, next_shape)
            layers[name] = (read(number, rung), advance)
        return TopDown(layers, self.state)

    def posterior(self, x: Float[Array, "batch pixels"], context: None = None) -> TopDown:
        """$q(z|x)$, top-down on the features of x."""
        del context
        images = self.observation.to_network(x).reshape(*x.shape[:-1], *self.shape)
        images = 2 * images - 1
        features = {}
        for down, block in zip(self.downs, self.blocks, strict=True):
            images = block(down(images))
            features[images.shape[-3:-1]] = images
        sizes = self._sizes()
        part = self._layers(
            lambda number, rung: ReadPosterior(rung.to_posterior, features[sizes[number]])
        )
        state = jnp.broadcast_to(self.state, (*x.shape[:-1], *self.state.shape))
        return eqx.tree_at(lambda part: part.state, part, state)

    def prior(self, context: None = None) -> TopDown:
        """$p(z)$, top-down."""
        del context
        return self._layers(lambda number, rung: ReadPrior(rung.to_prior))

    def logits(self, z: dict[str, Array]) -> Float[Array, "*shape outputs"]:
        """What the likelihood reads of the state below the last latent."""
        part = self.prior()
        lead = z[part.names[0]].shape[:-3]
        state = jnp.broadcast_to(self.state, (*lead, *self.state.shape))
        for name in part.names:
            state = part.advances[name](state, z[name])
        state = self.last_block(state)
        if state.shape[-3:-1] != self.shape[:2]:
            state = double(state, self.shape[:2])
        images = self.last(jax.nn.silu(state))
        return images.reshape(*lead, -1)
