"""Small models for the tests, built from gdregs and from the parameters of `reference`."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import gdregs
import reference
from gdregs.shared.tables import find_posterior_estimator, find_prior_estimator


class Layer(eqx.Module):
    """A conditional of `reference` as gdregs expects it: a pytree callable."""

    parameters: dict
    names: tuple[str, ...] = eqx.field(static=True)
    x: jnp.ndarray | None = None

    def __call__(self, *values):
        parents = dict(zip(self.names, values, strict=True))
        loc, scale = reference.loc_and_scale(self.parameters, parents, self.x)
        return dist.Normal(loc, scale).to_event(1)


def hierarchy(layers, graph, x=None):
    graph = reference.among(layers, graph)
    return gdregs.Hierarchy(
        {name: (Layer(layers[name], parents, x), parents) for name, parents in graph.items()}
    )


def posterior(phi, x):
    return hierarchy(phi, reference.POSTERIOR, x)


def prior(theta):
    return hierarchy(theta, reference.PRIOR)


def likelihood(lam, x):
    return lambda z: reference.likelihood(lam, z, x)


def total_bound(phi, theta, lam, x, **options):
    """The bound of the reference's model, summed over the batch."""
    return jnp.sum(gdregs.bound(posterior(phi, x), prior(theta), likelihood(lam, x), **options))


def normal_model(phi, theta, x):
    """z ~ N(theta, 1), x | z ~ N(z, 1), q = N(phi, 0.8^2), for scalars or batches of them."""
    q = dist.Normal(phi, 0.8 * jnp.ones_like(x))
    p = dist.Normal(theta, jnp.ones_like(x))
    return q, p, lambda z: dist.Normal(z, 1.0).log_prob(x)


class OwnSampler:
    """A posterior with the two methods and nothing else; reparameterized through its fields."""

    def __init__(self, loc, scale, detach=False):
        self.loc, self.scale, self.detach = loc, scale, detach

    def sample(self, key, sample_shape):
        noise = jax.random.normal(key, (*sample_shape, *jnp.shape(self.loc)), self.loc.dtype)
        with jax.numpy_rank_promotion("allow"):
            z = self.loc + self.scale * noise
        return jax.lax.stop_gradient(z) if self.detach else z

    def log_prob(self, z):
        return dist.Normal(self.loc, self.scale).log_prob(z)


jax.tree_util.register_pytree_node(
    OwnSampler,
    lambda q: ((q.loc, q.scale), q.detach),
    lambda detach, leaves: OwnSampler(*leaves, detach),
)


OBJECTIVES = {
    "elbo": gdregs.ELBO(),
    "iwae": gdregs.IWAE(),
    "vr-iwae 0.3": gdregs.VRIWAE(0.3),
    "vr-iwae 2": gdregs.VRIWAE(2.0),
    "jvi": gdregs.JVI(),
}


class Own(gdregs.Objective):
    """An objective of a user's own: derivatives by autodiff."""

    def __call__(self, log_weights):
        return reference.OBJECTIVES["own"](log_weights)


OBJECTIVES["own"] = Own()


class AnyOf(gdregs.Objective):
    """The objective of this number: one program is that of all of them."""

    number: jax.Array

    def __call__(self, log_weights):
        return jnp.stack([objective(log_weights) for objective in OBJECTIVES.values()])[self.number]

    def coefficients(self, log_weights):
        pairs = [objective.coefficients(log_weights) for objective in OBJECTIVES.values()]
        return tuple(jnp.stack(of)[self.number] for of in zip(*pairs, strict=True))


def samples(posterior, key, num_samples):
    """The importance samples of a bound: one from each key."""
    return jax.vmap(lambda k: posterior.sample(jax.random.fold_in(key, k), ()))(
        jnp.arange(num_samples)
    )


POSTERIOR_ESTIMATORS = {
    **{name: name for name in gdregs.POSTERIOR_ESTIMATORS},
    "interpolated 0.3": gdregs.interpolated_dregs(0.3),
}
PRIOR_ESTIMATORS = {
    **{name: name for name in gdregs.PRIOR_ESTIMATORS},
    "mixed 0.3": gdregs.mixed_gdregs(0.3),
}


def rows_of(pairs):
    """The numbers of pairs of estimators, by name, stacked: one program is that of all pairs."""
    rows = [
        (
            find_posterior_estimator(POSTERIOR_ESTIMATORS[by_phi]),
            find_prior_estimator(PRIOR_ESTIMATORS[by_theta]),
        )
        for by_phi, by_theta in pairs
    ]
    return jax.tree.map(lambda *numbers: jnp.asarray(np.array(numbers, float)), *rows)


PAIRS_WITH_EACH = [
    *zip(POSTERIOR_ESTIMATORS, itertools.cycle(("gdregs", "naive")), strict=False),
    ("dregs", "gdregs-mix"),
]
"""Each posterior estimator once, DReGs with GDReGs; the prior's are naive, GDReGs and the mix.

The gradient by φ depends on the posterior's alone and that by θ on the prior's alone.
`test_against_surrogate_losses` has every pair.
"""
