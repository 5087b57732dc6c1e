"""Variational autoencoders with L stochastic layers: Eq. (20)."""

from collections.abc import Callable

import equinox as eqx
import jax
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray

from gdregs.hierarchy import Hierarchy
from gdregs.vae.gaussians import GaussianConditional, GaussianHierarchy
from gdregs.vae.networks import MLP, Precision, bernoulli_log_prob

Image = Float[Array, "batch pixels"]
Context = Float[Array, "batch given"]


class VAE(eqx.Module):
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
        key: For the initial weights.

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, Sec. 5.2.
    """

    posterior_networks: tuple[MLP, ...]
    prior_networks: tuple[MLP, ...]
    decoder: MLP
    latent_size: int = eqx.field(static=True)

    def __init__(
        self,
        num_pixels: int,
        *,
        num_context: int = 0,
        num_layers: int = 2,
        latent_size: int = 50,
        hidden_size: int = 300,
        precision: Precision = "float32",
        key: PRNGKeyArray,
    ):
        posterior_key, prior_key, decoder_key = jax.random.split(key, 3)
        context = (num_context,) if num_context else ()
        above = (latent_size,)

        def gaussian(inputs, key):
            return MLP(inputs, hidden_size, 2 * latent_size, precision=precision, key=key)

        self.latent_size = latent_size
        self.posterior_networks = tuple(
            gaussian((num_pixels, *context, *(above if layer > 0 else ())), key)
            for layer, key in enumerate(jax.random.split(posterior_key, num_layers))
        )
        has_parent = [True] * (num_layers - 1) + [False]
        self.prior_networks = tuple(
            gaussian((*context, *(above if parent else ())), key)
            for parent, key in zip(has_parent, jax.random.split(prior_key, num_layers), strict=True)
            if context or parent
        )
        inputs = above * num_layers
        self.decoder = MLP(inputs, hidden_size, num_pixels, precision=precision, key=decoder_key)

    @property
    def latents(self) -> tuple[str, ...]:
        """The names of the stochastic layers, bottom first: z1, ..., zL."""
        return tuple(f"z{layer + 1}" for layer in range(len(self.posterior_networks)))

    def posterior(self, x: Image, context: Context | None = None) -> Hierarchy:
        r"""$q(z|x,c)$, bottom-up."""
        known = (x,) if context is None else (x, context)
        names = self.latents
        return GaussianHierarchy(
            {
                name: (GaussianConditional(network, known), names[layer - 1 : layer])
                for layer, (name, network) in enumerate(
                    zip(names, self.posterior_networks, strict=True)
                )
            }
        )

    def prior(self, context: Context | None = None) -> Hierarchy:
        r"""$p(z|c)$, top-down."""
        known = () if context is None else (context,)
        names = self.latents
        nodes = {
            name: (GaussianConditional(network, known), names[layer + 1 : layer + 2])
            for layer, (name, network) in enumerate(zip(names, self.prior_networks, strict=False))
        }
        top = dist.Normal(0.0, 1.0).expand([self.latent_size]).to_event(1)
        return Hierarchy({names[-1]: (top, ()), **nodes})

    def logits(self, z: dict[str, Array]) -> Float[Array, "*shape pixels"]:
        """The log-odds of each pixel given all latents."""
        return self.decoder(*(z[name] for name in self.latents))

    def likelihood(self, x: Image) -> Callable[[dict[str, Array]], Float[Array, "K batch"]]:
        r"""The function $z \mapsto \log p(x|z_1, \dots, z_L)$."""

        def log_prob(z):
            logits = self.logits(z)
            pixels = x.reshape((1,) * (logits.ndim - x.ndim) + x.shape)
            return bernoulli_log_prob(logits, pixels)

        return log_prob
