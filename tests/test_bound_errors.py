"""Wrong arguments of `bound` are named before any work is done."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs
import models

KEY = jax.random.key(7)


def traced(function, *arguments):
    """What is wrong is said while tracing: nothing needs to be compiled."""
    return jax.eval_shape(function, *arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"posterior_estimator": "dreg"}, ValueError, "of 'naive', 'stl', 'dregs', .* got 'dreg'"),
        ({"posterior_estimator": 3}, TypeError, "posterior_estimator must be one of .* got int"),
        ({"prior_estimator": "dregs"}, ValueError, "one of 'naive', 'gdregs', .* got 'dregs'"),
        ({"objective": "iwae"}, TypeError, "objective must be an instance .*'iwae'"),
        ({"objective": gdregs.IWAE}, TypeError, r"such as gdregs.IWAE\(\)"),
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1; got 0"),
        ({"num_samples": 2.5}, TypeError, "num_samples must be a whole number; got 2.5"),
        ({"num_gradient_samples": 0}, ValueError, "num_gradient_samples must be at least 1; got 0"),
        ({"chunk_size": -1}, ValueError, "chunk_size must be at least 1; got -1"),
        ({"indirect_scores": "no"}, ValueError, "indirect_scores must be 'keep' or 'drop'; got"),
        (
            {"prior_estimator": gdregs.mixed_gdregs({"z": 0.5})},
            TypeError,
            "layer needs a prior that is a gdregs.Hierarchy or TopDown; got Normal",
        ),
    ],
)  # fmt: skip
def test_wrong_options_are_named(options, error, message):
    options = {"key": KEY, "num_samples": 6, **options}
    with pytest.raises(error, match=message):
        traced(lambda x: gdregs.bound(*models.normal_model(x, x, x), **options), np.zeros(2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"posterior": 3.0}, r"posterior must have the method\(s\) sample, log_prob"),
        ({"prior": 3.0}, r"prior must have the method\(s\) log_prob"),
        ({"likelihood": 3.0}, "likelihood must be a function"),
    ],
)
def test_parts_without_their_methods_are_named(wrong, message):
    def run(x):
        q, p, likelihood = models.normal_model(x, x, x)
        parts = {"posterior": q, "prior": p, "likelihood": likelihood}
        return gdregs.bound(**parts | wrong, key=KEY, num_samples=3)

    with pytest.raises(TypeError, match=message):
        traced(run, np.zeros(2))


@pytest.mark.parametrize("part", ["posterior", "prior", "likelihood"])
def test_shapes_that_do_not_broadcast_are_listed(part):
    def run(x):
        right = dist.Normal(x, 1.0).to_event(1)
        forgotten = dist.Normal(x, 1.0)
        parts = {"posterior": right, "prior": right, "likelihood": lambda z: right.log_prob(z)}
        parts[part] = (lambda z: forgotten.log_prob(z)) if part == "likelihood" else forgotten
        return gdregs.bound(**parts, key=KEY, num_samples=3)

    name = f"{part}{'' if part == 'likelihood' else '.log_prob'}"
    with pytest.raises(ValueError, match=rf"do not broadcast .*{name}\(z\) has shape \(3, 4, 2\)"):
        traced(run, np.zeros((4, 2)))


def test_latents_without_the_batch_axes_are_listed():
    """One latent for all datapoints has no place among importance samples of each."""

    def run(x):
        q = _Broadcast(dist.Normal(x, 1.0))
        return gdregs.bound(q, q, lambda z: jnp.zeros((3, 4)), key=KEY, num_samples=3)

    with pytest.raises(ValueError, match=r"latents of shape \(3, 5\), .* axes \(3, 4\)"):
        traced(run, np.zeros(5))


class _Broadcast:
    """Adds a batch axis that its samples do not have."""

    def __init__(self, base):
        self.base = base

    def sample(self, key, sample_shape):
        return self.base.sample(key, sample_shape)

    def log_prob(self, z):
        return jnp.broadcast_to(jnp.sum(self.base.log_prob(z), -1)[:, None], (3, 4))


def test_a_prior_without_a_rule():
    def run(loc, prior_estimator):
        return gdregs.bound(
            dist.Normal(loc, 1.0),
            dist.VonMises(loc + 2, 1.0),
            lambda z: dist.Normal(z, 1.0).log_prob(1.0),
            key=KEY,
            num_samples=3,
            prior_estimator=prior_estimator,
        )

    message = r"prior: VonMises has no re-expression rule.*prior_estimator='naive'"
    with pytest.raises(TypeError, match=message):
        traced(lambda loc: run(loc, "gdregs"), 0.0)
    assert np.isfinite(jax.jit(lambda loc: run(loc, "naive"))(0.0))


@pytest.mark.parametrize("estimator", ["naive", "stl", "dregs", "rws-dregs"])
def test_posteriors_that_cannot_be_reparameterized(estimator):
    def sampled(x):
        _, p, likelihood = models.normal_model(x, x, x)
        return models.OwnSampler(x, 1 + x, detach=True), p, likelihood

    def discrete(x):
        q = gdregs.Hierarchy({"z": (dist.Poisson(1 + x), ())})
        return q, q, lambda z: 0.0 * z["z"]

    options = {"posterior_estimator": estimator, "prior_estimator": "naive"}
    for parts, name in ((sampled, "OwnSampler"), (discrete, "Poisson")):
        with pytest.raises(TypeError, match=f"posterior: {name} has no .*sampler is not"):
            traced(
                lambda x, parts=parts: gdregs.bound(*parts(x), key=KEY, num_samples=3, **options),
                np.zeros(2),
            )


@pytest.mark.parametrize(
    "wrap",
    [lambda d: d, lambda d: gdregs.Hierarchy({"z": (d, ())})],
    ids=["alone", "in a hierarchy"],
)
def test_a_uniform_posterior_may_only_be_naive(wrap):
    """Its support moves with its parameters: the expected score is not 0."""

    def gradient(estimator):
        def run(phi):
            q = dist.Uniform(phi - 1.0, phi + 1.0)
            p = dist.Normal(jnp.zeros(2), 1.0)
            return jnp.sum(
                gdregs.bound(
                    wrap(q), wrap(p), lambda z: -(jax.tree.leaves(z)[0] ** 2),
                    key=KEY, num_samples=3, posterior_estimator=estimator,
                )
            )  # fmt: skip

        return jax.grad(run)

    with pytest.raises(ValueError, match="support of the Uniform depends on a parameter"):
        traced(gradient("dregs"), np.ones(2))
    assert np.isfinite(jax.jit(gradient("naive"))(np.ones(2))).all()


def test_latents_that_differ_are_named():
    def run(x):
        q = gdregs.Hierarchy({"a": (dist.Normal(x, 1.0), ())})
        p = gdregs.Hierarchy({"b": (dist.Normal(x, 1.0), ())})
        return gdregs.bound(q, p, lambda z: z["a"], key=KEY, num_samples=3)

    with pytest.raises(ValueError, match=r"over the latents \['b'\] was given \['a'\]"):
        traced(run, np.zeros(2))


@pytest.mark.parametrize("options", [{}, {"num_gradient_samples": 2}, {"chunk_size": 3}])
@pytest.mark.parametrize("by", range(3))
def test_a_second_derivative_is_refused(by, options):
    """That of the surrogate would be 0 or wrong. By posterior, prior and a captured parameter."""

    def value(x):
        phi, theta, slope = (x if place == by else 0.5 for place in range(3))
        parts = dist.Normal(phi, 0.8), dist.Normal(theta, 1.0), lambda z: -slope * z**2
        return gdregs.bound(*parts, key=KEY, num_samples=4, **options)

    traced(jax.grad(value), 0.3)
    with pytest.raises(NotImplementedError, match="has no second derivative"):
        traced(jax.grad(jax.grad(value)), 0.3)


@pytest.mark.parametrize("estimator", ["naive", "dregs"])
def test_a_datapoint_without_weight_has_the_gradient_0(estimator):
    """A posterior far outside of its own bounds has no density."""

    @jax.jit
    @jax.grad
    def gradient(loc):
        posterior = dist.TruncatedNormal(loc, 0.1, low=-1.0, high=1.0)
        prior = dist.Normal(jnp.zeros(2), 1.0)
        options = {"posterior_estimator": estimator, "prior_estimator": "naive"}
        likelihood = lambda z: -(z**2)  # noqa: E731
        return jnp.sum(
            gdregs.bound(posterior, prior, likelihood, key=KEY, num_samples=4, **options)
        )

    found = gradient(np.array([0.2, 1e30], np.float32))
    assert np.isfinite(found).all()
    assert found[0] != 0
    assert found[1] == 0


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (lambda: gdregs.interpolated_dregs("half"), TypeError, "alpha must be a finite number"),
        (lambda: gdregs.mixed_dregs(float("nan")), TypeError, "beta must be a finite number"),
        (lambda: gdregs.mixed_gdregs({"z": float("inf")}), TypeError, "alpha must be a finite"),
        (lambda: gdregs.VRIWAE(float("nan")), ValueError, "alpha must be a finite number"),
        (lambda: gdregs.numpyro.Bound(True), TypeError, "must be a whole number"),
    ],
)
def test_numbers_that_are_none(wrong, error, text):
    with pytest.raises(error, match=text):
        wrong()
