"""Variational autoencoders with L stochastic layers: Eq. (20)."""

from typing import Any

import equinox as eqx
import jax
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray

from gdregs.hierarchy import Hierarchy
from gdregs.vae.networks.gaussians import GaussianConditional, GaussianHierarchy, gaussian
from gdregs.vae.networks.image_model import ImageModel
from gdregs.vae.networks.mlp import MLP, InitialWeights, Precision
from gdregs.vae.networks.observations import Observation

Image = Float[Array, "batch pixels"]
Context = Float[Array, "batch given"]


class VAE(ImageModel):
    r"""The hierarchical VAE of Eq. (20), unconditional or conditional on a context c.

    Posterior bottom-up, $q(z_1|x,c) \prod_{l>1} q(z_l|z_{l-1},x,c)$; prior top-down,
    $p(z_L|c) \prod_{l<L} p(z_l|z_{l+1},c)$, where $p(z_L) = \mathcal N(0, I)$ without a context;
    Bernoulli likelihood $p(x|z_1,\dots,z_L)$ of all latents. Every conditional is an MLP with two
    tanh layers and every latent a factorised Gaussian.

    Args:
        num_pixels: Length of the image x.
        num_context: Length of the context c; 0 for an unconditional model.
        num_layers: L, the number of stochastic layers.
        latent_size: Length of each latent.
        hidden_size: Units in each hidden layer.
        precision: Of the matrix products, as in `gdregs.vae.networks.MLP`.
        initial_weights: From which distribution they are drawn, as there.
        observation: The likelihood, Bernoulli unless given.
        key: For the initial weights.

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, Sec. 5.2.
    """

    posterior_networks: tuple[MLP, ...]
    prior_networks: tuple[MLP, ...]
    decoder: MLP
    latent_size: int = eqx.field(static=True)
    observation: Observation = eqx.field(static=True)

    def __init__(
        self,
        num_pixels: int,
        *,
        num_context: int = 0,
        num_layers: int = 2,
        latent_size: int = 50,
        hidden_size: int = 300,
        precision: Precision = "float32",
        initial_weights: InitialWeights = "glorot",
        observation: Observation = Observation(),
        key: PRNGKeyArray,
    ):
        posterior_key, prior_key, decoder_key = jax.random.split(key, 3)

        def network(num_inputs, key, num_outputs=2 * latent_size):
            return MLP(
                num_inputs,
                hidden_size,
                num_outputs,
                precision=precision,
                initial_weights=initial_weights,
                key=key,
            )

        self.latent_size, self.observation = latent_size, observation
        self.posterior_networks = tuple(
            network(num_pixels + num_context + (latent_size if layer > 0 else 0), key)
            for layer, key in enumerate(jax.random.split(posterior_key, num_layers))
        )
        above = [latent_size] * (num_layers - 1) + [0]
        self.prior_networks = tuple(
            network(num_context + parent, key)
            for parent, key in zip(above, jax.random.split(prior_key, num_layers), strict=True)
            if num_context + parent
        )
        num_outputs = observation.num_outputs(num_pixels)
        self.decoder = network(num_layers * latent_size, decoder_key, num_outputs)

    @property
    def latents(self) -> tuple[str, ...]:
        """The names of the stochastic layers, bottom first: z1, ..., zL."""
        return tuple(f"z{layer + 1}" for layer in range(len(self.posterior_networks)))

    def posterior(self, x: Image, context: Context | None = None) -> Hierarchy:
        r"""$q(z|x,c)$, bottom-up."""
        x = self.observation.to_network(x)
        known = (x,) if context is None else (x, context)
        names = self.latents
        first, *others = self.posterior_networks
        nodes = {
            name: (GaussianConditional(network.given(*known)), (below,))
            for name, below, network in zip(names[1:], names, others, strict=False)
        }
        return GaussianHierarchy({names[0]: (gaussian(first, *known), ()), **nodes})

    def prior(self, context: Context | None = None) -> Hierarchy:
        r"""$p(z|c)$, top-down."""
        known = () if context is None else (context,)
        names = self.latents
        nodes = {
            name: (GaussianConditional(network.given(*known)), (above,))
            for name, above, network in zip(names, names[1:], self.prior_networks, strict=False)
        }
        if known:
            top = gaussian(self.prior_networks[-1], *known)
        else:
            top = dist.Normal(0.0, 1.0).expand([self.latent_size]).to_event(1)
        return Hierarchy({names[-1]: (top, ()), **nodes})

    @property
    def groups(self) -> dict[str, Any]:
        """The parameters of posterior, prior and likelihood; of a gradient, its parts."""
        return {
            "posterior": self.posterior_networks,
            "prior": self.prior_networks,
            "likelihood": self.decoder,
        }

    def logits(self, z: dict[str, Array]) -> Float[Array, "*shape outputs"]:
        """What the likelihood reads: the log-odds of each pixel, where it is Bernoulli."""
        return self.decoder(*(z[name] for name in self.latents))
