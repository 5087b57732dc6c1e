"""The training step of the same VAE on JAX: this library, its peers, and by hand."""

import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

sys.path.append(str(Path(__file__).parents[1]))

import steps
from gdregs.vae.networks.mlp import softplus
from gdregs.vae.training.compiler import compiler_options


def with_plain_networks(model):
    """The same networks as most people write them: inputs concatenated, `x @ w + b`."""

    class Plain(eqx.Module):
        weights: tuple
        biases: tuple

        def __call__(self, *inputs):
            rank = max(value.ndim for value in inputs)
            lead = jnp.broadcast_shapes(
                *(v.shape[:-1] if v.ndim == rank else (1, *v.shape[:-1]) for v in inputs)
            )
            hidden = jnp.concatenate(
                [jnp.broadcast_to(v, (*lead, v.shape[-1])) for v in inputs], axis=-1
            )
            for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
                hidden = jnp.tanh(hidden @ weight + bias)
            return hidden @ self.weights[-1] + self.biases[-1]

    def plain(network):
        weights = network.first, network.second, network.last
        return Plain(weights, (network.first_bias, network.second_bias, network.last_bias))

    return jax.tree.map(plain, model, is_leaf=lambda node: hasattr(node, "second_bias"))


def naive_plain(model, images, key, num_samples):
    """IWAE as its formulas read."""
    keys = jax.random.split(key, len(model.posterior_networks))

    def gaussian(network, *inputs):
        loc, raw = jnp.split(network(*inputs), 2, axis=-1)
        return loc, jax.nn.softplus(raw) + 1e-5

    def loss(model):
        z, log_weights = [], 0.0
        for layer, network in enumerate(model.posterior_networks):
            loc, scale = gaussian(network, images, *z[layer - 1 : layer])
            noise = jax.random.normal(keys[layer], (num_samples, *images.shape[:1], loc.shape[-1]))
            z.append(loc + scale * noise)
            log_weights -= jnp.sum(jax.scipy.stats.norm.logpdf(z[layer], loc, scale), axis=-1)
        for layer, network in enumerate(model.prior_networks):
            parameters = gaussian(network, z[layer + 1])
            log_weights += jnp.sum(jax.scipy.stats.norm.logpdf(z[layer], *parameters), axis=-1)
        log_weights += jnp.sum(jax.scipy.stats.norm.logpdf(z[-1]), axis=-1)
        logits = model.decoder(*z)
        log_weights += jnp.sum(images * logits - jax.nn.softplus(logits), axis=-1)
        return -jnp.mean(jax.nn.logsumexp(log_weights, axis=0) - jnp.log(1.0 * num_samples))

    return eqx.filter_value_and_grad(loss)(model)


def numpyro_renyi(model, images, key, num_samples):
    """RenyiELBO of the model and guide as numpyro programs."""
    import numpyro
    from numpyro.contrib.module import eqx_module
    from numpyro.infer import RenyiELBO

    leaves, _ = eqx.partition(model, eqx.is_inexact_array)

    def draw(hierarchy, x):
        z = {}
        with numpyro.plate("images", len(x)):
            for name, parents in hierarchy.parents:
                z[name] = numpyro.sample(name, hierarchy.conditional(name, parents, z))
        return z

    def program(x):
        vae = eqx_module("vae", model)
        z = draw(vae.prior(), x)
        with numpyro.plate("images", len(x)):
            logits = vae.logits(z)
            numpyro.factor("x", jnp.sum(x * logits - softplus(logits), axis=-1))

    def guide(x):
        draw(eqx_module("vae", model).posterior(x), x)

    objective = RenyiELBO(alpha=0, num_particles=num_samples)

    def loss(leaves):
        return objective.loss(key, {"vae$params": leaves}, program, guide, images) / len(images)

    value, gradient = jax.value_and_grad(loss)(leaves)
    return value, gradient


def tfp_dregs(model, images, key, num_samples):
    """TFP's doubly reparameterized loss (biased for the prior's parameters)."""
    from tensorflow_probability.substrates import jax as tfp

    tfd = tfp.distributions

    def gaussian(network, *inputs):
        loc, raw = jnp.split(network(*inputs), 2, axis=-1)
        return tfd.Independent(tfd.Normal(loc, softplus(raw) + 1e-5), 1)

    def posterior(model):
        first, *others = model.posterior_networks
        networks = [first, *(network.given(images) for network in others)]
        parts = [
            gaussian(networks[0], images),
            lambda z0: gaussian(networks[1], z0),  # TFP reads the names of arguments
            lambda z1: gaussian(networks[2], z1),
        ]
        return tfd.JointDistributionSequential(parts[: len(networks)])

    def loss(model):
        def log_joint(*z):
            total = jnp.sum(tfd.Normal(0.0, 1.0).log_prob(z[-1]), axis=-1)
            for layer, network in enumerate(model.prior_networks):
                total += gaussian(network, z[layer + 1]).log_prob(z[layer])
            logits = model.decoder(*z)
            return total + jnp.sum(images * logits - softplus(logits), axis=-1)

        return jnp.mean(
            tfp.vi.monte_carlo_variational_loss(
                log_joint,
                posterior(model),
                importance_sample_size=num_samples,
                gradient_estimator=tfp.vi.GradientEstimators.DOUBLY_REPARAMETERIZED,
                stopped_surrogate_posterior=posterior(jax.lax.stop_gradient(model)),
                seed=key,
            )
        )

    return eqx.filter_value_and_grad(loss)(model)


def gdregs_with(num_gradient_samples):
    def step(model, images, key, num_samples):
        return steps.gdregs_step(model, images, key, num_samples, num_gradient_samples)

    return step


STEPS = {
    "gdregs, M = 8": gdregs_with(8),
    "gdregs, M = K": gdregs_with(None),
    "by hand": steps.naive_step,
    "plain": naive_plain,
    "surrogates": steps.surrogates_step,
    "numpyro": numpyro_renyi,
    "tfp": tfp_dregs,
}


class Step:
    """Bound, gradients and a plain gradient step, `count` of them in one compiled scan."""

    def __init__(self, name, num_layers, batch_size, num_samples, count):
        from speed import matrix_flops

        model = steps.make_model(num_layers)
        model = with_plain_networks(model) if name == "plain" else model
        images = steps.binary_images(batch_size)
        leaves, rest = eqx.partition(model, eqx.is_inexact_array)

        def run(leaves, key):
            def step(leaves, key):
                model = eqx.combine(leaves, rest)
                value, gradient = STEPS[name](model, images, key, num_samples)
                gradient = eqx.filter(gradient, eqx.is_inexact_array)
                return jax.tree.map(lambda p, g: p - 1e-6 * g, leaves, gradient), value

            return jax.lax.scan(step, leaves, jax.random.split(key, count))

        # This library's networks and options, unless a peer is faster without the options.
        options = {} if name == "plain" else compiler_options()
        jitted = jax.jit(run, compiler_options=options)
        self.leaves, self.key = leaves, jax.random.key(0)
        self.program = jitted.lower(leaves, self.key).compile()
        self.count = count
        self.matrix_flops = matrix_flops(self.program.as_text())

    def __call__(self):
        self.leaves, values = jax.block_until_ready(self.program(self.leaves, self.key))
        return float(values[-1])

    def flops(self):
        """Of the matrix products of one step."""
        return self.matrix_flops
