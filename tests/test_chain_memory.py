"""What a Chain's gradient keeps in memory: linear in its length, or its root with `checkpoint`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs

HIDDEN, SAMPLES, BATCH = 1024, 4, 2


class Step(eqx.Module):
    """A transition whose network is a thousand times as wide as its latent."""

    first: jax.Array
    second: jax.Array

    def __call__(self, previous, given):
        del given
        loc, raw = jnp.split(jnp.tanh(previous @ self.first) @ self.second, 2, axis=-1)
        return dist.Normal(0.9 * previous + loc, 0.2 + jax.nn.softplus(raw)).to_event(1)


def megabytes(length, checkpoint):
    """What the compiled gradient holds beside its arguments and results."""

    def chain(step):
        initial = dist.Normal(jnp.zeros((BATCH, 1)), 1.0).to_event(1)
        inputs = jnp.zeros((length, BATCH, 1))
        return gdregs.Chain(initial, step, length=length, inputs=inputs, checkpoint=checkpoint)

    def loss(steps, key):
        return -gdregs.bound(
            chain(steps[0]), chain(steps[1]), lambda z: -0.5 * jnp.sum((z - 1) ** 2, (-1, -2)),
            num_samples=SAMPLES, key=key,
        ).mean()  # fmt: skip

    step = Step(np.ones((1, HIDDEN), np.float32), np.full((HIDDEN, 2), 1 / HIDDEN, np.float32))
    compiled = jax.jit(jax.grad(loss)).lower((step, step), jax.random.key(0)).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


@pytest.mark.parametrize(
    ("checkpoint", "factor"), [pytest.param(False, 4.0, marks=pytest.mark.slow), (True, 2.0)]
)
def test_four_times_the_length_takes_twice_the_memory_with_checkpoints(checkpoint, factor):
    """Of networks; the latents themselves, which are the value, and their paths stay linear."""
    numbers = SAMPLES * BATCH * 4 / 1e6
    shorter, longer = (
        megabytes(length, checkpoint) - 12 * length * numbers for length in (400, 1600)
    )
    assert longer / shorter == pytest.approx(factor, rel=0.15)
