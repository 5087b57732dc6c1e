"""What all models of images have in common: a decoder's outputs, read by a likelihood."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from gdregs.vae.networks.observations import Observation


class ImageModel(eqx.Module):
    """A model of images whose latents a decoder turns into the outputs that a likelihood reads.

    Beside `logits` it has `posterior(x, context)` and `prior(context)`, distributions with
    `log_probs`, the names of its `latents`, and its parameters as `groups`.

    Attributes:
        observation: The likelihood.
    """

    observation: eqx.AbstractVar[Observation]

    @abc.abstractmethod
    def logits(self, z: dict[str, Array]) -> Float[Array, "*shape outputs"]:
        """What the likelihood reads: the log-odds of each pixel, where it is Bernoulli."""

    def pixels(self, z: dict[str, Array]) -> Float[Array, "*shape pixels"]:
        """The expected values of all pixels given the latents, between 0 and 1."""
        return self.observation.mean(self.logits(z))

    def likelihood(self, x: Any) -> Callable[[dict[str, Array]], Float[Array, "K batch"]]:
        r"""The function $z \mapsto \log p(x|z_1, \dots, z_L)$."""
        return lambda z: self.observation.log_prob(self.logits(z), x)
