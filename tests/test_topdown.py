"""Deep hierarchies of one carried state, held against the graphs that they are."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
from chains import rows_of
from means import assert_unbiased
from models import OBJECTIVES, PAIRS_WITH_EACH

BATCH, SIZE = 2, 2
X = np.cos(np.arange(4.0)).reshape(BATCH, SIZE)


def product(z, weight):
    with jax.numpy_rank_promotion("allow"):
        return z @ weight


class Read(eqx.Module):
    """A conditional; the posterior's also reads bottom-up features."""

    weight: jax.Array
    bias: jax.Array
    features: jax.Array | None = None

    def __call__(self, state):
        hidden = product(state, self.weight)
        with jax.numpy_rank_promotion("allow"):
            hidden = hidden + self.bias if self.features is None else hidden + self.features
        return dist.Normal(jnp.tanh(hidden), 0.4 + jax.nn.softplus(0.3 * hidden)).to_event(1)


class Merge(eqx.Module):
    """The top-down network."""

    weight: jax.Array
    by_latent: jax.Array

    def __call__(self, state, z):
        with jax.numpy_rank_promotion("allow"):
            return jnp.tanh(product(state, self.weight) + product(z, self.by_latent))


class Node(eqx.Module):
    """A conditional of the same as a graph: the state is computed from all latents above."""

    read: Read
    merges: tuple
    state: jax.Array

    def __call__(self, *above):
        state = self.state
        for merge, z in zip(self.merges, above, strict=True):
            state = merge(state, z)
        return self.read(state)


class Parameters(eqx.Module):
    """Networks of posterior and prior, and those that they share."""

    reads: tuple
    own_reads: tuple
    merges: tuple
    state: jax.Array
    features: jax.Array


def init(num_layers, seed=0):
    """Parameters in numpy, of the type that the program gives them."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return 0.7 * rng.normal(size=shape)

    def reads():
        return tuple(Read(normal(SIZE, SIZE), normal(1, SIZE)) for _ in range(num_layers))

    merges = tuple(Merge(normal(SIZE, SIZE), normal(SIZE, SIZE)) for _ in range(num_layers))
    return Parameters(reads(), reads(), merges, normal(BATCH, SIZE), normal(SIZE, SIZE))


def names(parameters):
    return [f"z{i}" for i in range(len(parameters.reads), 0, -1)]


def ladder(parameters, kind, is_posterior):
    """Posterior and prior share the top-down network; the posterior reads the data too."""
    reads = parameters.own_reads if is_posterior else parameters.reads
    if is_posterior:
        features = product(X, parameters.features)
        reads = [eqx.tree_at(lambda r: r.features, r, features, is_leaf=lambda x: x is None)
                 for r in reads]  # fmt: skip
    layers = names(parameters)
    if kind == "topdown":
        return gdregs.TopDown(
            dict(zip(layers, zip(reads, parameters.merges, strict=True), strict=True)),
            parameters.state,
        )
    return gdregs.Hierarchy(
        {
            name: (Node(reads[i], parameters.merges[:i], parameters.state), tuple(layers[:i]))
            for i, name in enumerate(layers)
        }
    )


def likelihood(z):
    with jax.numpy_rank_promotion("allow"):
        loc = sum(jnp.sin((i + 1) * value) for i, value in enumerate(z.values()))
        return dist.Normal(loc, 0.6).to_event(1).log_prob(X)


def bound(parameters, kind, key, *, num_samples=5, **options):
    return jnp.sum(
        gdregs.bound(
            ladder(parameters, kind, True),
            ladder(parameters, kind, False),
            lambda z: likelihood({name: z[name] for name in names(parameters)}),
            key=key,
            num_samples=num_samples,
            **options,
        )
    )


def assert_close(found, expected, **options):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10, rtol=1e-10, **options),
        found,
        expected,
    )


@pytest.mark.parametrize(
    ("objective", "kept"),
    [
        pytest.param("iwae", 2, marks=pytest.mark.slow),
        pytest.param("own", None, marks=pytest.mark.slow),
        *(
            pytest.param(name, None, marks=pytest.mark.nightly)
            for name in OBJECTIVES
            if name != "own"
        ),
    ],
)
def test_every_estimator_is_that_of_the_graph(float64, objective, kept):
    """Shared networks have the sum of what posterior and prior give them."""
    key = jax.random.key(3)

    @jax.jit
    def both(parameters, rows):
        def of_one(row):
            return [
                jax.value_and_grad(bound)(
                    parameters, kind, key, objective=OBJECTIVES[objective],
                    num_gradient_samples=kept, posterior_estimator=row[0], prior_estimator=row[1],
                )
                for kind in ("topdown", "hierarchy")
            ]  # fmt: skip

        return jax.vmap(of_one)(rows)

    found, expected = jax.device_get(both(init(3), rows_of(PAIRS_WITH_EACH)))
    for number, pair in enumerate(PAIRS_WITH_EACH):
        ours, theirs = jax.tree.map(lambda leaf, n=number: leaf[n], (found, expected))
        assert_close(ours, theirs, err_msg=str(pair))


def test_an_alpha_for_each_layer_mixes_the_gradients_of_its_parameters(float64):
    """Of a leaf with alpha, the gradient is (1 - alpha) naive + alpha GDReGs, draw by draw."""
    alpha = {"z2": 0.7, "z1": -0.5}
    mixes = {name: np.array([strength, 0.0, 1.0]) for name, strength in alpha.items()}

    @jax.jit
    def gradients(parameters, mixes):
        posterior, prior = (ladder(parameters, "topdown", is_q) for is_q in (True, False))

        def of(mix):
            def total(prior):
                values = gdregs.bound(
                    posterior, prior, likelihood, key=jax.random.key(3), num_samples=5,
                    prior_estimator=gdregs.mixed_gdregs(mix),
                )  # fmt: skip
                return jnp.sum(values)

            return jax.grad(total)(prior)

        return jax.vmap(of)(mixes)

    found = jax.device_get(gradients(init(2), mixes))
    mixed, naive, full = (jax.tree.map(lambda leaf, n=n: leaf[n], found) for n in range(3))
    assert np.abs(full.advances["z2"].weight - naive.advances["z2"].weight).max() > 1e-3

    def check(part, strength):
        expected = jax.tree.map(lambda n, g: (1 - strength) * n + strength * g, *part[1:])
        assert_close(part[0], expected)

    for name, strength in alpha.items():
        for parts in ("conditionals", "advances"):
            check([getattr(g, parts)[name] for g in (mixed, naive, full)], strength)
    check([g.state for g in (mixed, naive, full)], alpha["z2"])


@pytest.mark.slow
def test_without_indirect_scores_as_the_graph(float64):
    @jax.jit
    def gradients(parameters):
        return [
            jax.grad(bound)(parameters, kind, jax.random.key(3), indirect_scores=scores)
            for kind, scores in (("topdown", "drop"), ("hierarchy", "drop"), ("topdown", "keep"))
        ]

    found, expected, kept = jax.device_get(gradients(init(3)))
    assert_close(found, expected)
    assert np.abs(found.merges[0].weight - kept.merges[0].weight).max() > 1e-3


@pytest.mark.slow
def test_a_ladder_is_unbiased_and_stl_is_not():
    parameters = init(2)

    def gradient(**options):
        return lambda key: jax.grad(bound)(parameters, "topdown", key, num_samples=4, **options)

    suspects = {
        "whole": gradient(),
        "M = 2": gradient(num_gradient_samples=2),
        "stl": gradient(posterior_estimator="stl"),
    }
    naive = gradient(posterior_estimator="naive", prior_estimator="naive")
    assert_unbiased(suspects, naive, jax.random.key(0), biased=("stl",))


class Layered(eqx.Module):
    """`Read` or `Merge` with the parameters of each layer as its input."""

    def __call__(self, state, layer):
        return layer["read"](state)


class Advance(eqx.Module):
    def __call__(self, state, z, layer):
        return layer["merge"](state, z)


def test_layers_of_one_shape_are_a_chain(float64):
    """Their parameters, stacked, are its inputs."""

    def total(parameters, kind, z):
        if kind == "topdown":
            part = ladder(parameters, kind, False)
            value = {name: z[:, :, i] for i, name in enumerate(names(parameters))}
            path = gdregs.reexpress(part, value)
            moved = jnp.stack([path[name] for name in names(parameters)], axis=2)
        else:
            layers = [
                {"read": read, "merge": merge}
                for read, merge in zip(parameters.reads, parameters.merges, strict=True)
            ]
            part = gdregs.Chain(
                None,
                Layered(),
                length=3,
                inputs=jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers),
                state=parameters.state,
                advance=Advance(),
            )
            value, moved = z, gdregs.reexpress(part, z)
        weights = jnp.sin(jnp.arange(z.size).reshape(z.shape))
        return jnp.sum(part.log_prob(value)) + jnp.sum(weights * moved)

    @jax.jit
    def both(parameters, z):
        return [jax.value_and_grad(total)(parameters, kind, z) for kind in ("topdown", "chain")]

    z = np.random.default_rng(4).normal(size=(3, BATCH, 3, SIZE))
    assert_close(*both(init(3), z))


@pytest.mark.slow
def test_images_as_latents(float64):
    """Any event rank: 3 x 3 latents, moved by a convolution."""

    class Convolve(eqx.Module):
        kernel: jax.Array

        def __call__(self, state, z=None):
            value = state if z is None else state + z
            flat = value.reshape(-1, 1, 3, 3)
            moved = jax.lax.conv(flat, self.kernel, (1, 1), "SAME").reshape(value.shape)
            return dist.Normal(jnp.tanh(moved), 0.5).to_event(2) if z is None else jnp.tanh(moved)

    kernel = 0.3 * np.random.default_rng(0).normal(size=(1, 1, 3, 3))

    def total(kernel, key=jax.random.key(1)):
        layers = {f"z{i}": (Convolve(kernel), Convolve(2 * kernel)) for i in range(3)}
        part = gdregs.TopDown(layers, jnp.zeros((2, 3, 3)))
        return jnp.sum(
            gdregs.bound(
                part, part, lambda z: -jnp.sum(z["z2"] ** 2, (2, 3)), key=key, num_samples=4,
                num_gradient_samples=2,
            )
        )  # fmt: skip

    value, gradient = jax.jit(jax.value_and_grad(total))(kernel)
    assert np.isfinite(value)
    assert np.abs(gradient).max() > 0


def test_constrained_latents():
    class Rate(eqx.Module):
        scale: jax.Array

        def __call__(self, state):
            return dist.Gamma(2.0, jnp.exp(self.scale * state))

    class Keep(eqx.Module):
        def __call__(self, state, z):
            return jnp.log(z)

    def make(scale, kind):
        first = (Rate(scale) if kind == "prior" else (lambda h: dist.Normal(scale, 1.0)), Keep())
        if kind == "prior":
            return gdregs.TopDown({"a": first, "b": (Rate(scale), None)}, jnp.zeros(()))
        parts = {"a": (dist.Normal(1.0 + scale, 0.7), ()), "b": (dist.Normal(1.0, 0.7), ())}
        return gdregs.Hierarchy(parts)

    def total(scale):
        return gdregs.bound(
            make(jnp.array(0.3), "posterior"), make(scale, "prior"), lambda z: -z["b"],
            key=jax.random.key(0), num_samples=50,
        )  # fmt: skip

    value, gradient = jax.jit(jax.value_and_grad(total))(0.5)
    assert np.isfinite(value)
    assert np.isfinite(gradient)


def test_bad_layers_are_named():
    read = (lambda h: dist.Normal(h, 1.0), None)
    with pytest.raises(ValueError, match="at least one layer"):
        gdregs.TopDown({}, 0.0)
    with pytest.raises(TypeError, match="Layer 'z' must be a pair"):
        gdregs.TopDown({"z": read[0]}, 0.0)
    with pytest.raises(ValueError, match="Layer 'a' has no advance, which the layers below"):
        gdregs.TopDown({"a": read, "b": read}, 0.0)
    with pytest.raises(ValueError, match=r"over the latents \['a'\] was given \['b'\]"):
        gdregs.TopDown({"a": read}, np.zeros(2)).log_prob({"b": np.zeros(2)})
