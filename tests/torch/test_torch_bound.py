"""The bound for PyTorch, held against that for JAX with the same noise, and over draws."""

import itertools
import subprocess
import sys
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

import gdregs  # noqa: E402
import gdregs.torch as gt  # noqa: E402
import models  # noqa: E402
import reference  # noqa: E402
from gdregs.shared.tables import PosteriorMix, PriorEstimator  # noqa: E402
from gdregs.torch import weights  # noqa: E402

dist = torch.distributions


class Own(gt.Objective):
    """An objective of a user's own: derivatives by autograd."""

    def __call__(self, log_weights):
        size = np.log(len(log_weights))
        iwae = torch.logsumexp(log_weights / 2, 0) - size
        return torch.tanh(log_weights / 9).mean(0) + iwae**2


OBJECTIVES = {
    "elbo": gt.ELBO(),
    "iwae": gt.IWAE(),
    "vr-iwae 0.3": gt.VRIWAE(0.3),
    "vr-iwae 2": gt.VRIWAE(2.0),
    "jvi": gt.JVI(),
    "own": Own(),
}
PAIRS = [
    *itertools.product(gdregs.POSTERIOR_ESTIMATORS, ("naive", "gdregs")),
    ("dregs", "gdregs-mix"),
    (gdregs.interpolated_dregs(0.3), PriorEstimator(0.3)),
    (PosteriorMix(0.3), "gdregs"),
    ("dregs", gdregs.mixed_gdregs({"a": 0.3, "b": 0, "c": 1})),
    ("naive", gdregs.mixed_gdregs({"a": 1, "b": 0.4, "c": 0})),
    ("stl", gdregs.mixed_gdregs({"a": 0, "b": 0, "c": 0})),
]


def to_torch(tree):
    return jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), tree)


class Layer(torch.nn.Module):
    """A conditional of `reference`."""

    def __init__(self, parameters, names, x=None):
        super().__init__()
        self.values, self.names, self.x = parameters, names, x

    def forward(self, *parents):
        out = self.values["bias"]
        for name, z in zip(self.names, parents, strict=True):
            out = out + torch.tanh(z) @ self.values["weight"][name]
        if self.x is not None:
            out = out + self.x @ self.values["data"]
        loc, raw = out[..., : reference.DIM], out[..., reference.DIM :]
        if self.x is None and not parents:
            loc, raw = loc.expand(3, -1), raw.expand(3, -1)
        scale = 0.3 + torch.nn.functional.softplus(raw)
        return dist.Independent(dist.Normal(loc, scale), 1)


def hierarchy(layers, graph, x=None):
    return gt.Hierarchy(
        {name: (Layer(layers[name], parents, x), parents) for name, parents in graph.items()}
    )


class Walked(gt.Hierarchy):
    """A hierarchy whose samples are given."""

    def __init__(self, hierarchy, z):
        super().__init__(
            {
                name: (hierarchy.conditionals[name], parents)
                for name, parents in hierarchy.parents.items()
            }
        )
        self.z, self.num_drawn = z, 0

    def sample(self, sample_shape=()):
        """The next ones."""
        start, self.num_drawn = self.num_drawn, self.num_drawn + sample_shape[0]
        return {name: value[start : self.num_drawn] for name, value in self.z.items()}


def likelihood(lam, x):
    def evaluate(z):
        loc = sum(torch.sin(z[name] @ lam[name]) for name in reference.LATENTS)
        return dist.Independent(dist.Normal(loc, 0.7), 1).log_prob(x)

    return evaluate


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("kept", [None, 2])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_are_those_of_jax(float64, objective, kept, monkeypatch):
    """Every pair, on three layers with skip connections, from the same samples and offsets.

    All samples at once, and in blocks, of which the last one is smaller.
    """
    parameters = reference.init(jax.random.key(1))
    key, size = jax.random.key(2), 5
    *trees, x = parameters
    z = models.posterior(trees[0], x).sample(key, (size,))
    offset = jax.random.uniform(jax.random.fold_in(key, size), (3,), jnp.float64)
    monkeypatch.setattr(weights, "draw_offset", lambda _: torch.tensor(np.asarray(offset)))

    @jax.jit
    def expected(phi, theta, lam):
        def total(pair):
            def loss(phi, theta, lam):
                return models.total_bound(
                    phi, theta, lam, x, key=key, num_samples=size,
                    objective=models.OBJECTIVES[objective], posterior_estimator=pair[0],
                    prior_estimator=pair[1], num_gradient_samples=kept,
                )  # fmt: skip

            return jax.value_and_grad(loss, (0, 1, 2))(phi, theta, lam)

        return [total(pair) for pair in PAIRS]

    x_torch = torch.tensor(np.asarray(x))
    z_torch = {name: torch.tensor(np.asarray(value)) for name, value in z.items()}
    chunks = itertools.product(
        (None, 2 if kept is None else 1), zip(PAIRS, expected(*trees), strict=True)
    )
    for chunk_size, (pair, (value, gradient)) in chunks:
        phi, theta, lam = map(to_torch, trees)
        found = gt.bound(
            Walked(hierarchy(phi, reference.POSTERIOR, x_torch), z_torch),
            hierarchy(theta, reference.PRIOR),
            likelihood(lam, x_torch),
            num_samples=size,
            objective=OBJECTIVES[objective],
            posterior_estimator=pair[0],
            prior_estimator=pair[1],
            num_gradient_samples=kept,
            chunk_size=chunk_size,
        ).sum()
        found.backward()
        np.testing.assert_allclose(found.item(), value, rtol=1e-10)
        for a, b in zip(jax.tree.leaves((phi, theta, lam)), leaves(gradient), strict=True):
            got = np.zeros(b.shape) if a.grad is None else a.grad.numpy()
            np.testing.assert_allclose(got, b, atol=1e-10, rtol=1e-10, err_msg=str(pair))


def conjugate(estimators, phi=0.9, theta=0.3, size=4, copies=1, **options):
    """One draw of the gradients of a model of two layers; or the mean of so many of them."""
    phi, spread, theta, slope = (
        torch.tensor(value, requires_grad=True) for value in (phi, 0.4, theta, 0.7)
    )
    posterior = gt.Hierarchy(
        {
            "a": (dist.Normal(phi * torch.ones(2 * copies), spread.exp()), ()),
            "b": (lambda a: dist.Normal(phi * a, spread.exp()), ("a",)),
        }
    )
    prior = gt.Hierarchy(
        {
            "b": (dist.Normal(theta * torch.ones(2 * copies), 1.0), ()),
            "a": (lambda b: dist.Normal(slope * b, 1.0), ("b",)),
        }
    )
    x = torch.tensor([0.5, -1.0]).repeat(copies)
    value = gt.bound(
        posterior, prior, lambda z: dist.Normal(z["a"] + z["b"], 0.8).log_prob(x),
        num_samples=size, posterior_estimator=estimators[0], prior_estimator=estimators[1],
        **options,
    )  # fmt: skip
    return torch.autograd.grad(value.sum() / copies, (phi, spread, theta, slope))


class Unruled(dist.Distribution):
    """Continuous, and without a path."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.real

    def __init__(self, loc, scale):
        self.base = dist.Normal(loc, scale)
        super().__init__(self.base.batch_shape, validate_args=False)

    def log_prob(self, z):
        return self.base.log_prob(z)


@pytest.mark.slow
def test_unbiased_over_draws_and_stl_is_not():
    torch.manual_seed(0)

    def naive():
        return conjugate(("naive", "naive"), copies=25)

    for options in ({}, {"num_gradient_samples": 2}):
        check = gt.check_unbiased(
            lambda o=options: conjugate(("dregs", "gdregs"), copies=25, **o), naive, 800
        )
        assert check.unbiased, check
    biased = gt.check_unbiased(lambda: conjugate(("stl", "gdregs"), copies=25), naive, 800)
    assert not biased.unbiased


def test_dead_weights_contribute_nothing():
    for dead in (-torch.inf, torch.nan):
        phi = torch.tensor([0.3, 0.3], requires_grad=True)
        theta = torch.zeros(2, requires_grad=True)
        alive = torch.tensor([True, False])

        def likelihood(z, dead=dead, alive=alive):
            found = dist.Normal(z, 1.0).log_prob(torch.tensor(0.5))
            return torch.where(alive & (z > -9), found, torch.tensor(dead))

        value = gt.bound(
            dist.Normal(phi, 1.0), dist.Normal(theta, 1.0), likelihood, num_samples=6,
            num_gradient_samples=3,
        )  # fmt: skip
        assert value[1] == -torch.inf
        value[0].backward()
        assert phi.grad[0] != 0
        for leaf in (phi, theta):
            assert torch.isfinite(leaf.grad).all()
            assert leaf.grad[1] == 0


def test_samples_outside_of_the_priors_support_have_no_weight():
    phi = torch.tensor(0.2, requires_grad=True)
    rate = torch.tensor(1.5, requires_grad=True)
    value = gt.bound(dist.Normal(phi, 1.0), dist.Exponential(rate), lambda z: -z, num_samples=64)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(phi.grad)
    assert torch.isfinite(rate.grad)


def test_a_generator_decides_and_nothing_else_is_drawn():
    state = torch.get_rng_state()
    one, two, other = (
        conjugate(("dregs", "gdregs"), generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[0], other[0])
    assert torch.equal(state, torch.get_rng_state())


def test_no_grad_and_frozen_parts():
    phi = torch.tensor(0.2, requires_grad=True)
    frozen = dist.Normal(torch.tensor(0.0), 1.0)
    arguments = (dist.Normal(phi, 1.0), frozen, lambda z: -(z**2))
    with torch.no_grad():
        assert not gt.bound(*arguments, num_samples=4).requires_grad
    gt.bound(*arguments, num_samples=4).backward()
    assert phi.grad != 0
    assert not gt.bound(frozen, frozen, lambda z: -(z**2), num_samples=4).requires_grad


def test_a_shared_encoder_takes_several_backward_passes():
    """Two bounds of one encoder, one optimiser step of a module."""
    encoder, decoder = torch.nn.Linear(5, 4), torch.nn.Linear(2, 5)
    x = torch.randn(8, 5)

    def loss():
        loc, raw = encoder(x).chunk(2, -1)
        posterior = dist.Independent(dist.Normal(loc, torch.nn.functional.softplus(raw)), 1)
        prior = dist.Independent(dist.Normal(torch.zeros(8, 2), 1.0), 1)
        return -gt.bound(
            posterior, prior, lambda z: dist.Normal(decoder(z), 1.0).log_prob(x).sum(-1),
            num_samples=16, num_gradient_samples=4,
        ).mean()  # fmt: skip

    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 0.02)
    torch.manual_seed(0)
    before = loss().item()
    for _ in range(100):
        optimiser.zero_grad()
        (loss() + loss()).backward()
        optimiser.step()
    assert loss().item() < before - 0.5


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_log_marginal_and_chunks(chunk_size):
    torch.manual_seed(0)
    q = p = dist.Normal(0.0, 1.0)
    arguments = (q, p, lambda z: dist.Normal(z, 1.0).log_prob(torch.tensor(0.0)))
    found = gt.log_marginal(*arguments, chunk_size=chunk_size)
    assert abs(found + 1.266) < 0.03
    value = gt.bound(*arguments, num_samples=1000, chunk_size=chunk_size)
    assert abs(value + 1.266) < 0.1


def bad(**options):
    arguments = {
        "posterior": dist.Normal(torch.zeros(2), 1.0),
        "prior": dist.Normal(torch.zeros(2), 1.0),
        "likelihood": lambda z: -z,
        "num_samples": 3,
        **options,
    }
    parts = [arguments.pop(name) for name in ("posterior", "prior", "likelihood")]
    return gt.bound(*parts, **arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1"),
        ({"num_samples": 1.5}, TypeError, "num_samples must be a whole number"),
        ({"num_gradient_samples": 0}, ValueError, "num_gradient_samples must be at least 1"),
        ({"posterior_estimator": "best"}, ValueError, "posterior_estimator must be one of"),
        ({"prior_estimator": "best"}, ValueError, "prior_estimator must be one of"),
        ({"objective": "iwae"}, TypeError, "objective must be an instance of a gdregs.torch.Obj"),
        (
            {"prior_estimator": gdregs.mixed_gdregs({"a": 0.5})}, TypeError,
            "a prior that is a gdregs.torch.Hierarchy; got Normal. Give one number instead",
        ),
        ({"prior": 3}, TypeError, r"prior must have the method\(s\) log_prob"),
        ({"likelihood": 3}, TypeError, "likelihood must be a function"),
        ({"likelihood": lambda z: -z.sum(-1)}, ValueError, "The log-densities do not broadcast"),
        ({"prior": Unruled(torch.zeros(2), 1.0)}, TypeError, "prior: Unruled has no re-ex"),
        (
            {"prior": dist.Uniform(torch.tensor([-9.0] * 2, requires_grad=True), 9.0)},
            ValueError, "The support of the Uniform depends on a parameter",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(options, error, message):
    with pytest.raises(error, match=message):
        bad(**options)


def test_hierarchies_are_checked():
    normal = dist.Normal(torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match="unknown parents"):
        gt.Hierarchy({"a": (lambda b: normal, ("b",))})
    with pytest.raises(ValueError, match="form a cycle"):
        gt.Hierarchy({"a": (lambda b: normal, ("b",)), "b": (lambda a: normal, ("a",))})
    with pytest.raises(TypeError, match="must be a pair"):
        gt.Hierarchy({"a": normal})
    with pytest.raises(ValueError, match=r"the alphas are for \['b'\], but the prior's latents"):
        bad(
            prior=gt.Hierarchy({"a": (normal, ())}),
            prior_estimator=gdregs.mixed_gdregs({"b": 0.5}),
        )
    with pytest.raises(ValueError, match="posterior and prior must name the same latents"):
        gt.Hierarchy({"a": (normal, ())}).log_prob({"b": torch.zeros(3, 2)})


def test_gdregs_alone_does_not_import_torch():
    code = "import sys, gdregs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
