"""Masks and scales of latents, and latents with one value, bias no estimator in numpyro programs.

The gradients agree with those of numpyro's own objective, and a biased one does not.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import RenyiELBO, Trace_ELBO, autoguide

import gdregs
from gdregs.numpyro.bound import Bound
from means import assert_unbiased
from numpyro_programs import initial_parameters, traced

DATA = np.array([1.0, -0.5], np.float32)
KEY = jax.random.key(1)
MASK = np.array([True, False])


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


def local(around_model=handlers.mask(mask=MASK), around_guide=None):
    """A latent for each datapoint, with handlers around it in the model and in the guide."""

    def model(data):
        scale = jnp.exp(numpyro.param("p", 0.4))
        with numpyro.plate("data", 2):
            with around_model or handlers.scale(scale=1.0):
                z = numpyro.sample("z", dist.Normal(0.0, scale))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=data)

    def guide(data):
        loc, scale = numpyro.param("loc", 0.3), jnp.exp(numpyro.param("q", -0.2))
        with numpyro.plate("data", 2), around_guide or handlers.scale(scale=1.0):
            numpyro.sample("z", dist.Normal(loc * data, scale))

    return model, guide


def padded():
    """A global latent above a sequence for each datapoint, some of whose steps are not there."""
    present = np.array([[True, True, False], [True, False, False]]).T

    def model(data):
        a = numpyro.sample("a", dist.Gamma(2.0, jnp.exp(numpyro.param("p", 0.1))))
        with numpyro.plate("data", 2), numpyro.plate("steps", 3):
            z = numpyro.sample("z", dist.Normal(numpyro.param("m", 0.4), a).mask(present))
            numpyro.sample("x", dist.Normal(z, 1.0).mask(present), obs=data)

    def guide(data):
        numpyro.sample("a", dist.LogNormal(0.2, jnp.exp(numpyro.param("s", -0.5))))
        with numpyro.plate("data", 2), numpyro.plate("steps", 3):
            loc, scale = numpyro.param("loc", 0.3) * data, jnp.exp(numpyro.param("q", -0.2))
            numpyro.sample("z", dist.Normal(loc, scale).mask(present))

    return model, guide


def annealed():
    """Two latents, the second given the first, with scales of their own in model and guide."""

    def model(data):
        with handlers.scale(scale=0.3):
            y = numpyro.sample("y", dist.Normal(numpyro.param("m", 0.2), 1.0))
        with handlers.scale(scale=1.4):
            z = numpyro.sample("z", dist.Normal(numpyro.param("w", 0.7) * y, 0.8))
        numpyro.sample("x", dist.Normal(z + y**2, 1.0), obs=data[0])

    def guide(data):
        z = numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.3), 0.7))
        with handlers.scale(scale=0.5):
            slope, scale = numpyro.param("slope", 0.4), jnp.exp(numpyro.param("q", -0.2))
            numpyro.sample("y", dist.Normal(slope * z, scale))

    return model, guide


def with_a_point():
    """A point estimate above a latent that is drawn."""

    def model(data):
        z = numpyro.sample("z", dist.Normal(numpyro.param("c", 0.3), 1.0))
        y = numpyro.sample("y", dist.Normal(z, jnp.exp(numpyro.param("p", 0.1))))
        numpyro.sample("x", dist.Normal(y, 1.0), obs=data[0])

    def guide(data):
        z = numpyro.sample("z", dist.Delta(numpyro.param("d", 0.5)))
        numpyro.sample("y", dist.Normal(z, jnp.exp(numpyro.param("q", -0.3))))

    return model, guide


def automatic():
    model, _ = padded()
    return model, autoguide.AutoDiagonalNormal(model)


PROGRAMS = {
    "masked in the model": local,
    "masked in both": lambda: local(around_guide=handlers.mask(mask=MASK)),
    "masked everywhere": lambda: local(handlers.mask(mask=False), handlers.mask(mask=False)),
    "scaled in the model": lambda: local(handlers.scale(scale=0.3)),
    "scaled by arrays": lambda: local(handlers.scale(scale=np.array([0.3, 2.0], np.float32))),
    "padded": padded,
    "annealed": annealed,
    "with a point": with_a_point,
    "automatic": automatic,
}
OBJECTIVES = {"iwae": (gdregs.IWAE(), RenyiELBO(0, 4)), "elbo": (gdregs.ELBO(), Trace_ELBO(4))}
CASES = [
    pytest.param("scaled in the model", "iwae"),
    *(
        pytest.param(name, "iwae", marks=pytest.mark.slow)
        for name in PROGRAMS
        if name != "scaled in the model"
    ),
    *(
        pytest.param(name, "elbo", marks=pytest.mark.slow)
        for name in ("masked in the model", "scaled in the model", "annealed", "padded")
    ),
]


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_factors_bias_no_estimator(name, objective):
    data = np.stack([DATA, 0.5 * DATA, -DATA]) if name in ("padded", "automatic") else DATA
    ours, theirs = OBJECTIVES[objective]
    options = {
        "papers": ("dregs", "gdregs", {}),
        "M = 2": ("dregs", gdregs.mixed_gdregs(0.7), {"num_gradient_samples": 2}),
        "mixed": (gdregs.mixed_dregs(0.6), "naive", {"chunk_size": 3}),
        "biased": ("rws", "naive", {}),
    }

    def gradients(key):
        model, guide = PROGRAMS[name]()
        params = traced(initial_parameters(model, guide, data))

        def gradient(loss):
            found = jax.grad(lambda p: loss.loss(key, p, model, guide, data))(params)
            return jnp.concatenate([jnp.ravel(found[name]) for name in sorted(found)])

        return (
            {
                name: gradient(Bound(4, ours, *pair, **how))
                for name, (*pair, how) in options.items()
            },
            dict.fromkeys(options, gradient(theirs)),
        )

    assert_unbiased(gradients, None, KEY, biased=("biased",))


@pytest.mark.parametrize("factor", [jnp.abs, lambda y: numpyro.param("t", 0.5)])
def test_a_factor_that_moves_is_refused_but_for_the_naive_estimators(factor):
    def model():
        y = numpyro.sample("y", dist.Normal(numpyro.param("m", 0.2), 1.0))
        with handlers.scale(scale=factor(y)):
            numpyro.sample("z", dist.Normal(y, 1.0))

    def guide():
        for name in ("y", "z"):
            numpyro.sample(name, dist.Normal(numpyro.param(f"q{name}", 0.1), 1.0))

    params = dict.fromkeys(("m", "qy", "qz", "t"), np.float32(0.5))

    def loss(*estimators):
        bound = Bound(3, gdregs.IWAE(), *estimators)
        jax.eval_shape(lambda p: bound.loss(KEY, p, model, guide), params)

    loss("naive", "naive")
    with pytest.raises(ValueError, match="depends on another latent or on a parameter"):
        loss("dregs", "naive")


def test_a_factor_that_is_computed_from_data_is_a_constant():
    def model(data):
        with numpyro.plate("data", 2), handlers.mask(mask=data > 0):
            numpyro.sample("z", dist.Normal(numpyro.param("m", 0.2), 1.0))

    def guide(data):
        with numpyro.plate("data", 2):
            numpyro.sample("z", dist.Normal(numpyro.param("q", 0.1) * data, 1.0))

    params = {"m": np.float32(0.5), "q": np.float32(0.5)}
    bound = Bound(3, gdregs.IWAE(), "dregs", "gdregs")
    jax.eval_shape(lambda p, x: bound.loss(KEY, p, model, guide, x), params, DATA)


def test_a_value_computed_from_latents_of_the_model_leaves_the_prior_naive():
    def model():
        z = numpyro.sample("z", dist.Normal(numpyro.param("c", 0.3), 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0))

    def guide():
        z = numpyro.sample("z", dist.Normal(numpyro.param("q", 0.3), 1.0))
        numpyro.sample("y", dist.Delta(0.3 * z))

    params = {"c": np.float32(0.5), "q": np.float32(0.5)}

    def loss(*estimators):
        bound = Bound(3, gdregs.IWAE(), *estimators)
        jax.eval_shape(lambda p: bound.loss(KEY, p, model, guide), params)

    loss("dregs", "naive")
    with pytest.raises(ValueError, match="computes one of the sites"):
        loss("dregs", "gdregs")


@pytest.mark.slow
def test_the_doctor_names_masks_and_scales():
    model, guide = annealed()
    report = gdregs.numpyro.check_model(model, guide, DATA, key=KEY)
    rows = {row.check: row.found for row in report.rows}
    assert report.ok, str(report)
    assert (
        rows["masks and scales"] == "model y: factor 0.3; model z: factor 1.4; guide y: factor 0.5"
    )
    assert rows["sites"] == "latents y [], z []; observed x"
    wrong = gdregs.numpyro.check_model(model, lambda data: None, DATA, key=KEY)
    assert [row.check for row in wrong.rows] == ["sites"]
    assert "missing in the guide" in wrong.rows[0].found
