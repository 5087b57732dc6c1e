"""Multilayer perceptrons with two tanh layers, and the Gaussian conditionals made of them."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from equinox import Module
from jaxtyping import Array, Float, PRNGKeyArray


class MLP(Module):
    """Two hidden tanh layers on the concatenation of several inputs.

    The first layer is split by input: an input without the sample axis (the datapoint) is
    multiplied once per datapoint and not once per importance sample.

    Args:
        input_sizes: The length of each input.
        hidden_size: Units in each hidden layer.
        output_size: Length of the output.
        key: For the initial weights: uniform Glorot, with the biases at 0.
    """

    first: tuple[Float[Array, "in hidden"], ...]
    first_bias: Float[Array, " hidden"]
    second: Float[Array, "hidden hidden"]
    second_bias: Float[Array, " hidden"]
    last: Float[Array, "hidden out"]
    last_bias: Float[Array, " out"]

    def __init__(
        self,
        input_sizes: tuple[int, ...],
        hidden_size: int,
        output_size: int,
        *,
        key: PRNGKeyArray,
    ):
        first, second, last = jax.random.split(key, 3)
        glorot = jax.nn.initializers.glorot_uniform()
        joint = glorot(first, (sum(input_sizes), hidden_size))
        offsets = [sum(input_sizes[:i]) for i in range(1, len(input_sizes))]
        self.first = tuple(jnp.split(joint, offsets))
        self.first_bias = jnp.zeros(hidden_size)
        self.second = glorot(second, (hidden_size, hidden_size))
        self.second_bias = jnp.zeros(hidden_size)
        self.last = glorot(last, (hidden_size, output_size))
        self.last_bias = jnp.zeros(output_size)

    def __call__(self, *inputs: Float[Array, "*shape in"]) -> Float[Array, "*shape out"]:
        """The output, with the broadcast leading axes of the inputs."""
        ndim = max(value.ndim for value in inputs)
        hidden = _add_bias(None, self.first_bias, ndim)
        # The inputs with the fewest axes first: their sum is broadcast once.
        for value, weight in sorted(
            zip(inputs, self.first, strict=True), key=lambda pair: pair[0].ndim
        ):
            product = value @ weight
            hidden = hidden + product.reshape((1,) * (ndim - product.ndim) + product.shape)
        hidden = jnp.tanh(hidden)
        hidden = jnp.tanh(_add_bias(hidden @ self.second, self.second_bias, ndim))
        return _add_bias(hidden @ self.last, self.last_bias, ndim)


def _add_bias(values, bias, ndim):
    bias = bias.reshape((1,) * (ndim - 1) + bias.shape)
    return bias if values is None else values + bias


def softplus(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log(1 + exp(x)), in a form that the compiler fuses into the matrix product before it."""
    return jnp.maximum(values, 0) + jnp.log1p(jnp.exp(-jnp.abs(values)))


class GaussianConditional(Module):
    r"""$\mathcal N(z; \mu(c, \mathrm{pa}), \sigma^2(c, \mathrm{pa}))$, factorised, from an MLP.

    Attributes:
        network: Maps the context and the parents to $(\mu, \mathrm{softplus}^{-1} \sigma)$.
        context: What is known of the datapoint, `[*batch, in]` each.
    """

    network: MLP
    context: tuple[Float[Array, "*batch in"], ...]

    def __call__(self, *parents: Float[Array, "*shape latent"]) -> dist.Distribution:
        loc, scale = jnp.split(self.network(*self.context, *parents), 2, axis=-1)
        return dist.Normal(loc, softplus(scale) + 1e-5).to_event(1)
