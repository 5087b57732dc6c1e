"""Estimators of libraries that are built on PyTorch: key -> the bound's gradient by (phi, theta).

PyTorch draws with a seed that is made from the key, behind a callback.
"""

import types

import jax
import numpy as np
import problem

STRUCTURE = jax.eval_shape(problem.parameters)


def _behind_callback(compute):
    """`compute(phi, theta)` fills the gradients of a loss into two dicts of torch tensors."""
    import torch

    def run(key_data):
        torch.manual_seed(int(np.asarray(key_data, np.uint32).view(np.uint64)[0] % 2**63))
        phi, theta = (
            {name: torch.tensor(v, requires_grad=True) for name, v in part.items()}
            for part in (problem.PHI, problem.THETA)
        )
        compute(phi, theta)
        return tuple(
            {name: -leaf.grad.numpy() for name, leaf in part.items()} for part in (phi, theta)
        )

    def draw(key):
        data = jax.random.key_data(key)
        return jax.pure_callback(run, STRUCTURE, data, vmap_method="sequential")

    return draw


def _normal(part):
    import torch

    return torch.distributions.Normal(part["loc"], part["log_scale"].exp())


def _log_likelihood(z):
    import torch

    return torch.distributions.Normal(z, problem.NOISE).log_prob(torch.tensor(problem.X)).sum(-1)


def torch_hook():
    """DReGs as it is usually written by hand: the weights times log w, and a hook on z."""
    import torch

    def compute(phi, theta):
        q = _normal(phi)
        z = q.rsample((problem.NUM_SAMPLES,))
        stopped = torch.distributions.Normal(q.loc.detach(), q.scale.detach())
        log_weights = _log_likelihood(z) + (_normal(theta).log_prob(z) - stopped.log_prob(z)).sum(
            -1
        )
        weights = torch.softmax(log_weights, 0).detach()
        z.register_hook(lambda gradient: weights[:, None] * gradient)
        (-(weights * log_weights).sum()).backward()

    return _behind_callback(compute)


def pyro_renyi():
    import pyro
    import torch
    from pyro import distributions as dist
    from pyro.infer import RenyiELBO

    objective = RenyiELBO(alpha=0, num_particles=problem.NUM_SAMPLES, vectorize_particles=True)

    def compute(phi, theta):
        pyro.clear_param_store()

        def normal(prefix, part):
            loc = pyro.param(f"{prefix}_loc", part["loc"].detach().clone())
            log_scale = pyro.param(f"{prefix}_log_scale", part["log_scale"].detach().clone())
            return dist.Normal(loc, log_scale.exp()).to_event(1)

        def model():
            z = pyro.sample("z", normal("theta", theta))
            x = torch.tensor(problem.X)
            pyro.sample("x", dist.Normal(z, problem.NOISE).to_event(1), obs=x)

        def guide():
            pyro.sample("z", normal("phi", phi))

        objective.loss_and_grads(model, guide)
        for prefix, part in (("phi", phi), ("theta", theta)):
            for name in part:
                part[name].grad = pyro.param(f"{prefix}_{name}").unconstrained().grad

    return _behind_callback(compute)


def normflows_dreg():
    import normflows as nf
    import torch

    class Target:
        def __init__(self, theta):
            self.theta = theta

        def log_prob(self, z):
            return _normal(self.theta).log_prob(z).sum(-1) + _log_likelihood(z)

    def compute(phi, theta):
        base = nf.distributions.DiagGaussian(2, trainable=False)
        for name in ("loc", "log_scale"):
            delattr(base, name)
            # A leaf of the module, whose gradient is taken over below.
            setattr(base, name, torch.nn.Parameter(phi[name].detach()[None].clone()))
        model = nf.NormalizingFlow(base, [], Target(theta))
        model.reverse_alpha_div(problem.NUM_SAMPLES, alpha=1, dreg=True).backward()
        for name in ("loc", "log_scale"):
            phi[name].grad = getattr(base, name).grad[0]

    return _behind_callback(compute)


def multivae_dreg():
    """`MMVAE.dreg_looser`, given the quantities that its `forward` would have given it."""
    import torch
    from multivae.models import MMVAE

    def compute(phi, theta):
        q = _normal(phi)
        z = q.rsample((problem.NUM_SAMPLES, 1))
        model = types.SimpleNamespace(
            prior_dist=torch.distributions.Normal,
            pz_params=(theta["loc"][None], theta["log_scale"].exp()[None]),
            recon_log_probs={
                "x": lambda mean, x: torch.distributions.Normal(mean, problem.NOISE).log_prob(x)
            },
            rescale_factors={"x": 1.0},
            n_modalities=1,
        )
        model.compute_k_lws = types.MethodType(MMVAE.compute_k_lws, model)
        stopped = torch.distributions.Normal(q.loc.detach(), q.scale.detach())
        inputs = types.SimpleNamespace(data={"x": torch.tensor(problem.X)[None]})
        output = MMVAE.dreg_looser(model, {"x": stopped}, {"x": z}, {"x": {"x": z}}, inputs)
        output.loss.backward()

    return _behind_callback(compute)
