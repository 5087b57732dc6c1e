"""Residual convolutions on images, and the networks of images that are made of them."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import Module
from jaxtyping import Array, Float, PRNGKeyArray

from gdregs.vae.networks.mlp import Precision, add_bias, product


def _normal(gain: float = 1.0) -> jax.nn.initializers.Initializer:
    """Weights of standard deviation gain / sqrt(fan-in)."""
    return jax.nn.initializers.variance_scaling(gain**2, "fan_in", "normal")


def convolve(
    images: Float[Array, "*shape _ _ _"],
    kernel: Float[Array, "_ _ _ out"],
    bias: Float[Array, " out"],
    stride: int = 1,
    precision: Precision = "float32",
) -> Float[Array, "*shape _ _ out"]:
    """A convolution over the axes before the last, with all axes before them as one.

    One by one, it is a matrix product.
    """
    lead, shape = images.shape[:-3], images.shape[-3:]
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return add_bias(product(images, kernel[0, 0], precision), bias)
    images = images.reshape(-1, *shape)
    found: Array
    if precision == "bfloat16":
        found = _bfloat16_convolution(images, kernel, stride)
    else:
        found = _convolution(images, kernel, stride, precision)
    return add_bias(found.reshape(*lead, *found.shape[1:]), bias)


def _convolution(
    images: Array, kernel: Array, stride: int, precision: str | None = None, dtype: Any = None
) -> Array:
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
        preferred_element_type=dtype,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _bfloat16_convolution(images: Array, kernel: Array, stride: int) -> Array:
    """A convolution of rounded factors, added up in the type of the images.

    Its derivatives are convolutions of rounded factors as well, and rounded themselves.
    """
    rounded = images.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    return _convolution(*rounded, stride, dtype=images.dtype)


def _forth(images, kernel, stride):
    return _bfloat16_convolution(images, kernel, stride), (images, kernel)


def _back(stride, factors, cotangent):
    rounded = [factor.astype(jnp.bfloat16) for factor in factors]
    _, pullback = jax.vjp(lambda a, b: _convolution(a, b, stride), *rounded)
    found = pullback(cotangent.astype(jnp.bfloat16))
    return tuple(one.astype(factor.dtype) for one, factor in zip(found, factors, strict=True))


_bfloat16_convolution.defvjp(_forth, _back)


class Convolution(Module):
    """A convolution with a bias.

    Args:
        inputs: How many channels it reads.
        outputs: How many it writes.
        size: Rows and columns of its kernel.
        stride: From one of its places to the next.
        gain: Factor on its initial weights' standard deviation, 1 / sqrt(fan-in).
        precision: Of its products, as of an `MLP`.
        key: For the initial weights.
    """

    kernel: Float[Array, "size size inputs outputs"]
    bias: Float[Array, " outputs"]
    stride: int = eqx.field(static=True)
    precision: Precision = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        gain: float = 1.0,
        precision: Precision = "float32",
        key: PRNGKeyArray,
    ):
        self.kernel = _normal(gain)(key, (size, size, inputs, outputs))
        self.bias = jnp.zeros(outputs)
        self.stride, self.precision = stride, precision

    def __call__(self, images: Float[Array, "..."]) -> Float[Array, "..."]:
        """`[..., height, width, inputs]` to `[..., height / stride, width / stride, outputs]`."""
        return convolve(images, self.kernel, self.bias, self.stride, self.precision)


class Residual(Module):
    """A residual block: what two convolutions add to their input."""

    first: Convolution
    second: Convolution

    def __init__(self, channels: int, *, precision: Precision = "float32", key: PRNGKeyArray):
        one, two = jax.random.split(key)
        make = functools.partial(Convolution, channels, channels, precision=precision)
        self.first = make(3, key=one)
        self.second = make(1, gain=0.3, key=two)

    def __call__(self, images: Float[Array, "..."]) -> Float[Array, "..."]:
        """Images of the same shape."""
        return images + self.second(jax.nn.silu(self.first(jax.nn.silu(images))))


def double(images: Float[Array, "*lead height width channels"], shape: tuple[int, int]) -> Array:
    """Images of twice the height and width, by repetition, cut to `shape`."""
    wide = jnp.repeat(jnp.repeat(images, 2, axis=-3), 2, axis=-2)
    return wide[..., : shape[0], : shape[1], :]


def halvings(shape: tuple[int, int], smallest: int = 4) -> list[tuple[int, int]]:
    """The sizes of an image, halved until it is no larger than `smallest` or halved thrice."""
    sizes = [shape]
    while max(sizes[-1]) > smallest and len(sizes) < 4:
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes


class Reader(Module):
    """A network from an image to a vector of features.

    Args:
        shape: Height, width and colours.
        channels: Of the convolutions at full width; each halving doubles them.
        features: Length of the vector.
        precision: Of its products, as of an `MLP`.
        key: For the initial weights.
    """

    steps: tuple[Convolution, ...]
    blocks: tuple[Residual, ...]
    last: Float[Array, "flat features"]
    bias: Float[Array, " features"]
    shape: tuple[int, int, int] = eqx.field(static=True)
    precision: Precision = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: int,
        features: int,
        *,
        precision: Precision = "float32",
        key: PRNGKeyArray,
    ):
        convolution = functools.partial(Convolution, precision=precision)
        residual = functools.partial(Residual, precision=precision)
        sizes = halvings(shape[:2])
        keys = iter(jax.random.split(key, 2 * len(sizes) + 1))
        inputs, steps, blocks = shape[2], [], []
        for number in range(1, len(sizes)):
            outputs = channels * 2 ** (number - 1)
            steps.append(convolution(inputs, outputs, 4, stride=2, key=next(keys)))
            blocks.append(residual(outputs, key=next(keys)))
            inputs = outputs
        if not steps:
            steps.append(convolution(inputs, channels, 3, key=next(keys)))
            blocks.append(residual(channels, key=next(keys)))
            inputs = channels
        flat = sizes[-1][0] * sizes[-1][1] * inputs
        self.steps, self.blocks, self.shape = tuple(steps), tuple(blocks), shape
        self.precision = precision
        self.last = _normal()(next(keys), (flat, features))
        self.bias = jnp.zeros(features)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`[..., pixels]`, flat, to `[..., features]`."""
        images = 2 * x.reshape(*x.shape[:-1], *self.shape) - 1
        for step, block in zip(self.steps, self.blocks, strict=True):
            images = block(step(images))
        flat = jax.nn.silu(images).reshape(*images.shape[:-3], -1)
        return jnp.tanh(add_bias(product(flat, self.last, self.precision), self.bias))


class Painter(Module):
    """A network from a vector to an image.

    Args:
        inputs: Length of the vector.
        shape: Height and width.
        channels: Of the convolutions at full width; each halving doubles them.
        outputs: Numbers for each pixel.
        precision: Of its products, as of an `MLP`.
        key: For the initial weights.
    """

    first: Float[Array, "inputs flat"]
    bias: Float[Array, " flat"]
    steps: tuple[Convolution, ...]
    blocks: tuple[Residual, ...]
    last: Convolution
    shape: tuple[int, int] = eqx.field(static=True)
    precision: Precision = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        shape: tuple[int, int],
        channels: int,
        outputs: int,
        *,
        precision: Precision = "float32",
        key: PRNGKeyArray,
    ):
        convolution = functools.partial(Convolution, precision=precision)
        residual = functools.partial(Residual, precision=precision)
        sizes = halvings(shape)
        keys = iter(jax.random.split(key, 2 * len(sizes) + 2))
        wide = channels * 2 ** max(len(sizes) - 2, 0)
        flat = sizes[-1][0] * sizes[-1][1] * wide
        self.first = _normal()(next(keys), (inputs, flat))
        self.bias = jnp.zeros(flat)
        steps, blocks, width = [], [residual(wide, key=next(keys))], wide
        for number in range(len(sizes) - 2, 0, -1):
            narrower = channels * 2 ** (number - 1)
            steps.append(convolution(width, narrower, 3, key=next(keys)))
            blocks.append(residual(narrower, key=next(keys)))
            width = narrower
        doubled = 4 if len(sizes) > 1 else 1
        self.last = convolution(width, doubled * outputs, 3, gain=0.5, key=next(keys))
        self.steps, self.blocks, self.shape = tuple(steps), tuple(blocks), shape
        self.precision = precision

    def __call__(self, features: Float[Array, "..."]) -> Float[Array, "..."]:
        """`[..., inputs]` to `[..., height * width * outputs]`."""
        sizes = halvings(self.shape)
        values = add_bias(product(features, self.first, self.precision), self.bias)
        images = values.reshape(*values.shape[:-1], *sizes[-1], -1)
        images = self.blocks[0](images)
        for number, (step, block) in enumerate(zip(self.steps, self.blocks[1:], strict=True)):
            images = block(double(step(jax.nn.silu(images)), sizes[len(sizes) - 2 - number]))
        images = self.last(jax.nn.silu(images))
        if len(sizes) > 1:
            images = _unfold(images)[..., : self.shape[0], : self.shape[1], :]
        return images.reshape(*images.shape[:-3], -1)


def _unfold(images: Float[Array, "*lead height width c"]) -> Array:
    """Four channels as the four pixels of a square: twice the height and width."""
    *lead, height, width, channels = images.shape
    parts = images.reshape(*lead, height, width, 2, 2, channels // 4)
    axes = len(lead)
    order = [*range(axes), axes, axes + 2, axes + 1, axes + 3, axes + 4]
    return parts.transpose(order).reshape(*lead, 2 * height, 2 * width, channels // 4)
