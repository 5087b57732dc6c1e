"""The bound for PyTorch: over draws, at its edges, and what it refuses."""

import subprocess
import sys
from typing import Any, ClassVar

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

import gdregs.torch as gt  # noqa: E402
from gdregs.shared.tables import PosteriorMix, PriorEstimator  # noqa: E402
from torch_means import assert_unbiased  # noqa: E402

dist = torch.distributions


def conjugate(estimators, copies=1, **options):
    """Gradients of copies of a model of two layers, each by parameters of its own."""
    parameters = [
        torch.full((copies, 1), value, dtype=torch.float64, requires_grad=True)
        for value in (0.9, 0.4, 0.3, 0.7, 0.1)
    ]
    phi, spread, theta, slope, offset = parameters
    posterior = gt.Hierarchy(
        {
            "a": (dist.Normal(phi.expand(copies, 2), spread.exp()), ()),
            "b": (lambda a: dist.Normal(phi * a, spread.exp()), ("a",)),
        }
    )
    prior = gt.Hierarchy(
        {
            "b": (dist.Normal(theta.expand(copies, 2), 1.0), ()),
            "a": (lambda b: dist.Normal(slope * b, 1.0), ("b",)),
        }
    )
    x = torch.tensor([0.5, -1.0], dtype=torch.float64)
    value = gt.bound(
        posterior, prior, lambda z: dist.Normal(z["a"] + z["b"] + offset, 0.8).log_prob(x),
        num_samples=4, posterior_estimator=estimators[0], prior_estimator=estimators[1],
        **options,
    )  # fmt: skip
    return torch.autograd.grad(value.sum(), parameters)


class Totals(gt.Objective):
    """It adds up the datapoints too."""

    def __call__(self, log_weights):
        return log_weights.mean()


class Unruled(dist.Distribution):
    """Continuous, and without a path."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.real

    def __init__(self, loc, scale):
        self.base = dist.Normal(loc, scale)
        super().__init__(self.base.batch_shape, validate_args=False)

    def log_prob(self, z):
        return self.base.log_prob(z)


@pytest.mark.parametrize("objective", [gt.IWAE(), gt.VRIWAE(0.5)], ids=["IWAE", "VR-IWAE"])
def test_unbiased_over_draws_and_stl_is_not(objective):
    suspects = {
        "dregs": (("dregs", "gdregs"), {}),
        "dregs, M = 2": (("dregs", "gdregs"), {"num_gradient_samples": 2}),
        "dregs, M = 3, blocks": (
            ("dregs", "gdregs"),
            {"num_gradient_samples": 3, "chunk_size": 2},
        ),
        "naive, M = 2": (("naive", "naive"), {"num_gradient_samples": 2}),
        "mixes": ((PosteriorMix(0.3), PriorEstimator({"a": 0.3, "b": 0.8})), {}),
        "stl": (("stl", "gdregs"), {}),
    }
    generator = torch.Generator().manual_seed(0)

    def draw(copies):
        """All from the same samples."""
        state = generator.get_state()

        def of(estimators, options):
            generator.set_state(state)
            return conjugate(
                estimators, copies, objective=objective, generator=generator, **options
            )

        found = {name: of(*suspect) for name, suspect in suspects.items()}
        found["nine tenths"] = [0.9 * one for one in found["dregs"]]
        return found, of(("naive", "naive"), {})

    assert_unbiased(draw, biased=["stl", "nine tenths"], block=10_000)


def jackknife(log_weights):
    """JVI-1 as its definition says."""
    size = len(log_weights)
    left_out = [torch.cat([log_weights[:j], log_weights[j + 1 :]]) for j in range(size)]
    return size * gt.IWAE()(log_weights) - (size - 1) / size * sum(map(gt.IWAE(), left_out))


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        (gt.ELBO(), lambda log_weights: log_weights.mean(0)),
        (gt.IWAE(), lambda log_weights: log_weights.exp().mean(0).log()),
        (gt.VRIWAE(0.3), lambda log_weights: (0.7 * log_weights).exp().mean(0).log() / 0.7),
        (gt.VRIWAE(2.0), lambda log_weights: -(-log_weights).exp().mean(0).log()),
        (gt.JVI(), jackknife),
    ],
    ids=["ELBO", "IWAE", "VR-IWAE 0.3", "VR-IWAE 2", "JVI"],
)
def test_objectives_have_their_derivatives(objective, value):
    """v and c are those of the definition, by automatic differentiation."""

    class Own(gt.Objective):
        def __call__(self, log_weights):
            return value(log_weights)

    generator = torch.Generator().manual_seed(0)
    log_weights = 2 * torch.randn(4, 3, dtype=torch.float64, generator=generator)
    for found, expected in zip(
        objective.coefficients(log_weights), Own().coefficients(log_weights), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(objective(log_weights), value(log_weights))
    if not isinstance(objective, gt.JVI):
        return
    alone = log_weights[:1]
    for found, expected in zip(
        objective.coefficients(alone), gt.IWAE().coefficients(alone), strict=True
    ):
        torch.testing.assert_close(found, expected)
    far = torch.tensor([-1.0, 0.5, -1.5, 120.0])  # of which the others' weights are 0 in float32
    for found, expected in zip(
        objective.coefficients(far)[1:], objective.coefficients(far.double())[1:], strict=True
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert objective.coefficients(far).v.sum().item() == pytest.approx(1, rel=1e-5)


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

    parameters = [*encoder.parameters(), *decoder.parameters()]
    torch.manual_seed(0)
    before = loss().item()
    for _ in range(20):
        for parameter in parameters:
            parameter.grad = None
        (loss() + loss()).backward()
        with torch.no_grad():
            for parameter in parameters:
                parameter -= 0.1 * parameter.grad
    assert loss().item() < before - 0.5


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_log_marginal_and_chunks(chunk_size):
    torch.manual_seed(0)
    q = p = dist.Normal(0.0, 1.0)
    arguments = (q, p, lambda z: dist.Normal(z, 1.0).log_prob(torch.tensor(0.0)))
    found = gt.log_marginal(*arguments, num_samples=702, chunk_size=chunk_size)
    assert abs(found + 1.266) < 0.06  # four standard errors
    value = gt.bound(*arguments, num_samples=702, chunk_size=chunk_size)
    assert abs(value + 1.266) < 0.06


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
        ({"objective": Totals()}, ValueError, "Totals maps log-weights of shape .* to shape"),
        ({"objective": "iwae"}, TypeError, "objective must be an instance of a gdregs.torch.Obj"),
        (
            {"prior_estimator": PriorEstimator({"a": 0.5})}, TypeError,
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


def test_the_order_of_the_elbo_is_refused():
    with pytest.raises(ValueError, match="is the ELBO"):
        gt.VRIWAE(1.0)


def test_hierarchies_are_checked():
    normal = dist.Normal(torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match="unknown parents"):
        gt.Hierarchy({"a": (lambda b: normal, ("b",))})
    with pytest.raises(ValueError, match="form a cycle"):
        gt.Hierarchy({"a": (lambda b: normal, ("b",)), "b": (lambda a: normal, ("a",))})
    with pytest.raises(TypeError, match="must be a pair"):
        gt.Hierarchy({"a": normal})
    stubborn = {"a": (normal, ()), "b": (lambda a: normal, ("a",))}
    with pytest.raises(ValueError, match=r"'b' was drawn with shape .* without the leading axes"):
        gt.Hierarchy(stubborn).sample((3,))
    vectors = gt.Hierarchy({"a": (normal, ()), "b": (dist.Independent(normal, 1), ())})
    with pytest.raises(ValueError, match="log-densities of the latents have different shapes"):
        vectors.log_prob(vectors.sample((3,)))
    with pytest.raises(ValueError, match=r"the alphas are for \['b'\], but the prior's latents"):
        bad(
            prior=gt.Hierarchy({"a": (normal, ())}),
            prior_estimator=PriorEstimator({"b": 0.5}),
        )
    with pytest.raises(ValueError, match="posterior and prior must name the same latents"):
        gt.Hierarchy({"a": (normal, ())}).log_prob({"b": torch.zeros(3, 2)})


@pytest.mark.slow
def test_gdregs_alone_does_not_import_torch():
    code = "import sys, gdregs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
