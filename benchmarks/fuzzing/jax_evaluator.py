"""The naive gradient of a bound by JAX and numpyro alone."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import logsumexp

WITHOUT_PATH = (dist.MixtureSameFamily, dist.MixtureGeneral)
"""Families whose sampler has no derivative by all parameters, though numpyro says nothing of it."""


class WithFactor:
    """A distribution whose log-density has a factor."""

    def __init__(self, base, factor):
        self.base_dist, self.factor = base, factor

    def sample(self, key, sample_shape=()):
        return self.base_dist.sample(key, sample_shape)

    def log_prob(self, value):
        return self.factor * self.base_dist.log_prob(value)


def has_path(distribution) -> bool:
    """Whether the sampler's derivative is that of its law."""
    if isinstance(distribution, WITHOUT_PATH):
        return False
    wrapped = getattr(distribution, "base_dist", None)
    if wrapped is not None:
        return has_path(wrapped)
    return not isinstance(distribution, dist.Distribution) or distribution.has_rsample


def objective_of(code: str):
    """F of log-weights `[K, ...]`, by its name."""

    def iwae(log_weights):
        return logsumexp(log_weights, axis=0) - jnp.log(log_weights.shape[0])

    def vr(log_weights, alpha):
        return iwae((1 - alpha) * log_weights) / (1 - alpha)

    def jackknife(log_weights):
        size = log_weights.shape[0]
        without = [
            iwae(jnp.concatenate([log_weights[:j], log_weights[j + 1 :]])) for j in range(size)
        ]
        return size * iwae(log_weights) - (size - 1) * sum(without) / size

    return {
        "ELBO()": lambda log_weights: jnp.mean(log_weights, axis=0),
        "IWAE()": iwae,
        "VRIWAE(0.3)": lambda log_weights: vr(log_weights, 0.3),
        "JVI()": jackknife,
    }[code]


def combine(objective, log_weights, score, baseline):
    """F, with the score function of what has no path if there is any."""
    value = objective(log_weights)
    if score is None:
        return value, value
    stop = jax.lax.stop_gradient
    return value, value + stop(value - baseline) * jnp.sum(score, axis=0)


class Nodes:
    """Posterior and prior as dicts of `(conditional, parents)`, or as distributions."""

    def __init__(self, posterior, prior, likelihood, num_samples):
        alone = not isinstance(posterior, dict)
        self.posterior = {"": (posterior, ())} if alone else posterior
        self.prior = {"": (prior, ())} if alone else prior
        self.likelihood = (lambda z: likelihood(z[""])) if alone else likelihood
        self.num_samples = num_samples

    @staticmethod
    def conditional(node, z):
        """The distribution given its parents."""
        given, parents = node
        return given if hasattr(given, "sample") else given(*(z[name] for name in parents))

    def draw(self, key):
        """Latents, live along paths, and the score of those without one; None where all have."""
        z, score = {}, None
        for i, (name, node) in enumerate(self.posterior.items()):
            conditional = self.conditional(node, z)
            shape = () if node[1] else (self.num_samples,)
            z[name] = conditional.sample(jax.random.fold_in(key, i), shape)
            if not has_path(conditional):
                z[name] = jax.lax.stop_gradient(z[name])
                while isinstance(conditional, (WithFactor, dist.MaskedDistribution)):
                    conditional = conditional.base_dist
                score = (0.0 if score is None else score) + conditional.log_prob(z[name])
        return z, score

    def log_posterior(self, z):
        """log q, `[K, *batch]`."""
        return sum(self.conditional(node, z).log_prob(z[n]) for n, node in self.posterior.items())

    def log_joint(self, z):
        """log p of latents and data, `[K, *batch]`."""
        terms = [self.conditional(node, z).log_prob(z[n]) for n, node in self.prior.items()]
        return sum(terms) + self.likelihood(z)


def surrogate(nodes: Nodes, objective, key, *, is_wake: bool):
    """The bound, and what has its gradient: naive, or the wake phase's for the posterior."""
    key, other = jax.random.split(key)
    z, score = nodes.draw(key)
    stop = jax.lax.stop_gradient
    if is_wake:
        z = jax.tree.map(stop, z)
        log_q = nodes.log_posterior(z)
        log_weights = nodes.log_joint(z) - stop(log_q)
        value, back = jax.vjp(objective, log_weights)
        (v,) = back(jnp.ones_like(value))
        return value, value + jnp.sum(stop(v) * log_q, axis=0)
    log_weights = nodes.log_joint(z) - nodes.log_posterior(z)
    baseline = None
    if score is not None:
        independent, _ = nodes.draw(other)
        baseline = objective(nodes.log_joint(independent) - nodes.log_posterior(independent))
    return combine(objective, log_weights, score, baseline)
