"""The contract of `bound`: shapes, transformations, weights that are 0, streams, and errors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
import models
import reference
from models import OBJECTIVES
from nights import drawn

KEY = jax.random.key(7)
POINTS = np.array([0.3, -1.0])


def normal_bound(phi, theta, x, key=KEY, **options):
    parts = models.normal_model(phi, theta, x)
    return gdregs.bound(*parts, key=key, **{"num_samples": 6, **options})


def assert_close(found, expected, rtol=1e-10, atol=1e-10, err_msg=""):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=err_msg),
        found,
        expected,
    )


@pytest.mark.parametrize(
    ("batch", "options"),
    [
        ((), {}),
        ((3,), {"num_gradient_samples": 2}),
        ((2, 3), {}),
        ((2, 3), {"num_gradient_samples": 2, "chunk_size": 4}),
    ],
)
def test_shapes(batch, options):
    x = np.ones(batch)
    for enable_x64, dtype in ((False, "float32"), (True, "float64")):
        with jax.enable_x64(enable_x64):
            value, gradient = jax.eval_shape(
                jax.value_and_grad(
                    lambda p: (lambda of: (jnp.sum(of), of))(normal_bound(p, p / 2, x, **options)),
                    has_aux=True,
                ),
                x,
            )
        assert value[1].shape == gradient.shape == batch
        assert value[1].dtype == gradient.dtype == dtype


def test_the_value_is_the_objective_of_the_log_weights(float64):
    @jax.jit
    def run(x):
        parts = models.normal_model(x / 2, 0 * x, x)
        z = models.samples(parts[0], KEY, 6)
        by_hand = parts[2](z) + parts[1].log_prob(z) - parts[0].log_prob(z)
        values = {
            name: normal_bound(x / 2, 0 * x, x, objective=objective)
            for name, objective in OBJECTIVES.items()
        }
        called = {name: objective(by_hand) for name, objective in OBJECTIVES.items()}
        expected = {name: reference.OBJECTIVES[name](by_hand) for name in OBJECTIVES}
        log_weights = gdregs.log_weights(*parts, key=KEY, num_samples=6)
        return (values, called, log_weights), (expected, expected, by_hand)

    assert_close(*run(POINTS))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_gradient_samples": 2},
        pytest.param({"num_gradient_samples": 2, "chunk_size": 4}, marks=pytest.mark.slow),
    ],
)
def test_vmap_and_forward_mode_agree_with_grad(float64, options):
    x = np.array([0.3, -1.0, 2.0])

    @jax.jit
    def run(phi, theta, x):
        keys = jax.random.split(KEY, 3)
        single = functools.partial(normal_bound, **options)
        together = jax.vmap(jax.grad(single))(phi, theta, x, keys)
        others = theta[1], x[1], keys[1]
        _, forward = jax.jvp(lambda p: single(p, *others), (phi[1],), (1.0,))
        return together[1], jax.grad(single)(phi[1], *others), forward

    together, alone, forward = run(x / 2, 0.1 * x, x)
    assert_close(together, alone)
    assert_close(forward, alone)


def test_one_sample(float64):
    """At K = 1 every objective is the ELBO, and dregs is stl."""

    @jax.jit
    def run(phi, theta, numbers):
        def total(phi, theta, objective, estimator):
            return jnp.sum(
                normal_bound(
                    phi, theta, POINTS,
                    num_samples=1, objective=objective, posterior_estimator=estimator,
                )
            )  # fmt: skip

        gradient = jax.value_and_grad(total, argnums=(0, 1))
        found = jax.vmap(lambda number: gradient(phi, theta, models.AnyOf(number), "dregs"))
        return found(numbers), gradient(phi, theta, gdregs.ELBO(), "stl")

    found, expected = run(POINTS / 2, 0 * POINTS, np.arange(len(OBJECTIVES)))
    for number, name in enumerate(OBJECTIVES):
        if name != "own":  # which is another function at K = 1
            assert_close(
                jax.tree.map(lambda leaf, i=number: leaf[i], found), expected, err_msg=name
            )


STREAMS = {
    "chunks that leave some over": ("iwae", 5, None),
    "a chunk for each": ("vr-iwae 0.3", 1, None),
    "chunks that come out even": ("elbo", 6, 3),
    "one chunk for all": ("iwae", 20, 3),
    "log-weights that are kept": ("own", 5, 3),
    "two passes": ("jvi", 5, 3),
}


@pytest.mark.parametrize(
    ("name", "chunk_size", "num_gradient_samples"),
    [
        *(
            pytest.param(
                *row,
                id=case,
                marks=() if case.endswith(("over", "passes")) else pytest.mark.slow,
            )
            for case, row in STREAMS.items()
        ),
        *drawn(OBJECTIVES, (1, 4, 5, 6, 11, 20), (None, 1, 3, 11)),
    ],
)
def test_streaming_changes_nothing(float64, name, chunk_size, num_gradient_samples):

    @jax.jit
    def run(phi, theta):
        def total(phi, theta, chunk_size):
            options = {"objective": OBJECTIVES[name], "chunk_size": chunk_size}
            options |= {"num_samples": 12, "num_gradient_samples": num_gradient_samples}
            return jnp.sum(normal_bound(phi, theta, POINTS, **options))

        run = jax.value_and_grad(total, argnums=(0, 1))
        return run(phi, theta, chunk_size), run(phi, theta, None)

    assert_close(*run(POINTS / 2, 0 * POINTS))


@pytest.mark.slow
def test_streaming_changes_nothing_for_several_layers(float64):
    *parameters, x = reference.init(1, latents="ab")

    @jax.jit
    def run(parameters):
        def total(parameters, chunk_size):
            return models.total_bound(
                *parameters, x, key=KEY, num_samples=12, num_gradient_samples=3,
                chunk_size=chunk_size,
            )  # fmt: skip

        run = jax.value_and_grad(total)
        return run(parameters, 5), run(parameters, None)

    assert_close(*run(parameters))


def test_streamed_log_weights_and_log_marginal(float64):
    @jax.jit
    def run(x):
        parts = models.normal_model(x / 2, 0 * x, x)
        options = {"key": KEY, "num_samples": 23}
        whole = gdregs.log_weights(*parts, **options)
        streamed = gdregs.log_weights(*parts, chunk_size=5, **options)
        marginals = [
            gdregs.log_marginal(*parts, chunk_size=chunk_size, **options)
            for chunk_size in (5, None)
        ]
        return (streamed, marginals), (whole, [reference.iwae(whole)] * 2)

    assert_close(*run(POINTS))


def test_log_marginal_has_the_gradient_zero_and_log_weights_the_naive_one(float64):
    @jax.jit
    def run(x, p):
        options = {"key": KEY, "num_samples": 6}

        def marginal(p):
            return gdregs.log_marginal(*models.normal_model(p, p, x), **options)

        def naive(p):
            return normal_bound(p, p, x, posterior_estimator="naive", prior_estimator="naive")

        def by_hand(p):
            return reference.iwae(gdregs.log_weights(*models.normal_model(p, p, x), **options))

        return [jax.grad(of)(p) for of in (marginal, naive, by_hand)]

    none, naive, by_hand = run(0.5, 0.2)
    assert float(none) == 0
    assert_close(naive, by_hand)


def test_diagnostics():
    cases = [(None, None), (16, 5)]

    @jax.jit
    def run(x):
        parts = models.normal_model(0 * x, 0 * x, x)
        options = {"key": KEY, "num_samples": 40}
        return gdregs.log_weights(*parts, **options), [
            gdregs.bound_with_diagnostics(
                *parts, chunk_size=chunk_size, num_gradient_samples=kept, **options
            )[1]
            for chunk_size, kept in cases
        ]

    log_weights, found = jax.device_get(run(np.array([0.3, 4.0])))
    weights = np.exp(log_weights - log_weights.max(0))
    weights /= weights.sum(0)
    for (_, kept), diagnostics in zip(cases, found, strict=True):
        np.testing.assert_allclose(
            diagnostics.effective_sample_size, 1 / np.sum(weights**2, axis=0), rtol=1e-5
        )
        if kept is None:
            np.testing.assert_allclose(diagnostics.weight_kept, 1.0)
        else:
            largest = np.sum(np.sort(weights, axis=0)[-kept:], axis=0)
            assert (diagnostics.weight_kept <= largest + 1e-6).all()
            assert (diagnostics.weight_kept > 0.1).all()


def test_parameters_shared_between_parts(float64):
    """One parameter in all three parts has the sum of its gradients in each."""

    def separate(phi, theta, lam):
        q = dist.Normal(phi, 0.8 * jnp.ones(2))
        p = dist.Normal(theta, jnp.ones(2))
        return jnp.sum(
            gdregs.bound(
                q, p, lambda z: dist.Normal(lam * z, 1.0).log_prob(POINTS), key=KEY, num_samples=6
            )
        )

    @jax.jit
    def run(p):
        by_part = jax.grad(separate, argnums=(0, 1, 2))(p, p, p)
        return jax.grad(lambda p: separate(p, p, p))(p), sum(by_part)

    assert_close(*run(0.4))


# Weights that are 0 or not a number.


def without_weight(total):
    """A datapoint that has no weight, for every objective, against that of the others alone.

    The spoiled datapoint takes part in the sum: its gradient must be 0 and not nan.
    """
    second = np.arange(3) == 1

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None, None))
    @functools.partial(jax.vmap, in_axes=(None, 0, 0, 0))
    def run(number, bad, spoiled, counted):
        return total(models.AnyOf(number), bad, spoiled, counted)

    bads, spoiled = np.array([-np.inf, np.nan, 0]), np.array([second, second, second & False])
    counted = np.array([second | True, second | True, ~second])
    found = jax.device_get(run(np.arange(len(OBJECTIVES)), bads, spoiled, counted))
    for (i, name), j in itertools.product(enumerate(OBJECTIVES), range(2)):
        values, gradients = jax.tree.map(lambda leaf, i=i: leaf[i], found)
        case = f"{name}, {bads[j]}"
        assert values[j, 1] == -np.inf, case
        assert_close(values[j, ::2], values[2, ::2], err_msg=case)
        clean = jax.tree.map(lambda leaf: leaf[2], gradients)
        assert_close(jax.tree.map(lambda leaf, j=j: leaf[j], gradients), clean, err_msg=case)
        assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(clean)), case


def test_a_datapoint_without_weight(float64):
    *parameters, x = reference.init(1, latents="ab")

    def total(objective, bad, spoiled, counted):
        def counted_bounds(phi, theta, lam):
            likelihood = models.likelihood(lam, x)
            values = gdregs.bound(
                models.posterior(phi, x),
                models.prior(theta),
                lambda z: jnp.where(spoiled[None], bad, likelihood(z)),
                key=KEY,
                num_samples=6,
                objective=objective,
            )
            return jnp.sum(values, where=counted), values

        gradients, values = jax.grad(counted_bounds, argnums=(0, 1, 2), has_aux=True)(*parameters)
        return values, gradients

    without_weight(total)


@pytest.mark.parametrize(
    "options",
    [{"num_gradient_samples": 2}, pytest.param({"chunk_size": 4}, marks=pytest.mark.slow)],
)
def test_a_datapoint_without_weight_among_chosen_samples(float64, options):
    def total(objective, bad, spoiled, counted):
        def counted_bounds(phi, theta):
            q, p, likelihood = models.normal_model(phi, theta, np.array([0.3, 1.0, -0.5]))
            values = gdregs.bound(
                q, p, lambda z: jnp.where(spoiled[None], bad, likelihood(z)),
                key=KEY, num_samples=6, objective=objective, **options,
            )  # fmt: skip
            return jnp.sum(values, where=counted), values

        gradients, values = jax.grad(counted_bounds, argnums=(0, 1), has_aux=True)(0.2, 0.1)
        return values, gradients

    without_weight(total)


@pytest.mark.filterwarnings("ignore:Out-of-support values")
def test_data_that_is_not_a_number_spoils_no_gradient_of_posterior_and_prior():
    pairs = list(itertools.product(gdregs.POSTERIOR_ESTIMATORS, gdregs.PRIOR_ESTIMATORS))

    def total(phi, theta, pair):
        return jnp.sum(
            gdregs.bound(
                dist.Normal(phi * jnp.ones(3), 0.8),
                dist.Normal(theta * jnp.ones(3), 1.0),
                lambda z: dist.Normal(z, 1.0).log_prob(np.array([0.3, np.nan, -1.0])),
                key=KEY,
                num_samples=6,
                posterior_estimator=pair[0],
                prior_estimator=pair[1],
            )
        )

    @jax.jit
    def run(phi, theta, rows):
        gradient = jax.grad(total, argnums=(0, 1))
        named = [gradient(phi, theta, pair) for pair in (pairs[0], ("dregs", "gdregs"))]
        return named, jax.vmap(lambda row: gradient(phi, theta, row))(rows)

    for gradient in jax.tree.leaves(run(0.1, 0.2, models.rows_of(pairs))):
        assert np.isfinite(gradient).all()
        assert np.asarray(gradient).all()  # none of them is 0


SUPPORTS = [
    ("alone", {}),
    ("in a hierarchy", {}),
    ("in a hierarchy", {"num_gradient_samples": 3}),
    ("alone", {"chunk_size": 4}),
]


@pytest.mark.parametrize("where", ["alone", "in a hierarchy"])
def test_samples_outside_of_the_priors_support(float64, where):
    """They have no weight: half of the samples of two datapoints, and all of the third's."""
    x = np.array([0.5, 1.0, 0.0])
    far = np.array([0.0, 0.0, -50.0])

    def put(distribution):
        return distribution if where == "alone" else gdregs.Hierarchy({"z": (distribution, ())})

    def total(phi, theta, counted, options):
        values = gdregs.bound(
            put(dist.Normal(phi + far, 1.0)),
            put(dist.LogNormal(theta * jnp.ones(3), jnp.ones(3))),
            lambda z: dist.Normal(jax.tree.leaves(z)[0], 1.0).log_prob(x),
            key=KEY,
            num_samples=8,
            **options,
        )
        return jnp.sum(values, where=counted)

    @jax.jit
    def run(phi, theta, counted):
        def of_both(options):
            gradient = jax.value_and_grad(total, argnums=(0, 1))
            return jax.vmap(lambda counted: gradient(phi, theta, counted, options))(counted)

        return [of_both(options) for name, options in SUPPORTS if name == where]

    all_three, two = np.ones(3, bool), np.arange(3) < 2
    for values, gradients in jax.device_get(run(0.1, 0.2, np.array([all_three, two]))):
        assert values[0] == -np.inf
        assert np.isfinite(values[1])
        for gradient in gradients:
            np.testing.assert_allclose(gradient[0], gradient[1], rtol=1e-10)
            assert np.isfinite(gradient).all()
            assert gradient.all()


# Posteriors of other kinds.


def test_a_posterior_without_a_rule_uses_its_own_sampler(float64):
    """On all samples; what has no path needs none and runs on M of them."""
    chunk_sizes = {"naive": None, "dregs": 4, "rws": None}

    @jax.jit
    def run(phi, rows):
        def total(phi, posterior, estimator, **options):
            _, p, likelihood = models.normal_model(phi, jnp.zeros(2), POINTS)
            return jnp.sum(
                gdregs.bound(
                    posterior(phi, 0.8 * jnp.ones(2)), p, likelihood,
                    key=KEY, num_samples=6, posterior_estimator=estimator, **options,
                )
            )  # fmt: skip

        gradient = jax.grad(total)
        found = {
            name: gradient(phi, models.OwnSampler, name, num_gradient_samples=2, chunk_size=size)
            for name, size in chunk_sizes.items()
        }
        on_all = jax.vmap(lambda row: gradient(phi, dist.Normal, row))(rows)
        on_two = gradient(phi, dist.Normal, "rws", num_gradient_samples=2)
        return found, {"naive": on_all[0], "dregs": on_all[1], "rws": on_two}

    rows, _ = models.rows_of([("naive", "naive"), ("dregs", "naive")])
    found, expected = run(POINTS / 2, rows)
    for name in chunk_sizes:
        assert_close(found[name], expected[name], err_msg=name)


def test_a_discrete_posterior_works_with_rws_alone():
    def total(logit, estimator):
        return gdregs.bound(
            dist.Bernoulli(logits=logit),
            dist.Bernoulli(probs=jnp.array(0.5)),
            lambda z: dist.Normal(z * 1.0, 1.0).log_prob(0.7),
            key=KEY,
            num_samples=6,
            posterior_estimator=estimator,
            prior_estimator="naive",
        )

    assert np.isfinite(jax.jit(jax.grad(lambda logit: total(logit, "rws")))(0.3))
    with pytest.raises(TypeError, match=r"posterior: BernoulliLogits .*posterior_estimator='rws'"):
        jax.eval_shape(lambda logit: total(logit, "dregs"), 0.3)
