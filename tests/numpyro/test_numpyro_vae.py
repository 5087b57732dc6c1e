"""A VAE written in numpyro: the same training as `gdregs.vae`, and its cost beside RenyiELBO's."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from numpyro.contrib.module import eqx_module
from numpyro.infer import RenyiELBO
from sklearn.datasets import load_digits

import gdregs
from gdregs.numpyro import programs
from gdregs.numpyro.bound import Bound
from gdregs.vae import VAE

IMAGES = jnp.asarray(load_digits().data[:10] > 8, jnp.float32)
PAPERS = {"posterior_estimator": "dregs", "prior_estimator": "gdregs"}


@pytest.fixture(autouse=True)
def _numpyro_broadcasts():
    with jax.numpy_rank_promotion("allow"):
        yield


def make_vae(num_layers=2, hidden_size=16):
    return VAE(
        64, num_layers=num_layers, latent_size=4, hidden_size=hidden_size, key=jax.random.key(0)
    )


def program(template):
    """The model and the guide: one module, a latent site for each stochastic layer."""

    def draw(hierarchy, x):
        z = {}
        with numpyro.plate("images", len(x)):
            for name, parents in hierarchy.parents:
                conditional = hierarchy.conditional(name, parents, z)
                z[name] = numpyro.sample(name, conditional)
        return z

    def model(x):
        vae = eqx_module("vae", template)
        z = draw(vae.prior(), x)
        with numpyro.plate("images", len(x)):
            numpyro.factor("x", vae.likelihood(x)({n: v[None] for n, v in z.items()})[0])

    def guide(x):
        draw(eqx_module("vae", template).posterior(x), x)

    return model, guide


@pytest.mark.slow
def test_it_trains_as_the_vae_of_this_library_does(monkeypatch):
    """Eight steps of Adam with the same importance samples."""
    template = make_vae()
    model, guide = program(template)
    leaves, rest = eqx.partition(template, eqx.is_inexact_array)
    objective = Bound(8, **PAPERS)

    def same_samples(self, key, sample_shape):
        vae = eqx.combine(self.params["vae$params"], rest)
        return vae.posterior(IMAGES).sample(key, sample_shape)

    def same_samples_weighed(self, key, sample_shape):
        z = self.sample(key, sample_shape)
        one = jax.tree.map(lambda leaf: leaf[None], z)
        return z, self.log_prob(one)[0]

    monkeypatch.setattr(programs.Guide, "sample", same_samples)
    monkeypatch.setattr(programs.Guide, "sample_and_log_prob", same_samples_weighed)

    def by_numpyro(leaves, key):
        return objective.loss(key, {"vae$params": leaves}, model, guide, IMAGES)

    def by_gdregs(leaves, key):
        vae = eqx.combine(leaves, rest)
        parts = vae.posterior(IMAGES), vae.prior(), vae.likelihood(IMAGES)
        return -jnp.sum(gdregs.bound(*parts, key=jax.random.split(key)[1], num_samples=8))

    def train(loss):
        optimiser = optax.adam(1e-2)

        def step(carry, key):
            leaves, state = carry
            value, gradient = jax.value_and_grad(loss)(leaves, key)
            updates, state = optimiser.update(gradient, state)
            return (optax.apply_updates(leaves, updates), state), value

        keys = jax.random.split(jax.random.key(5), 8)
        return jax.jit(lambda c: jax.lax.scan(step, c, keys)[1])((leaves, optimiser.init(leaves)))

    ours, theirs = np.asarray(train(by_numpyro)), np.asarray(train(by_gdregs))
    assert ours[-1] < 0.95 * ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.many_programs("the operations of four programs are counted")
@pytest.mark.parametrize(
    "num_layers",
    [pytest.param(2, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.nightly)],
)
def test_a_step_beside_renyi_elbo(num_layers):
    """The same value; with M = K / 2 no more operations and less variance, with M = 8 far fewer."""
    template = make_vae(num_layers, hidden_size=64)
    model, guide = program(template)
    leaves, _ = eqx.partition(template, eqx.is_inexact_array)
    key = jax.random.key(1)

    def gradient(objective):
        def of(leaves, key):
            return objective.loss(key, {"vae$params": leaves}, model, guide, IMAGES)

        return jax.value_and_grad(of)

    def value_and_flops(objective):
        compiled = jax.jit(gradient(objective)).lower(leaves, key).compile()
        return np.asarray(compiled(leaves, key)[0]), compiled.cost_analysis()["flops"]

    renyi, full = RenyiELBO(0, 64), Bound(64, **PAPERS)
    half, resampled = (Bound(64, num_gradient_samples=count, **PAPERS) for count in (32, 8))
    objectives = (renyi, full, half, resampled)
    values, flops = zip(*map(value_and_flops, objectives), strict=True)
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5)
    costs = np.array(flops[1:]) / flops[0]
    assert costs[0] < (1.05, 1.25)[num_layers - 1], costs
    assert costs[1] < 1, costs
    assert costs[2] < 0.6, costs

    @jax.jit
    def variances(leaves, key):
        """Of the gradients by the posterior's networks, at parameters after some steps of Adam."""
        optimiser = optax.adam(1e-2)

        def step(carry, key):
            leaves, state = carry
            updates, state = optimiser.update(gradient(resampled)(leaves, key)[1], state)
            return (optax.apply_updates(leaves, updates), state), None

        carry = leaves, optimiser.init(leaves)
        (trained, _), _ = jax.lax.scan(step, carry, jax.random.split(key, 80))

        def draw(key):
            return [gradient(one)(trained, key)[1].posterior_networks for one in objectives]

        draws = jax.lax.map(draw, jax.random.split(jax.random.fold_in(key, 1), 80))
        moments = jax.tree.map(lambda g: jnp.sum(jnp.var(g, axis=0)), draws)
        return [sum(jax.tree.leaves(one)) for one in moments]

    theirs, *ours = map(float, variances(leaves, key))
    assert max(ours) < 0.8 * theirs, (ours, theirs)
