"""The contract of `bound`: shapes, transformations, weights that are 0, streams, and errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
import models
import reference
from models import OBJECTIVES, bound_gradients

KEY = jax.random.key(7)
FAST = ("iwae",)


def normal_bound(phi, theta, x, key=KEY, **options):
    @jax.jit
    def compiled(phi, theta, x, key):
        return gdregs.bound(
            *models.normal_model(phi, theta, x), key=key, **{"num_samples": 6, **options}
        )

    return compiled(phi, theta, x, key)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("options", [{}, {"num_gradient_samples": 2}, {"chunk_size": 4}])
def test_shapes(batch, options):
    x = jnp.linspace(-1, 1, int(np.prod(batch))).reshape(batch)
    value = normal_bound(jnp.zeros(batch), jnp.zeros(batch), x, **options)
    assert value.shape == batch
    assert value.dtype == jnp.float32


def test_the_value_is_the_objective_of_the_log_weights(float64):
    x = jnp.array([0.3, -1.0])
    parts = models.normal_model(x / 2, jnp.zeros(2), x)
    log_weights = gdregs.log_weights(*parts, key=KEY, num_samples=5)
    z = parts[0].sample(KEY, (5,))
    by_hand = parts[2](z) + parts[1].log_prob(z) - parts[0].log_prob(z)
    np.testing.assert_allclose(log_weights, by_hand, rtol=1e-12)
    for objective in OBJECTIVES.values():
        value = normal_bound(x / 2, jnp.zeros(2), x, num_samples=5, objective=objective)
        with jax.numpy_rank_promotion("allow"):
            np.testing.assert_allclose(value, objective(log_weights), rtol=1e-12)


def test_float64(float64):
    x = jnp.array([0.3, -1.0])
    gradient = jax.grad(lambda p: jnp.sum(normal_bound(p, p / 2, x, num_gradient_samples=3)))(x)
    assert gradient.dtype == normal_bound(x, x, x).dtype == "float64"


@pytest.mark.parametrize("options", [{}, {"num_gradient_samples": 2}, {"chunk_size": 4}])
def test_jit_vmap_and_grad_agree(float64, options):
    x = jnp.array([0.3, -1.0, 2.0])
    phi, theta = x / 2, 0.1 * x

    def single(phi, theta, x, key):
        return normal_bound(phi, theta, x, key=key, **options)

    keys = jax.random.split(KEY, 3)
    one_by_one = [jax.grad(single)(*row) for row in zip(phi, theta, x, keys, strict=True)]
    together = jax.jit(jax.vmap(jax.grad(single)))(phi, theta, x, keys)
    np.testing.assert_allclose(together, jnp.stack(one_by_one), rtol=1e-10)
    # Forward mode sees the same estimator.
    _, forward = jax.jvp(lambda p: single(p, theta[0], x[0], keys[0]), (phi[0],), (1.0,))
    np.testing.assert_allclose(forward, one_by_one[0], rtol=1e-10)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_sample(float64, name):
    """At K = 1 every objective is the ELBO, and dregs is stl."""
    phi, theta, lam, x = reference.init(jax.random.key(1))
    if name == "own":
        pytest.skip("this user-defined objective is another function at K = 1")
    arguments = (phi, theta, lam, x, KEY, 1)
    value, gradients = bound_gradients(*arguments, name, ("dregs", "gdregs"))
    expected_value, expected = bound_gradients(*arguments, "elbo", ("stl", "gdregs"))
    np.testing.assert_allclose(value, expected_value, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), gradients, expected)


@pytest.mark.parametrize(
    ("name", "chunk_size", "num_gradient_samples"),
    [
        *(
            pytest.param(name, 5, kept, marks=() if name in FAST else pytest.mark.slow)
            for name in OBJECTIVES
            for kept in (None, 3)
        ),
        pytest.param("iwae", 1, None, marks=pytest.mark.slow),
        pytest.param("iwae", 6, 3, marks=pytest.mark.slow),
        ("iwae", 20, 3),
    ],
)
def test_streaming_changes_nothing(float64, name, chunk_size, num_gradient_samples):
    phi, theta, lam, x = reference.init(jax.random.key(1))
    arguments = (phi, theta, lam, x, KEY, 12, name, ("dregs", "gdregs"))
    options = {"num_gradient_samples": num_gradient_samples}
    value, gradients = bound_gradients(*arguments, **options)
    streamed_value, streamed = bound_gradients(*arguments, chunk_size=chunk_size, **options)
    np.testing.assert_allclose(streamed_value, value, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), streamed, gradients)


@pytest.mark.slow
def test_streamed_log_weights_and_log_marginal(float64):
    phi, theta, lam, x = reference.init(jax.random.key(1))
    parts = models.posterior(phi, x), models.prior(theta), models.likelihood(lam, x)
    whole = gdregs.log_weights(*parts, key=KEY, num_samples=23)
    streamed = gdregs.log_weights(*parts, key=KEY, num_samples=23, chunk_size=5)
    np.testing.assert_allclose(streamed, whole, rtol=1e-12)
    marginal = gdregs.log_marginal(*parts, key=KEY, num_samples=23, chunk_size=5)
    np.testing.assert_allclose(marginal, reference.iwae(whole), rtol=1e-12)
    unstreamed = gdregs.log_marginal(*parts, key=KEY, num_samples=23, chunk_size=None)
    np.testing.assert_allclose(unstreamed, marginal, rtol=1e-12)


def test_log_marginal_has_the_gradient_zero_and_log_weights_the_naive_one(float64):
    x = jnp.array(0.5)
    options = {"key": KEY, "num_samples": 6}
    gradient = jax.grad(lambda p: gdregs.log_marginal(*models.normal_model(p, 0.0, x), **options))(
        0.2
    )
    assert gradient == 0
    naive = jax.grad(
        lambda p: normal_bound(p, p, x, posterior_estimator="naive", prior_estimator="naive")
    )
    by_hand = jax.grad(
        lambda p: reference.iwae(gdregs.log_weights(*models.normal_model(p, p, x), **options))
    )
    np.testing.assert_allclose(naive(0.2), by_hand(0.2), rtol=1e-10)


def test_diagnostics():
    x = jnp.array([0.3, 4.0])
    parts = models.normal_model(jnp.zeros(2), jnp.zeros(2), x)
    log_weights = gdregs.log_weights(*parts, key=KEY, num_samples=40)
    with jax.numpy_rank_promotion("allow"):
        weights = jax.nn.softmax(log_weights, axis=0)
    for chunk_size in (None, 16):
        for kept, expected in ((None, 1.0), (5, None)):
            options = {"num_gradient_samples": kept, "chunk_size": chunk_size, "num_samples": 40}

            @jax.jit
            def diagnose(key, options=options):
                return gdregs.bound_with_diagnostics(*parts, key=key, **options)

            _, diagnostics = diagnose(KEY)
            size = 1 / jnp.sum(weights**2, axis=0)
            np.testing.assert_allclose(diagnostics.effective_sample_size, size, rtol=1e-5)
            if expected:
                np.testing.assert_allclose(diagnostics.weight_kept, expected)
            else:
                largest = jnp.sum(jnp.sort(weights, axis=0)[-kept:], axis=0)
                assert (diagnostics.weight_kept <= largest + 1e-6).all()
                assert (diagnostics.weight_kept > 0.1).all()


def test_parameters_shared_between_parts(float64):
    """One parameter in all three parts has the sum of its gradients in each."""
    x = jnp.array([0.3, -1.0])

    def shared(p):
        return jnp.sum(separate(p, p, p))

    def separate(phi, theta, lam):
        q = dist.Normal(phi, 0.8 * jnp.ones(2))
        p = dist.Normal(theta, jnp.ones(2))
        return jnp.sum(
            gdregs.bound(
                q, p, lambda z: dist.Normal(lam * z, 1.0).log_prob(x), key=KEY, num_samples=6
            )
        )

    gradients = jax.grad(separate, argnums=(0, 1, 2))(0.4, 0.4, 0.4)
    np.testing.assert_allclose(jax.grad(shared)(0.4), sum(gradients), rtol=1e-10)


# Weights that are 0 or not a number.


@pytest.mark.parametrize(
    ("name", "options", "bad"),
    [
        *((name, {}, -jnp.inf) for name in OBJECTIVES),
        ("iwae", {}, jnp.nan),
        ("iwae", {"num_gradient_samples": 2}, jnp.nan),
        ("iwae", {"chunk_size": 4}, jnp.nan),
        *(
            pytest.param("jvi", options, -jnp.inf, marks=pytest.mark.slow)
            for options in ({"num_gradient_samples": 2}, {"chunk_size": 4})
        ),
    ],
)
def test_a_datapoint_without_weight(name, options, bad):
    phi, theta, lam, x = reference.init(jax.random.key(1))

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
    def run(phi, theta, lam, spoiled, counted):
        """Gradients of the sum over the counted datapoints: one program for both runs."""
        likelihood = models.likelihood(lam, x)
        values = gdregs.bound(
            models.posterior(phi, x),
            models.prior(theta),
            lambda z: jnp.where(spoiled[None], bad, likelihood(z)),
            key=KEY,
            num_samples=6,
            objective=OBJECTIVES[name],
            **options,
        )
        return jnp.sum(values, where=counted), values

    second = jnp.arange(3) == 1
    # The spoiled datapoint takes part in the sum: its gradient must be 0 and not nan.
    actual, bounds = run(phi, theta, lam, second, second | True)
    expected, clean = run(phi, theta, lam, second & False, ~second)
    assert bounds[1] == -jnp.inf
    np.testing.assert_allclose(bounds[jnp.array([0, 2])], clean[jnp.array([0, 2])], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), actual, expected
    )


@pytest.mark.parametrize("posterior_estimator", gdregs.POSTERIOR_ESTIMATORS)
@pytest.mark.parametrize("prior_estimator", gdregs.PRIOR_ESTIMATORS)
@pytest.mark.filterwarnings("ignore:Out-of-support values")
def test_data_that_is_not_a_number_spoils_no_gradient_of_posterior_and_prior(
    posterior_estimator, prior_estimator
):
    x = jnp.array([0.3, jnp.nan, -1.0])

    def total(phi, theta):
        return jnp.sum(
            gdregs.bound(
                dist.Normal(phi * jnp.ones(3), 0.8),
                dist.Normal(theta * jnp.ones(3), 1.0),
                lambda z: dist.Normal(z, 1.0).log_prob(x),
                key=KEY,
                num_samples=6,
                posterior_estimator=posterior_estimator,
                prior_estimator=prior_estimator,
            )
        )

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(0.1, 0.2)
    assert all(jnp.isfinite(g) for g in gradients)


@pytest.mark.parametrize("options", [{}, {"num_gradient_samples": 3}, {"chunk_size": 4}])
def test_samples_outside_of_the_priors_support(float64, options):
    """They have no weight: half of the samples of two datapoints, and all of the third's."""
    x = jnp.array([0.5, 1.0, 0.0])
    where = jnp.array([0.0, 0.0, -50.0])

    def bounds(phi, theta, prior_of, datapoints):
        prior = prior_of(dist.LogNormal(theta * jnp.ones(3), jnp.ones(3)))
        posterior = prior_of(dist.Normal(phi + where, 1.0))
        values = gdregs.bound(
            posterior,
            prior,
            lambda z: dist.Normal(jax.tree.leaves(z)[0], 1.0).log_prob(x),
            key=KEY,
            num_samples=8,
            **options,
        )
        return jnp.sum(values[:datapoints])

    def in_hierarchy(distribution):
        return gdregs.Hierarchy({"z": (distribution, ())})

    for prior_of in (lambda d: d, in_hierarchy):

        @jax.jit
        def run(phi, theta, prior_of=prior_of):
            function = jax.value_and_grad(bounds, argnums=(0, 1))
            return function(phi, theta, prior_of, 3), function(phi, theta, prior_of, 2)

        (value, gradients), (others, expected) = run(0.1, 0.2)
        assert value == -jnp.inf
        assert jnp.isfinite(others)
        np.testing.assert_allclose(gradients, expected, rtol=1e-10)
        assert all(jnp.isfinite(g) and g != 0 for g in gradients)


# Posteriors of other kinds.


@pytest.mark.parametrize("estimator", gdregs.POSTERIOR_ESTIMATORS)
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_posterior_without_a_rule_uses_its_own_sampler(float64, estimator, chunk_size):
    x = jnp.array([0.3, -1.0])

    def total(phi, posterior):
        _, p, likelihood = models.normal_model(phi, jnp.zeros(2), x)
        return jnp.sum(
            gdregs.bound(
                posterior(phi, 0.8 * jnp.ones(2)), p, likelihood, key=KEY, num_samples=6,
                posterior_estimator=estimator, num_gradient_samples=2, chunk_size=chunk_size,
            )
        )  # fmt: skip

    actual = jax.grad(total)(x / 2, models.OwnSampler)
    without_rule = estimator != "rws"
    expected = jax.grad(
        lambda phi: jnp.sum(
            normal_bound(
                phi, jnp.zeros(2), x, posterior_estimator=estimator,
                num_gradient_samples=None if without_rule else 2,
            )
        )
    )(x / 2)  # fmt: skip
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_a_discrete_posterior_works_with_rws_alone():
    def total(logit, estimator, prior_estimator="naive"):
        return gdregs.bound(
            dist.Bernoulli(logits=logit),
            dist.Bernoulli(probs=jnp.array(0.5)),
            lambda z: dist.Normal(z * 1.0, 1.0).log_prob(0.7),
            key=KEY,
            num_samples=6,
            posterior_estimator=estimator,
            prior_estimator=prior_estimator,
        )

    logit = jnp.array(0.3)
    assert jnp.isfinite(jax.grad(total)(logit, "rws"))
    with pytest.raises(TypeError, match=r"posterior: BernoulliLogits .*posterior_estimator='rws'"):
        total(logit, "dregs")
