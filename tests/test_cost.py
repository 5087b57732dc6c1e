"""What a training step costs, as the compiler counts it: no clock is involved."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
import speed
import steps

BATCH, SAMPLES = 64, 64


def shapes(function, *arguments, **options):
    """What a function returns, without computing it."""
    return jax.eval_shape(lambda: function(*arguments, **options))


@functools.cache
def compiled(step, num_layers, *options, conditional=False):
    """A step of the papers' model; tests that compare it with several others share it."""
    model = shapes(steps.make_model, num_layers, conditional=conditional)
    program = jax.jit(lambda model, x, key: step(model, x, key, *options))
    x = shapes(steps.binary_images, BATCH)
    return program.lower(model, x, shapes(jax.random.key, 0)).compile()


def flops(*arguments, **options):
    return compiled(*arguments, **options).cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("num_layers", "limit"),
    [
        pytest.param(1, 1.01, marks=pytest.mark.slow),
        (2, 1.15),
        pytest.param(3, 1.20, marks=pytest.mark.slow),
    ],
)
def test_flops_of_a_step(num_layers, limit):
    """Against the best hand-written naive step: each network evaluated once, layers split."""
    naive = flops(steps.naive_step, num_layers, SAMPLES)
    assert flops(steps.gdregs_step, num_layers, SAMPLES, None) <= limit * naive
    assert flops(steps.gdregs_step, num_layers, SAMPLES, 8) <= 0.50 * naive


def draws_in_a_loop(model, x, key, num_samples, num_gradient_samples):
    def draw(key):
        return steps.gdregs_step(model, x, key, num_samples, num_gradient_samples)[1]

    return gdregs.gradient_moments(draw, key, 2, chunk_size=1).variance


@pytest.mark.slow
@pytest.mark.parametrize("num_gradient_samples", [None, 8])
def test_flops_of_a_draw_in_a_loop(num_gradient_samples):
    """Those of a step, although the compiler hoists what depends on weights and images alone.

    If it hoisted that once for the look and once for the pull, it would not see that the rest of
    the two is one, and the networks would run forward twice on all samples.
    """
    alone, looped = (
        speed.matrix_flops(compiled(step, 3, SAMPLES, num_gradient_samples).as_text())
        for step in (steps.gdregs_step, draws_in_a_loop)
    )
    assert looped <= 1.01 * alone


@pytest.mark.parametrize(
    "num_layers",
    [
        pytest.param(1, marks=pytest.mark.nightly),
        pytest.param(2, marks=pytest.mark.nightly),
        pytest.param(3, marks=pytest.mark.slow),
    ],
)
def test_flops_against_the_three_surrogate_losses(num_layers):
    """On the conditional model: without a context, a single layer's prior has no parameters."""
    surrogates = flops(steps.surrogates_step, num_layers, SAMPLES, conditional=True)
    ours = flops(steps.gdregs_step, num_layers, SAMPLES, None, conditional=True)
    assert ours <= 0.75 * surrogates


@pytest.mark.slow
@pytest.mark.parametrize("by_hand", [steps.naive_step, steps.surrogates_step])
def test_the_hand_written_steps_compute_the_same(by_hand):
    """What is compared in cost must agree, value and gradients, on the model where it is."""
    is_naive = by_hand is steps.naive_step
    estimators = ("posterior_estimator", "prior_estimator")
    options = dict.fromkeys(estimators, "naive") if is_naive else {}

    @jax.jit
    def run(key):
        model = steps.make_model(2, num_pixels=12, conditional=not is_naive)
        x = steps.binary_images(3, num_pixels=12)
        return steps.gdregs_step(model, x, key, 5, **options), by_hand(model, x, key, 5)

    (value, gradients), (expected_value, expected) = run(jax.random.key(1))
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), gradients, expected
    )


ARRAYS = 8
"""How many arrays of the shape of the log-weights may be in memory at once."""


def in_chunks(model, x, key, num_samples, num_gradient_samples):
    return steps.gdregs_step(model, x, key, num_samples, num_gradient_samples, chunk_size=64)


@pytest.mark.parametrize("num_gradient_samples", [pytest.param(None, marks=pytest.mark.slow), 8])
def test_streamed_memory_is_flat(num_gradient_samples):
    """Temporary memory of a gradient step at K = 65,536 against K = chunk size.

    Only what is made of the log-weights grows: 4 bytes an array, sample and datapoint.
    """
    many, one_chunk = (
        compiled(in_chunks, 2, num_samples, num_gradient_samples).memory_analysis()
        for num_samples in (65_536, 64)
    )
    of_log_weights = ARRAYS * 65_536 * BATCH * 4
    assert many.temp_size_in_bytes <= 1.2 * one_chunk.temp_size_in_bytes + of_log_weights


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(gdregs.ELBO(), marks=pytest.mark.nightly),
        pytest.param(gdregs.IWAE(), marks=pytest.mark.slow),
        pytest.param(gdregs.VRIWAE(0.5), marks=pytest.mark.nightly),
        pytest.param(gdregs.JVI(), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_streamed_memory_is_flat_for_every_objective(objective):
    """A model of a few numbers: nothing of size K can hide behind its networks."""
    x = np.linspace(-1, 1, 8)

    @eqx.filter_value_and_grad
    def step(parameters, key, num_samples):
        phi, theta = parameters
        return jnp.sum(
            gdregs.bound(
                dist.Normal(phi, 0.8 * jnp.ones(8)),
                dist.Normal(theta, jnp.ones(8)),
                lambda z: dist.Normal(z, 1.0).log_prob(x),
                key=key,
                num_samples=num_samples,
                objective=objective,
                chunk_size=256,
            )
        )

    def temporary(num_samples):
        program = jax.jit(lambda parameters, key: step(parameters, key, num_samples))
        analysis = program.lower((x, x), jax.random.key(0)).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert temporary(65_536) <= 1.2 * temporary(256) + ARRAYS * 65_536 * 8 * 4


def test_matrix_flops_are_those_of_the_products():
    """What the speed benchmark counts, forward and transposed."""
    left, right = np.ones((3, 5)), np.ones((5, 7))

    def compiled_text(function):
        return jax.jit(function).lower(left, right).compile().as_text()

    one = 2 * 3 * 5 * 7
    assert speed.matrix_flops(compiled_text(lambda a, b: jnp.tanh(a @ b))) == one
    loss = jax.grad(lambda a, b: jnp.sum(jnp.sin(a @ b)), (0, 1))
    assert speed.matrix_flops(compiled_text(loss)) == 3 * one
