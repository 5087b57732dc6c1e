"""The training step of the same VAE by `gdregs.torch.bound`, as a user writes it."""

import torch
from torch.distributions import Independent, Normal
from torch_steps import LATENT, gaussian

import gdregs.torch


def compile_networks(model):
    """`torch.compile` every network by itself; the bound around them stays in eager mode."""
    for networks in (model.posterior, model.prior):
        for layer, network in enumerate(networks):
            networks[layer] = torch.compile(network, dynamic=False)
    model.log_likelihood = torch.compile(model.log_likelihood, dynamic=False)


def make_loss(num_gradient_samples):
    """Minus the bound, by DReGs and GDReGs on M of the K samples."""

    def loss(model, x, num_samples):
        top = len(model.posterior) - 1
        posterior, prior = {}, {}
        for layer, network in enumerate(model.posterior):
            below = (f"z{layer - 1}",) if layer else ()
            posterior[f"z{layer}"] = (_given(network, x) if layer else _normal(network, x), below)
        zeros = torch.zeros(len(x), LATENT)
        prior[f"z{top}"] = (Independent(Normal(zeros, 1.0 + zeros), 1), ())
        for layer, network in enumerate(model.prior):
            prior[f"z{layer}"] = (_given(network), (f"z{layer + 1}",))

        def likelihood(z):
            return model.log_likelihood(x, [z[f"z{layer}"] for layer in range(top + 1)])

        return -gdregs.torch.bound(
            gdregs.torch.Hierarchy(posterior), gdregs.torch.Hierarchy(prior), likelihood,
            num_samples=num_samples, num_gradient_samples=num_gradient_samples,
        ).mean()  # fmt: skip

    return loss


def _normal(network, *values):
    loc, scale = gaussian(network, *values)
    return Independent(Normal(loc, scale, validate_args=False), 1, validate_args=False)


def _given(network, *known):
    return lambda z: _normal(network, *known, z)
