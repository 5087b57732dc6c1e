"""A VAE of a user's own networks."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gdregs.hierarchy import Hierarchy
from gdregs.vae.networks.image_model import ImageModel
from gdregs.vae.networks.observations import Observation

_ARRAY = "an array"
"""Where an array belongs."""


class Part(eqx.Module):
    """A network, its arrays apart from all else: functions, names and numbers are constants."""

    arrays: list[Array]
    rest: tuple[Any, ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)

    def __init__(self, network: Any):
        leaves, self.structure = jax.tree.flatten(network)
        self.arrays = [jnp.asarray(leaf) for leaf in leaves if eqx.is_array(leaf)]
        self.rest = tuple(_ARRAY if eqx.is_array(leaf) else leaf for leaf in leaves)

    def whole(self) -> Any:
        """The network."""
        arrays = iter(self.arrays)
        return self.structure.unflatten(
            next(arrays) if leaf is _ARRAY else leaf for leaf in self.rest
        )


class OwnVAE(ImageModel):
    r"""Three networks of your own as a model that `gdregs.vae` trains, evaluates and draws.

    Args:
        encoder: Maps images, `[batch, height, width, colours]` with values between 0 and 1, to the
            posterior: a numpyro distribution with the batch shape `[batch]`, or a
            `gdregs.Hierarchy` or `gdregs.TopDown` with `log_probs`.
        prior: The prior over the same latents, whose arrays are learned; or a function without
            arguments that returns it, whose constants are not.
        decoder: Maps latents, `[K, batch, ...]` (a dict of them where there are several), to the
            likelihood's outputs, `[K, batch, height * width * colours]` for a Bernoulli one;
            `Observation.num_outputs` says how many there are. Other axes behind `[K, batch]` are
            flattened.
        shape: Height, width and colours of an image.
        observation: The likelihood.
    """

    encoder: Part
    prior_part: Part
    decoder: Part
    shape: tuple[int, int, int] = eqx.field(static=True)
    observation: Observation = eqx.field(static=True)

    def __init__(
        self,
        encoder: Any,
        prior: Any,
        decoder: Any,
        *,
        shape: tuple[int, int, int],
        observation: Observation = Observation(),
    ):
        self.encoder, self.prior_part, self.decoder = map(Part, (encoder, prior, decoder))
        self.shape, self.observation = shape, observation

    @property
    def latents(self) -> tuple[str, ...]:
        """The names of the latents."""
        return tuple(_names(self.prior()))

    @property
    def groups(self) -> dict[str, Any]:
        """The parameters of posterior, prior and likelihood; of a gradient, its parts."""
        return {
            "posterior": self.encoder,
            "prior": self.prior_part,
            "likelihood": self.decoder,
        }

    def posterior(self, x: Float[Array, "batch pixels"], context: None = None) -> Any:
        """$q(z|x)$."""
        del context
        images = self.observation.to_network(x).reshape(*x.shape[:-1], *self.shape)
        return _joint(self.encoder.whole()(images))

    def prior(self, context: None = None) -> Any:
        """$p(z)$."""
        del context
        part = self.prior_part.whole()
        return _joint(part if hasattr(part, "log_prob") else part())

    def logits(self, z: dict[str, Array]) -> Float[Array, "*shape outputs"]:
        """What the likelihood reads."""
        first = next(iter(z.values()))
        found = self.decoder.whole()(first if set(z) == {"z"} else z)
        size = self.observation.num_outputs(self.shape[0] * self.shape[1] * self.shape[2])
        lead = first.shape[: found.ndim - _trailing(found.shape, size)]
        return found.reshape(*lead, size)


def _joint(part: Any) -> Any:
    return part if hasattr(part, "log_probs") else Hierarchy({"z": (part, ())})


def _names(part: Any) -> Any:
    return part.names if hasattr(part, "names") else [name for name, _ in part.parents]


def _trailing(shape: tuple[int, ...], size: int) -> int:
    """How many of the last axes hold the outputs of one image."""
    product = 1
    for count, length in enumerate(reversed(shape), 1):
        product *= length
        if product == size:
            return count
    raise ValueError(
        f"the decoder returned an array of shape {shape}; behind [K, batch] it must have {size}"
        f" numbers for each image."
    )
