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


def compiled(step, model, x, *options):
    program = jax.jit(lambda model, x, key: step(model, x, key, *options))
    return program.lower(model, x, jax.random.key(0)).compile()


def flops(*arguments):
    return compiled(*arguments).cost_analysis()["flops"]


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
    model, x = steps.make_model(num_layers), steps.binary_images(BATCH)
    naive = flops(steps.naive_step, model, x, SAMPLES)
    assert flops(steps.gdregs_step, model, x, SAMPLES) <= limit * naive
    assert flops(steps.gdregs_step, model, x, SAMPLES, 8) <= 0.50 * naive


@pytest.mark.slow
@pytest.mark.parametrize("num_gradient_samples", [None, 8])
def test_flops_of_a_draw_in_a_loop(num_gradient_samples):
    """Those of a step, although the compiler hoists what depends on weights and images alone.

    If it hoisted that once for the look and once for the pull, it would not see that the rest of
    the two is one, and the networks would run forward twice on all samples.
    """
    model, x = steps.make_model(3), steps.binary_images(BATCH)

    def step(model, x, key):
        return steps.gdregs_step(model, x, key, SAMPLES, num_gradient_samples)[1]

    def draws(model, x, key):
        draw = functools.partial(step, model, x)
        return gdregs.gradient_moments(draw, key, 2, chunk_size=1).variance

    alone, looped = (speed.matrix_flops(compiled(f, model, x).as_text()) for f in (step, draws))
    assert looped <= 1.01 * alone


@pytest.mark.slow
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_flops_against_the_three_surrogate_losses(num_layers):
    """On the conditional model: without a context, a single layer's prior has no parameters."""
    model = steps.make_model(num_layers, conditional=True)
    x = steps.binary_images(BATCH)
    surrogates = flops(steps.surrogates_step, model, x, SAMPLES)
    assert flops(steps.gdregs_step, model, x, SAMPLES) <= 0.75 * surrogates


@pytest.mark.slow
@pytest.mark.parametrize("conditional", [False, True])
def test_the_hand_written_steps_compute_the_same(conditional):
    """What is compared in cost must agree: value everywhere, gradients with the surrogates."""
    model = steps.make_model(2, num_pixels=12, conditional=conditional)
    x, key = steps.binary_images(3, num_pixels=12), jax.random.key(1)

    @jax.jit
    def run(model, x, key):
        naive = {"posterior_estimator": "naive", "prior_estimator": "naive"}
        return {
            "dregs": (steps.gdregs_step(model, x, key, 5), steps.surrogates_step(model, x, key, 5)),
            "naive": (
                steps.gdregs_step(model, x, key, 5, **naive),
                steps.naive_step(model, x, key, 5),
            ),
        }

    for ours, by_hand in run(model, x, key).values():
        np.testing.assert_allclose(ours[0], by_hand[0], rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), ours[1], by_hand[1]
        )


@pytest.mark.parametrize("num_gradient_samples", [None, 8])
def test_streamed_memory_is_flat(num_gradient_samples):
    """Temporary memory of a gradient step at K = 65,536 against K = chunk size."""
    model, x = steps.make_model(2), steps.binary_images(BATCH)

    def temporary(num_samples):
        def step(model, x, key):
            return steps.gdregs_step(
                model, x, key, num_samples, num_gradient_samples, chunk_size=64
            )

        return compiled(step, model, x).memory_analysis().temp_size_in_bytes

    assert temporary(65_536) <= 1.2 * temporary(64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", [gdregs.ELBO(), gdregs.IWAE(), gdregs.VRIWAE(0.5), gdregs.JVI()], ids=str
)
def test_streamed_memory_is_flat_for_every_objective(objective):
    """A model of a few numbers: nothing of size K can hide behind its networks."""
    x = jnp.linspace(-1, 1, 8)

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

    assert temporary(65_536) <= 1.2 * temporary(256)


def test_matrix_flops_are_those_of_the_products():
    """What the speed benchmark counts, forward and transposed."""
    left, right = jnp.ones((3, 5)), jnp.ones((5, 7))

    def compiled_text(function):
        return jax.jit(function).lower(left, right).compile().as_text()

    one = 2 * 3 * 5 * 7
    assert speed.matrix_flops(compiled_text(lambda a, b: jnp.tanh(a @ b))) == one
    loss = jax.grad(lambda a, b: jnp.sum(jnp.sin(a @ b)), (0, 1))
    assert speed.matrix_flops(compiled_text(loss)) == 3 * one
