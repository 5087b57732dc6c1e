r"""What a decoder's outputs say of an image: the likelihoods, and what each sees of grey values."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from gdregs.vae.networks.bernoulli import bernoulli_log_prob, binarise

LikelihoodName = Literal["bernoulli", "categorical", "discretised-logistic-mixture", "gaussian"]

COMPONENTS = 5
"""Of a discretised logistic mixture."""

_NARROWEST = -7.0


@dataclasses.dataclass(frozen=True)
class Observation:
    r"""A likelihood $p(x \mid \mathrm{outputs})$ of images, and how they are prepared for it.

    Pixels are flat, in the order of rows, columns and colours. Outputs are `[..., outputs]`, for
    each pixel in turn.

    Attributes:
        kind: `bernoulli`, of values that are drawn anew from the grey values at every step;
            `categorical`, with a probability for each value; `discretised-logistic-mixture`
            (Salimans et al., 2017), of all colours of a pixel together; or `gaussian`, with a mean
            and a width, of values to which uniform noise of one level is added.
        levels: The largest value; there are levels + 1.
        colours: How many values a pixel has, 1 or 3.
    """

    kind: LikelihoodName = "bernoulli"
    levels: int = 255
    colours: int = 1

    @property
    def is_discrete(self) -> bool:
        """Whether it is the probability of the data themselves, in nats."""
        return self.kind in ("categorical", "discretised-logistic-mixture")

    def num_outputs(self, size: int) -> int:
        """How many outputs `size` values take."""
        if self.kind == "bernoulli":
            return size
        if self.kind == "gaussian":
            return 2 * size
        if self.kind == "categorical":
            return (self.levels + 1) * size
        return size // self.colours * self._per_pixel

    @property
    def _per_pixel(self) -> int:
        return COMPONENTS * (3 if self.colours == 1 else 10)

    def observe(
        self, key: PRNGKeyArray, images: UInt8[Array, "batch pixels"]
    ) -> Float[Array, "batch pixels"]:
        """What the likelihood sees of grey values."""
        if self.kind == "bernoulli":
            return binarise(key, images, self.levels)
        values = images.astype(jnp.float32)
        if self.kind == "gaussian":
            values = (values + jax.random.uniform(key, images.shape)) / (self.levels + 1)
        return values

    def to_network(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The same for networks that read images: numbers between 0 and 1."""
        return x if self.kind in ("bernoulli", "gaussian") else x / self.levels

    def log_prob(
        self, outputs: Float[Array, "*shape outputs"], x: Float[Array, "*#shape pixels"]
    ) -> Float[Array, "*shape"]:
        r"""$\log p(x \mid \mathrm{outputs})$, in nats.

        Of `gaussian` it is a density of values between 0 and 1.
        """
        x = x.reshape((1,) * (outputs.ndim - x.ndim) + x.shape)
        if self.kind == "bernoulli":
            return bernoulli_log_prob(outputs, x)
        if self.kind == "gaussian":
            loc, raw = jnp.split(outputs, 2, axis=-1)
            log_scale = _log_width(raw)
            t = (x - loc) * jnp.exp(-log_scale)
            terms = -0.5 * t * t - log_scale - 0.5 * math.log(2 * math.pi)
            return jnp.sum(terms, axis=-1)
        if self.kind == "categorical":
            logits = outputs.reshape(*outputs.shape[:-1], -1, self.levels + 1)
            chosen = jax.nn.one_hot(x.astype(int), self.levels + 1, dtype=logits.dtype)
            terms = jnp.sum(logits * chosen, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
            return jnp.sum(terms, axis=-1)
        return self._mixture_log_prob(outputs, x)

    def mean(self, outputs: Float[Array, "*shape outputs"]) -> Float[Array, "*shape pixels"]:
        """The expected values of all pixels, between 0 and 1."""
        if self.kind == "bernoulli":
            return jax.nn.sigmoid(outputs)
        if self.kind == "gaussian":
            return jnp.clip(jnp.split(outputs, 2, axis=-1)[0], 0, 1)
        if self.kind == "categorical":
            logits = outputs.reshape(*outputs.shape[:-1], -1, self.levels + 1)
            values = jnp.arange(self.levels + 1, dtype=outputs.dtype) / self.levels
            return jnp.matmul(jax.nn.softmax(logits, axis=-1), values)
        log_weights, loc, _, slopes = self._mixture(outputs)
        weights = jax.nn.softmax(log_weights, axis=-1)
        means = [loc[..., 0, :]]
        if self.colours == 3:
            red = jnp.clip(means[0], -1, 1)
            green = jnp.clip(loc[..., 1, :] + slopes[..., 0, :] * red, -1, 1)
            blue = loc[..., 2, :] + slopes[..., 1, :] * red + slopes[..., 2, :] * green
            means += [green, blue]
        found = jnp.stack([jnp.sum(weights * jnp.clip(m, -1, 1), axis=-1) for m in means], axis=-1)
        return (found.reshape(*outputs.shape[:-1], -1) + 1) / 2

    def _mixture(self, outputs: Array) -> tuple[Array, Array, Array, Array]:
        """Log-weights `[..., pixels, n]`; locations, log-widths and slopes `[..., colours, n]`."""
        parts = outputs.reshape(*outputs.shape[:-1], -1, self._per_pixel)
        log_weights, rest = parts[..., :COMPONENTS], parts[..., COMPONENTS:]
        rest = rest.reshape(*rest.shape[:-1], -1, COMPONENTS)
        colours = self.colours
        loc, raw, slopes = jnp.split(rest, [colours, 2 * colours], axis=-2)
        # Spread over the range at first, so that no component is lost.
        spread = jnp.linspace(-0.9, 0.9, COMPONENTS, dtype=loc.dtype)
        loc = loc + spread.reshape((1,) * (loc.ndim - 1) + (-1,))
        return log_weights, loc, jnp.maximum(raw - 1.0, _NARROWEST), jnp.tanh(slopes)

    def _mixture_log_prob(self, outputs: Array, x: Array) -> Array:
        log_weights, loc, log_width, slopes = self._mixture(outputs)
        x = 2 * x / self.levels - 1
        x = x.reshape(*x.shape[:-1], -1, self.colours, 1)
        if self.colours == 3:
            red, green = x[..., 0, :], x[..., 1, :]
            loc = jnp.stack(
                [
                    loc[..., 0, :],
                    loc[..., 1, :] + slopes[..., 0, :] * red,
                    loc[..., 2, :] + slopes[..., 1, :] * red + slopes[..., 2, :] * green,
                ],
                axis=-2,
            )
        half = 1 / self.levels
        inverse = jnp.exp(-log_width)
        centred = x - loc
        above, below = (centred + half) * inverse, (centred - half) * inverse
        # The logarithm of sigmoid(above) - sigmoid(below), which is
        # sigmoid(above) sigmoid(-below) (1 - exp(below - above)); at the ends of the range one
        # sigmoid is 1. All of it is under one logarithm.
        is_low, is_high = x < half - 1, x > 1 - half
        far = jnp.where(is_high, 0, jnp.maximum(-above, 0))
        far = far + jnp.where(is_low, 0, jnp.maximum(below, 0))
        near = jnp.where(is_high, 1, 1 + jnp.exp(-jnp.abs(above)))
        near = near * jnp.where(is_low, 1, 1 + jnp.exp(-jnp.abs(below)))
        inside = jnp.where(is_low | is_high, 1, -jnp.expm1(below - above))
        terms = -far - jnp.log(near / inside)
        by_component = jnp.sum(terms, axis=-2) + jax.nn.log_softmax(log_weights, axis=-1)
        return jnp.sum(jax.nn.logsumexp(by_component, axis=-1), axis=-1)

    def bits_per_dimension(self, bound: float, size: int) -> float | None:
        """A bound, in nats per image, in bits for each of its `size` values; None for `bernoulli`.

        Noise of one level makes a density of values between 0 and 1 one of the levels, divided by
        their number.
        """
        if self.kind == "bernoulli":
            return None
        bits = -bound / (size * math.log(2))
        return bits if self.is_discrete else bits + math.log2(self.levels + 1)


def _log_width(raw: Array) -> Array:
    return jnp.maximum(raw - 2.0, _NARROWEST)
