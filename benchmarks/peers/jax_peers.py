"""Estimators of libraries that are built on JAX: key -> the bound's gradient by (phi, theta)."""

import jax
import jax.numpy as jnp
import problem


def _ascent(loss):
    """The gradient of minus a loss `(phi, theta, key)`."""

    def draw(key):
        gradients = jax.grad(loss, argnums=(0, 1))(*problem.parameters(), key)
        return jax.tree.map(jnp.negative, gradients)

    return draw


def numpyro_renyi():
    import numpyro
    from numpyro.infer import RenyiELBO

    objective = RenyiELBO(alpha=0, num_particles=problem.NUM_SAMPLES)

    def loss(phi, theta, key):
        def model():
            z = numpyro.sample("z", problem.normal(theta))
            numpyro.factor("x", problem.likelihood(z))

        def guide():
            numpyro.sample("z", problem.normal(phi))

        return objective.loss(key, {}, model, guide)

    return _ascent(loss)


def tfp_doubly_reparameterized():
    from tensorflow_probability.substrates import jax as tfp

    def normal(part):
        return tfp.distributions.MultivariateNormalDiag(part["loc"], jnp.exp(part["log_scale"]))

    def loss(phi, theta, key):
        return tfp.vi.monte_carlo_variational_loss(
            lambda z: normal(theta).log_prob(z) + problem.likelihood(z),
            normal(phi),
            importance_sample_size=problem.NUM_SAMPLES,
            gradient_estimator=tfp.vi.GradientEstimators.DOUBLY_REPARAMETERIZED,
            stopped_surrogate_posterior=normal(jax.lax.stop_gradient(phi)),
            seed=key,
        )

    return _ascent(loss)


def flowjax_stl():
    import equinox as eqx
    from flowjax.distributions import Normal
    from flowjax.train.losses import ElboLoss

    def loss(phi, theta, key):
        objective = ElboLoss(
            lambda z: problem.normal(theta).log_prob(z) + problem.likelihood(z),
            num_samples=1,
            stick_the_landing=True,
        )
        q = Normal(phi["loc"], jnp.exp(phi["log_scale"]))
        return objective(*eqx.partition(q, eqx.is_inexact_array), key)

    return _ascent(loss)
