"""Samples that are evaluated anew, or depend on each other: right, or refused in a sentence."""

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

import gdregs.torch as gt  # noqa: E402

dist = torch.distributions
K, X = 8, torch.linspace(-1, 1, 15).reshape(3, 5)
NAIVE = {"posterior_estimator": "naive", "prior_estimator": "naive"}
FEW, BLOCKS = {"num_gradient_samples": 4}, {"chunk_size": 3}
ANEW = r"gives the samples of the backward pass other values .* \(BatchNorm1d\)"


class Decoder(torch.nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers, self.last = torch.nn.Sequential(*layers), torch.nn.Linear(2, 5)

    def forward(self, z):
        return self.last(self.layers(z.reshape(-1, 2)).reshape(z.shape))


def normal():
    return dist.Independent(dist.Normal(torch.zeros(3, 2), 1.0), 1)


def bound(network, **options):
    def likelihood(z):
        return dist.Normal(network(z), 1.0).log_prob(X).sum(-1)

    return gt.bound(normal(), normal(), likelihood, num_samples=K, **options).sum()


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (torch.nn.Dropout(0.5), {}, None),
        (torch.nn.Dropout(0.5), FEW, None),
        (torch.nn.Dropout(0.5), BLOCKS, None),
        (torch.nn.BatchNorm1d(2), NAIVE, None),  # all of F is differentiated
        (torch.nn.BatchNorm1d(2), FEW, ANEW),
        (torch.nn.BatchNorm1d(2), {"objective": gt.ELBO(), **FEW}, ANEW),
        (torch.nn.LayerNorm(2), FEW, None),
    ],
)
def test_noise_and_normalisation_in_a_likelihood(layer, options, message):
    torch.manual_seed(0)
    network = Decoder(layer)
    if message is None:
        bound(network, **options).backward()
    else:
        with pytest.raises(ValueError, match=message):
            bound(network, **options)
    network.eval()
    bound(network, **options).backward()


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (torch.nn.Dropout(0.5), {}, None),
        (torch.nn.Dropout(0.5), FEW, None),
        (torch.nn.Dropout(0.5), BLOCKS, None),
        (torch.nn.BatchNorm1d(2), FEW, ANEW),
    ],
)
def test_noise_and_normalisation_in_a_conditional(layer, options, message):
    torch.manual_seed(0)
    network = Decoder(layer)

    def below(a):
        return dist.Independent(dist.Normal(network(a)[..., :2], 1.0), 1)

    posterior = gt.Hierarchy({"a": (normal(), ()), "b": (below, ("a",))})
    prior = gt.Hierarchy({"a": (normal(), ()), "b": (normal(), ())})

    def value():
        return gt.bound(
            posterior, prior, lambda z: -z["b"].square().sum(-1), num_samples=K, **options
        ).sum()

    if message is None:
        value().backward()
    else:
        with pytest.raises(ValueError, match=message):
            value()


def test_weights_add_up_to_1_with_dropout():
    """The derivative by a constant added to the log-likelihood, which showed the fault."""
    torch.manual_seed(0)
    network, constant = Decoder(torch.nn.Dropout(0.5)), torch.zeros((), requires_grad=True)

    def likelihood(z):
        return constant + dist.Normal(network(z), 1.0).log_prob(X).sum(-1)

    gt.bound(normal(), normal(), likelihood, num_samples=K).sum().backward()
    assert constant.grad.item() == pytest.approx(3.0, rel=1e-5)


def test_differences_of_rounding_are_no_bias():
    drawn = []

    def third():
        drawn.append(torch.randn(3))
        return [drawn[-1] / 3]

    torch.manual_seed(0)
    assert gt.check_unbiased(third, lambda: [drawn[-1] * (1 / 3)], 500).unbiased
    assert not gt.check_unbiased(third, lambda: [drawn[-1] * 0.3 + 0.1], 500).unbiased
