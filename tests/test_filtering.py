"""The filtering variational objective: its value, and what its estimators have the mean of."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
from chains import Decay, kalman
from fivo import PARAMETERS, POSTERIOR, K, T, X, chains
from means import assert_unbiased


def objective(parameters, key, x=X, num_samples=K, **options):
    posterior, prior = chains(parameters, x)

    def likelihood(z, x):
        return dist.Normal(z, jnp.exp(parameters["log_x"])).log_prob(x)

    with jax.numpy_rank_promotion("allow"):
        return jnp.sum(
            gdregs.fivo(
                posterior, prior, likelihood, x, key=key, num_samples=num_samples, **options
            )
        )


def gradient(posterior, resample_every, **options):
    options |= {"posterior_estimator": posterior, "resample_every": resample_every}
    return lambda key: jax.grad(objective)(PARAMETERS, key, **options)


@pytest.mark.slow
@pytest.mark.parametrize("resample_every", [1, 3])
def test_estimators_have_the_mean_of_the_usual_gradient(resample_every):
    """STL does not."""
    suspects = {
        name: gradient(name, resample_every, prior_estimator="naive") for name in ("dregs", "stl")
    }
    if resample_every == 1:
        suspects["gdregs"] = gradient("dregs", 1, prior_estimator="gdregs")
        suspects["mix"] = gradient("naive", 1, prior_estimator="gdregs-mix")
    usual = gradient("naive", resample_every)
    assert_unbiased(suspects, usual, jax.random.key(0), biased=("stl",))


@pytest.mark.slow
def test_dregs_varies_less_by_the_posterior():
    both = gradient("naive", 1), gradient("dregs", 1, prior_estimator="naive")
    moments = gdregs.gradient_moments(
        lambda key: [of(key) for of in both], jax.random.key(0), 2000, chunk_size=1000
    )
    usual, dregs = (sum(of[name] for name in POSTERIOR) for of in moments.variance)
    assert dregs < 0.9 * usual


def test_the_gradient_is_along_the_paths_of_the_particles(float64):
    """With the particles held, `naive` is the derivative of F, by differences."""
    options = {"posterior_estimator": "naive", "prior_estimator": "naive"}
    names, step = list(PARAMETERS), 1e-6

    @jax.jit
    def derivatives(start, x):
        def value(numbers):
            parameters = dict(zip(names, numbers, strict=True))
            return objective(parameters, jax.random.key(1), x, **options)

        # A step this small moves no particle to another ancestor.
        steps = step * jnp.eye(len(names))
        up, down = jnp.split(jax.vmap(value)(start[None] + jnp.concatenate([steps, -steps])), 2)
        return (up - down) / (2 * step), jax.grad(value)(start)

    start = np.array([PARAMETERS[name] for name in names])
    by_differences, found = derivatives(start, np.asarray(X, float))
    np.testing.assert_allclose(found, by_differences, rtol=1e-6, err_msg=str(names))


def test_one_block_is_the_importance_weighted_bound():
    @jax.jit
    def draws(key):
        posterior, prior = chains(PARAMETERS, X)

        def likelihood(z):
            densities = dist.Normal(z, jnp.exp(PARAMETERS["log_x"])).log_prob(X.T[None])
            return jnp.sum(densities, axis=-1)

        def bound(key):
            return jnp.sum(gdregs.bound(posterior, prior, likelihood, key=key, num_samples=K))

        keys = jax.random.split(key, (2, 1000))
        with jax.numpy_rank_promotion("allow"):
            filtered = jax.vmap(lambda key: objective(PARAMETERS, key, resample_every=T))(keys[0])
            return filtered, jax.vmap(bound)(keys[1])

    filtered, whole = map(np.asarray, draws(jax.random.key(0)))
    error = np.hypot(np.std(filtered), np.std(whole)) / len(whole) ** 0.5
    assert abs(np.mean(filtered) - np.mean(whole)) < 4 * error


def test_weights_of_a_filter_have_the_mean_of_the_likelihood():
    """Exp F is unbiased for p(x), exactly if ancestors are chosen by their weights."""
    x, factor, noise = np.array([1.5, -1.0, 1.2, -1.4], np.float32), 0.9, 0.6
    exact, _ = kalman(x, factor, 0.5, noise)

    def weight(key):
        prior = gdregs.Chain(dist.Normal(0.0, 1.0), Decay(factor), length=len(x))
        bound = gdregs.fivo(
            prior, prior, lambda z, x: dist.Normal(z, noise).log_prob(x), x, key=key, num_samples=3
        )
        return jnp.exp(bound - exact)

    found = np.asarray(jax.jit(jax.vmap(weight))(jax.random.split(jax.random.key(0), 40_000)))
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - 1) < 4.5 * error
    assert error < 0.03


@pytest.mark.slow
def test_a_filter_is_tighter_than_one_block_over_a_long_series():
    x = np.sin(np.arange(120.0))[:, None]
    filtered, whole = jax.jit(
        lambda x: [
            objective(PARAMETERS, jax.random.key(0), x, 16, resample_every=every)
            for every in (1, 120)
        ]
    )(x)
    assert float(filtered) > float(whole) + 2


def test_what_is_refused():
    def refusals():
        posterior, prior = chains(PARAMETERS, X)
        options = {"key": jax.random.key(0), "num_samples": 4}

        def likelihood(z, x):
            return -((z - x[None]) ** 2)

        with pytest.raises(TypeError, match=r"prior must be a gdregs\.Chain; got Normal"):
            gdregs.fivo(posterior, dist.Normal(0.0, 1.0), likelihood, X, **options)
        backward = gdregs.Chain(
            posterior.initial, posterior.transition, length=T, inputs=X, reverse=True
        )
        with pytest.raises(ValueError, match="posterior: a particle filter runs forward"):
            gdregs.fivo(backward, prior, likelihood, X, **options)
        longer = gdregs.Chain(prior.initial, prior.transition, length=5)
        with pytest.raises(ValueError, match="posterior has T = 4 steps and prior 5"):
            gdregs.fivo(posterior, longer, likelihood, X, **options)
        with pytest.raises(ValueError, match="observations must have the leading axis T = 4"):
            gdregs.fivo(posterior, prior, likelihood, X[1:], **options)
        with pytest.raises(ValueError, match="with resample_every above 1 only 'naive'"):
            gdregs.fivo(
                posterior,
                prior,
                likelihood,
                X,
                resample_every=2,
                prior_estimator="gdregs",
                **options,
            )
        with pytest.raises(ValueError, match="resample_every must be at least 1"):
            gdregs.fivo(posterior, prior, likelihood, X, resample_every=0, **options)

    jax.eval_shape(refusals)


@pytest.mark.parametrize("options", [{}, {"posterior_estimator": "naive"}, {"resample_every": 2}])
def test_a_parameter_that_hides_in_a_transition_is_refused(options):
    """It would be counted twice: in the live density, and in the one whose parameters are not."""

    def slope(hide, factor):
        def step(factor, z, u):
            return dist.Normal(factor * z, 0.5)

        transition = (
            (lambda z, u: step(factor, z, u)) if hide else jax.tree_util.Partial(step, factor)
        )
        posterior, prior = chains(PARAMETERS, X)
        prior = gdregs.Chain(prior.initial, transition, length=T)
        with jax.numpy_rank_promotion("allow"):
            return jnp.sum(
                gdregs.fivo(
                    posterior, prior, lambda z, x: -((z - x) ** 2), X, key=jax.random.key(0),
                    num_samples=4, **options,
                )
            )  # fmt: skip

    jax.eval_shape(jax.grad(lambda factor: slope(False, factor)), 0.7)
    with pytest.raises(ValueError, match="The prior uses a parameter that is being differ"):
        jax.eval_shape(jax.grad(lambda factor: slope(True, factor)), 0.7)
