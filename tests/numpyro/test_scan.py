"""Latents in numpyro's `scan`, held against the same programs unrolled and against numpyro."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import RenyiELBO, autoguide

import gdregs
from gdregs.numpyro.bound import Bound
from gdregs.reexpression.reexpress import reexpress
from means import largest_z

PAPERS = {"posterior_estimator": "dregs", "prior_estimator": "gdregs"}
SERIES = np.array([0.3, -0.5, 0.8, 0.1])
PARAMS = {"a": 0.8, "s": 0.5, "b": 0.5, "c": 0.6, "r": 0.4}


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


def params():
    return {name: jnp.asarray(value) for name, value in PARAMS.items()}


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
    _, posterior, prior, _, _ = Bound(3)._read(
        jax.random.key(0), params, model, guide, (SERIES,), options
    )
    return posterior, prior


@pytest.mark.parametrize("reverse", [False, True])
def test_densities_and_paths_are_those_of_the_unrolled_program(float64, reverse):
    z = np.random.default_rng(0).normal(size=(3, 5))
    scanned = {"z0": jnp.asarray(z[:, 0]), "z": jnp.asarray(z[:, 1:])}
    unrolled = {f"z{t}": jnp.asarray(z[:, t]) for t in range(5)}
    cotangent = np.random.default_rng(1).normal(size=(3, 5))

    def program(params):
        def with_reverse(guide):
            return lambda series: guide(series, reverse)

        return [
            parts(model, with_reverse(guide), params),
            parts(unrolled_model, with_reverse(unrolled_guide), params),
        ]

    def outputs(which, part, params):
        program_part, at = program(params)[which][part], (scanned, unrolled)[which]
        moved = reexpress(program_part, at)
        if which == 0:
            moved = jnp.concatenate([moved["z0"][:, None], moved["z"]], axis=1)
        else:
            moved = jnp.stack([moved[f"z{t}"] for t in range(5)], axis=1)
        total = jnp.sum(program_part.log_prob(at))
        if part == 1:
            total += jnp.sum(program_part.likelihood(at))
        return total + jnp.sum(moved * cotangent)

    for part in (0, 1):
        found, expected = (
            jax.value_and_grad(lambda p, which=which, part=part: outputs(which, part, p))(params())
            for which in (0, 1)
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, expected
        )
        assert sum(map(abs, expected[1].values())) > 1


def test_value_and_naive_gradient_are_those_of_numpyro(float64):
    found, expected = (
        jax.value_and_grad(
            lambda p, loss=loss: loss.loss(jax.random.key(3), p, model, guide, SERIES)
        )(params())
        for loss in (Bound(4), RenyiELBO(alpha=0, num_particles=4))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), found, expected)


@pytest.mark.slow
def test_gradients_are_unbiased_and_stls_are_not():
    def draws(**options):
        loss = Bound(4, **options)
        return lambda key: jax.grad(lambda p: loss.loss(key, p, model, guide, SERIES))(params())

    suspects = {
        "whole": draws(**PAPERS),
        "M = 2": draws(**PAPERS, num_gradient_samples=2),
        "stl": draws(posterior_estimator="stl", prior_estimator="naive"),
    }
    largest = largest_z(suspects, draws(), jax.random.key(0), 4000)
    assert largest.pop("stl") > 1
    assert max(largest.values()) < 1, largest


def test_sequences_in_a_plate_have_weights_of_their_own(float64):
    """With a plate inside of the scan, the bound is the sum of the bounds of its elements."""
    batch = jnp.stack([SERIES, -SERIES, 2 * SERIES], axis=1)  # [T, N]

    def one_step(before, x, a, s):
        z = numpyro.sample("z", dist.Normal(a * before, s))
        numpyro.sample("x", dist.Normal(z, 0.3), obs=x)
        return z, None

    def model(batch):
        a, s = numpyro.param("a"), numpyro.param("s")

        def step(before, x):
            with numpyro.plate("n", 3):
                return one_step(before, x, a, s)

        scan(step, jnp.zeros(3), batch)

    def guide(batch):
        b, c, r = (numpyro.param(name) for name in "bcr")

        def step(before, x):
            with numpyro.plate("n", 3):
                z = numpyro.sample("z", dist.Normal(b * before + c * x, r))
            return z, None

        scan(step, jnp.zeros(3), batch)

    _, posterior, prior, _, _ = Bound(5)._read(
        jax.random.key(0), params(), model, guide, (batch,), {}
    )
    z = posterior.sample(jax.random.key(1), (5,))
    assert z["z"].shape == (5, 3, 4)
    assert prior.log_prob(z).shape == prior.likelihood(z).shape == (5, 3)
    for options in ({}, PAPERS):
        gradients = jax.grad(
            lambda p, options=options: Bound(5, **options).loss(
                jax.random.key(2), p, model, guide, batch
            )
        )(params())
        assert all(np.isfinite(g) and g != 0 for g in gradients.values())


def test_the_program_does_not_grow_with_the_steps():
    def size(length):
        series = jnp.zeros(length)
        loss = Bound(4, **PAPERS)
        gradient = jax.grad(lambda p: loss.loss(jax.random.key(0), p, model, guide, series))
        return str(jax.make_jaxpr(gradient)(params())).count(" = ")

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

    series = jnp.array([1.0, 2.0, 2.0, 3.0])
    differences = np.eye(4) - np.eye(4, k=-1)
    exact = np.linalg.solve(differences.T @ differences + np.eye(4), series)
    guide = autoguide.AutoMultivariateNormal(walk)
    rate = optax.cosine_decay_schedule(0.02, 1500)
    loss = Bound(8, objective=gdregs.ELBO())
    svi = gdregs.numpyro.SVI(walk, guide, optax.adam(rate), loss)
    result = svi.run(jax.random.key(0), 1500, series, progress_bar=False)
    np.testing.assert_allclose(guide.median(result.params)["z"], exact, atol=0.005)
