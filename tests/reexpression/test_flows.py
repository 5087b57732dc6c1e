"""Flows as posteriors and priors: numpyro's transforms and flowjax's distributions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.distributions.transforms import Transform

import gdregs
from means import assert_unbiased


@pytest.fixture(autouse=True, scope="module")
def unvalidated():
    """numpyro would look at concrete arguments one operation at a time."""
    with numpyro.validation_enabled(False):
        yield


class Autoregressive(eqx.Module):
    """Mean and log-scale of each coordinate, linear in those before it."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, x):
        out = x @ jnp.tril(self.weight, -1).T
        shift = jnp.reshape(self.bias, (1,) * (x.ndim - 1) + self.bias.shape)
        return out + shift, 0.3 * jnp.tanh(out + shift)


class InverseAutoregressiveFlow(eqx.Module):
    """A conditional without parents: its leaves are all parameters of the flow."""

    network: Autoregressive

    def __call__(self):
        base = dist.Normal(jnp.zeros(3), 1.0).to_event(1)
        return dist.TransformedDistribution(base, InverseAutoregressiveTransform(self.network))


class Coupling(Transform):
    """An affine coupling layer: the first coordinate moves the other two."""

    domain = dist.constraints.real_vector
    codomain = dist.constraints.real_vector

    def __init__(self, weight):
        self.weight = weight

    def _shift_and_log_scale(self, x):
        return self.weight[0] * x[..., :1], 0.5 * jnp.tanh(self.weight[1] * x[..., :1])

    def __call__(self, x):
        shift, log_scale = self._shift_and_log_scale(x)
        return jnp.concatenate([x[..., :1], x[..., 1:] * jnp.exp(log_scale) + shift], axis=-1)

    def _inverse(self, y):
        shift, log_scale = self._shift_and_log_scale(y)
        return jnp.concatenate([y[..., :1], (y[..., 1:] - shift) * jnp.exp(-log_scale)], axis=-1)

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        return 2 * self._shift_and_log_scale(x)[1][..., 0]

    def tree_flatten(self):
        return (self.weight,), (("weight",), {})


class CouplingFlow(eqx.Module):
    weight: jax.Array
    tril: jax.Array

    def __call__(self):
        base = dist.MultivariateNormal(jnp.zeros(3), scale_tril=jnp.tril(self.tril))
        return dist.TransformedDistribution(base, Coupling(self.weight))


def _inverse_autoregressive(a, b):
    weight = jnp.array([[0.0, 0.0, 0.0], [0.7, 0.0, 0.0], [-0.4, 0.5, 0.0]]) * a
    return gdregs.Hierarchy(
        {"z": (InverseAutoregressiveFlow(Autoregressive(weight, jnp.full(3, b))), ())}
    )


def _coupling(a, b):
    tril = jnp.eye(3) + jnp.tril(jnp.full((3, 3), b), -1)
    return gdregs.Hierarchy({"z": (CouplingFlow(jnp.array([0.8, 0.5]) * a, tril), ())})


def _flowjax(a, b):
    with jax.numpy_rank_promotion("allow"):
        return _masked_autoregressive(a, b)


def _masked_autoregressive(a, b):
    flows = pytest.importorskip("flowjax.flows", reason="flowjax, an optional extra, is missing")
    distributions = pytest.importorskip("flowjax.distributions")
    flow = flows.masked_autoregressive_flow(
        jax.random.key(1),
        base_dist=distributions.Normal(jnp.full(3, b)),
        flow_layers=1,
        nn_depth=1,
        nn_width=4,
        invert=False,
    )
    return jax.tree.map(lambda leaf: leaf * a if eqx.is_inexact_array(leaf) else leaf, flow)


FLOWS = {
    "inverse autoregressive": _inverse_autoregressive,
    "coupling": _coupling,
    "flowjax": _flowjax,
}


@pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
def test_flows_are_reexpressed_as_their_own_samplers_move(float64, make):
    @jax.jit
    def run(a, b):
        parameters, rest = eqx.partition(make(a, b), eqx.is_inexact_array)

        def sample(parameters):
            return eqx.combine(parameters, rest).sample(jax.random.key(0), (5,))

        with jax.numpy_rank_promotion("allow"):
            z, expected = jax.vjp(sample, parameters)
            again, moved = jax.vjp(lambda p: gdregs.reexpress(eqx.combine(p, rest), z), parameters)
        cotangent = jax.tree.map(lambda leaf: jnp.cos(3 * leaf), z)
        return z, again, moved(cotangent), expected(cotangent)

    z, again, moved, expected = run(1.0, 0.2)
    jax.tree.map(np.testing.assert_array_equal, again, z)
    for a, b in zip(*map(jax.tree.leaves, (moved, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            make, id=name, marks=pytest.mark.nightly if name == "flowjax" else pytest.mark.slow
        )
        for name, make in FLOWS.items()
    ],
)
def test_bound_is_unbiased_with_flows_on_both_sides(make):
    """Naive against DReGs and GDReGs; STL is biased and must be caught."""

    def gradient(posterior_estimator, prior_estimator):
        def run(key):
            q, p = make(0.8, 0.2), make(1.0, 0.0)
            if make is _flowjax:
                q, p = (gdregs.Hierarchy({"z": (_Node(flow), ())}) for flow in (q, p))

            @eqx.filter_grad
            def of(parts):
                return gdregs.bound(
                    *parts, lambda z: -2 * jnp.sum((z["z"] - 0.5) ** 2, axis=-1), key=key,
                    num_samples=4, posterior_estimator=posterior_estimator,
                    prior_estimator=prior_estimator,
                )  # fmt: skip

            return of((q, p))

        return run

    suspects = {name: gradient(name, "gdregs") for name in ("dregs", "stl")}
    with jax.numpy_rank_promotion("allow"):
        assert_unbiased(suspects, gradient("naive", "naive"), jax.random.key(0), biased=("stl",))


class _Node(eqx.Module):
    flow: eqx.Module

    def __call__(self):
        return self.flow
