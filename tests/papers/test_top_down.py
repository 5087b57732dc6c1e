"""App. C.4 and the end of App. H.2, where posterior and prior are both top-down."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdregs
from gdregs.cli import main
from gdregs.papers.experiments import top_down
from means import assert_unbiased


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


def test_indirect_scores_as_paths_are_unbiased():
    def without(key, parameters):
        phi, theta, x = parameters

        def value(phi):
            parts = top_down.make_parts(phi, theta, x)
            return gdregs.bound(
                *parts, key=key, num_samples=4, posterior_estimator="dregs",
                prior_estimator="naive", indirect_scores="drop",
            )  # fmt: skip

        found = jax.grad(value)(phi)
        return jnp.concatenate([found["loc2"], found["log_scale2"]])

    def draw(key):
        parameters = top_down.make_parameters(jax.random.key(3), 2)
        draws = top_down.draw_by(4)(key, parameters)
        suspects = {"as paths": draws["reparameterized"], "dropped": without(key, parameters)}
        return suspects, dict.fromkeys(suspects, draws["DReGs"])

    # They are no small matter here.
    assert_unbiased(draw, None, jax.random.key(0), biased=("dropped",))


def test_no_gradient_at_the_exact_posterior(float64):
    """One latent number: x = z1 + noise, z1 = z2 + noise, all of variance 1, x = 0.6."""

    @jax.jit
    def draw(x):
        theta = {"loc2": jnp.zeros(1), "slope1": jnp.ones(1), "loc1": jnp.zeros(1)}
        phi = {
            "loc2": x / 3, "log_scale2": jnp.full(1, 0.5 * np.log(2 / 3)),
            "slope1": jnp.full(1, 0.5), "loc1": x / 2,
            "log_scale1": jnp.full(1, 0.5 * np.log(1 / 2)),
        }  # fmt: skip
        return top_down.draw_by(5)(jax.random.key(1), (phi, theta, x))

    draws = draw(np.array([0.6]))
    assert np.max(np.abs(draws["DReGs"])) < 1e-12
    # A path through p and one through q do not cancel draw by draw, as DReGs' terms do.
    assert np.max(np.abs(draws["reparameterized"])) > 1e-3


def test_the_lowest_layer_has_the_optimal_mix_of_two_gaussians(float64):
    @jax.jit
    def draw(key):
        parameters = top_down.make_parameters(key, 3)
        return jax.vmap(top_down.draw_mix, (0, None))(jax.random.split(key, 5), parameters)

    found = draw(jax.random.key(0))["z1"]
    np.testing.assert_allclose(found["apart"], 0, atol=1e-12)
    differences = np.abs(np.asarray(found["naive"]) - np.asarray(found["mix"]))
    assert np.all(differences.reshape(5, -1).max(axis=1) > 1e-2)


@pytest.mark.slow
def test_reproduce_top_down(tmp_path):
    assert main(["reproduce", "top-down", "--quick", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "top-down.json").read_text())
    assert [claim["verdict"] for claim in content["claims"]][::2] == ["holds", "holds"]
    assert (tmp_path / "top-down.png").exists()
