"""The training step of one VAE in several forms, for benchmarks and the tests of their cost.

`naive` is the best hand-written naive IWAE that we know of: every network is evaluated once, and
the first layers are split. `surrogates` is the papers' implementation: one surrogate loss for each
parameter group, (E.2), (E.4) and the naive bound, in one compiled function.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import gdregs
from gdregs.vae.networks.mlp import softplus
from gdregs.vae.networks.model import VAE

stop = jax.lax.stop_gradient


def make_model(num_layers, num_pixels=784, seed=0, conditional=False):
    """The papers' VAE; the conditional one models the bottom half given the top half."""
    num_context = num_pixels // 2 if conditional else 0
    return VAE(
        num_pixels - num_context,
        num_context=num_context,
        num_layers=num_layers,
        key=jax.random.key(seed),
    )


def split(model, images):
    """The modelled pixels, and what is known of a datapoint by each network."""
    num_context = images.shape[1] - model.decoder.last.shape[1]
    if not num_context:
        return images, ()
    return images[:, num_context:], (images[:, :num_context],)


def binary_images(batch_size, num_pixels=784, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.random((batch_size, num_pixels)) < 0.3, jnp.float32)


def gdregs_step(model, images, key, num_samples, num_gradient_samples=None, **options):
    """Bound and gradients as this library computes them."""
    x, context = split(model, images)

    def loss(model):
        return -jnp.mean(
            gdregs.bound(
                model.posterior(x, *context),
                model.prior(*context),
                model.likelihood(x),
                key=key,
                num_samples=num_samples,
                num_gradient_samples=num_gradient_samples,
                **options,
            )
        )

    return eqx.filter_value_and_grad(loss)(model)


def _gaussian(network, known, parents):
    outputs = network.given(*known)(*parents) if parents else network(*known)
    loc, raw = jnp.split(outputs, 2, axis=-1)
    return loc, softplus(raw) + 1e-5


def _log_normal(z, loc, scale):
    return jnp.sum(-0.5 * ((z - loc) / scale) ** 2 - jnp.log(scale), -1) - z.shape[-1] * 0.5 * (
        np.log(2 * np.pi)
    )


def _log_standard(z):
    return jnp.sum(-0.5 * z**2, -1) - z.shape[-1] * 0.5 * np.log(2 * np.pi)


def _log_bernoulli(model, z, x):
    logits = model.decoder(*z)
    return jnp.sum(x[None] * logits - softplus(logits), -1)


def _on_samples(values):
    """Put the sample axis in front of what is known per datapoint."""
    return values if values.ndim == 3 else values[None]


def _prior_parameters(network, layer, z, context):
    """Location and scale of a layer's prior, given the layer above."""
    return map(_on_samples, _gaussian(network, context, z[layer + 1 : layer + 2]))


def _log_prior(networks, z, context):
    total = 0.0 if context else _log_standard(z[-1])
    for layer, network in enumerate(networks):
        total = total + _log_normal(z[layer], *_prior_parameters(network, layer, z, context))
    return total


def _noise(model, key, num_samples, batch_size):
    """That of `gdregs.bound`: each sample has a key, which is split into one for each latent."""

    def of_sample(number):
        keys = jax.random.split(jax.random.fold_in(key, number), len(model.posterior_networks))
        return [jax.random.normal(k, (batch_size, model.latent_size)) for k in keys]

    return jax.vmap(of_sample)(jnp.arange(num_samples))


def _posterior_parameters(network, layer, z, known):
    return map(_on_samples, _gaussian(network, known, z[max(layer - 1, 0) : layer]))


def _sample_and_density(networks, noise, known):
    """Reparameterized z and log q(z), every network evaluated once."""
    z, total = [], 0.0
    for layer, (network, epsilon) in enumerate(zip(networks, noise, strict=True)):
        loc, scale = _posterior_parameters(network, layer, z, known)
        z.append(loc + scale * epsilon)
        total = total + _log_normal(z[-1], loc, scale)
    return z, total


def naive_step(model, images, key, num_samples):
    """The naive IWAE gradient, written by hand."""
    x, context = split(model, images)
    noise = _noise(model, key, num_samples, x.shape[0])

    def loss(model):
        known = (x, *context)
        z, log_posterior = _sample_and_density(model.posterior_networks, noise, known)
        log_prior = _log_prior(model.prior_networks, z, context)
        log_weights = _log_bernoulli(model, z, x) + log_prior - log_posterior
        return -jnp.mean(jax.nn.logsumexp(log_weights, axis=0) - jnp.log(num_samples * 1.0))

    return eqx.filter_value_and_grad(loss)(model)


def surrogates_step(model, images, key, num_samples):
    """DReGs and GDReGs by three surrogate losses, as in App. E."""
    x, context = split(model, images)
    known = (x, *context)
    noise = _noise(model, key, num_samples, x.shape[0])

    def parts(model):
        return model.posterior_networks, model.prior_networks, model.decoder

    def log_posterior_at(networks, z):
        total = 0.0
        for layer, (network, value) in enumerate(zip(networks, z, strict=True)):
            loc, scale = _posterior_parameters(network, layer, z, known)
            total = total + _log_normal(value, loc, scale)
        return total

    def with_parts(posterior, prior, decoder):
        return eqx.tree_at(parts, model, (posterior, prior, decoder))

    def log_weight(posterior, prior, decoder, z):
        likelihood = _log_bernoulli(with_parts(posterior, prior, decoder), z, x)
        return likelihood, likelihood + _log_prior(prior, z, context) - log_posterior_at(
            posterior, z
        )

    def path(prior, z):
        live = list(z)
        for layer in reversed(range(len(prior))):
            loc, scale = _prior_parameters(prior[layer], layer, live, context)
            live[layer] = loc + scale * stop((z[layer] - loc) / scale)
        return live

    posterior, prior, decoder = parts(model)
    z = stop(_sample_and_density(posterior, noise, known)[0])
    log_weights = stop(log_weight(posterior, prior, decoder, z)[1])
    weights = jax.nn.softmax(log_weights, axis=0)
    scale = -1 / x.shape[0]

    def posterior_loss(posterior_live):  # (E.2)
        z_q, _ = _sample_and_density(posterior_live, noise, known)
        return scale * jnp.sum(weights**2 * log_weight(posterior, prior, decoder, z_q)[1])

    def prior_loss(prior_live):  # (E.4)
        likelihood, log_w = log_weight(posterior, prior, decoder, path(prior_live, z))
        return scale * jnp.sum(weights * likelihood - weights**2 * log_w)

    def likelihood_loss(decoder_live):  # (2)
        log_w = log_weight(posterior, prior, decoder_live, z)[1]
        return scale * jnp.sum(jax.nn.logsumexp(log_w, axis=0) - jnp.log(num_samples * 1.0))

    value, decoder_gradient = eqx.filter_value_and_grad(likelihood_loss)(decoder)
    gradients = (
        eqx.filter_grad(posterior_loss)(posterior),
        eqx.filter_grad(prior_loss)(prior),
        decoder_gradient,
    )
    return value, eqx.tree_at(parts, model, gradients)
