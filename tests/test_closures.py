"""Parameters that hide in closures of a stopped part are refused, and only those."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

import gdregs

X = jnp.array([0.3, -1.0])


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
    "jit of grad": lambda f: jax.jit(jax.grad(f)),
    "grad of jit": lambda f: jax.grad(jax.jit(f)),
    "vmap of grad": lambda f: lambda slope: jax.vmap(jax.grad(f))(slope[None]),
}


@pytest.mark.parametrize(
    ("transform", "options"),
    [
        *((name, {}) for name in TRANSFORMATIONS),
        ("grad of jit", {"chunk_size": 2}),
        ("jit of grad", {"num_gradient_samples": 2}),
    ],
)
def test_a_hidden_posterior_parameter(transform, options):
    def value(slope):
        return bound(visible(slope), hidden(slope), visible(jnp.array(0.5)), **options)

    with pytest.raises(ValueError, match="The posterior uses a parameter that is being diff"):
        TRANSFORMATIONS[transform](value)(jnp.array(0.7))


@pytest.mark.parametrize("posterior_estimator", gdregs.POSTERIOR_ESTIMATORS)
def test_only_stopped_densities_refuse(posterior_estimator):
    def value(slope):
        part = visible(jnp.array(0.5))
        return bound(visible(slope), hidden(slope), part, posterior_estimator)

    def open_value(slope):
        part = visible(jnp.array(0.5))
        return bound(visible(slope), visible(slope), part, posterior_estimator)

    if posterior_estimator == "naive":  # everything is live: right with closures as well
        assert jnp.allclose(jax.grad(value)(0.7), jax.grad(open_value)(0.7), rtol=1e-5)
    else:
        with pytest.raises(ValueError, match="Make it a leaf of the posterior"):
            jax.grad(value)(0.7)


def test_a_hidden_prior_parameter():
    def value(slope, estimator):
        part = visible(jnp.array(0.5))
        return bound(part, part, hidden(slope), prior_estimator=estimator)

    with pytest.raises(ValueError, match="The prior uses a parameter that is being diff"):
        jax.grad(value)(0.7, "gdregs")
    assert jnp.isfinite(jax.grad(value)(0.7, "naive"))


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

    assert jnp.isfinite(gradient(jnp.array(0.5), X))


def test_parameters_in_objects_that_are_no_pytrees():
    class Opaque:
        def __init__(self, loc):
            self.loc = loc

        def sample(self, key, sample_shape):
            return self.loc + jax.random.normal(key, (*sample_shape, 2))

        def log_prob(self, z):
            return dist.Normal(self.loc, 1.0).log_prob(z)

    def value(loc, estimator):
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

    for estimator in ("naive", "dregs"):
        with pytest.raises(ValueError, match="uses a parameter that is being differentiated"):
            jax.grad(value)(0.3, estimator)
    assert jnp.isfinite(value(0.3, "dregs"))


def test_a_module_that_is_a_constant_of_two_programs():
    """JAX caches what it traces by the function, and modules compare themselves by their arrays."""
    top = dist.Normal(jnp.zeros(2), 1.0)
    prior = gdregs.Hierarchy({"z": (top, ())})
    posterior = gdregs.Hierarchy({"z": (dist.Normal(jnp.ones(2), 0.5), ())})

    def value(key):
        bound = gdregs.bound(posterior, prior, lambda z: -(z["z"] ** 2), key=key, num_samples=4)
        return jnp.sum(bound)

    key = jax.random.key(0)
    assert jax.jit(lambda key: value(key))(key) == jax.jit(lambda key: value(key))(key)
