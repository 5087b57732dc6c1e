"""The bound around a user's own modules: compiled, in half precision, in threads, frozen."""

from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

import gdregs.torch as gt  # noqa: E402
from gdregs.torch import pull  # noqa: E402

dist = torch.distributions


class Conditional(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.network = torch.nn.Sequential(
            torch.nn.Linear(inputs, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2 * outputs)
        )

    def forward(self, values):
        loc, raw = self.network(values).chunk(2, -1)
        return loc, torch.nn.functional.softplus(raw) + 0.1


class Model(torch.nn.Module):
    """Two layers, posterior bottom-up and prior top-down."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.upper = Conditional(5, 3), Conditional(3, 2)
        self.prior, self.decoder = Conditional(2, 3), torch.nn.Linear(3, 5)

    def forward(self, x, generator, **options):
        def normal(parameters):
            return dist.Independent(dist.Normal(*parameters, validate_args=False), 1)

        posterior = gt.Hierarchy(
            {
                "one": (normal(self.encoder(x)), ()),
                "two": (lambda one: normal(self.upper(one)), ("one",)),
            }
        )
        zeros = torch.zeros(len(x), 2)
        prior = gt.Hierarchy(
            {
                "two": (normal((zeros, 1.0 + zeros)), ()),
                "one": (lambda two: normal(self.prior(two)), ("two",)),
            }
        )
        return gt.bound(
            posterior, prior,
            lambda z: dist.Normal(self.decoder(z["one"]), 0.5).log_prob(x).sum(-1),
            num_samples=8, generator=generator, **{"num_gradient_samples": 3, **options},
        ).mean()  # fmt: skip


X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))


def gradients(model, x=X, seed=2, **options):
    value = model(x, torch.Generator().manual_seed(seed), **options)
    found = torch.autograd.grad(value, list(model.parameters()))
    return value.detach(), found


# PyTorch's own, of what its compiler looks at.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("is_compiled_before", [False, True])
def test_compiled_networks_have_the_same_gradient(is_compiled_before, monkeypatch):
    """Those that were compiled before, for a single backward pass, run twice."""
    torch.compiler.reset()
    model = Model()
    value, expected = gradients(model)
    for name, size in (("encoder", (6, 5)), ("upper", (3, 6, 3)), ("prior", (3, 6, 2))):
        network = torch.compile(getattr(model, name), backend="aot_eager", dynamic=False)
        if is_compiled_before:
            sum(part.sum() for part in network(torch.ones(size, requires_grad=True))).backward()
        setattr(model, name, network)
    passes = []
    differentiate = pull.differentiate_by_leaves

    def counted(*arguments, shares_graph):
        passes.append(shares_graph)
        return differentiate(*arguments, shares_graph=shares_graph)

    monkeypatch.setattr(pull, "differentiate_by_leaves", counted)
    compiled, found = gradients(model)
    assert passes == ([True, False] if is_compiled_before else [True])
    torch.testing.assert_close(compiled, value)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert theirs.abs().max() > 0


def test_autocast_rounds_the_networks_and_nothing_else():
    model = Model()
    value, expected = gradients(model, num_gradient_samples=None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, found = gradients(model, num_gradient_samples=None)
    assert rounded.dtype == value.dtype == torch.float32
    assert 0 < (rounded - value).abs() < 0.1
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.15 * theirs.norm() + 0.02


def test_threads_do_not_disturb_each_other():
    """As replicas of a model do, each with its share of the batch."""
    model = Model()
    parts = [(X[:3], 5), (X[3:], 6)] * 4
    expected = [gradients(model, x, seed)[1] for x, seed in parts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda part: gradients(model, *part)[1], parts))
    for one, other in zip(found, expected, strict=True):
        for ours, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("frozen", ["encoder", "upper", "prior", "decoder"])
def test_a_frozen_part_changes_no_other_gradient(frozen):
    model = Model()
    expected = dict(zip(dict(model.named_parameters()), gradients(model)[1], strict=True))
    getattr(model, frozen).requires_grad_(False)
    model(X, torch.Generator().manual_seed(2)).backward()
    for name, parameter in model.named_parameters():
        if name.startswith(frozen):
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected[name])
