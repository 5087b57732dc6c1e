"""Work that is counted before a program runs."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
from gdregs.evaluation.work import EACH, work_of


def work(function, *arguments):
    return work_of(jax.make_jaxpr(function)(*arguments))


X, W = np.ones((64, 100), np.float32), np.ones((100, 50), np.float32)


def test_a_matrix_product_is_counted_by_its_multiplications():
    assert work(lambda x: x @ W, X) == EACH + 64 * 100 * 50 / 8
    kernel = np.ones((3, 3, 4, 8), np.float32)
    images = np.ones((2, 10, 10, 4), np.float32)
    found = work(
        lambda x: jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        images,
    )
    assert found == EACH + 2 * 10 * 10 * 8 * (3 * 3 * 4) / 8


def test_a_factorisation_is_called_for_each_matrix():
    def factor(*shape):
        return work_of(jax.make_jaxpr(jnp.linalg.cholesky)(np.ones(shape)))

    assert factor(64, 4, 4) > 30 * factor(1, 4, 4)
    assert factor(1, 4, 4) > 100 + work_of(jax.make_jaxpr(jnp.exp)(np.ones((1, 4, 4))))


def test_what_is_computed_twice_counts_once():
    once = work(lambda x: jnp.tanh(x @ W).sum(), X)
    twice = work(lambda x: jnp.tanh(x @ W).sum() + jax.lax.stop_gradient(jnp.tanh(x @ W)).sum(), X)
    assert once < twice < once + 3 * EACH
    other = work(lambda x: jnp.tanh(x @ W).sum() + jnp.tanh(2 * x @ W).sum(), X)
    assert other > 1.9 * once


def test_what_nothing_depends_on_does_not_count():
    def function(x):
        jnp.exp(x @ W)
        return x + 1

    assert work(function, X) == EACH + X.size


def test_calls_loops_and_branches():
    def step(x):
        return jnp.tanh(x)

    one = work(step, X)
    assert work(jax.jit(step), X) == work(jax.checkpoint(step), X) == one
    loop = work(lambda x: jax.lax.scan(lambda c, _: (step(c), None), x, None, length=7)[0], X)
    assert loop == 7 * one
    guarded = work(lambda x: jax.lax.cond(x.sum() > 0, step, lambda x: x, x), X)
    assert guarded < one
    assert work(lambda x: jax.lax.while_loop(lambda c: c.sum() > 1, step, x), X) > one


def test_estimators_cost_what_xla_counts():
    """Against the operations of the compiled gradient, in which networks outweigh all else."""

    def total(parameters, posterior_estimator):
        encoder, decoder = parameters
        hidden = jnp.tanh(X @ encoder)
        posterior = dist.Normal(hidden[:, :20], 0.5).to_event(1)
        prior = dist.Normal(jnp.zeros((64, 20)), 1.0).to_event(1)
        values = gdregs.bound(
            posterior, prior, lambda z: -jnp.sum(jnp.tanh(z @ decoder) ** 2, -1),
            key=jax.random.key(0), num_samples=32, posterior_estimator=posterior_estimator,
            prior_estimator="naive",
        )  # fmt: skip
        return jnp.sum(values)

    parameters = (W, np.ones((20, 300), np.float32))

    def counted(name):
        function = jax.grad(lambda parameters: total(parameters, name))
        compiled = jax.jit(function).lower(parameters).compile()
        return work(function, parameters), compiled.cost_analysis()["flops"]

    ours, theirs = zip(counted("dregs"), counted("naive"), strict=True)
    assert ours[0] / ours[1] == pytest.approx(theirs[0] / theirs[1], rel=0.15)
