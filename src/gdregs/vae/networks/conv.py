"""The VAE of Eq. (20) between residual convolutions."""

import functools
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from gdregs.hierarchy import Hierarchy
from gdregs.vae.networks.convolutions import Painter, Reader
from gdregs.vae.networks.image_model import ImageModel
from gdregs.vae.networks.mlp import InitialWeights, Precision
from gdregs.vae.networks.model import VAE
from gdregs.vae.networks.observations import Observation


class ConvVAE(ImageModel):
    """A `VAE` that reads images by convolutions, once a datapoint, and paints them by convolutions.

    Its latents are vectors, whose conditionals are those of `VAE` given the features of x and c.

    Args:
        shape: Height, width and colours of what is modelled of an image.
        context_shape: The same of what is given; None for an unconditional model.
        num_layers: L, the number of stochastic layers.
        latent_size: Length of each latent.
        hidden_size: Units in each hidden layer of the conditionals, and length of the features.
        channels: Of the convolutions at full width; each halving of it doubles them.
        precision: Of all products.
        initial_weights: Of the conditionals.
        observation: The likelihood.
        key: For the initial weights.
    """

    inner: VAE
    reader: Reader
    context_reader: Reader | None
    painter: Painter
    observation: Observation = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        context_shape: tuple[int, int, int] | None = None,
        num_layers: int = 2,
        latent_size: int = 50,
        hidden_size: int = 300,
        channels: int = 16,
        precision: Precision = "float32",
        initial_weights: InitialWeights = "glorot",
        observation: Observation = Observation(),
        key: PRNGKeyArray,
    ):
        inner_key, reader_key, context_key, painter_key = jax.random.split(key, 4)
        self.inner = VAE(
            hidden_size,
            num_context=hidden_size if context_shape else 0,
            num_layers=num_layers,
            latent_size=latent_size,
            hidden_size=hidden_size,
            precision=precision,
            initial_weights=initial_weights,
            key=inner_key,
        )
        read = functools.partial(Reader, precision=precision)
        self.reader = read(shape, channels, hidden_size, key=reader_key)
        self.context_reader = None
        if context_shape:
            self.context_reader = read(context_shape, channels, hidden_size, key=context_key)
        pixel = observation.num_outputs(shape[2])
        self.painter = Painter(
            hidden_size, shape[:2], channels, pixel, precision=precision, key=painter_key
        )
        self.observation = observation

    @property
    def latents(self) -> tuple[str, ...]:
        """The names of the stochastic layers, bottom first: z1, ..., zL."""
        return self.inner.latents

    @property
    def prior_networks(self) -> Any:
        """The networks of the prior's layers."""
        return self.inner.prior_networks

    @property
    def groups(self) -> dict[str, Any]:
        """The parameters of posterior, prior and likelihood; of a gradient, its parts."""
        return {
            "posterior": (self.inner.posterior_networks, self.reader),
            "prior": (self.inner.prior_networks, self.context_reader),
            "likelihood": (self.inner.decoder, self.painter),
        }

    def posterior(self, x: Array, context: Array | None = None) -> Hierarchy:
        """$q(z|x,c)$, bottom-up."""
        features = self.reader(self.observation.to_network(x))
        return self.inner.posterior(features, self._read(context))

    def prior(self, context: Array | None = None) -> Hierarchy:
        """$p(z|c)$, top-down."""
        return self.inner.prior(self._read(context))

    def _read(self, context: Array | None) -> Array | None:
        if self.context_reader is None or context is None:
            return None
        return self.context_reader(context)

    def logits(self, z: dict[str, Array]) -> Float[Array, "*shape outputs"]:
        """What the likelihood reads."""
        return self.painter(self.inner.logits(z))
