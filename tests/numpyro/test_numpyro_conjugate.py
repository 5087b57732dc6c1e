"""The gradients of `gdregs.numpyro.Bound` on conjugate models, against exact ones."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import betaln, digamma, gammaln

import gdregs
from gdregs.numpyro.bound import Bound
from means import assert_unbiased
from numpyro_programs import DATA, traced


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


def gamma_poisson(size):
    counts = np.array([3, 5, 2, 8, 0, 4, 1, 6], np.float32)

    def model(subsample_size):
        with numpyro.plate("data", 8, subsample_size=subsample_size) as index:
            rate = numpyro.sample("z", dist.Gamma(numpyro.param("a", 2.0), numpyro.param("b", 0.7)))
            numpyro.sample("x", dist.Poisson(rate), obs=jnp.asarray(counts)[index])

    def guide(subsample_size):
        with numpyro.plate("data", 8, subsample_size=subsample_size) as index:
            shape = numpyro.param("shape", 1.5) + 0.9 * jnp.asarray(counts)[index]
            numpyro.sample("z", dist.Gamma(shape, numpyro.param("rate", 1.6)))

    def elbo(params):
        a, b, rate = params["a"], params["b"], params["rate"]
        shape = params["shape"] + 0.9 * counts
        mean, log_mean = shape / rate, digamma(shape) - jnp.log(rate)
        likelihood = counts * log_mean - mean - gammaln(counts + 1)
        prior = a * jnp.log(b) - gammaln(a) + (a - 1) * log_mean - b * mean
        entropy = shape - jnp.log(rate) + gammaln(shape) + (1 - shape) * digamma(shape)
        return jnp.sum(likelihood + prior + entropy)

    params = {"a": 2.0, "b": 0.7, "shape": 1.5, "rate": 1.6}
    return model, guide, size, params, elbo


def beta_bernoulli():
    flips = np.array([1, 1, 0, 1, 1, 0, 1, 1], np.float32)

    def model(_):
        p = numpyro.sample("p", dist.Beta(numpyro.param("a", 2.0), numpyro.param("b", 3.0)))
        with numpyro.plate("data", 8):
            numpyro.sample("x", dist.Bernoulli(p), obs=flips)

    def guide(_):
        numpyro.sample("p", dist.Beta(numpyro.param("c", 4.0), numpyro.param("d", 2.5)))

    def elbo(params):
        a, b, c, d = (params[name] for name in "abcd")
        log_p, log_not = digamma(c) - digamma(c + d), digamma(d) - digamma(c + d)
        joint = (a + 5) * log_p + (b + 1) * log_not - betaln(a, b)
        return joint - (c - 1) * log_p - (d - 1) * log_not + betaln(c, d)

    return model, guide, None, {"a": 2.0, "b": 3.0, "c": 4.0, "d": 2.5}, elbo


def normal_normal(size):
    x = DATA[:8]

    def model(subsample_size):
        with numpyro.plate("data", 8, subsample_size=subsample_size) as index:
            top = numpyro.sample("top", dist.Normal(numpyro.param("m", 0.3), 1.0))
            z = numpyro.sample("z", dist.Normal(numpyro.param("w", 0.8) * top, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=jnp.asarray(x)[index])

    def guide(subsample_size):
        with numpyro.plate("data", 8, subsample_size=subsample_size) as index:
            z = numpyro.sample(
                "z", dist.Normal(numpyro.param("k", 0.4) * jnp.asarray(x)[index], 0.6)
            )
            numpyro.sample("top", dist.Normal(numpyro.param("c", 0.2) * z, 0.8))

    def elbo(params):
        m, w, k, c = (params[name] for name in "mwkc")
        mean, variance = k * x, 0.6**2
        top, top_variance = c * mean, (c**2) * variance + 0.8**2
        residual = (mean - w * top) ** 2 + (1 - w * c) ** 2 * variance + (w * 0.8) ** 2
        squares = (x - mean) ** 2 + variance + residual + (top - m) ** 2 + top_variance
        return jnp.sum(-squares / 2)  # up to a constant: the entropies do not depend on anything

    return model, guide, size, {"m": 0.3, "w": 0.8, "k": 0.4, "c": 0.2}, elbo


CONJUGATE = {
    "Gamma-Poisson, subsampled": gamma_poisson(3),
    "Beta-Bernoulli": beta_bernoulli(),
    "Normal-Normal": normal_normal(None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONJUGATE)
def test_gradients_of_conjugate_models_are_exact(name):
    """Of the ELBO with K = 4; the wake-phase gradient is another one: caught."""
    model, guide, size, params, elbo = CONJUGATE[name]

    def gradient(**options):
        objective = Bound(4, gdregs.ELBO(), **options)

        def draw(key):
            return jax.grad(lambda p: objective.loss(key, p, model, guide, size))(traced(params))

        return draw

    def exact(key):
        return jax.grad(lambda p: -elbo(p))(traced(params))

    suspects = {
        "papers": gradient(posterior_estimator="dregs", prior_estimator="gdregs"),
        "wake": gradient(posterior_estimator="rws"),
    }
    assert_unbiased(suspects, exact, jax.random.key(2), biased=("wake",))
