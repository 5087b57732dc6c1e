"""Samples that are evaluated anew, or depend on each other: right, or refused in a sentence."""

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

import gdregs.torch as gt  # noqa: E402

dist = torch.distributions
K, X = 8, torch.linspace(-1, 1, 15).reshape(3, 5)
NAIVE = {"posterior_estimator": "naive", "prior_estimator": "naive"}
FEW, BLOCKS = {"num_gradient_samples": 4}, {"chunk_size": 3}
ANEW = r"gives the samples of the backward pass other values"
NORM = (
    r"normalises over the importance samples .*\(BatchNorm1d in training mode\).*Use group or layer"
)


class Decoder(torch.nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers, self.last = torch.nn.Sequential(*layers), torch.nn.Linear(2, 5)

    def forward(self, z):
        return self.last(self.layers(z.reshape(-1, 2)).reshape(z.shape))


def normal():
    return dist.Independent(dist.Normal(torch.zeros(3, 2, requires_grad=True), 1.0), 1)


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
        (torch.nn.BatchNorm1d(2), FEW, NORM),
        (torch.nn.BatchNorm1d(2), {"objective": gt.ELBO(), **FEW}, NORM),
        (torch.nn.BatchNorm1d(2), {}, NORM),
        (torch.nn.BatchNorm1d(2, track_running_stats=False), {}, NORM),
        (torch.nn.BatchNorm1d(2), {"prior_estimator": "naive"}, NORM),
        (torch.nn.BatchNorm1d(2), BLOCKS, NORM),
        (torch.nn.LazyBatchNorm1d(), BLOCKS, NORM),
        (torch.nn.BatchNorm1d(2), {**NAIVE, **BLOCKS}, NORM),
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
        (torch.nn.BatchNorm1d(2), FEW, NORM),
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


class AllInOne(torch.nn.Module):
    """An autoencoder whose encoder normalises over x, and whose decoder does not normalise."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(5, 2), torch.nn.BatchNorm1d(2))
        self.decoder = Decoder(torch.nn.LayerNorm(2))

    def likelihood(self, z):
        return dist.Normal(self.decoder(z), 1.0).log_prob(X).sum(-1)

    def parts(self, *, inside):
        def posterior():
            return dist.Independent(dist.Normal(self.encoder(X), 1.0), 1)

        top = normal()
        if not inside:
            return posterior(), top, self.likelihood
        nodes = gt.Hierarchy({"z": (posterior, ())}), gt.Hierarchy({"z": (top, ())})
        return *nodes, lambda z: self.likelihood(z["z"])


@pytest.mark.parametrize("inside", [False, True], ids=["before", "in a conditional"])
@pytest.mark.parametrize("options", [{}, FEW, BLOCKS])
def test_batch_norm_over_x_is_allowed_and_sees_a_batch_once(inside, options):
    torch.manual_seed(0)
    model = AllInOne()
    gt.bound(*model.parts(inside=inside), num_samples=K, **options).sum().backward()
    layer = model.encoder[1]
    blocks = 3 if inside and options == BLOCKS else 1
    assert layer.num_batches_tracked == blocks
    rows = model.encoder[0](X).mean(0).detach()
    torch.testing.assert_close(layer.running_mean, (1 - 0.9**blocks) * rows)
    assert layer.momentum == 0.1
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("options", [FEW, {**NAIVE, **FEW}])
def test_samples_that_are_coupled_by_hand_are_refused(options):
    with pytest.raises(ValueError, match=ANEW):
        gt.bound(
            normal(), normal(), lambda z: -(z - z.mean(0)).square().sum(-1), num_samples=K,
            **options,
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.slow
def test_a_compiled_network_that_normalises_is_refused(request):
    if request.config.getoption("jaxtyping_packages"):
        pytest.skip("annotations are checked, which cannot be compiled: --jaxtyping-packages=")
    network = torch.compile(Decoder(torch.nn.BatchNorm1d(2)), backend="aot_eager")
    with pytest.raises(ValueError, match=NORM):
        bound(network)
    network.eval()
    bound(network).backward()


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
