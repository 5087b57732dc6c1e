"""Samples that are evaluated twice are the same ones, and what should be independent is."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import gdregs
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


def normal_model():
    constant = numpyro.param("constant")
    with numpyro.plate("data", DATAPOINTS):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("x", constant - (z - 0.7) ** 2)


def normal_guide():
    with numpyro.plate("data", DATAPOINTS):
        numpyro.sample("z", dist.Normal(numpyro.param("loc"), 1.0))


def test_weights_of_particles_add_up_whatever_the_blocks():
    @jax.jit
    def run(params):
        def loss(params, size):
            return Bound(K, chunk_size=size).loss(KEY, params, normal_model, normal_guide)

        return [jax.grad(loss)(params, size)["constant"] for size in (2, 4)]

    np.testing.assert_allclose(run({"constant": 0.1, "loc": 0.2}), -DATAPOINTS, rtol=1e-4)


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


def dropout(key):
    return lambda z: z * jax.random.bernoulli(key, 0.5, z.shape)


def hierarchy(network):
    def below(a):
        return dist.Normal(network(a), 1.0)

    return gdregs.Hierarchy(
        {"a": (dist.Normal(np.zeros(DATAPOINTS), 1.0), ()), "b": (below, ("a",))}
    )


def by_rows(z):
    """Noise of each sample, in a loop over samples."""

    def row(of):
        key, value = of
        return -jnp.square(value) * jax.random.uniform(key, value.shape)

    return jax.lax.map(row, (jax.random.split(KEY, z["b"].shape[0]), z["b"]))


def by_gamma(z):
    """Noise that JAX draws by an operation of its own."""
    return -jnp.square(z["b"]) * jax.random.gamma(KEY, 2.0, z["b"].shape)


NOISY = {
    "posterior": (hierarchy(dropout(KEY)), hierarchy(jnp.tanh), lambda z: -jnp.square(z["b"])),
    "prior": (hierarchy(jnp.tanh), hierarchy(dropout(KEY)), lambda z: -jnp.square(z["b"])),
    "likelihood": (hierarchy(jnp.tanh), hierarchy(jnp.tanh), by_rows),
    "likelihood, gamma": (hierarchy(jnp.tanh), hierarchy(jnp.tanh), by_gamma),
}


@pytest.mark.parametrize("part", NOISY)
def test_noise_of_each_sample_is_refused_wherever_it_is_drawn(part):
    def evaluate(**options):
        return jax.eval_shape(
            lambda: gdregs.bound(
                *NOISY[part], key=KEY, num_samples=K, posterior_estimator="naive",
                prior_estimator="naive", **options,
            )
        )  # fmt: skip

    elbo = {"objective": gdregs.ELBO()}
    if part == "posterior":  # samples of one density, and the values of another
        for options in ({}, {"num_gradient_samples": 2}, {"chunk_size": 4}, elbo):
            with pytest.raises(ValueError, match="The posterior draws random numbers"):
                evaluate(**options)
        return
    assert evaluate().shape == (DATAPOINTS,)
    for options in ({"num_gradient_samples": 2}, {"chunk_size": 4}):
        with pytest.raises(ValueError, match=f"The {part.split(',')[0]} draws random numbers"):
            evaluate(**options)
        evaluate(**elbo, **options)


def masks(keys):
    """Dropout with a mask for each sample that its datapoints share."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (DATAPOINTS,)))(keys)


def normals(loc=0.0):
    return dist.Normal(loc * jnp.ones(DATAPOINTS), 1.0)


def of_samples(loc, slope):
    """A likelihood with a mask for each sample."""
    return normals(loc), normals(), lambda z, keys: -jnp.square(slope * z * masks(keys) - 1)


def of_datapoints(loc, slope):
    """A likelihood with noise for each sample and datapoint."""

    def likelihood(z, keys):
        return -jnp.square(slope * z * jax.vmap(jax.vmap(jax.random.exponential))(keys) - 1)

    return normals(loc), normals(), likelihood


def masked(slope, a, keys):
    return dist.Normal(slope * a * masks(keys), 1.0)


def of_conditionals(loc, slope):
    """Posterior and prior with dropout in a conditional."""
    below = jax.tree_util.Partial(masked, slope)
    posterior = gdregs.Hierarchy({"a": (normals(loc), ()), "b": (below, ("a",))})
    below = jax.tree_util.Partial(masked, 2 * slope)
    prior = gdregs.Hierarchy({"a": (normals(), ()), "b": (below, ("a",))})
    return posterior, prior, lambda z: -jnp.square(z["b"] - 1)


@pytest.mark.parametrize("parts", [of_samples, of_datapoints, of_conditionals])
def test_noise_by_the_keys_of_samples_belongs_to_its_sample(parts):
    """In blocks it is that of the whole; with M < K the gradient has the mean of the naive one."""
    parameters = (0.3, 0.4)

    def objective(parameters, key, **options):
        return jnp.sum(gdregs.bound(*parts(*parameters), key=key, num_samples=K, **options))

    def blocks(key):
        of = jax.value_and_grad(objective)
        return [jnp.stack(of(parameters, key, chunk_size=size)[1]) for size in (None, 4)]

    whole, found = jax.jit(blocks)(KEY)
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5)

    def gradient(**options):
        return lambda key: jax.grad(objective)(parameters, key, **options)

    def swapped(model, estimators, weighed, *span):
        noise = jax.tree.map(lambda keys: jnp.roll(keys, 1, axis=0), weighed.noise)
        return pull.pull(model, estimators, weighed._replace(noise=noise), *span)

    def swap_all(model, seen, estimators):
        weighed = pull.Weighed(seen.z, model.noise(0, K), seen.v, seen.r)
        return swapped(model, estimators, weighed)

    def other_noise(key):
        """The backward pass sees the noise of other samples, as if it were drawn anew."""
        with mock.patch.multiple("gdregs.bound", pull=swapped, pull_all=swap_all):
            return gradient(num_gradient_samples=2)(key)

    suspects = {"M = 2": gradient(num_gradient_samples=2), "other noise": other_noise}
    naive = gradient(posterior_estimator="naive", prior_estimator="naive")
    assert_unbiased(suspects, naive, jax.random.key(1), biased=("other noise",))


def test_conditionals_with_keys_are_drawn_with_an_axis_of_samples():
    posterior, _, _ = of_conditionals(0.3, 0.4)
    assert jax.eval_shape(lambda: posterior.sample(KEY, (5,)))["b"].shape == (5, DATAPOINTS)
    with pytest.raises(ValueError, match=r"take the keys of samples: sample_shape must be \(K,\)"):
        jax.eval_shape(lambda: posterior.sample(KEY))


def test_a_posterior_that_needs_an_axis_of_samples_is_drawn_with_one():
    """A conditional may count on the axes `[K, *batch]` of its parents."""

    def below(a):
        return dist.Normal(jnp.moveaxis(a, 1, 0).T, 1.0)

    hierarchy = gdregs.Hierarchy({"a": (normals(), ()), "b": (below, ("a",))})

    @jax.jit
    def run():
        def value(chunk_size):
            return gdregs.bound(
                hierarchy, hierarchy, lambda z: -jnp.square(z["b"]), key=KEY, num_samples=K,
                chunk_size=chunk_size,
            )  # fmt: skip

        return value(None), value(4)

    whole, blocks = run()
    np.testing.assert_allclose(blocks, whole, rtol=1e-5)
