r"""The 2-layer linear VAE of Sec. 5.1 and App. G.1, and its training.

$z_2 \sim \mathcal N(0, I)$, $z_1|z_2 \sim \mathcal N(\mu_\theta(z_2), \sigma_\theta^2(z_2))$,
$x|z_1 \sim \mathcal N(z_1, I)$; $q(z_1|x)$ and $q(z_2|z_1)$ bottom-up; D = 5; 512 data points from
the model with $\mu_\theta(z_2) = z_2$, $\sigma_\theta = 1$. Every $\mu$ and $\sigma$ is a linear
function with weights and biases; a softplus keeps $\sigma$ positive, as in the paper's Listing 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import gdregs
from gdregs.mixing import LearnedMix, MixState


class LinearGaussian(eqx.Module):
    r"""$\mathcal N(Wu + b, \mathrm{softplus}(Vu + c)^2)$, factorised, for an input u.

    Attributes:
        loc_weight: W, `[D, D]`.
        loc_bias: b, `[D]`.
        scale_weight: V, `[D, D]`.
        scale_bias: c, `[D]`.
    """

    loc_weight: Float[Array, "D D"]
    loc_bias: Float[Array, " D"]
    scale_weight: Float[Array, "D D"]
    scale_bias: Float[Array, " D"]

    def __call__(self, inputs: Float[Array, "*shape D"]) -> dist.Distribution:
        """The distribution given the input, with the input's leading axes."""
        lead = (1,) * (inputs.ndim - 1)
        loc = inputs @ self.loc_weight.T + self.loc_bias.reshape(*lead, -1)
        raw = inputs @ self.scale_weight.T + self.scale_bias.reshape(*lead, -1)
        return dist.Normal(loc, jax.nn.softplus(raw)).to_event(1)


class Given(eqx.Module):
    """A conditional whose input is known: no parents are left."""

    conditional: LinearGaussian
    inputs: Float[Array, " D"]

    def __call__(self) -> dist.Distribution:
        """The distribution of one data point."""
        return self.conditional(self.inputs)


class LinearVAE(NamedTuple):
    r"""The parameters, and the model of one data point.

    Attributes:
        phi1: $q(z_1|x)$.
        phi2: $q(z_2|z_1)$.
        theta: $p(z_1|z_2)$.
    """

    phi1: LinearGaussian
    phi2: LinearGaussian
    theta: LinearGaussian

    @property
    def prior(self) -> gdregs.Hierarchy:
        """Top-down."""
        dim = self.theta.loc_bias.shape[0]
        top = dist.Normal(jnp.zeros(dim), jnp.ones(dim)).to_event(1)
        return gdregs.Hierarchy({"z2": (top, ()), "z1": (self.theta, ("z2",))})

    def posterior(self, x: Float[Array, " D"]) -> gdregs.Hierarchy:
        """Bottom-up, given one data point."""
        return gdregs.Hierarchy({"z1": (Given(self.phi1, x), ()), "z2": (self.phi2, ("z1",))})

    def bound(
        self, x: Float[Array, " D"], key: PRNGKeyArray, num_samples: int, **options: Any
    ) -> Float[Array, ""]:
        """`gdregs.bound` of one data point."""

        def likelihood(z):
            return dist.Normal(z["z1"], 1.0).to_event(1).log_prob(x[None])

        return gdregs.bound(
            self.posterior(x), self.prior, likelihood, key=key, num_samples=num_samples, **options
        )


def make_data(seed: int, num_data: int, dim: int) -> Float[Array, "N D"]:
    """Data of the model with the true parameters."""
    keys = jax.random.split(jax.random.key(seed), 3)
    return sum(jax.random.normal(key, (num_data, dim)) for key in keys)  # pyright: ignore


def initial_model(seed: int, dim: int) -> LinearVAE:
    """Location weights from a truncated normal of variance 1/D; all else starts at 0.

    Random weights of the scales would make some standard deviations nearly 0, and gradients of
    any size.
    """
    init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
    zeros = jnp.zeros(dim)

    def layer(key):
        return LinearGaussian(init(key, (dim, dim)), zeros, jnp.zeros((dim, dim)), zeros)

    return LinearVAE(*map(layer, jax.random.split(jax.random.key(seed), 3)))


class Trained(NamedTuple):
    """Where training stands.

    Attributes:
        model: The parameters.
        mix: The learned mix, if the training has one.
    """

    model: LinearVAE
    mix: MixState | None


def make_training(
    x: Float[Array, "N D"],
    *,
    num_samples: int,
    learning_rate: float,
    prior_estimator: Any = "gdregs",
    mix: LearnedMix | None = None,
) -> Callable[[Trained, PRNGKeyArray, int], tuple[Trained, Float[Array, " steps"]]]:
    """Stochastic gradient ascent on the mean IWAE bound of all data points.

    Returns:
        A function (state, key, number of steps) -> (state, the bound at every step).
    """
    # The first gradients can be enormous; near the optimum the clipping does nothing.
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(learning_rate))

    def loss(model, key, estimator):
        keys = jax.random.split(key, x.shape[0])
        options = {"posterior_estimator": "dregs", "prior_estimator": estimator}
        bounds = jax.vmap(lambda x, key: model.bound(x, key, num_samples, **options))(x, keys)
        return -jnp.mean(bounds)

    def step(state, key):
        def value_and_grad(estimator):
            return jax.value_and_grad(loss)(state.model, key, estimator)

        if mix is None:
            (value, gradient), mixed = value_and_grad(prior_estimator), None
        else:
            (value, gradient), mixed = mix.value_and_grad(value_and_grad, state.mix)
        updates, _ = optimiser.update(gradient, optimiser.init(state.model))
        return Trained(eqx.apply_updates(state.model, updates), mixed), -value

    @eqx.filter_jit
    def train(state, key, num_steps):
        return jax.lax.scan(step, state, jax.random.split(key, num_steps))

    return train
