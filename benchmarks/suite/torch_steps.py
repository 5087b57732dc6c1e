"""The training step of the same VAE in PyTorch, by hand and in Pyro.

The networks are those of `gdregs.vae`: two tanh layers, first layers split by input so that what
depends on the datapoint alone is computed once, softplus scales, a Bernoulli likelihood on logits.
`naive` is the reparameterized gradient of IWAE; `dreg` the doubly reparameterized one of the
posterior with the score function for the prior, by a hook on the copy of each latent that the
densities see (a hook on the latent itself would compound from layer to layer).
"""

import copy
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

LATENT, HIDDEN = 50, 300


class MLP(nn.Module):
    """Two hidden tanh layers on the concatenation of several inputs."""

    def __init__(self, inputs, hidden, outputs):
        super().__init__()
        self.first = nn.ModuleList(
            nn.Linear(size, hidden, bias=i == 0) for i, size in enumerate(inputs)
        )
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, *values, stopped=False):
        def linear(layer, x):
            weight, bias = layer.weight, layer.bias
            if stopped:
                weight, bias = weight.detach(), None if bias is None else bias.detach()
            return functional.linear(x, weight, bias)

        hidden = linear(self.first[0], values[0])
        for layer, value in zip(self.first[1:], values[1:], strict=True):
            hidden = hidden + linear(layer, value)
        hidden = torch.tanh(hidden)
        return linear(self.last, torch.tanh(linear(self.second, hidden)))


def gaussian(network, *values, stopped=False):
    loc, raw = network(*values, stopped=stopped).chunk(2, -1)
    return loc, functional.softplus(raw) + 1e-5


def log_normal(z, loc, scale):
    size = z.shape[-1]
    return (-0.5 * ((z - loc) / scale) ** 2 - torch.log(scale)).sum(-1) - size / 2 * math.log(
        2 * math.pi
    )


class VAE(nn.Module):
    """L stochastic layers, posterior bottom-up, prior top-down."""

    def __init__(self, num_pixels, num_layers):
        super().__init__()
        above = [LATENT]
        self.posterior = nn.ModuleList(
            MLP([num_pixels, *(above if layer else [])], HIDDEN, 2 * LATENT)
            for layer in range(num_layers)
        )
        self.prior = nn.ModuleList(MLP(above, HIDDEN, 2 * LATENT) for _ in range(num_layers - 1))
        self.decoder = MLP(above * num_layers, HIDDEN, num_pixels)

    def sample(self, x, num_samples):
        """Latents, and the parameters of their posteriors."""
        z, parameters = [], []
        for layer, network in enumerate(self.posterior):
            loc, scale = gaussian(network, x, *z[layer - 1 : layer])
            noise = torch.randn(num_samples, len(x), LATENT)
            z.append(loc + scale * noise)
            parameters.append((loc, scale))
        return z, parameters

    def log_joint(self, x, z):
        size = z[-1].shape[-1]
        total = -0.5 * (z[-1] ** 2).sum(-1) - size / 2 * math.log(2 * math.pi)
        for layer, network in enumerate(self.prior):
            total = total + log_normal(z[layer], *gaussian(network, z[layer + 1]))
        return total + self.log_likelihood(x, z)

    def log_likelihood(self, x, z):
        logits = self.decoder(*z)
        return (x * logits - functional.softplus(logits)).sum(-1)


def bound_of(log_weights):
    return (torch.logsumexp(log_weights, 0) - math.log(len(log_weights))).mean()


def naive(model, x, num_samples):
    """Minus the bound, everything live."""
    z, parameters = model.sample(x, num_samples)
    log_q = sum(log_normal(v, *p) for v, p in zip(z, parameters, strict=True))
    return -bound_of(model.log_joint(x, z) - log_q)


def dreg(model, x, num_samples):
    """Minus the bound, whose derivative is DReGs for the posterior."""
    z, parameters = model.sample(x, num_samples)
    weights = []

    def scale(gradient):
        return weights[0] * gradient

    seen = [value.view_as(value) for value in z]
    for value in seen:
        value.register_hook(scale)
    log_q = log_normal(seen[0], *(p.detach() for p in parameters[0]))
    for layer, network in list(enumerate(model.posterior))[1:]:
        log_q = log_q + log_normal(
            seen[layer], *gaussian(network, x, seen[layer - 1], stopped=True)
        )
    log_weights = model.log_joint(x, seen) - log_q
    weights.append(torch.softmax(log_weights.detach(), 0)[..., None])
    return -bound_of(log_weights)


def make_pyro(model):
    """Pyro's RenyiELBO of the same model and guide."""
    import pyro
    import pyro.distributions as dist
    from pyro.infer import RenyiELBO

    def normal(network, *values):
        loc, scale = gaussian(network, *values)
        return dist.Normal(loc, scale).to_event(1)

    def program(x):
        pyro.module("vae", model)
        with pyro.plate("images", len(x)):
            top = len(model.posterior) - 1
            zeros = torch.zeros(len(x), LATENT)
            z = {top: pyro.sample(f"z{top}", dist.Normal(zeros, 1.0).to_event(1))}
            for layer in reversed(range(top)):
                z[layer] = pyro.sample(f"z{layer}", normal(model.prior[layer], z[layer + 1]))
            logits = model.decoder(*(z[layer] for layer in range(top + 1)))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        pyro.module("vae", model)
        with pyro.plate("images", len(x)):
            z = []
            for layer, network in enumerate(model.posterior):
                z.append(pyro.sample(f"z{layer}", normal(network, x, *z[layer - 1 : layer])))

    def loss(model, x, num_samples):
        objective = RenyiELBO(
            alpha=0, num_particles=num_samples, vectorize_particles=True, max_plate_nesting=1
        )
        return objective.loss_and_grads(program, guide, x) / len(x)

    return loss


class Step:
    """Bound, gradients and a plain gradient step of one model, again and again."""

    def __init__(self, name, num_layers, batch_size, num_samples, count, num_pixels=784):
        import pyro

        del count  # a loop in Python

        torch.manual_seed(0)
        pyro.clear_param_store()
        pyro.enable_validation(False)
        self.model = VAE(num_pixels, num_layers)
        images = np.random.default_rng(0).random((batch_size, num_pixels)) < 0.3
        self.images = torch.tensor(images, dtype=torch.float32)
        self.num_samples = num_samples
        kind, _, how = name.partition(" ")
        if kind == "pyro":
            self.loss = make_pyro(self.model)
        elif kind == "gdregs":
            from torch_bound import compile_networks, make_loss

            num_kept, _, how = how.partition(" ")
            self.loss = make_loss(None if num_kept == "all" else int(num_kept))
        else:
            self.loss = {"naive": naive, "dreg": dreg}[kind]
        self.eager = self.loss
        if how == "compiled":
            torch._dynamo.config.cache_size_limit = 64
            self.loss = torch.compile(self.loss, dynamic=False)
        self.counted = self.model
        if how == "networks":
            torch._dynamo.config.cache_size_limit = 64
            self.counted = copy.deepcopy(self.model)
            compile_networks(self.model)
        self()

    def __call__(self, loss=None):
        model = self.counted if loss else self.model
        model.zero_grad(set_to_none=True)
        value = (loss or self.loss)(model, self.images, self.num_samples)
        if isinstance(value, torch.Tensor):
            value.backward()
            value = value.item()
        parameters = [p for p in model.parameters() if p.grad is not None]
        with torch.no_grad():
            torch._foreach_add_(parameters, [p.grad for p in parameters], alpha=-1e-6)
        return value

    def flops(self):
        """Of the matrix products of one step."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self(self.eager)
        return counter.get_total_flops()
