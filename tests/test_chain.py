"""Chains are the hierarchies that they unroll to."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats

import chains
import gdregs
from chains import Decay
from models import OBJECTIVES, PAIRS_WITH_EACH
from nights import drawn

# A gap, and an end before the others', which is a late start backward.
MASK = np.array([[True, True], [False, True], [True, False]])

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
# The direction of a chain and its form do not meet in the code; a mask or a state has no matrices.
PAIRS = [
    ("forward", "matrices"),
    ("backward", "loop"),
    ("masked", "loop"),
    ("masked, backward", "checkpoint"),
    ("recurrent, masked", "loop"),
]
OTHER_PAIRS = [
    ("forward", "loop"),
    ("forward", "checkpoint"),
    ("backward", "matrices"),
    ("backward", "checkpoint"),
    ("masked", "checkpoint"),
    ("masked, backward", "loop"),
    ("recurrent", "loop"),
    ("recurrent", "checkpoint"),
    ("recurrent, masked", "checkpoint"),
]


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


@pytest.mark.parametrize(
    ("variant", "form"),
    [*PAIRS, *(pytest.param(*pair, marks=pytest.mark.nightly) for pair in OTHER_PAIRS)],
)
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

        def of(make, z, stack=lambda z: z):
            def total(parts):
                made = make(parts)
                density = made.log_prob(z)
                path = present(stack(gdregs.reexpress(made, z)))
                return jnp.sum(density) + jnp.sum(weights * path), (density, path)

            return jax.value_and_grad(total, has_aux=True)(parts)

        return (
            (z, of(chain, z)),
            (present(chains.stacked(expected)), of(unrolled, expected, chains.stacked)),
        )

    found, expected = both(parts)
    assert_close(found, expected)
    moved = jax.tree.leaves(found[1][1].cell)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in moved)


@pytest.mark.parametrize(
    ("variant", "form", "objective", "kept"),
    [
        pytest.param("forward", "matrices", "iwae", 2, marks=pytest.mark.slow),
        pytest.param("backward", "loop", "own", None, marks=pytest.mark.slow),
        pytest.param("masked", "loop", "iwae", None, marks=pytest.mark.slow),
        pytest.param("recurrent", "loop", "iwae", 2, marks=pytest.mark.slow),
        *drawn(VARIANTS, ("loop",), OBJECTIVES, (None, 2)),
    ],
)
def test_every_estimator_is_that_of_the_hierarchy(float64, variant, form, objective, kept):
    """The posterior as the variant says, the prior forward; M = K and M < K."""
    options = VARIANTS[variant]
    phi, chain, unrolled = make(0, form, **options)
    theta = chains.init(5)
    mask = options.get("mask")
    likelihood = chains.likelihood(np.eye(2), np.cos(np.arange(12.0)).reshape(2, 3, 2), mask)

    def gradient(phi, theta, posterior, prior, likelihood, row):
        def total(phi, theta):
            return jnp.sum(
                gdregs.bound(
                    posterior(phi), prior(theta), likelihood, key=jax.random.key(3), num_samples=5,
                    objective=OBJECTIVES[objective], num_gradient_samples=kept,
                    posterior_estimator=row[0], prior_estimator=row[1],
                )
            )  # fmt: skip

        return jax.value_and_grad(total, (0, 1))(phi, theta)

    @jax.jit
    def both(phi, theta, rows):
        def of_one(row):
            found = gradient(
                phi, theta, chain, lambda theta: chains.chain(theta, mask=mask), likelihood, row
            )
            expected = gradient(
                phi, theta, unrolled, lambda theta: chains.unrolled(theta, mask=mask),
                lambda z: likelihood(chains.stacked(z)), row,
            )  # fmt: skip
            return found, expected

        return jax.vmap(of_one)(rows)

    found, expected = jax.device_get(both(phi, theta, chains.rows_of(PAIRS_WITH_EACH)))
    for number, pair in enumerate(PAIRS_WITH_EACH):
        ours, theirs = jax.tree.map(lambda leaf, n=number: leaf[n], (found, expected))
        assert_close(ours, theirs, err_msg=str(pair))


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

    z = jax.eval_shape(lambda: hierarchy(jnp.array(0.5)).sample(jax.random.key(0), (6,)))
    assert {name: value.shape for name, value in z.items()} == {
        "level": (6, 3), "walk": (6, 3, 4), "noise": (6, 3, 2),
    }  # fmt: skip
    gradients = jax.jit(jax.grad(total, (0, 1)))(0.5, 0.4)
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
            jax.tree_util.Partial(cell, None), cell, length=4, inputs=loc, reverse=True
        )

    def total(scale, loc):
        chain = make(scale, loc)
        z = chain.sample(jax.random.key(0), (2,))
        moved = gdregs.reexpress(chain, z)
        return jnp.sum(moved**2) + jnp.sum(chain.log_prob(z)), (z, chain.log_prob(z))

    loc = np.sin(np.arange(12.0)).reshape(4, 3)
    traced = jax.jit(jax.value_and_grad(total, has_aux=True)).trace(0.5, loc)
    assert "scan[" not in str(traced.jaxpr)
    (_, (z, found)), gradient = traced.lower().compile()(0.5, loc)
    expected = scipy.stats.norm(loc.T, 0.5).logpdf(z).sum(-1)
    np.testing.assert_allclose(found, expected)
    # Of z = loc + scale * noise, whose density is that of the noise over the scale.
    noise = (np.asarray(z) - loc.T) / 0.5
    np.testing.assert_allclose(gradient, np.sum(2 * z * noise - 1 / 0.5))


@pytest.mark.slow
def test_streamed_as_any_other(float64):
    likelihood = chains.likelihood(np.eye(2), np.zeros((2, 3, 2)))

    @jax.jit
    def both(phi, theta):
        def of(chunk_size):
            def total(phi, theta):
                return jnp.sum(
                    gdregs.bound(
                        chains.chain(phi, reverse=True), chains.chain(theta), likelihood,
                        key=jax.random.key(1), num_samples=4, num_gradient_samples=2,
                        chunk_size=chunk_size,
                    )
                )  # fmt: skip

            return jax.value_and_grad(total, (0, 1))(phi, theta)

        return of(2), of(None)

    assert_close(*both(chains.init(0), chains.init(5)))


@pytest.mark.slow
def test_a_datapoint_without_weight_has_no_gradient():
    phi, theta = chains.init(0), chains.init(5)
    alive = np.array([True, False])

    def values(phi, theta, dead):
        likelihood = chains.likelihood(np.eye(2), np.zeros((2, 3, 2)))

        def evaluate(z):
            with jax.numpy_rank_promotion("allow"):
                return jnp.where(alive, likelihood(z), dead)

        return gdregs.bound(
            chains.chain(phi), chains.chain(theta), evaluate, key=jax.random.key(0), num_samples=4
        )

    both = jax.jit(lambda *of: (values(*of), jax.jacrev(values, (0, 1))(*of)))
    for dead in (-np.inf, np.nan):
        bounds, gradients = jax.device_get(both(phi, theta, dead))
        assert np.isfinite(bounds[0])
        assert bounds[1] == -np.inf
        for leaf in jax.tree.leaves(gradients):
            assert np.isfinite(leaf).all()
            assert not leaf[1].any()


@pytest.mark.slow
def test_constrained_latents():
    """Gamma latents, of which a posterior outside of the prior's support would have no weight."""

    class Rate(eqx.Module):
        factor: jax.Array

        def __call__(self, previous, u):
            return dist.Gamma(2.0, 1.0 / (0.1 + self.factor * previous))

    def total(factor):
        prior = gdregs.Chain(dist.Gamma(2.0, 1.0), Rate(factor), length=4)
        posterior = gdregs.Chain(dist.Normal(1.0, 1.0), Decay(jnp.array(0.5)), length=4)
        value = gdregs.bound(
            posterior, prior, lambda z: -(z.sum(-1) ** 2), key=jax.random.key(1), num_samples=200
        )
        return value, prior.sample(jax.random.key(0), (3,))

    (value, z), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(0.5)
    assert (np.asarray(z) > 0).all()
    assert np.isfinite(value)
    assert np.isfinite(gradient)


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
    chain = gdregs.Chain(dist.Normal(), Decay(0.5), length=4)
    with pytest.raises(ValueError, match="A Chain of T = 4 latents was given an array of shape"):
        jax.eval_shape(chain.log_prob, np.zeros((2, 3)))
    with pytest.raises(TypeError, match="conditionals of a Chain must be distributions"):
        gdregs.Chain(dist.Normal(), lambda previous, u: previous, length=3).sample(
            jax.random.key(0), (2,)
        )
