"""A likelihood in which samples depend on each other is refused; no other one is."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs

KEY = jax.random.key(0)
WEIGHTS = np.random.default_rng(0).normal(size=(2, 2)).astype(np.float32)


def network(z, axis):
    """Two layers with a normalisation between them."""
    hidden = jax.nn.relu(z @ WEIGHTS)
    hidden = hidden - jnp.mean(hidden, axis=axis, keepdims=True)
    hidden = hidden / jnp.sqrt(1e-3 + jnp.var(hidden, axis=axis, keepdims=True))
    return (
        dist.Normal(jax.nn.gelu(hidden @ WEIGHTS), 1.0).to_event(1).log_prob(np.ones(2, np.float32))
    )


def by_module(z):
    norm = eqx.nn.LayerNorm(2)
    return jnp.sum(jax.vmap(jax.vmap(norm))(z), axis=-1)


COUPLED = {
    "batch norm": lambda z: network(z, (0, 1)),
    "a mean": lambda z: jnp.sum(z - z.mean(0, keepdims=True), axis=-1),
    "attention": lambda z: jnp.sum(jnp.einsum("kbd,jbd->kjb", z, z), axis=1),
    "a softmax": lambda z: jax.nn.softmax(z.sum(-1), axis=0),
    "flattened": lambda z: network(jnp.moveaxis(z, 0, 1), 1).T,
}
COUPLED["a flat batch norm"] = lambda z: jnp.sum(
    (z.reshape(-1, 2) - z.reshape(-1, 2).mean(0, keepdims=True)).reshape(z.shape), axis=-1
)
COUPLED["sorted"] = lambda z: jnp.sum(jnp.sort(z, axis=0), axis=-1)
APART = {
    "layer norm": lambda z: network(z, -1),
    "a module": by_module,
    "over the batch": lambda z: jnp.sum(z - z.mean(1, keepdims=True), axis=-1),
    "features": lambda z: jax.nn.logsumexp(jnp.einsum("kbd,de->kbe", z, WEIGHTS), axis=-1),
    "by sample": lambda z: jax.vmap(lambda one: network(one, 0))(z),
    "reshaped": lambda z: network(z.reshape(-1, 2), -1).reshape(z.shape[:2]),
    "checked": lambda z: eqx.error_if(z, jnp.any(jnp.isnan(z)), "NaN").sum(-1),
}


def printed(z):
    jax.debug.print("mean {}", jnp.mean(z))
    return z.sum(-1)


APART["printed"] = printed


def gradient(likelihood, **options):
    def value(loc):
        parts = dist.Normal(loc, 1.0).to_event(1), dist.Normal(jnp.zeros((3, 2)), 1.0).to_event(1)
        return jnp.sum(gdregs.bound(*parts, likelihood, key=KEY, num_samples=4, **options))

    with jax.numpy_rank_promotion("allow"):
        return jax.eval_shape(jax.grad(value), np.zeros((3, 2), np.float32))


@pytest.mark.parametrize("likelihood", COUPLED.values(), ids=COUPLED)
def test_samples_that_depend_on_each_other_are_refused(likelihood):
    for options in ({}, {"num_gradient_samples": 2}, {"chunk_size": 3}):
        with pytest.raises(ValueError, match="depends on the other samples"):
            gradient(likelihood, **options)
    naive = {"posterior_estimator": "naive", "prior_estimator": "naive"}
    gradient(likelihood, **naive)
    with pytest.raises(ValueError, match="depends on the other samples"):
        gradient(likelihood, **naive, num_gradient_samples=2)


@pytest.mark.parametrize("likelihood", APART.values(), ids=APART)
def test_samples_that_do_not_are_taken(likelihood):
    gradient(likelihood)
    gradient(likelihood, num_gradient_samples=2)
