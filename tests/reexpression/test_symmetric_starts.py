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

DRAWS = 10_000


@pytest.fixture(autouse=True, scope="module")
def unvalidated():
    """numpyro would look at concrete arguments one operation at a time."""
    with numpyro.validation_enabled(False):
        yield


def low_rank(factor):
    return dist.LowRankMultivariateNormal(jnp.arange(3.0), factor, jnp.array([0.5, 1.0, 2.0]))


def test_a_low_rank_path_moves_with_its_factor_and_has_the_right_mean():
    r"""$\nabla_W E[z^T A z] = (A + A^T) W$: 0 at W = 0, as a mean and not for every draw."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(3, 3)).astype(np.float32)
    factors = np.float32([0.0, 0.7])[:, None, None] * rng.normal(size=(3, 2)).astype(np.float32)

    @jax.jit
    @jax.vmap
    def gradients(factor):
        z = low_rank(factor).sample(jax.random.key(3), (DRAWS,))

        def of_one(z):
            def value(factor):
                moved = gdregs.reexpress(low_rank(factor), z[None])[0]
                return moved @ matrix @ moved

            return jax.grad(value)(factor)

        return jax.vmap(of_one)(z)

    for factor, found in zip(factors, np.asarray(gradients(factors), float), strict=True):
        error = found.std(axis=0) / DRAWS**0.5
        assert (error > 0).all()
        assert np.max(np.abs(found.mean(axis=0) - (matrix + matrix.T) @ factor) / error) < 4.5


def test_the_noise_of_a_sample_is_standard_normal_independent_of_it_and_always_the_same():
    @jax.jit
    def draw(z):
        return noise_of(z, 2), noise_of(z, 2), noise_of(z[5:7], 2)

    z = np.random.default_rng(0).normal(size=(DRAWS, 3)).astype(np.float32)
    noise, again, part = map(np.asarray, draw(z))
    np.testing.assert_array_equal(noise, again)
    np.testing.assert_array_equal(noise[5:7], part)
    assert len(np.unique(noise[:, 0])) > 0.99 * DRAWS
    largest = 4 / DRAWS**0.5
    assert np.all(np.abs(np.mean(noise, axis=0)) < largest)
    assert np.all(np.abs(np.var(noise, axis=0) - 1) < largest * 2**0.5)
    together = np.concatenate([z, z**2 - 1, noise, noise**2 - 1], axis=1)
    correlations = np.corrcoef(together.T) - np.eye(10)
    assert np.max(np.abs(correlations)) < largest


def test_a_correlation_moves_from_none():
    """A full covariance and a copula at the identity."""
    z = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)

    def normal(below):
        return dist.MultivariateNormal(jnp.zeros(2), scale_tril=jnp.eye(2).at[1, 0].set(below))

    def copula(below):
        return dist.GaussianCopula(
            dist.Normal(jnp.zeros(2), 1.0), correlation_cholesky=jnp.eye(2).at[1, 0].set(below)
        )

    @jax.jit
    def slopes(below):
        return [
            jax.jacfwd(lambda below, make=make: gdregs.reexpress(make(below), jnp.asarray(z)))(
                below
            )
            for make in (normal, copula)
        ]

    for slope in map(np.asarray, slopes(0.0)):
        assert (slope[:, 1] != 0).all()


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
        return np.mean(result.losses[-300:]), result.params["auto_cov_factor"]

    loss, factor = final_loss(gdregs.numpyro.Bound(objective=gdregs.ELBO()))
    assert np.max(np.abs(factor)) > 1
    assert loss < final_loss(Trace_ELBO())[0]
