"""Chains are the hierarchies that they unroll to."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import chains
import gdregs
from chains import Decay
from models import OBJECTIVES, PAIRS_WITH_EACH, POSTERIOR_ESTIMATORS, PRIOR_ESTIMATORS

MASK = np.array([[True, True], [True, True], [True, False]])

VARIANTS = {
    "forward": {},
    "backward": {"reverse": True},
    "masked": {"mask": MASK},
    "masked, backward": {"mask": MASK, "reverse": True},
    "recurrent": {"has_state": True},
    "recurrent, masked": {"has_state": True, "mask": MASK},
}
FORMS = {
    "matrices": {"path": "matrices"},
    "loop": {"path": "loop"},
    "checkpoint": {"checkpoint": True},
}


def make(seed, form, **variant):
    """A chain and its unrolled form as functions of the same parameters, which are returned too."""
    parts = chains.init(seed)
    return (
        parts,
        lambda parts: chains.chain(parts, **variant, **FORMS[form]),
        lambda parts: chains.unrolled(parts, **variant),
    )


def assert_close(found, expected, **options):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10, rtol=1e-10, **options),
        found,
        expected,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_samples_densities_and_paths_are_those_of_the_hierarchy(float64, variant, form):
    parts, chain, unrolled = make(0, form, **VARIANTS[variant])
    key = jax.random.key(1)
    mask = VARIANTS[variant].get("mask")

    def present(z):
        return z if mask is None else jnp.where(mask.T[None, :, :, None], z, 0)

    @jax.jit
    def both(parts):
        z, expected = chain(parts).sample(key, (4,)), unrolled(parts).sample(key, (4,))
        weights = jnp.cos(jnp.arange(z.size, dtype=z.dtype)).reshape(z.shape)

        def density(make, z):
            return jax.value_and_grad(lambda parts: jnp.sum(make(parts).log_prob(z)))(parts)

        def path(make, z, stack=lambda z: z):
            def total(parts):
                return jnp.sum(weights * present(stack(gdregs.reexpress(make(parts), z))))

            return jax.value_and_grad(total)(parts)

        return (
            (z, density(chain, z), path(chain, z)),
            (
                present(chains.stacked(expected)),
                density(unrolled, expected),
                path(unrolled, expected, chains.stacked),
            ),
        )

    found, expected = both(parts)
    assert_close(found, expected)
    moved = jax.tree.leaves(found[2][1].cell)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "form", "objective"),
    [
        ("forward", "loop", "iwae"),
        ("forward", "matrices", "iwae"),
        ("backward", "loop", "iwae"),
        ("masked", "loop", "iwae"),
        ("recurrent", "loop", "iwae"),
        *(("forward", "loop", name) for name in OBJECTIVES if name != "iwae"),
    ],
)
def test_every_estimator_is_that_of_the_hierarchy(float64, variant, form, objective):
    """The posterior as the variant says, the prior forward; M = K and M < K."""
    options = VARIANTS[variant]
    phi, chain, unrolled = make(0, form, **options)
    theta = chains.init(5)
    mask = options.get("mask")
    weight, x = jnp.eye(2), jnp.cos(jnp.arange(12.0)).reshape(2, 3, 2)
    likelihood = chains.likelihood(weight, x, mask)

    def total(phi, theta, posterior, prior, likelihood, pair, kept):
        return jnp.sum(
            gdregs.bound(
                posterior(phi), prior(theta), likelihood, key=jax.random.key(3), num_samples=5,
                objective=OBJECTIVES[objective], num_gradient_samples=kept,
                posterior_estimator=POSTERIOR_ESTIMATORS[pair[0]],
                prior_estimator=PRIOR_ESTIMATORS[pair[1]],
            )
        )  # fmt: skip

    @jax.jit
    def gradients(phi, theta):
        results = []
        for pair, kept in [(pair, None) for pair in PAIRS_WITH_EACH] + [(("dregs", "gdregs"), 2)]:
            found = jax.value_and_grad(total, (0, 1))(
                phi, theta, chain, lambda theta: chains.chain(theta, mask=mask), likelihood, pair,
                kept,
            )  # fmt: skip
            expected = jax.value_and_grad(total, (0, 1))(
                phi, theta, unrolled, lambda theta: chains.unrolled(theta, mask=mask),
                lambda z: likelihood(chains.stacked(z)), pair, kept,
            )  # fmt: skip
            results.append((found, expected))
        return results

    for pair, (found, expected) in zip(
        [*PAIRS_WITH_EACH, "M = 2"], gradients(phi, theta), strict=True
    ):
        assert_close(found, expected, err_msg=str(pair))


@pytest.mark.slow
def test_a_chain_given_a_global_latent(float64):
    """A node of a hierarchy with a parent, beside one without."""

    class Given(eqx.Module):
        factor: jax.Array

        def __call__(self, level):
            first = dist.Normal(level, 1.0)
            return gdregs.Chain(first, Decay(self.factor), length=4)

    def hierarchy(factor):
        return gdregs.Hierarchy(
            {
                "level": (dist.Normal(jnp.zeros(3), 1.0), ()),
                "walk": (Given(factor), ("level",)),
                "noise": (
                    gdregs.Chain(dist.Normal(jnp.zeros(3), 1.0), Decay(factor), length=2),
                    (),
                ),
            }
        )

    def total(factor, theta, key=jax.random.key(0)):
        return jnp.sum(
            gdregs.bound(
                hierarchy(factor), hierarchy(theta), lambda z: -(z["walk"] ** 2).sum(-1), key=key,
                num_samples=6, num_gradient_samples=3,
            )
        )  # fmt: skip

    z = hierarchy(jnp.array(0.5)).sample(jax.random.key(0), (6,))
    assert {name: value.shape for name, value in z.items()} == {
        "level": (6, 3), "walk": (6, 3, 4), "noise": (6, 3, 2),
    }  # fmt: skip
    gradients = jax.grad(total, (0, 1))(jnp.array(0.5), jnp.array(0.4))
    assert all(np.isfinite(g) and g != 0 for g in gradients)


def test_latents_without_memory_are_drawn_at_once(float64):
    """Mean-field in time: no loop in the program, and the numbers of the unrolled product."""

    class Local(eqx.Module):
        scale: jax.Array

        def __call__(self, previous, u):
            del previous
            return dist.Normal(u, self.scale)

    def make(scale, loc):
        cell = Local(scale)
        return gdregs.Chain(
            jax.tree_util.Partial(cell, None), cell, length=50, inputs=loc, reverse=True
        )

    loc = jnp.sin(jnp.arange(50.0))[:, None] * jnp.ones((50, 3))

    def total(scale, loc, key=jax.random.key(0)):
        chain = make(scale, loc)
        z = chain.sample(key, (2,))
        return jnp.sum(gdregs.reexpress(chain, z) ** 2 + 0 * z) + jnp.sum(chain.log_prob(z))

    text = str(jax.make_jaxpr(jax.grad(total))(jnp.array(0.5), loc))
    assert "scan[" not in text
    z = make(jnp.array(0.5), loc).sample(jax.random.key(0), (2,))
    expected = dist.Normal(loc.T, 0.5).log_prob(z).sum(-1)
    np.testing.assert_allclose(make(jnp.array(0.5), loc).log_prob(z), expected)


@pytest.mark.slow
def test_streamed_and_kept_as_any_other(float64):
    phi, theta = chains.init(0), chains.init(5)
    likelihood = chains.likelihood(jnp.eye(2), jnp.zeros((2, 3, 2)))

    def value_and_gradient(**options):
        def total(phi, theta):
            return jnp.sum(
                gdregs.bound(
                    chains.chain(phi, reverse=True), chains.chain(theta), likelihood,
                    key=jax.random.key(1), num_samples=6, **options,
                )
            )  # fmt: skip

        return jax.jit(jax.value_and_grad(total, (0, 1)))(phi, theta)

    assert_close(value_and_gradient(chunk_size=2), value_and_gradient())
    kept = {"num_gradient_samples": 2}
    assert_close(value_and_gradient(chunk_size=2, **kept), value_and_gradient(**kept))


@pytest.mark.slow
def test_a_datapoint_without_weight_has_no_gradient():
    theta = chains.init(5)
    phi = chains.init(0)
    alive = jnp.array([True, False])

    def total(phi, theta, dead):
        likelihood = chains.likelihood(jnp.eye(2), jnp.zeros((2, 3, 2)))

        def evaluate(z):
            with jax.numpy_rank_promotion("allow"):
                return jnp.where(alive, likelihood(z), dead)

        return gdregs.bound(
            chains.chain(phi), chains.chain(theta), evaluate, key=jax.random.key(0), num_samples=4
        )

    for dead in (-jnp.inf, jnp.nan):
        values, gradients = (f(phi, theta, dead) for f in (total, jax.jacrev(total, (0, 1))))
        assert jnp.isfinite(values[0])
        assert values[1] == -jnp.inf
        for leaf in jax.tree.leaves(gradients):
            assert np.isfinite(leaf).all()
            assert not np.asarray(leaf[1]).any()


@pytest.mark.slow
def test_constrained_latents():
    """Gamma latents, of which a posterior outside of the prior's support would have no weight."""

    class Rate(eqx.Module):
        factor: jax.Array

        def __call__(self, previous, u):
            return dist.Gamma(2.0, 1.0 / (0.1 + self.factor * previous))

    prior = gdregs.Chain(dist.Gamma(2.0, 1.0), Rate(jnp.array(0.5)), length=4)
    z = prior.sample(jax.random.key(0), (3,))
    assert (z > 0).all()
    posterior = gdregs.Chain(dist.Normal(1.0, 1.0), Decay(jnp.array(0.5)), length=4, mask=None)

    def total(prior):
        return gdregs.bound(
            posterior, prior, lambda z: -(z.sum(-1) ** 2), key=jax.random.key(1), num_samples=200
        )

    value, gradient = jax.value_and_grad(total)(prior)
    assert np.isfinite(value)
    assert np.isfinite(gradient.transition.factor)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((dist.Normal(), Decay(0.5)), {"length": 0}, ValueError, "length must be at least 1"),
        ((dist.Normal(), Decay(0.5)), {"length": 2.5}, TypeError, "length must be a whole number"),
        ((dist.Normal(), 3), {"length": 2}, TypeError, "transition must be a function"),
        ((None, Decay(0.5)), {"length": 2}, TypeError, "initial must be a distribution"),
        (
            (dist.Normal(), Decay(0.5)), {"length": 2, "inputs": np.zeros(3)}, ValueError,
            "inputs must have the leading axis T = 2",
        ),
        (
            (dist.Normal(), Decay(0.5)), {"length": 2, "mask": np.ones((3, 1), bool)}, ValueError,
            "mask must have the leading axis T = 2",
        ),
        (
            (dist.Normal(), Decay(0.5)), {"length": 2, "state": 0.0}, TypeError,
            "state and advance belong together",
        ),
        (
            (dist.Normal(), Decay(0.5)), {"length": 2, "path": "best"}, ValueError,
            "path must be one of 'auto', 'matrices', 'loop'",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        gdregs.Chain(*arguments, **options)


def test_values_of_another_length_are_named():
    chain = gdregs.Chain(dist.Normal(), Decay(jnp.array(0.5)), length=4)
    with pytest.raises(ValueError, match="A Chain of T = 4 latents was given an array of shape"):
        chain.log_prob(jnp.zeros((2, 3)))
    with pytest.raises(TypeError, match="conditionals of a Chain must be distributions"):
        gdregs.Chain(dist.Normal(), lambda previous, u: previous, length=3).sample(
            jax.random.key(0), (2,)
        )
