"""Wrong arguments of `bound` are named before any work is done."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

import gdregs
import models

KEY = jax.random.key(7)


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
    parts = models.normal_model(jnp.zeros(2), jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(error, match=message):
        gdregs.bound(*parts, **{"key": KEY, "num_samples": 6, **options})


def test_parts_without_their_methods_are_named():
    q, p, likelihood = models.normal_model(jnp.zeros(2), jnp.zeros(2), jnp.zeros(2))
    options = {"key": KEY, "num_samples": 3}
    with pytest.raises(TypeError, match=r"posterior must have the method\(s\) sample, log_prob"):
        gdregs.bound(likelihood, p, likelihood, **options)
    with pytest.raises(TypeError, match=r"prior must have the method\(s\) log_prob"):
        gdregs.bound(q, likelihood, likelihood, **options)
    with pytest.raises(TypeError, match="likelihood must be a function"):
        gdregs.bound(q, p, 3.0, **options)


@pytest.mark.parametrize("part", ["posterior", "prior", "likelihood"])
def test_shapes_that_do_not_broadcast_are_listed(part):
    x = jnp.zeros((4, 2))
    right = dist.Normal(x, 1.0).to_event(1)
    forgotten = dist.Normal(x, 1.0)
    parts = {"posterior": right, "prior": right, "likelihood": lambda z: right.log_prob(z)}
    parts[part] = (lambda z: forgotten.log_prob(z)) if part == "likelihood" else forgotten
    name = f"{part}{'' if part == 'likelihood' else '.log_prob'}"
    with pytest.raises(ValueError, match=rf"do not broadcast .*{name}\(z\) has shape \(3, 4, 2\)"):
        gdregs.bound(**parts, key=KEY, num_samples=3)


def test_latents_without_the_batch_axes_are_listed():
    """One latent for all datapoints has no place among importance samples of each."""
    q = dist.Normal(jnp.zeros(5), 1.0)
    with pytest.raises(ValueError, match=r"latents of shape \(3, 5\), .* axes \(3, 4\)"):
        gdregs.bound(
            _Broadcast(q), _Broadcast(q), lambda z: jnp.zeros((3, 4)), key=KEY, num_samples=3
        )


class _Broadcast:
    """Adds a batch axis that its samples do not have."""

    def __init__(self, base):
        self.base = base

    def sample(self, key, sample_shape):
        return self.base.sample(key, sample_shape)

    def log_prob(self, z):
        return jnp.broadcast_to(jnp.sum(self.base.log_prob(z), -1)[:, None], (3, 4))


def test_a_prior_without_a_rule():
    def run(prior_estimator):
        return gdregs.bound(
            dist.Normal(jnp.array(0.0), 1.0),
            dist.VonMises(jnp.array(2.0), 1.0),
            lambda z: dist.Normal(z, 1.0).log_prob(1.0),
            key=KEY,
            num_samples=3,
            prior_estimator=prior_estimator,
        )

    with pytest.raises(
        TypeError, match=r"prior: VonMises has no re-expression rule.*prior_estimator='naive'"
    ):
        run("gdregs")
    assert jnp.isfinite(run("naive"))


def test_posteriors_that_cannot_be_reparameterized():
    x = jnp.zeros(2)
    _, p, likelihood = models.normal_model(x, x, x)
    for posterior, name in (
        (models.OwnSampler(x, 1 + x, detach=True), "OwnSampler"),
        (gdregs.Hierarchy({"z": (dist.Poisson(1 + x), ())}), "Poisson"),
    ):
        for estimator in ("naive", "stl", "dregs", "rws-dregs"):
            with pytest.raises(TypeError, match=f"posterior: {name} has no .*sampler is not"):
                gdregs.bound(
                    posterior, p if name == "OwnSampler" else posterior,
                    likelihood if name == "OwnSampler" else lambda z: 0.0 * z["z"],
                    key=KEY, num_samples=3, posterior_estimator=estimator, prior_estimator="naive",
                )  # fmt: skip


def test_a_uniform_posterior_may_only_be_naive():
    """Its support moves with its parameters: the expected score is not 0."""

    def run(phi, estimator, wrap):
        q = dist.Uniform(phi - 1.0, phi + 1.0)
        p = dist.Normal(jnp.zeros(2), 1.0)
        return jnp.sum(
            gdregs.bound(
                wrap(q), wrap(p), lambda z: -(jax.tree.leaves(z)[0] ** 2), key=KEY, num_samples=3,
                posterior_estimator=estimator,
            )
        )  # fmt: skip

    for wrap in (lambda d: d, lambda d: gdregs.Hierarchy({"z": (d, ())})):
        with pytest.raises(ValueError, match="support of the Uniform depends on a parameter"):
            jax.grad(run)(jnp.ones(2), "dregs", wrap)
        assert jnp.all(jnp.isfinite(jax.grad(run)(jnp.ones(2), "naive", wrap)))


def test_latents_that_differ_are_named():
    x = jnp.zeros(2)
    q = gdregs.Hierarchy({"a": (dist.Normal(x, 1.0), ())})
    p = gdregs.Hierarchy({"b": (dist.Normal(x, 1.0), ())})
    with pytest.raises(ValueError, match=r"over the latents \['b'\] was given \['a'\]"):
        gdregs.bound(q, p, lambda z: z["a"], key=KEY, num_samples=3)
