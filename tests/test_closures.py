"""Parameters that hide in closures of a stopped part are refused, and only those."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import gdregs

X = np.array([0.3, -1.0], np.float32)


class Linear(eqx.Module):
    slope: jax.Array

    def __call__(self, *parents):
        return dist.Normal(self.slope * (sum(parents) if parents else X), 1.0)


def bound(q1, q2, p1, posterior_estimator="dregs", prior_estimator="gdregs", **options):
    posterior = gdregs.Hierarchy({"z1": (q1, ()), "z2": (q2, ("z1",))})
    prior = gdregs.Hierarchy({"z2": (dist.Normal(0.0, 1.0), ()), "z1": (p1, ("z2",))})
    return jnp.sum(
        gdregs.bound(
            posterior,
            prior,
            lambda z: dist.Normal(z["z1"] + z["z2"], 1.0).log_prob(X),
            key=jax.random.key(0),
            num_samples=4,
            posterior_estimator=posterior_estimator,
            prior_estimator=prior_estimator,
            **options,
        )
    )


def visible(slope):
    return Linear(slope)


def hidden(slope):
    return lambda *parents: Linear(slope)(*parents)


TRANSFORMATIONS = {
    "grad": lambda f: jax.grad(f),
    "grad of jit": lambda f: jax.grad(jax.jit(f)),
    "vmap of grad": lambda f: lambda slope: jax.vmap(jax.grad(f))(slope[None]),
}


def refused(value, message):
    """It is refused while tracing: nothing needs to be compiled."""
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(value, np.float32(0.7))


def hidden_in_the_posterior(**options):
    return lambda slope: bound(visible(slope), hidden(slope), visible(0.5), **options)


@pytest.mark.parametrize(
    ("transform", "options"),
    [
        *((name, {}) for name in TRANSFORMATIONS),
        ("grad of jit", {"chunk_size": 2}),
        ("grad", {"num_gradient_samples": 2}),
    ],
)
def test_a_hidden_posterior_parameter(transform, options):
    value = TRANSFORMATIONS[transform](hidden_in_the_posterior(**options))
    refused(value, "The posterior uses a parameter that is being diff")


@pytest.mark.parametrize("posterior_estimator", gdregs.POSTERIOR_ESTIMATORS)
def test_only_stopped_densities_refuse(posterior_estimator):
    value = hidden_in_the_posterior(posterior_estimator=posterior_estimator)

    def open_value(slope):
        return bound(visible(slope), visible(slope), visible(0.5), posterior_estimator)

    if posterior_estimator == "naive":  # everything is live: right with closures as well
        closed, opened = jax.jit(lambda slope: [jax.grad(f)(slope) for f in (value, open_value)])(
            0.7
        )
        np.testing.assert_allclose(closed, opened, rtol=1e-5)
    else:
        refused(jax.grad(value), "Make it a leaf of the posterior")


def test_a_hidden_prior_parameter():
    def gradient(estimator):
        def value(slope):
            return bound(visible(0.5), visible(0.5), hidden(slope), prior_estimator=estimator)

        return jax.grad(value)

    refused(gradient("gdregs"), "The prior uses a parameter that is being diff")
    assert np.isfinite(jax.jit(gradient("naive"))(0.7))


def test_closures_over_data_are_fine():
    """A closed-over array that is not differentiated by may be traced, mapped and scanned."""

    @jax.jit
    def gradient(slope, x):
        def value(slope):
            posterior = gdregs.Hierarchy(
                {
                    "z": (
                        jax.tree_util.Partial(lambda s: dist.Normal(s * x, 1.0), slope),
                        (),
                    )
                }
            )
            prior = gdregs.Hierarchy({"z": (dist.Normal(0.0, 1.0), ())})
            return jnp.sum(
                gdregs.bound(
                    posterior,
                    prior,
                    lambda z: dist.Normal(z["z"], 1.0).log_prob(x),
                    key=jax.random.key(0),
                    num_samples=4,
                )
            )

        return jax.grad(value)(slope)

    assert np.isfinite(gradient(0.5, X))


class Opaque:
    """A posterior that is no pytree."""

    def __init__(self, loc):
        self.loc = loc

    def sample(self, key, sample_shape):
        return self.loc + jax.random.normal(key, (*sample_shape, 2))

    def log_prob(self, z):
        return dist.Normal(self.loc, 1.0).log_prob(z)


def bound_of_opaque(loc, estimator="dregs"):
    return jnp.sum(
        gdregs.bound(
            Opaque(loc),
            dist.Normal(jnp.zeros(2), 1.0),
            lambda z: dist.Normal(z, 1.0).log_prob(X),
            key=jax.random.key(0),
            num_samples=4,
            posterior_estimator=estimator,
        )
    )


@pytest.mark.parametrize("estimator", ["naive", "dregs"])
def test_parameters_in_objects_that_are_no_pytrees(estimator):
    gradient = jax.grad(lambda loc: bound_of_opaque(loc, estimator))
    refused(gradient, "uses a parameter that is being differentiated")


@pytest.mark.slow
def test_outside_of_any_program():
    """Operation by operation: what is hidden is refused, and evaluated if nothing is sought."""
    with pytest.raises(ValueError, match="uses a parameter that is being differentiated"):
        jax.grad(bound_of_opaque)(0.3)
    assert jnp.isfinite(bound_of_opaque(0.3))


def test_a_module_that_is_a_constant_of_two_programs():
    """JAX caches what it traces by the function, and modules compare themselves by their arrays."""
    top = dist.Normal(np.zeros(2, np.float32), 1.0)
    prior = gdregs.Hierarchy({"z": (top, ())})
    posterior = gdregs.Hierarchy({"z": (dist.Normal(np.ones(2, np.float32), 0.5), ())})

    def value(key):
        bound = gdregs.bound(posterior, prior, lambda z: -(z["z"] ** 2), key=key, num_samples=4)
        return jnp.sum(bound)

    key = jax.random.key(0)
    assert jax.jit(lambda key: value(key))(key) == jax.jit(lambda key: value(key))(key)
