"""Unbiasedness by statistics: fixed keys, in standard errors; and what must fail it."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

import gdregs
import models
import reference
from means import assert_unbiased
from models import OBJECTIVES

UNBIASED = (
    ("naive", "gdregs"),
    ("dregs", "naive"),
    ("dregs", "gdregs"),
    ("dregs", "mixed 0.3"),
    ("rws-dregs", "gdregs"),
)
NAIVE, BOTH = ("naive", "naive"), ("dregs", "gdregs")
WAKE, STL = ("rws", "naive"), ("stl", "gdregs")


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


@pytest.mark.slow
def test_every_unbiased_pair_agrees_with_naive_and_biased_ones_do_not():
    *parameters, x = reference.init(1, batch=1, latents="ab")

    def draw(key):
        def gradient(number, row, wrap, options):
            def total(phi, theta, lam):
                return jnp.sum(
                    gdregs.bound(
                        wrap(models.posterior(phi, x)),
                        models.prior(theta),
                        models.likelihood(lam, x),
                        key=key,
                        num_samples=3,
                        objective=models.AnyOf(number),
                        posterior_estimator=row[0],
                        prior_estimator=row[1],
                        **options,
                    )
                )

            return jax.grad(total, argnums=(0, 1, 2))(*parameters)

        def of_all(pairs, wrap=lambda q: q, **options):
            """By pair, each with a leading axis of objectives."""
            of_pairs = jax.vmap(lambda n, row: gradient(n, row, wrap, options), (None, 0))
            of_objectives = jax.vmap(of_pairs, (0, None), 1)
            found = of_objectives(jnp.arange(len(OBJECTIVES)), models.rows_of(pairs))
            return {
                pair: jax.tree.map(lambda leaf, j=j: leaf[j], found) for j, pair in enumerate(pairs)
            }

        def by_objective(case, gradients):
            return {
                f"{case}, {name}": jax.tree.map(lambda leaf, i=i: leaf[i], gradients)
                for i, name in enumerate(OBJECTIVES)
            }

        whole = of_all((*UNBIASED, NAIVE, WAKE, STL))
        found = {str(pair): whole[pair] for pair in UNBIASED}
        for M in (1, 2):
            kept = of_all((NAIVE, BOTH), num_gradient_samples=M)
            found |= {f"{pair}, M = {M}": kept[pair] for pair in (NAIVE, BOTH)}
        # RWS updates the posterior along another gradient; its doubly reparameterized form must
        # agree.
        references = {case: whole[WAKE if "rws" in case else NAIVE] for case in found}
        stopped = of_all([BOTH], wrap=ParametersStopped)[BOTH]
        for case, gradients in (("parameters stopped", stopped), ("stl", whole[STL])):
            found |= by_objective(case, gradients)
            references |= by_objective(case, whole[NAIVE])
        return found, references

    biased = [
        *(f"parameters stopped, {name}" for name in OBJECTIVES),
        *(f"stl, {name}" for name in OBJECTIVES if name != "elbo"),
    ]
    assert_unbiased(draw, None, jax.random.key(2), biased=biased, most_draws=128_000)
