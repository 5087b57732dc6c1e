"""App. C.4 and the end of App. H.2, where posterior and prior are both top-down."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdregs
from gdregs.cli import main
from gdregs.papers.experiments import top_down


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def parameters():
    return top_down.make_parameters(jax.random.key(3), 2)


def by_upper_posterior(key, parameters, **options):
    phi, theta, x = parameters

    def value(phi):
        parts = top_down.make_parts(phi, theta, x)
        options.setdefault("posterior_estimator", "dregs")
        return gdregs.bound(
            *parts, key=key, num_samples=4, prior_estimator="naive", **options
        )  # fmt: skip

    found = jax.grad(value)(phi)
    return jnp.concatenate([found["loc2"], found["log_scale2"]])


def z_scores(draw, num_draws=40_000):
    draws = jax.jit(lambda keys: jax.lax.map(draw, keys, batch_size=500))(
        jax.random.split(jax.random.key(0), num_draws)
    )
    return np.asarray(jnp.mean(draws, 0) / (jnp.std(draws, 0) / num_draws**0.5))


def test_indirect_scores_as_paths_are_unbiased(parameters):
    draw = top_down.draw_by(4)

    def difference(key):
        return draw(key, parameters)["difference"]

    assert np.max(np.abs(z_scores(difference))) < 3.5

    def without(key):
        kept, dropped = (
            by_upper_posterior(key, parameters, indirect_scores=how) for how in ("keep", "drop")
        )
        return dropped - kept

    assert np.max(np.abs(z_scores(without))) > 10  # they are no small matter here


def test_no_gradient_at_the_exact_posterior(float64):
    """One latent number: x = z1 + noise, z1 = z2 + noise, all of variance 1, x = 0.6."""
    x = jnp.array([0.6])
    theta = {"loc2": jnp.zeros(1), "slope1": jnp.ones(1), "loc1": jnp.zeros(1)}
    phi = {
        "loc2": x / 3, "log_scale2": jnp.full(1, 0.5 * np.log(2 / 3)),
        "slope1": jnp.full(1, 0.5), "loc1": x / 2, "log_scale1": jnp.full(1, 0.5 * np.log(1 / 2)),
    }  # fmt: skip
    draws = top_down.draw_by(5)(jax.random.key(1), (phi, theta, x))
    assert np.max(np.abs(draws["DReGs"])) < 1e-12
    # A path through p and one through q do not cancel draw by draw, as DReGs' terms do.
    assert np.max(np.abs(draws["reparameterized"])) > 1e-3


def test_the_lowest_layer_has_the_optimal_mix_of_two_gaussians(float64):
    parameters = top_down.make_parameters(jax.random.key(0), 3)
    draw_mix = jax.jit(top_down.draw_mix)
    for number in range(5):
        draw = draw_mix(jax.random.key(number), parameters)
        np.testing.assert_allclose(draw["z1"]["apart"], 0, atol=1e-12)
        assert np.max(np.abs(draw["z1"]["naive"] - draw["z1"]["mix"])) > 1e-2


@pytest.mark.slow
def test_reproduce_top_down(tmp_path):
    assert main(["reproduce", "top-down", "--quick", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "top-down.json").read_text())
    assert [claim["verdict"] for claim in content["claims"]][::2] == ["holds", "holds"]
    assert (tmp_path / "top-down.png").exists()
