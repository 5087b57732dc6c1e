"""Unbiasedness by statistics: 10^5 draws, fixed keys, in standard errors; and what must fail it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
import models
import reference
from means import largest_z
from models import OBJECTIVES

DRAWS = 100_000
NUM_SAMPLES = 4


class ParametersStopped:
    """The mistake that is common elsewhere: the distribution's parameters are stopped.

    Its density passes no gradient from z2 to z1 through the parameters of q(z2|z1).
    """

    def __init__(self, hierarchy):
        self.hierarchy = hierarchy

    def sample(self, key, sample_shape):
        return self.hierarchy.sample(key, sample_shape)

    def log_prob(self, z):
        total = 0.0
        for name, parents in self.hierarchy.parents:
            normal = self.hierarchy.conditional(name, parents, z).base_dist
            loc, scale = jax.lax.stop_gradient((normal.loc, normal.scale))
            total = total + dist.Normal(loc, scale).to_event(1).log_prob(z[name])
        return total


jax.tree_util.register_pytree_node(
    ParametersStopped,
    lambda p: ((p.hierarchy,), None),
    lambda _, children: ParametersStopped(*children),
)


@gdregs.reexpress.register(ParametersStopped)
def _(distribution, z):
    return gdregs.reexpress(distribution.hierarchy, z)


def gradient_fn(objective, pair, wrap=lambda q: q, **options):
    phi, theta, lam, x = reference.init(jax.random.key(1), batch=1)
    phi, theta, lam, x = jax.tree.map(lambda a: a.astype("float32"), (phi, theta, lam, x))

    def total(parameters, key):
        phi, theta, lam = parameters
        return jnp.sum(
            gdregs.bound(
                wrap(models.posterior(phi, x)),
                models.prior(theta),
                models.likelihood(lam, x),
                key=key,
                num_samples=NUM_SAMPLES,
                objective=OBJECTIVES[objective],
                posterior_estimator=pair[0],
                prior_estimator=pair[1],
                **options,
            )
        )

    return lambda key: jax.grad(total)((phi, theta, lam), key)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_unbiased_pair_agrees_with_naive_and_biased_ones_do_not(objective):
    unbiased = {
        "naive+gdregs": (("naive", "gdregs"), {}),
        "dregs+naive": (("dregs", "naive"), {}),
        "dregs+gdregs": (("dregs", "gdregs"), {}),
        "dregs+mixed": (("dregs", gdregs.mixed_gdregs(0.3)), {}),
        "dregs+gdregs, M = 2": (("dregs", "gdregs"), {"num_gradient_samples": 2}),
        "naive+naive, M = 1": (("naive", "naive"), {"num_gradient_samples": 1}),
        "rws-dregs+gdregs": (("rws-dregs", "gdregs"), {}),
    }
    suspects = {"stl+gdregs": (("stl", "gdregs"), {})}
    estimators = {
        name: gradient_fn(objective, pair, **options)
        for name, (pair, options) in {**unbiased, **suspects}.items()
    }
    estimators["parameters stopped"] = gradient_fn(
        objective, ("dregs", "gdregs"), wrap=ParametersStopped
    )
    naive = gradient_fn(objective, ("naive", "naive"))
    references = dict.fromkeys(estimators, naive)
    # RWS updates the posterior along another gradient; its doubly reparameterized form must agree.
    references["rws-dregs+gdregs"] = gradient_fn(objective, ("rws", "naive"))
    largest = largest_z(
        estimators, references, jax.random.key(2), DRAWS, chunk_size=1000, false_alarm=1e-3
    )
    for name in unbiased:
        assert largest[name] < 1, (name, largest[name])
    if objective == "elbo":
        assert largest["stl+gdregs"] < 1
    else:
        assert largest["stl+gdregs"] > 2
    assert largest["parameters stopped"] > 2


@pytest.mark.slow
def test_interpolation_lies_between_dregs_and_rws_dregs():
    """(1 - alpha) DReGs + alpha RWS-DReGs, draw by draw."""
    key = jax.random.key(0)
    ends = [gradient_fn("iwae", (name, "naive"))(key) for name in ("dregs", "rws-dregs")]
    between = gradient_fn("iwae", (gdregs.interpolated_dregs(0.3), "naive"))(key)
    for part in (0, 1):
        expected = jax.tree.map(lambda a, b: 0.7 * a + 0.3 * b, ends[0][part], ends[1][part])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), between[part], expected
        )
    half = gradient_fn("iwae", (gdregs.interpolated_dregs(0.5), "naive"))(key)
    stl = gradient_fn("iwae", ("stl", "naive"))(key)
    differences = jax.tree.map(lambda a, b: jnp.max(jnp.abs(2 * a - b)), half[0], stl[0])
    assert max(jax.tree.leaves(differences)) < 1e-4
