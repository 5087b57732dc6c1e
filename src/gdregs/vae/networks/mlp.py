"""Multilayer perceptrons with two tanh layers, and the products that they are made of."""

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import Module
from jaxtyping import Array, Float, PRNGKeyArray

from gdregs.evaluation.meshes import DATA, devices_along

Precision = Literal["float32", "tensorfloat32", "bfloat16"]
InitialWeights = Literal["glorot", "haiku"]


def _truncated_normal(key: PRNGKeyArray, shape: tuple[int, int]) -> Array:
    """Of standard deviation 1 / sqrt(fan-in) before it is truncated at two of them."""
    return jax.nn.initializers.truncated_normal(shape[0] ** -0.5)(key, shape)


_INITIALISERS = {"glorot": jax.nn.initializers.glorot_uniform(), "haiku": _truncated_normal}


class MLP(Module):
    """Two hidden tanh layers on the concatenation of several inputs.

    What the datapoint adds to the first layer can be filled in with `given`: it is then multiplied
    once per datapoint and not once per importance sample.

    Args:
        num_inputs: The length of all inputs together.
        hidden_size: Units in each hidden layer.
        output_size: Length of the output.
        precision: Of the matrix products: `float32`, `tensorfloat32` or `bfloat16`. They are added
            up, and everything else is, in float32 (that is, in the type of the parameters).
        initial_weights: `glorot`, uniform with variance 2 / (fan-in + fan-out); or `haiku`, the
            default of the library that the papers' code uses: a normal of standard deviation
            1 / sqrt(fan-in), truncated at two of them. Biases start at 0.
        key: For the initial weights.
    """

    first: Float[Array, "in hidden"]
    first_bias: Float[Array, "*batch hidden"]
    second: Float[Array, "hidden hidden"]
    second_bias: Float[Array, " hidden"]
    last: Float[Array, "hidden out"]
    last_bias: Float[Array, " out"]
    precision: Precision = eqx.field(static=True)

    def __init__(
        self,
        num_inputs: int,
        hidden_size: int,
        output_size: int,
        *,
        precision: Precision = "float32",
        initial_weights: InitialWeights = "glorot",
        key: PRNGKeyArray,
    ):
        first, second, last = jax.random.split(key, 3)
        draw = _INITIALISERS[initial_weights]
        self.first = draw(first, (num_inputs, hidden_size))
        self.first_bias = jnp.zeros(hidden_size)
        self.second = draw(second, (hidden_size, hidden_size))
        self.second_bias = jnp.zeros(hidden_size)
        self.last = draw(last, (hidden_size, output_size))
        self.last_bias = jnp.zeros(output_size)
        self.precision = precision

    @jax.jit  # Networks of one shape are filled in by one trace.
    def given(self, *known: Float[Array, "*batch _"]) -> "MLP":
        """The network of the other inputs, with its first ones, `[*batch, in]` each, filled in.

        What they add to the first layer becomes a part of its bias, `[*batch, hidden]`.
        """
        if not known:
            return self
        values = jnp.concatenate(known, axis=-1)
        weight, rest = jnp.split(self.first, [values.shape[-1]])
        bias = self._affine(values, weight, self.first_bias)
        return eqx.tree_at(lambda network: (network.first, network.first_bias), self, (rest, bias))

    def __call__(self, *inputs: Float[Array, "*batch _"]) -> Float[Array, "*batch out"]:
        """Map inputs, `[*batch, in]` each, to the output; here `*batch` may begin with K."""
        hidden = jnp.tanh(self._affine(jnp.concatenate(inputs, -1), self.first, self.first_bias))
        hidden = jnp.tanh(self._affine(hidden, self.second, self.second_bias))
        return self._affine(hidden, self.last, self.last_bias)

    def _affine(self, values: Array, weight: Array, bias: Array) -> Array:
        return add_bias(product(values, weight, self.precision), bias)


def product(
    values: Float[Array, "*batch inner"],
    matrix: Float[Array, "inner out"],
    precision: Precision = "float32",
) -> Array:
    """A matrix product over the last axis, with all other axes as one.

    With two of them XLA contracts over two when it differentiates by the matrix, and copies both
    factors into another order first: 2.7 times as slow on CPU. Datapoints that devices share stay
    an axis: the compiler cannot divide one that is part of another.
    """
    if devices_along(DATA) > 1 and precision != "bfloat16":
        return jnp.matmul(values, matrix, precision=precision)
    rows = values.reshape(-1, values.shape[-1])
    if precision == "bfloat16":
        found = _bfloat16_product(rows, matrix)
    else:
        found = jax.lax.dot(rows, matrix, precision=precision)
    return found.reshape(*values.shape[:-1], matrix.shape[-1])


@jax.custom_vjp
def _bfloat16_product(left: Array, right: Array) -> Array:
    """A product of rounded factors, added up in float32; so are those of its derivative."""
    rounded = left.astype(jnp.bfloat16), right.astype(jnp.bfloat16)
    return jnp.matmul(*rounded, preferred_element_type=left.dtype)


def _forth(left, right):
    return _bfloat16_product(left, right), (left, right)


def _back(factors, cotangent):
    left, right = factors
    return _bfloat16_product(cotangent, right.T), _bfloat16_product(left.T, cotangent)


_bfloat16_product.defvjp(_forth, _back)


def add_bias(values: Float[Array, "*batch out"], bias: Float[Array, "*inner out"]) -> Array:
    """Add a bias that may lack leading axes."""
    if devices_along(DATA) > 1:
        return values + bias.reshape((1,) * (values.ndim - bias.ndim) + bias.shape)
    return _add_bias(values, bias)


@jax.custom_jvp
def _add_bias(values: Float[Array, "*batch out"], bias: Float[Array, "*inner out"]) -> Array:
    """Add a bias, with a product in its derivative.

    The derivative by the bias is written as a product with ones, which transposed is a matrix
    product. The sum that it stands for would not share the cotangent with the products around it:
    XLA fuses the cotangent's computation into the sum, and so does it twice. The bias counts twice,
    as a half each: for the product of a matrix and a vector XLA would write a program of its own,
    a fifth of what there is to compile.
    """
    return values + bias.reshape((1,) * (values.ndim - bias.ndim) + bias.shape)


@_add_bias.defjvp
def _(primals, tangents):
    (values, bias), (values_dot, bias_dot) = primals, tangents
    missing = values.shape[: values.ndim - bias.ndim]
    halves = jnp.full((math.prod(missing), 2), 0.5, bias.dtype)
    twice = jnp.broadcast_to(bias_dot.reshape(1, -1), (2, bias_dot.size))
    repeated = jax.lax.dot(halves, twice, precision="float32").reshape(*missing, *bias.shape)
    return _add_bias(values, bias), values_dot + repeated


@jax.custom_jvp
def softplus(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""$s(x) = \log(1 + e^x)$, in a form that the compiler fuses into the matrix product before it.

    Its derivative is $e^{x - s(x)}$, at 0 too, where that of the form itself would be 0.
    """
    return jnp.maximum(values, 0) + jax.lax.log1p(jax.lax.exp(-jax.lax.abs(values)))


@softplus.defjvp
def _(primals, tangents):
    (values,), (tangent,) = primals, tangents
    result = softplus(values)
    return result, jnp.exp(values - result) * tangent
