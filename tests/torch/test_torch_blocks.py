"""`chunk_size`: each sample is evaluated twice, and the gradient is that of one piece."""

import functools

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

import gdregs.torch as gt  # noqa: E402
from gdregs.shared.tables import PriorEstimator  # noqa: E402
from gdregs.torch import blocks, weights  # noqa: E402

dist = torch.distributions
K, BATCH = 8, 4
X = torch.linspace(-1, 1, BATCH * 5, dtype=torch.float64).reshape(BATCH, 5)


def normal(parameters):
    loc, raw = parameters.chunk(2, -1)
    return dist.Independent(dist.Normal(loc, torch.nn.functional.softplus(raw) + 0.1), 1)


class Given(gt.Hierarchy):
    """A hierarchy whose samples are given, so that blocks have the same ones."""

    def __init__(self, nodes):
        super().__init__(nodes)
        self.num_drawn = 0

    def sample(self, sample_shape=()):
        generator = torch.Generator().manual_seed(4)
        start, self.num_drawn = self.num_drawn, self.num_drawn + sample_shape[0]
        return {
            name: torch.randn(K, BATCH, size, generator=generator, dtype=torch.float64)[
                start : self.num_drawn
            ]
            for name, size in (("one", 3), ("two", 2))
        }


class Conditional(torch.nn.Module):
    """A network that may see what an encoder has computed, as an attribute."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.network, self.feature = torch.nn.Linear(inputs, outputs, dtype=torch.float64), 0

    def forward(self, values):
        return normal(self.network(values.tanh()) + self.feature)


class Model(torch.nn.Module):
    """Two layers, whose decoder shares a weight with the encoder and sees its output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        linear = functools.partial(torch.nn.Linear, dtype=torch.float64)
        self.encoder, self.features, self.decoder = linear(5, 6), linear(5, 3), linear(3, 5)
        self.upper, self.prior = Conditional(3, 4), Conditional(2, 6)
        self.num_evaluated = 0

    def forward(self, is_hidden=False, **options):
        features = self.features(X)
        found = {"features": [features], "shift": features.mean()}
        self.upper.feature = features.mean() if is_hidden else 0
        posterior = {
            "one": (normal(self.encoder(X) + 0.1 * features.sum(-1, keepdim=True)), ()),
            "two": (self.upper, ("one",)),
        }
        top = normal(torch.zeros(BATCH, 4, dtype=torch.float64))
        prior = {"two": (top, ()), "one": (self.prior, ("two",))}

        def decode(z, scale=found["shift"].exp()):
            return (
                self.decoder(z) + z @ self.encoder.weight[:3] + found["features"][0].sum() * scale
            )

        def likelihood(z):
            self.num_evaluated += len(z["one"])
            return dist.Normal(decode(z["one"]), 0.7).log_prob(X).sum(-1)

        return gt.bound(
            Given(posterior), gt.Hierarchy(prior), likelihood, num_samples=K,
            **{"posterior_estimator": "naive", **options},
        )  # fmt: skip

    def gradients(self, cotangent=None, **options):
        value = self(**options)
        cotangent = torch.ones_like(value) if cotangent is None else cotangent
        found = torch.autograd.grad(value, list(self.parameters()), cotangent)
        return [value.detach(), *found]


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
        assert theirs.abs().max() > 0


@pytest.fixture(autouse=True)
def one_offset(monkeypatch):
    monkeypatch.setattr(
        weights, "draw_offset", lambda v: torch.full(v.shape[1:], 0.3, dtype=v.dtype)
    )


UNEQUAL = torch.linspace(-1, 2, BATCH, dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "cotangent"),
    [
        ({}, None),
        ({"num_gradient_samples": 5, "posterior_estimator": "dregs"}, None),
        ({"posterior_estimator": "stl", "objective": gt.JVI()}, UNEQUAL),
        ({"prior_estimator": PriorEstimator({"one": 0.3, "two": 0.8})}, None),
        ({"posterior_estimator": "rws", "prior_estimator": "naive"}, None),
        ({"num_gradient_samples": 4, "prior_estimator": "gdregs-mix"}, UNEQUAL),
    ],
)
def test_the_gradient_is_that_of_one_piece(options, cotangent):
    model = Model()
    expected = model.gradients(cotangent, **options)
    for size in (1, 3):
        assert_same(model.gradients(cotangent, chunk_size=size, **options), expected)


def test_a_tensor_that_is_not_seen_from_outside_is_no_less_differentiated():
    """It is an attribute of a module: blocks are evaluated once more on the way back."""
    model = Model()
    expected = model.gradients(is_hidden=True)
    assert_same(model.gradients(is_hidden=True, chunk_size=3), expected)
    model.num_evaluated = 0
    model.gradients(is_hidden=True, chunk_size=3)
    assert model.num_evaluated > 2 * K


def test_a_hook_of_a_parameter_is_called_once():
    model, called = Model(), []

    def halve(gradient):
        called.append(1)
        return gradient / 2

    expected = model.gradients(chunk_size=3)
    model.decoder.weight.register_hook(halve)
    found = model.gradients(chunk_size=3)
    assert called == [1]
    at = [name for name, _ in model.named_parameters()].index("decoder.weight") + 1
    expected[at] = expected[at] / 2
    assert_same(found, expected)


@pytest.mark.parametrize("num_gradient_samples", [None, 5])
@pytest.mark.parametrize("chunk_size", [1, 3, 4])
def test_samples_are_evaluated_twice(chunk_size, num_gradient_samples):
    """Those that are kept; the others once. With unequal cotangents once more."""
    model = Model()
    options = {"chunk_size": chunk_size, "num_gradient_samples": num_gradient_samples}
    model.gradients(**options)
    assert model.num_evaluated == K + (num_gradient_samples or K)
    model.num_evaluated = 0
    model.gradients(UNEQUAL, **options)
    assert model.num_evaluated == K + 2 * (num_gradient_samples or K)


def test_a_graph_is_gone_before_the_next_block(monkeypatch):
    """What is held is held for one block at a time."""
    alive, most = [], []

    class Held(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            alive.append(1)
            most.append(len(alive))
            ctx.held = Token()
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Token:
        def __del__(self):
            alive.pop()

    model = Model()
    decoder = model.decoder.forward
    monkeypatch.setattr(
        model.decoder,
        "forward",
        lambda z: Held.apply(decoder(z)) if torch.is_grad_enabled() else decoder(z),
    )
    model.gradients(chunk_size=2)
    assert len(most) == K / 2
    assert max(most) == 1
    most.clear()
    model.gradients(is_hidden=True, chunk_size=2)  # a graph for each block
    assert max(most) > 1


def test_what_is_rounded_for_a_block_is_rounded_anew_for_the_next():
    encoder, decoder = torch.nn.Linear(5, 4), torch.nn.Linear(2, 5)
    x, calls = X.float(), []

    def likelihood(z):
        calls.append(1)
        return dist.Normal(decoder(z).float(), 0.7).log_prob(x).sum(-1)

    found = []
    for is_rounded in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_rounded):
            q = normal(encoder(x).float())
            p = normal(torch.zeros(BATCH, 4))
            value = gt.bound(q, p, likelihood, num_samples=9, chunk_size=3)
        found.append(torch.autograd.grad(value.mean(), [*decoder.parameters()]))
    assert len(calls) == 2 * (3 + 3)
    for theirs, ours in zip(*found, strict=True):
        assert ours.dtype == torch.float32
        assert 0 < (ours - theirs).norm() < 0.1 * theirs.norm()


def test_frozen_parts_and_no_parameters():
    model = Model()
    expected = dict(zip(dict(model.named_parameters()), model.gradients()[1:], strict=True))
    for part in (model.encoder, model.decoder):
        part.requires_grad_(False)
    model(chunk_size=3).sum().backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("encoder", "decoder")):
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected[name])
    model.requires_grad_(False)
    assert not model(chunk_size=3).requires_grad


def test_stand_ins_leave_what_they_need_not_replace():
    seen = 0

    def count(z):
        nonlocal seen
        seen += 1
        return z

    def recursive(z, depth=2):
        return recursive(z, depth - 1) if depth else count(z)

    stand_ins = blocks.StandIns()
    constant = dist.Normal(torch.zeros(2), 1.0)
    for value in (count, recursive, constant, X, [X], functools.partial(count), {"a": 1}):
        assert stand_ins.of(value) is value
    computed = X.clone().requires_grad_() * 2
    moved = dist.TransformedDistribution(
        dist.Normal(computed, 1.0), [dist.AffineTransform(computed, 2.0)]
    )
    other = stand_ins.of(moved)
    assert other.base_dist.loc.is_leaf
    assert moved.base_dist.loc is not other.base_dist.loc
    z = moved.sample()
    assert torch.equal(other.log_prob(z), moved.log_prob(z))
    function = stand_ins.of(functools.partial(lambda a, b: (count(a) + computed, b), b=computed))
    found = function(X)
    assert seen == 1
    assert found[1].is_leaf
    assert torch.equal(found[0], X + computed)
