"""Gaussians with derivatives written out: the numbers of numpyro and of plain formulas."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from filled import filled
from gdregs import Hierarchy
from gdregs.vae import VAE
from gdregs.vae.networks.gaussians import Gaussian, GaussianHierarchy


@pytest.mark.parametrize("shape", [(3, 2, 2), (2, 2), (2,)])
def test_the_density_is_that_of_numpyro(float64, shape):
    """Value, gradients by all three arguments, and second derivatives; parameters lack axes."""
    rng = np.random.default_rng(0)
    arguments = rng.normal(size=(3, 2, 2)), rng.normal(size=shape), np.exp(rng.normal(size=shape))

    def derivatives(family):
        def total(z, loc, scale):
            return jnp.sum(jnp.sin(family(loc, scale).log_prob(z)))

        every = jax.value_and_grad(total, (0, 1, 2)), jax.hessian(total, (0, 1, 2))
        # The others are not differentiated at all.
        some = [jax.grad(total, stopped) for stopped in ((0,), (1,), (2,), (0, 2))]
        return lambda arguments: [of(*arguments) for of in (*every, *some)]

    both = jax.jit(lambda arguments: [derivatives(of)(arguments) for of in (Gaussian, dist.Normal)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-9, 1e-300), *both(arguments))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_samples_are_those_of_any_hierarchy(num_layers):
    """With their derivatives."""
    x = jax.device_put((np.random.default_rng(1).random((3, 6)) < 0.5).astype(np.float32))

    def draw(model, cls, key):
        posterior = model.posterior(x)
        assert isinstance(posterior, GaussianHierarchy)
        return cls.sample(posterior, key, (4,))

    @eqx.filter_grad
    def gradient(model, cls, key):
        return sum(jnp.sum(jnp.sin(values)) for values in draw(model, cls, key).values())

    sizes = {"num_layers": num_layers, "latent_size": 2, "hidden_size": 5}
    model = filled(lambda: VAE(6, **sizes, key=jax.random.key(0)))

    @jax.jit
    def both(model, key):
        return [
            (draw(model, cls, key), gradient(model, cls, key))
            for cls in (GaussianHierarchy, Hierarchy)
        ]

    (ours, our_gradient), (theirs, their_gradient) = both(model, jax.random.key(2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6, 1e-6), ours, theirs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), our_gradient, their_gradient
    )
