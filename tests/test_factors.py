"""Factors on densities (masks, scales, annealing) enter every estimator as (13) says."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
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
    top = gdregs.with_factor(dist.Normal(location * jnp.ones_like(X), jnp.exp(log_scale)), factor)
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
    z = jax.vmap(lambda k: q.sample(k))(
        jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(num_samples))
    )

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
                    n: factor[None] * (v * of_score[n] + (v - c) * of_weights[n])
                    for n in of_weights
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


MASK = np.array([True, False, True])


@pytest.mark.parametrize("part", ["posterior", "prior"])
def test_a_mask_is_the_factor_0_or_1(part):
    def gradients(key):
        def gradient(masked, posterior_estimator, prior_estimator):
            def value(parameters):
                loc, log_scale, log_prior_scale = parameters
                parts = {
                    "posterior": dist.Normal(loc * jnp.asarray(X, jnp.float32), jnp.exp(log_scale)),
                    "prior": dist.Normal(jnp.zeros(3), jnp.exp(log_prior_scale)),
                }
                if masked:
                    parts[part] = parts[part].mask(MASK)
                else:
                    parts[part] = gdregs.with_factor(parts[part], MASK.astype(np.float32))
                return gdregs.bound(
                    **parts,
                    likelihood=lambda z: -0.5 * (z - 1.0) ** 2,
                    key=key,
                    num_samples=4,
                    posterior_estimator=posterior_estimator,
                    prior_estimator=prior_estimator,
                ).sum()

            return jnp.stack(jax.grad(value)((0.3, -0.2, 0.4)))

        naive = gradient(True, "naive", "naive")
        found = {
            "mask": gradient(True, "dregs", "gdregs"),
            "factor": gradient(False, "dregs", "gdregs"),
            "biased": gradient(True, "stl", "gdregs") if part == "prior" else 1.2 * naive,
        }
        return found, dict.fromkeys(found, naive)

    assert_unbiased(gradients, None, jax.random.key(0), biased=("biased",))


def test_what_is_masked_may_lie_outside_of_the_prior():
    def value(parameters):
        loc, rate = parameters
        return gdregs.bound(
            dist.Normal(jnp.array([1.0, -9.0]), jnp.exp(loc)),
            dist.Exponential(rate).expand([2]).mask(jnp.array([True, False])),
            lambda z: -(z**2),
            key=jax.random.key(0),
            num_samples=8,
        )

    bounds = jax.jit(value)((jnp.array(-1.0), jnp.array(1.0)))
    (_, by_rate) = jax.jit(jax.grad(lambda p: value(p)[1]))((jnp.array(-1.0), jnp.array(1.0)))
    assert np.all(np.isfinite(bounds))
    assert by_rate == 0


def test_a_point_has_no_score():
    """Its path takes all of v, and the prior has no path."""

    def gradient(key, estimator, prior_estimator="naive"):
        def value(parameters):
            d, s = parameters
            posterior = gdregs.Hierarchy(
                {
                    "z": (dist.Delta(d), ()),
                    "y": (jax.tree_util.Partial(lambda s, z: dist.Normal(z, s), s), ("z",)),
                }
            )
            prior = gdregs.Hierarchy(
                {"z": (dist.Normal(0.3, 1.0), ()), "y": (lambda z: dist.Normal(z, 1.0), ("z",))}
            )
            options = {"posterior_estimator": estimator, "prior_estimator": prior_estimator}
            likelihood = lambda z: -((z["y"] - 2.0) ** 2)  # noqa: E731
            return gdregs.bound(posterior, prior, likelihood, key=key, num_samples=4, **options)

        return jnp.stack(jax.grad(value)((0.5, 0.7)))

    found = {"dregs": functools.partial(gradient, estimator="dregs")}
    found["stl"] = functools.partial(gradient, estimator="stl")
    naive = functools.partial(gradient, estimator="naive")
    assert_unbiased(found, naive, jax.random.key(0), biased=("stl",))
    with pytest.raises(TypeError, match="a single value"):
        gradient(jax.random.key(0), "dregs", "gdregs")


def test_chains_refuse_factors():
    step = lambda previous, _: dist.Normal(previous, 1.0).mask(False)  # noqa: E731
    chain = gdregs.Chain(dist.Normal(0.0, 1.0), step, length=3)
    with pytest.raises(ValueError, match="has a factor on its density"):
        gdregs.bound(chain, chain, lambda z: z.sum(-1), key=jax.random.key(0), num_samples=2)
