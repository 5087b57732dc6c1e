"""Paths do not vanish where training usually begins."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoBatchedLowRankMultivariateNormal

import gdregs
from gdregs.reexpression.noise import noise_of

DRAWS = 20_000


def low_rank(factor):
    return dist.LowRankMultivariateNormal(jnp.arange(3.0), factor, jnp.array([0.5, 1.0, 2.0]))


@pytest.mark.parametrize("start", [0.0, 0.7])
def test_a_low_rank_path_moves_with_its_factor_and_has_the_right_mean(start):
    r"""$\nabla_W E[z^T A z] = (A + A^T) W$: 0 at W = 0, as a mean and not for every draw."""
    factor = start * jax.random.normal(jax.random.key(1), (3, 2))
    matrix = jax.random.normal(jax.random.key(2), (3, 3))
    z = low_rank(factor).sample(jax.random.key(3), (DRAWS,))

    @jax.jit
    def gradients(factor):
        def of_one(z):
            def value(factor):
                moved = gdregs.reexpress(low_rank(factor), z[None])[0]
                return moved @ matrix @ moved

            return jax.grad(value)(factor)

        return jax.vmap(of_one)(z)

    found = gradients(factor)
    error = jnp.std(found, axis=0) / DRAWS**0.5
    assert jnp.all(error > 0)
    assert jnp.max(jnp.abs(jnp.mean(found, axis=0) - (matrix + matrix.T) @ factor) / error) < 4


def test_the_noise_of_a_sample_is_standard_normal_independent_of_it_and_always_the_same():
    z = jax.random.normal(jax.random.key(0), (DRAWS, 3))
    noise = noise_of(z, 2)
    np.testing.assert_array_equal(noise, noise_of(z, 2))
    np.testing.assert_array_equal(noise[5:7], noise_of(z[5:7], 2))
    assert len(np.unique(np.asarray(noise[:, 0]))) > 0.99 * DRAWS
    largest = 4 / DRAWS**0.5
    assert jnp.all(jnp.abs(jnp.mean(noise, axis=0)) < largest)
    assert jnp.all(jnp.abs(jnp.var(noise, axis=0) - 1) < largest * 2**0.5)
    together = jnp.concatenate([z, z**2 - 1, noise, noise**2 - 1], axis=1)
    correlations = jnp.corrcoef(together.T) - jnp.eye(10)
    assert jnp.max(jnp.abs(correlations)) < largest


def test_a_correlation_moves_from_none():
    """A full covariance and a copula at the identity."""
    z = jax.random.normal(jax.random.key(0), (5, 2))

    def normal(below):
        return dist.MultivariateNormal(jnp.zeros(2), scale_tril=jnp.eye(2).at[1, 0].set(below))

    def copula(below):
        return dist.GaussianCopula(
            dist.Normal(jnp.zeros(2), 1.0), correlation_cholesky=jnp.eye(2).at[1, 0].set(below)
        )

    for make in (normal, copula):
        slope = jax.jacfwd(lambda below, make=make: gdregs.reexpress(make(below), z))(0.0)
        assert jnp.all(slope[:, 1] != 0)


@pytest.mark.slow
def test_svi_leaves_the_start_of_a_low_rank_guide():
    def model():
        with numpyro.plate("batch", 3):
            covariance = jnp.eye(4) + 0.9 * (1 - jnp.eye(4))
            numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(4), covariance))

    def final_loss(loss):
        guide = AutoBatchedLowRankMultivariateNormal(model, batch_ndim=1)
        svi = SVI(model, guide, numpyro.optim.Adam(0.01), loss)
        result = svi.run(jax.random.key(0), 1500, progress_bar=False)
        return jnp.mean(result.losses[-300:]), result.params["auto_cov_factor"]

    loss, factor = final_loss(gdregs.numpyro.Bound(objective=gdregs.ELBO()))
    assert jnp.max(jnp.abs(factor)) > 1
    assert loss < final_loss(Trace_ELBO())[0]
