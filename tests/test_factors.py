"""Factors on densities (masks, scales, annealing) enter every estimator as (13) says."""

import equinox as eqx
import gdregs
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from means import assert_unbiased

X = np.array([1.0, -0.5, 0.3])


class Linear(eqx.Module):
    """A normal conditional with a factor on its density."""

    slope: jax.Array
    log_scale: jax.Array
    factor: jax.Array

    def __call__(self, parent):
        normal = dist.Normal(self.slope * parent, jnp.exp(self.log_scale))
        return gdregs.with_factor(normal, self.factor)


def graph(parameters, factors, order):
    """A Hierarchy of two latents: `order` names the first one and its child."""
    first, second = order
    location, log_scale = parameters[first]
    factor = jnp.broadcast_to(factors[first], X.shape)
    top = gdregs.with_factor(
        dist.Normal(location * jnp.ones_like(X), jnp.exp(log_scale)), factor
    )
    return gdregs.Hierarchy(
        {
            first: (top, ()),
            second: (Linear(*parameters[second], factors[second]), (first,)),
        }
    )


def bare(parameters, order):
    return graph(parameters, {"y": jnp.array(1.0), "z": jnp.array(1.0)}, order)


def likelihood(z):
    return dist.Normal(z["z"] * jnp.sin(z["y"]) + z["z"], 0.7).log_prob(X[None])


FACTORS = {
    "posterior": {"y": np.array([1.0, 0.0, 0.5]), "z": np.array([0.3, 2.0, 1.0])},
    "prior": {"y": np.array([0.7, 1.0, 0.2]), "z": np.array([1.5, 0.4, 1.0])},
}
PARAMETERS = {
    "posterior": {"y": (0.4, -0.3), "z": (0.8, -0.5)},
    "prior": {"y": (0.9, 0.1), "z": (-0.2, 0.2)},
}
Q_ORDER, P_ORDER = ("y", "z"), ("z", "y")


def moved(parameters, order, z):
    """The samples as functions of the parameters that drew them, their noise held."""
    first, second = order
    location, scale = parameters[first][0], jnp.exp(parameters[first][1])
    fixed = jax.lax.stop_gradient((location, scale))
    noise = jax.lax.stop_gradient((z[first] - fixed[0]) / fixed[1])
    path = {first: location + scale * noise}
    slope, scale = parameters[second][0], jnp.exp(parameters[second][1])
    fixed = jax.lax.stop_gradient((slope, scale))
    noise = jax.lax.stop_gradient((z[second] - fixed[0] * z[first]) / fixed[1])
    return {**path, second: slope * path[first] + scale * noise}


def by_formula(parameters, key, num_samples, objective):
    """DReGs and GDReGs with factors, written out node by node."""
    q, p = (
        graph(parameters[part], FACTORS[part], order)
        for part, order in (("posterior", Q_ORDER), ("prior", P_ORDER))
    )
    z = jax.vmap(lambda k: q.sample(k))(jax.vmap(lambda k: jax.random.fold_in(key, k))(
        jnp.arange(num_samples)
    ))

    def weigh(z):
        return likelihood(z) + p.log_prob(z) - q.log_prob(z)

    def score(z):
        bare_q = bare(parameters["posterior"], Q_ORDER)
        return bare_q.log_prob(z) - bare(parameters["prior"], P_ORDER).log_prob(z)

    v, c = objective.coefficients(weigh(z))
    of_weights = jax.grad(lambda z: jnp.sum(weigh(z)))(z)
    of_score = jax.grad(lambda z: jnp.sum(score(z)))(z)
    found = {"posterior": {}, "prior": {}}
    for part, order in (("posterior", Q_ORDER), ("prior", P_ORDER)):
        for node in order:
            factor = FACTORS[part][node]
            if part == "posterior":
                cotangent = {n: (v - factor[None] * (v - c)) * g for n, g in of_weights.items()}
            else:
                cotangent = {
                    n: factor[None] * (v * of_score[n] + (v - c) * of_weights[n]) for n in of_weights
                }

            def path(own, part=part, node=node, order=order):
                return moved({**parameters[part], node: own}, order, z)

            _, pull = jax.vjp(path, parameters[part][node])
            (found[part][node],) = pull(cotangent)
    return found


@pytest.mark.parametrize("objective", [gdregs.IWAE(), gdregs.VRIWAE(0.4)], ids=["iwae", "vr"])
def test_each_node_has_the_factor_of_its_own_density(objective):
    with jax.enable_x64(True):
        key, num_samples = jax.random.key(3), 5

        def total(parameters):
            return jnp.sum(
                gdregs.bound(
                    graph(parameters["posterior"], FACTORS["posterior"], Q_ORDER),
                    graph(parameters["prior"], FACTORS["prior"], P_ORDER),
                    likelihood,
                    key=key,
                    num_samples=num_samples,
                    objective=objective,
                )
            )

        parameters = jax.tree.map(jnp.asarray, PARAMETERS)
        both = jax.jit(lambda p: (jax.grad(total)(p), by_formula(p, key, num_samples, objective)))
        ours, written_out = both(parameters)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(written_out), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)
