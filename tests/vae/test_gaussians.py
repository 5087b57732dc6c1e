"""Gaussians with derivatives written out: the numbers of numpyro and of plain formulas."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from gdregs import Hierarchy
from gdregs.evaluation.windows import window
from gdregs.vae import VAE
from gdregs.vae.networks.gaussians import Gaussian, GaussianHierarchy, _noise


def assert_equal(ours, theirs, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, 1e-300), ours, theirs)


@pytest.mark.parametrize("num_latents", [1, 3])
@pytest.mark.parametrize("shape", [(), (4,), (4, 3), (5, 3)])
def test_noise_is_that_of_the_keys(num_latents, shape):
    plain = jax.random.key(5)
    others = window(plain, 3), window(plain, 3, 1, 2), jax.random.key(5, impl="rbg")
    for key in (plain, *others, jax.random.PRNGKey(5)):
        keys = jax.random.split(key, num_latents)
        np.testing.assert_array_equal(
            _noise(key, num_latents, shape, jnp.float32),
            jnp.stack([jax.random.normal(k, shape) for k in keys]),
        )


@pytest.mark.parametrize("shape", [(4, 3, 2), (3, 2), (2,)])
def test_the_density_is_that_of_numpyro(float64, shape):
    """Value, gradients by all three arguments, and second derivatives; parameters lack axes."""
    rng = np.random.default_rng(0)
    z, loc = jnp.asarray(rng.normal(size=(4, 3, 2))), jnp.asarray(rng.normal(size=shape))
    scale = jnp.exp(jnp.asarray(rng.normal(size=shape)))

    def total(family):
        return lambda z, loc, scale: jnp.sum(jnp.sin(family(loc, scale).log_prob(z)))

    for of in (lambda f: f, lambda f: jax.grad(f, (0, 1, 2)), lambda f: jax.hessian(f, (0, 1, 2))):
        ours, theirs = (of(total(family))(z, loc, scale) for family in (Gaussian, dist.Normal))
        assert_equal(ours, theirs, 1e-9)
    for stopped in ((0,), (1,), (2,), (0, 2)):  # the others are not differentiated at all
        ours, theirs = (
            jax.grad(total(family), stopped)(z, loc, scale) for family in (Gaussian, dist.Normal)
        )
        assert_equal(ours, theirs, 1e-9)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_samples_are_those_of_any_hierarchy(num_layers):
    """Bit for bit, with their derivatives, and through a window on the stream of numbers."""
    model = VAE(6, num_layers=num_layers, latent_size=2, hidden_size=5, key=jax.random.key(0))
    x = (jax.random.uniform(jax.random.key(1), (3, 6)) < 0.5).astype(jnp.float32)
    assert isinstance(model.posterior(x), GaussianHierarchy)
    keys = jax.random.key(2), window(jax.random.key(2), 5, 1, 2), jax.random.key(2, impl="rbg")
    for key in (*keys, jax.random.PRNGKey(2)):

        def draw(model, cls, key=key):
            return cls.sample(model.posterior(x), key, (4,))

        def total(model, cls, draw=draw):
            return sum(jnp.sum(jnp.sin(values)) for values in draw(model, cls).values())

        both = GaussianHierarchy, Hierarchy
        jax.tree.map(np.testing.assert_array_equal, *(draw(model, cls) for cls in both))
        gradients = [eqx.filter_grad(total)(model, cls) for cls in both]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), *gradients)
