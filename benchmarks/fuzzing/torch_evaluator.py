"""The naive gradient of a bound by PyTorch alone."""

import math

import torch


class WithFactor:
    """A distribution whose log-density has a factor."""

    def __init__(self, base, factor):
        self.base_dist, self.factor = base, factor

    def log_prob(self, value):
        return self.factor * self.base_dist.log_prob(value)


def has_path(distribution) -> bool:
    """Whether its sampler can be differentiated; Wishart's overwrites what autograd needs."""
    return distribution.has_rsample and not isinstance(distribution, torch.distributions.Wishart)


def draw(distribution, shape=()):
    """A sample, and its score where it has no path."""
    while isinstance(distribution, WithFactor):
        distribution = distribution.base_dist
    if has_path(distribution):
        return distribution.rsample(shape), None
    with torch.no_grad():
        z = distribution.sample(shape)
    return z, distribution.log_prob(z)


def objective_of(code: str):
    """F of log-weights `[K, ...]`, by its name."""

    def iwae(log_weights):
        return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))

    def jackknife(log_weights):
        size = len(log_weights)
        without = [iwae(torch.cat([log_weights[:j], log_weights[j + 1 :]])) for j in range(size)]
        return size * iwae(log_weights) - (size - 1) * sum(without) / size

    return {
        "ELBO()": lambda log_weights: log_weights.mean(0),
        "IWAE()": iwae,
        "VRIWAE(0.3)": lambda log_weights: iwae(0.7 * log_weights) / 0.7,
        "JVI()": jackknife,
    }[code]


def combine(objective, log_weights, score, baseline):
    """F, with the score function of what has no path if there is any."""
    value = objective(log_weights)
    if score is None:
        return value, value
    return value, value + (value - baseline).detach() * score.sum(0)


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
        return given(*(z[name] for name in parents)) if parents else given

    def draw(self):
        """Latents, live along paths, and the score of those without one; None where all have."""
        z, total = {}, None
        for name, node in self.posterior.items():
            shape = () if node[1] else (self.num_samples,)
            z[name], score = draw(self.conditional(node, z), torch.Size(shape))
            if score is not None:
                total = score if total is None else total + score
        return z, total

    def log_posterior(self, z):
        """log q, `[K, *batch]`."""
        return sum(self.conditional(node, z).log_prob(z[n]) for n, node in self.posterior.items())

    def log_joint(self, z):
        """log p of latents and data, `[K, *batch]`."""
        terms = [self.conditional(node, z).log_prob(z[n]) for n, node in self.prior.items()]
        return sum(terms) + self.likelihood(z)


def surrogate(nodes: Nodes, objective, *, is_wake: bool):
    """The bound, and what has its gradient: naive, or the wake phase's for the posterior."""
    z, score = nodes.draw()
    if is_wake:
        z = {name: value.detach() for name, value in z.items()}
        log_q = nodes.log_posterior(z)
        log_weights = nodes.log_joint(z) - log_q.detach()
        value = objective(log_weights)
        (v,) = torch.autograd.grad(value.sum(), log_weights, retain_graph=True)
        return value, value + (v.detach() * log_q).sum(0)
    log_weights = nodes.log_joint(z) - nodes.log_posterior(z)
    baseline = None
    if score is not None:
        with torch.no_grad():
            independent, _ = nodes.draw()
            weights = nodes.log_joint(independent) - nodes.log_posterior(independent)
            baseline = objective(weights)
    return combine(objective, log_weights, score, baseline)
