"""Latents in numpyro's `scan`, held against the same programs unrolled and against numpyro."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI, RenyiELBO, autoguide

import gdregs
from gdregs.numpyro.bound import Bound
from gdregs.reexpression.reexpress import reexpress
from means import assert_unbiased
from numpyro_programs import traced

PAPERS = {"posterior_estimator": "dregs", "prior_estimator": "gdregs"}
SERIES = np.array([0.3, -0.5, 0.8])
STEPS = len(SERIES)
KEY = jax.random.key(3)
PARAMS = {"a": 0.8, "s": 0.5, "b": 0.5, "c": 0.6, "r": 0.4}


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


def model(series):
    a, s = numpyro.param("a"), numpyro.param("s")

    def step(before, x):
        z = numpyro.sample("z", dist.Normal(a * before, s))
        numpyro.sample("x", dist.Normal(z, 0.3), obs=x)
        return z, None

    scan(step, numpyro.sample("z0", dist.Normal(0.0, 1.0)), series)


def guide(series, reverse=False):
    """Forward or backward in time."""
    b, c, r = (numpyro.param(name) for name in "bcr")

    def step(before, x):
        z = numpyro.sample("z", dist.Normal(b * before + c * x, r))
        return z, None

    last, _ = scan(step, 0.1, series, reverse=reverse)
    numpyro.sample("z0", dist.Normal(b * last, r))


def unrolled_model(series):
    a, s = numpyro.param("a"), numpyro.param("s")
    z = numpyro.sample("z0", dist.Normal(0.0, 1.0))
    for t, x in enumerate(series):
        z = numpyro.sample(f"z{t + 1}", dist.Normal(a * z, s))
        numpyro.sample(f"x{t + 1}", dist.Normal(z, 0.3), obs=x)


def unrolled_guide(series, reverse=False):
    b, c, r = (numpyro.param(name) for name in "bcr")
    z = 0.1
    steps = list(enumerate(series))
    for t, x in reversed(steps) if reverse else steps:
        z = numpyro.sample(f"z{t + 1}", dist.Normal(b * z + c * x, r))
    numpyro.sample("z0", dist.Normal(b * z, r))


def parts(model, guide, params, **options):
    _, posterior, prior, _ = Bound(3)._read(
        jax.random.key(0), params, model, guide, (SERIES,), options
    )
    return posterior, prior


def test_densities_and_paths_are_those_of_the_unrolled_program(float64):
    """With a guide that runs forward in time, and with one that runs backward."""
    z = np.random.default_rng(0).normal(size=(3, STEPS + 1))
    cotangent = np.random.default_rng(1).normal(size=z.shape)
    names = [f"z{t}" for t in range(STEPS + 1)]
    scanned = (model, guide, {"z0": z[:, 0], "z": z[:, 1:]})
    unrolled = (unrolled_model, unrolled_guide, dict(zip(names, z.T, strict=True)))

    def outputs(params, program, reverse, part):
        model, guide, at = program
        at = jax.tree.map(jnp.asarray, at)
        both = parts(model, lambda series: guide(series, reverse), params)
        moved = reexpress(both[part], at)
        moved = [moved["z0"][:, None], moved["z"]] if "z" in moved else [
            moved[name][:, None] for name in names
        ]  # fmt: skip
        total = jnp.sum(both[part].log_prob(at))
        if part == 1:
            total += jnp.sum(both[part].likelihood(at))
        return total + jnp.sum(jnp.concatenate(moved, axis=1) * cotangent)

    cases = {"forward": (False, 0), "backward": (True, 0), "model": (False, 1)}

    @jax.jit
    def found_and_expected(params):
        return [
            {
                name: jax.value_and_grad(outputs)(params, program, *case)
                for name, case in cases.items()
            }
            for program in (scanned, unrolled)
        ]

    found, expected = jax.device_get(found_and_expected(PARAMS))
    for name in cases:
        jax.tree.map(
            lambda a, b, name=name: np.testing.assert_allclose(
                a, b, rtol=1e-12, atol=1e-12, err_msg=name
            ),
            found[name], expected[name],
        )  # fmt: skip
        assert sum(map(abs, expected[name][1].values())) > 1, name
    assert found["forward"][0] != found["backward"][0]


def test_value_and_naive_gradient_are_those_of_numpyro(float64):
    @jax.jit
    def found_and_expected(key, params):
        return [
            jax.value_and_grad(lambda p, loss=loss: loss.loss(key, p, model, guide, SERIES))(params)
            for loss in (Bound(4), RenyiELBO(alpha=0, num_particles=4))
        ]

    found, expected = jax.device_get(found_and_expected(KEY, PARAMS))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, expected)


@pytest.mark.slow
def test_gradients_are_unbiased_and_stls_are_not():
    def draws(**options):
        loss = Bound(4, **options)
        return lambda key: jax.grad(lambda p: loss.loss(key, p, model, guide, SERIES))(
            traced(PARAMS)
        )

    suspects = {
        "papers, M = 2": draws(**PAPERS, num_gradient_samples=2),
        "stl": draws(posterior_estimator="stl", prior_estimator="naive"),
    }
    assert_unbiased(suspects, draws(), jax.random.key(0), biased=("stl",))


def test_sequences_in_a_plate_have_weights_of_their_own(float64):
    """With a plate inside of the scan, densities are those of each of its elements alone."""
    batch = np.stack([SERIES, -SERIES, 2 * SERIES], axis=1)  # [T, N]

    def model(batch):
        a, s = numpyro.param("a"), numpyro.param("s")

        def step(before, x):
            with numpyro.plate("n", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(a * before, s))
                numpyro.sample("x", dist.Normal(z, 0.3), obs=x)
                return z, None

        scan(step, jnp.zeros(batch.shape[1]), batch)

    def guide(batch):
        b, c, r = (numpyro.param(name) for name in "bcr")

        def step(before, x):
            with numpyro.plate("n", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(b * before + c * x, r))
            return z, None

        scan(step, jnp.zeros(batch.shape[1]), batch)

    def densities(params, data, z):
        _, posterior, prior, _ = Bound(5)._read(KEY, params, model, guide, (data,), {})
        z = posterior.sample(KEY, (5,)) if z is None else z
        return z, [posterior.log_prob(z), prior.log_prob(z), prior.likelihood(z)]

    @jax.jit
    def together_and_alone(key, params):
        z, together = densities(params, batch, None)
        one = densities(params, batch[:, 1:2], {"z": z["z"][:, 1:2]})[1]
        loss = Bound(5, **PAPERS)
        gradient = jax.grad(lambda p: loss.loss(key, p, model, guide, batch))(params)
        return z, together, one, gradient

    z, together, one, gradient = jax.device_get(together_and_alone(KEY, PARAMS))
    assert z["z"].shape == (5, 3, STEPS)
    for found, alone in zip(together, one, strict=True):
        assert found.shape == (5, 3)
        np.testing.assert_allclose(found[:, 1:2], alone, rtol=1e-12)
    assert all(np.isfinite(g) and g != 0 for g in gradient.values())


def test_the_program_does_not_grow_with_the_steps():
    def size(length):
        loss = Bound(4, **PAPERS)
        series = np.zeros(length, np.float32)
        gradient = jax.grad(lambda p: loss.loss(KEY, p, model, guide, series))
        return str(jax.make_jaxpr(gradient)(PARAMS)).count(" = ")

    assert size(64) == size(4)


@pytest.mark.slow
def test_an_automatic_guide_of_a_scan_learns():
    """The smoothing mean of a random walk that is observed with noise."""

    def walk(series):
        def step(before, x):
            z = numpyro.sample("z", dist.Normal(before, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
            return z, None

        scan(step, 0.0, series)

    series = np.array([1.0, 2.0, 2.0, 3.0], np.float32)
    differences = np.eye(4) - np.eye(4, k=-1)
    exact = np.linalg.solve(differences.T @ differences + np.eye(4), series)
    guide = autoguide.AutoMultivariateNormal(walk)
    rate = optax.cosine_decay_schedule(0.05, 600)
    svi = SVI(walk, guide, optax.adam(rate), Bound(8, gdregs.ELBO(), **PAPERS))

    @jax.jit
    def train(key):
        state = svi.init(key, series)
        state, _ = jax.lax.scan(lambda s, _: svi.update(s, series), state, None, length=600)
        return guide.median(svi.get_params(state))["z"]

    np.testing.assert_allclose(train(KEY), exact, atol=0.01)
