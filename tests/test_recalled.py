"""Chains whose networks run once for draw, density and path."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
import sequences
from gdregs.evaluation import look
from gdregs.evaluation.keys import keys_of_samples
from gdregs.evaluation.weights import draw_and_remember

LENGTH, BATCH, SIZE = 4, 2, 3
KEY = jax.random.key(3)


class Move(eqx.Module):
    weight: jax.Array
    bias: jax.Array

    def __call__(self, previous, u):
        with jax.numpy_rank_promotion("allow"):
            loc = jnp.tanh(previous @ self.weight + self.bias)
            loc = loc if u is None else loc + u
        return dist.Normal(loc, jnp.exp(0.1 * loc - 1)).to_event(1)


def make(seed=0):
    """Parameters and inputs in numpy, of the type that the program gives them."""
    rng = np.random.default_rng(seed)
    move = Move(rng.normal(size=(SIZE, SIZE)), rng.normal(size=SIZE))
    return move, rng.normal(size=(LENGTH, BATCH, SIZE))


def first():
    return dist.Normal(jnp.zeros((BATCH, SIZE)), 1.0).to_event(1)


def chain(move, u=None, **options):
    return gdregs.Chain(first(), move, length=LENGTH, inputs=u, **options)


def remembers(posterior):
    found = []
    jax.eval_shape(
        lambda: found.append(draw_and_remember(posterior, keys_of_samples(KEY, 0, 4)) is not None)
    )
    return found[0]


def bound(parts, path, mask=None, **options):
    move, u, prior = parts
    posterior = chain(move, u, path=path, mask=mask, reverse=True)
    prior = chain(prior, mask=mask)
    value = gdregs.bound(
        posterior, prior, lambda z: -jnp.sum((z - 0.3) ** 2, axis=(-2, -1)), key=KEY,
        num_samples=4, **options,
    )  # fmt: skip
    return jnp.sum(value)


@pytest.mark.parametrize(
    ("options", "is_masked"),
    [
        ({}, False),
        (
            {"posterior_estimator": gdregs.mixed_dregs(0.3), "prior_estimator": "gdregs-mix"},
            True,
        ),
        pytest.param(
            {"posterior_estimator": "naive", "prior_estimator": "naive"}, True,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"posterior_estimator": "rws", "indirect_scores": "drop"}, False,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["dregs", "mixes", "naive", "rws"],
)  # fmt: skip
def test_gradients_are_those_without_memory(float64, monkeypatch, options, is_masked):
    """By the parameters of both, and by the inputs."""
    move, u = make()
    parts = (move, u, make(1)[0])
    mask = np.array([[True, True], [True, False], [False, True], [True, True]])
    mask = mask if is_masked else None
    assert remembers(chain(move, u, mask=mask, path="loop"))

    @jax.jit
    def both(parts):
        def gradient():
            return jax.grad(lambda parts: bound(parts, "loop", mask, **options))(parts)

        remembered = gradient()
        monkeypatch.setattr(look, "draw_and_remember", lambda *arguments: None)
        return remembered, gradient()

    remembered, expected = both(parts)
    for ours, theirs in zip(jax.tree.leaves(remembered), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)
        assert np.abs(theirs).max() > 1e-3


def test_draws_are_those_of_the_chain():
    @jax.jit
    def both(move, u):
        keys = keys_of_samples(KEY, 0, 4)
        found = draw_and_remember(chain(move, u, path="loop"), keys)
        assert found is not None
        return found[:2], jax.vmap(chain(move, u).sample_and_log_prob)(keys)

    for ours, theirs in zip(*both(*make()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_what_has_no_memory():
    move, u = make()
    assert not remembers(chain(move, u, checkpoint=True))
    assert not remembers(gdregs.Chain(first(), move, length=1, inputs=u[:1]))
    assert not remembers(chain(move, u, path="matrices"))
    assert not remembers(chain(lambda previous, u: dist.Normal(u, 1.0).to_event(1), u))
    state = np.zeros((BATCH, SIZE))
    assert not remembers(chain(move, u, state=state, advance=lambda state, z, u: state + z))
    assert remembers(chain(lambda previous, u: move(previous, u), u, path="loop"))

    def differentiated(hidden):
        posterior = chain(lambda previous, u: scaled(hidden, move, previous, u), u, path="loop")
        assert not remembers(posterior)
        return jnp.sum(hidden)

    jax.eval_shape(jax.grad(differentiated), np.ones(SIZE))


def test_hidden_parameters_are_refused_or_right():
    move, u = make()

    def value(hidden, posterior):
        q = chain(lambda previous, u: scaled(hidden, move, previous, u), u, path="loop")
        return jnp.sum(
            gdregs.bound(
                q, chain(make(1)[0]), lambda z: -jnp.sum(z**2, axis=(-2, -1)), key=KEY,
                num_samples=4, posterior_estimator=posterior, prior_estimator="naive",
            )
        )  # fmt: skip

    with pytest.raises(ValueError, match="uses a parameter that is being differentiated"):
        jax.eval_shape(jax.grad(lambda hidden: value(hidden, "dregs")), np.ones(SIZE))

    def open_value(hidden):
        q = chain(jax.tree_util.Partial(scaled, hidden, move), u, path="loop")
        return jnp.sum(
            gdregs.bound(
                q, chain(make(1)[0]), lambda z: -jnp.sum(z**2, axis=(-2, -1)), key=KEY,
                num_samples=4, posterior_estimator="naive", prior_estimator="naive",
            )
        )  # fmt: skip

    @jax.jit
    def both(hidden):
        return jax.grad(value)(hidden, "naive"), jax.grad(open_value)(hidden)

    np.testing.assert_allclose(*both(np.ones(SIZE)), rtol=2e-4)


def scaled(hidden, move, previous, u):
    with jax.numpy_rank_promotion("allow"):
        return move(hidden * previous, u)


@pytest.mark.slow
def test_products_of_all_samples_are_a_quarter_more_than_naives():
    """As `benchmarks/sequences.py` counts them in the compiled program."""
    products = {
        name: sequences.loop_flops(sequences.build(name, 10)[0].as_text())
        for name in ("naive", "M = K", "M = K / 8")
    }
    assert products["M = K"] <= 1.25 * products["naive"]
    assert products["M = K / 8"] <= 0.55 * products["naive"]
