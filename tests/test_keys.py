"""Samples that are evaluated twice are the same ones, and what should be independent is."""

import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import gdregs
import models
from families import FAMILIES, draw_parameters
from gdregs.evaluation import keys, pull
from gdregs.numpyro.bound import Bound
from means import assert_unbiased
from nights import drawn

KEY = jax.random.key(3)
K, DATAPOINTS = 6, 3
LOG_SHIFT = gdregs.Hierarchy({
    "a": (dist.Normal(np.zeros(DATAPOINTS), 1.0), ()),
    "b": (lambda a: dist.InverseGamma(4.0, 1.0 + a**2), ("a",)),
})  # fmt: skip
OBJECTIVES = (gdregs.IWAE(), gdregs.JVI(), gdregs.VRIWAE(0.4), gdregs.ELBO())


def of_family(name):
    """A posterior of this family for each datapoint."""
    if name == "hierarchy":
        return LOG_SHIFT
    family = FAMILIES[name]
    with jax.numpy_rank_promotion("allow"):
        found = family.make(*(np.float32(p) for p in draw_parameters(family, 1)))
        return found.expand((DATAPOINTS, *found.batch_shape)).to_event(len(found.batch_shape))


def added_up(posterior, objective, key=KEY, **options):
    """The bounds, added up, and their derivative by a constant added to the log-likelihood."""

    def total(constant):
        def likelihood(z):
            terms = [-jnp.log1p(jnp.square(leaf)) for leaf in jax.tree.leaves(z)]
            return constant + sum(term.sum(tuple(range(2, term.ndim))) for term in terms)

        return jnp.sum(
            gdregs.bound(
                posterior, posterior, likelihood, key=key, num_samples=K, objective=objective,
                posterior_estimator="rws", prior_estimator="naive", **options,
            )
        )  # fmt: skip

    return jax.value_and_grad(total)(0.0)


QUICK = ("Normal", "Gamma", "hierarchy")
CASES = [
    pytest.param(
        name, OBJECTIVES[n % 4], (5, 4, 1, 2)[n // 4 % 4],
        marks=() if name in QUICK else pytest.mark.slow,
    )
    for n, name in enumerate(("hierarchy", *FAMILIES))
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "objective", "chunk_size"), [*CASES, *drawn(FAMILIES, OBJECTIVES, (1, 2, 4, 5))]
)
def test_blocks_are_of_the_samples_of_the_whole(name, objective, chunk_size):
    """Their weights add up to 1, and the bound is the same, however a family draws."""

    @jax.jit
    def run():
        posterior = of_family(name)
        blocks = added_up(posterior, objective, chunk_size=chunk_size)
        kept = added_up(posterior, objective, chunk_size=chunk_size, num_gradient_samples=2)
        return added_up(posterior, objective), blocks, kept[0]

    try:
        (value, weights), (value_of_blocks, weights_of_blocks), value_of_kept = run()
    except ImportError as error:
        pytest.skip(f"numpyro cannot draw from it: {error}")
    np.testing.assert_allclose(weights, DATAPOINTS, rtol=1e-5)
    np.testing.assert_allclose(weights_of_blocks, DATAPOINTS, rtol=1e-5)
    np.testing.assert_allclose(value_of_blocks, value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(value_of_kept, value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_weights_of_kept_samples_add_up_to_1_on_average(chunk_size):
    """Over 4,000 keys, with M = 2 of K = 6: a kept sample stands for those that are not."""

    def weights(key):
        options = {"num_gradient_samples": 2, "chunk_size": chunk_size}
        return added_up(of_family("Gamma"), gdregs.JVI(), key, **options)[1]

    found = np.asarray(jax.jit(jax.vmap(weights))(jax.random.split(KEY, 4000)))
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - DATAPOINTS) < 4.5 * error + 1e-4
    assert 0 < error < 0.05


def test_chosen_samples_are_those_of_the_whole():
    """Kept ones of a stream are drawn again; each is the sample that was weighed."""

    @jax.jit
    def gradients():
        def total(shape, **options):
            posterior = dist.Gamma(shape * jnp.ones(DATAPOINTS), 1.5)
            prior = dist.Gamma(1.3 * jnp.ones(DATAPOINTS), 1.0)
            return jnp.sum(
                gdregs.bound(
                    posterior, prior, lambda z: -jnp.square(z), key=KEY, num_samples=K,
                    num_gradient_samples=2, **options,
                )
            )  # fmt: skip

        return [jax.grad(total)(2.0, chunk_size=size) for size in (None, 1, 4, 5)]

    whole, *others = gradients()
    np.testing.assert_allclose(others, whole, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "chunk_size"),
    [
        pytest.param(name, (4, 5, 1)[n % 3], marks=() if name == "Gamma" else pytest.mark.slow)
        for n, name in enumerate(FAMILIES)
    ],
)
def test_weights_of_particles_add_up_whatever_the_blocks(name, chunk_size):
    family = of_family(name)

    def program(is_model):
        with numpyro.plate("data", DATAPOINTS):
            z = numpyro.sample("z", family)
            if is_model:
                event = tuple(range(1, jnp.ndim(z)))
                factor = jnp.sum(jnp.log1p(jnp.square(z)), event)
                numpyro.factor("x", numpyro.param("constant") - factor)

    def model():
        program(is_model=True)

    def guide():
        program(is_model=False)

    @jax.jit
    def run(params):
        def loss(params, size):
            bound = Bound(K, gdregs.IWAE(), "rws", "naive", chunk_size=size)
            return bound.loss(KEY, params, model, guide)

        return [jax.value_and_grad(loss)(params, size) for size in (None, chunk_size)]

    try:
        with jax.numpy_rank_promotion("allow"):
            (value, _), (value_of_blocks, gradient) = run({"constant": 0.1})
    except ImportError as error:
        pytest.skip(f"numpyro cannot draw from it: {error}")
    np.testing.assert_allclose(gradient["constant"], -DATAPOINTS, rtol=1e-5)
    np.testing.assert_allclose(value_of_blocks, value, rtol=1e-5, atol=1e-5)


def test_all_keys_of_a_call_are_distinct():
    """Also those into which samplers split the key of a sample."""

    @jax.jit
    def of_call():
        each = keys.keys_of_samples(KEY, 0, 300)
        nodes = jax.vmap(lambda key: jax.random.split(key, 30))(each).reshape(-1)
        found = (
            each,
            nodes,
            *(keys.keys_of_noise(each, of) for of in ("likelihood", "posterior", "prior")),
            keys.key_of_resampling(KEY)[None],
        )
        return jnp.concatenate([jax.random.key_data(key) for key in found])

    found = np.asarray(of_call())
    assert len(np.unique(found, axis=0)) == len(found) == 300 + 9000 + 3 * 300 + 1


def test_each_sample_has_a_key_of_its_own():
    """Whatever the number of samples, and whatever the block."""

    @jax.jit
    def draws():
        return [
            jax.random.key_data(keys.keys_of_samples(KEY, start, size))
            for start, size in ((0, 9), (4, 5))
        ]

    whole, later = map(np.asarray, draws())
    np.testing.assert_array_equal(later, whole[4:])


def test_keys_of_both_kinds_and_nothing_else():
    raw = jax.random.PRNGKey(3)

    @jax.jit
    def both():
        return [jax.random.key_data(keys.typed_key(key)) for key in (KEY, raw)]

    np.testing.assert_array_equal(*both())
    for wrong in (0, None, np.zeros(2), np.zeros((2, 2), np.uint32), KEY[None]):
        with pytest.raises(
            TypeError, match=r"key must be a JAX random key, such as jax.random.key"
        ):
            keys.typed_key(wrong)


def step(previous, u):
    return dist.Normal(0.6 * previous + 0.2 * u, 0.8)


@pytest.mark.slow
def test_one_kept_sample_of_a_chain_longer_than_there_are_samples():
    """With the key of a step of the first sample as its own it must be found out as biased."""
    length, num_samples = 8, 4

    def gradient(kept, number=None):
        def objective(parameters, key):
            shift, factor = parameters
            posterior = gdregs.Chain(
                dist.Normal(0.0, 1.0), step, length=length, inputs=shift * jnp.ones(length)
            )
            prior = gdregs.Chain(
                dist.Normal(0.0, 1.0),
                jax.tree_util.Partial(lambda a, z, u: dist.Normal(a * z, 1.0), factor),
                length=length,
            )
            return gdregs.bound(
                posterior, prior, lambda z: -0.5 * jnp.sum((z - 1.0) ** 2, axis=-1), key=key,
                num_samples=num_samples, num_gradient_samples=kept,
            )  # fmt: skip

        def key_of_resampling(key):
            if number is None:
                return keys.key_of_resampling(key)
            # As it was: each latent had one key for all samples, and this is the key of one.
            first = jax.random.fold_in(key, 0)
            return jax.random.split(first, length)[number]

        def draw(key):
            with mock.patch.object(pull, "key_of_resampling", key_of_resampling):
                return jax.grad(objective)((0.3, 0.5), key)

        return draw

    suspects = {"own key": gradient(1), "key of a step": gradient(1, num_samples)}
    assert_unbiased(suspects, gradient(None), jax.random.key(0), biased=("key of a step",))


@pytest.mark.slow
def test_one_kept_sample_of_a_hierarchy_of_more_latents_than_samples():
    """With estimators of every kind: of a kept sample the gradient has the mean that all have."""
    pairs = [
        ("naive", "naive"), ("stl", "gdregs"), ("dregs", "gdregs"), ("rws", "naive"),
        ("rws-dregs", "gdregs-mix"), ("interpolated 0.3", "mixed 0.3"),
    ]  # fmt: skip
    names, num_samples = "abcdef", 3

    def hierarchy(shift, factor):
        nodes = {"a": (dist.Normal(shift, 1.0), ())}
        for parent, name in itertools.pairwise(names):
            below = jax.tree_util.Partial(lambda f, z: dist.Normal(f * z, 1.0), factor)
            nodes[name] = (below, (parent,))
        return gdregs.Hierarchy(nodes)

    def likelihood(z):
        return -0.5 * sum((leaf - 1.0) ** 2 for leaf in z.values())

    def gradient(row, key, kept):
        def objective(parameters):
            shift, factor = parameters
            return gdregs.bound(
                hierarchy(shift, 0.5), hierarchy(0.0, factor), likelihood, key=key,
                num_samples=num_samples, num_gradient_samples=kept, posterior_estimator=row[0],
                prior_estimator=row[1],
            )  # fmt: skip

        return jax.grad(objective)((0.3, 0.6))

    rows = models.rows_of(pairs)

    def draw(key):
        one, all_of_them = (
            jax.vmap(lambda row, kept=kept: gradient(row, key, kept))(rows)
            for kept in (1, num_samples)
        )

        def of(found, index):
            return jax.tree.map(lambda leaf: leaf[index], found)

        found = {" and ".join(pair): of(one, index) for index, pair in enumerate(pairs)}
        expected = {" and ".join(pair): of(all_of_them, i) for i, pair in enumerate(pairs)}

        def key_of_a_node(key):
            return jax.random.split(jax.random.fold_in(key, 0), len(names))[3]

        with mock.patch.object(pull, "key_of_resampling", key_of_a_node):
            found["key of a node"] = gradient(of(rows, 0), key, 1)
        return found, {**expected, "key of a node": of(all_of_them, 0)}

    assert_unbiased(draw, None, jax.random.key(0), biased=("key of a node",))
