"""Random numbers of a network's own belong to the sample: drawn once, or refused in a sentence."""

import contextlib

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

from torch.utils.checkpoint import checkpoint  # noqa: E402

import gdregs.torch as gt  # noqa: E402
from gdregs.torch import noise, pull, weights  # noqa: E402
from gdregs.torch.resampling import resample  # noqa: E402
from torch_means import assert_unbiased  # noqa: E402

dist = torch.distributions
functional = torch.nn.functional
K, BATCH = 6, 3
X = torch.linspace(-1, 1, BATCH * 4, dtype=torch.float64).reshape(BATCH, 4)


def normal(loc):
    return dist.Independent(dist.Normal(loc, 0.8), 1)


def attend(a):
    """Attention over the samples of a datapoint would mix them; here over two halves of each."""
    halves = a.unflatten(-1, (2, -1))
    return functional.scaled_dot_product_attention(halves, halves, halves, dropout_p=0.4).flatten(
        -2
    )


def simulate(a):
    """Draws of several kinds, one of them of a scale that is learned."""
    gamma = dist.Gamma(2.0 + a.square(), 1.5).rsample()
    return a * torch.rand_like(a) + 0.3 * gamma + torch.poisson(a.detach().exp()) * torch.randn(1)


def flattened(a):
    """As convolutions want it: samples and datapoints are one axis."""
    return functional.dropout(a.flatten(0, 1), 0.4).unflatten(0, a.shape[:2])


NOISES = {
    "dropout": torch.nn.Dropout(0.4),
    "alpha dropout": torch.nn.AlphaDropout(0.3),
    "rrelu": torch.nn.RReLU(),
    "rand_like": lambda a: a * torch.rand_like(a),
    "native dropout": lambda a: torch.native_dropout(a, 0.4, True)[0],  # as on a GPU
    "attention": attend,
    "simulator": simulate,
    "flattened": flattened,
    "of a datapoint": lambda a: a + torch.randn(BATCH, 4, dtype=a.dtype),
    "of weights": lambda a: a @ (torch.rand(4, 4, dtype=a.dtype) < 0.5).to(a.dtype),
}


class Model:
    """Two layers and a likelihood, each of whose networks may draw."""

    def __init__(self, noise_of_network, places=("posterior", "prior", "likelihood")):
        generator = torch.Generator().manual_seed(1)
        self.parameters = [
            (0.7 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
            for shape in ((BATCH, 4), (4, 4), (4, 4), (4, 4))
        ]
        self.noise_of_network, self.places = noise_of_network, places

    def draw(self, place, a):
        return self.noise_of_network(a) if place in self.places else a

    def bound(self, **options):
        loc, up, down, out = self.parameters
        posterior = gt.Hierarchy(
            {
                "a": (normal(loc), ()),
                "b": (lambda a: normal(self.draw("posterior", a @ up)), ("a",)),
            }
        )
        prior = gt.Hierarchy(
            {
                "b": (normal(torch.zeros(BATCH, 4, dtype=torch.float64)), ()),
                "a": (lambda b: normal(self.draw("prior", b @ down)), ("b",)),
            }
        )

        def likelihood(z):
            a = self.draw("likelihood", z["a"] @ out)
            return dist.Normal(torch.tanh(a), 0.9).log_prob(X).sum(-1)

        return gt.bound(posterior, prior, likelihood, num_samples=K, **options)

    def gradients(self, **options):
        torch.manual_seed(2)
        value = self.bound(**options)
        found = torch.autograd.grad(value.sum(), self.parameters)
        return torch.cat([one.reshape(-1) for one in (value.detach(), *found)])


ESTIMATORS = [("dregs", "gdregs"), ("naive", "naive"), ("stl", "gdregs-mix"), ("rws", "naive")]


def choices(v, num_kept, size=4000):
    """Every choice that the resampling may make: an offset which makes it, and how likely it is."""
    grid = (torch.arange(size, dtype=v.dtype) + 0.5) / size
    offsets = grid[:, None].expand(size, v.shape[1])
    index = resample(v.abs()[:, None].expand(-1, size, -1), num_kept, offsets).index
    _, which, counts = (
        index.movedim(1, 0).flatten(1).unique(dim=0, return_inverse=True, return_counts=True)
    )
    firsts = [int((which == number).nonzero()[0]) for number in range(len(counts))]
    return [(offsets[i], count / size) for i, count in zip(firsts, counts.tolist(), strict=True)]


@pytest.mark.parametrize(("name", "number"), [(n, i % 4) for i, n in enumerate(NOISES)])
def test_the_mean_over_what_is_kept_is_the_gradient_of_all_samples(name, number, monkeypatch):
    """Of the same samples with the same noise: an integral over the offset of the resampling."""
    model, seen = Model(NOISES[name]), []
    posterior, prior = ESTIMATORS[number]
    options = {"posterior_estimator": posterior, "prior_estimator": prior}
    expected = model.gradients(**options)

    def first_offset(v):
        seen.append(v)
        return torch.zeros_like(v[0])

    monkeypatch.setattr(weights, "draw_offset", first_offset)
    model.gradients(num_gradient_samples=2, **options)
    total = 0
    for offset, share in choices(seen[0], 2):
        monkeypatch.setattr(weights, "draw_offset", lambda _, offset=offset: offset)
        total = total + share * model.gradients(num_gradient_samples=2, **options)
    torch.testing.assert_close(total[:BATCH], expected[:BATCH])
    assert (total - expected).norm() < 0.003 * expected.norm()


def test_dropout_in_a_checkpoint_is_right_in_blocks():
    """There the generator starts from where it stood, which a checkpoint remembers."""
    found = []
    for network in (lambda a: functional.dropout(a.tanh(), 0.4), Checkpointed()):
        found.append(Model(network, places=("likelihood",)).gradients(chunk_size=4))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("chunk_size", [1, 4])
@pytest.mark.parametrize("num_gradient_samples", [None, 3])
def test_blocks_have_the_noise_of_their_samples(chunk_size, num_gradient_samples, monkeypatch):
    """Numbers that are drawn one after another are the same in blocks."""
    model = Model(lambda a: a * torch.rand_like(a), places=("likelihood",))
    monkeypatch.setattr(gt.Hierarchy, "draw", lambda *_: next(drawn)[: sizes.pop(0)])
    monkeypatch.setattr(
        weights, "draw_offset", lambda v: torch.full(v.shape[1:], 0.4, dtype=v.dtype)
    )
    found = []
    for size in (None, chunk_size):
        generator = torch.Generator().manual_seed(5)
        sizes = []
        z = {n: torch.randn(K, BATCH, 4, generator=generator, dtype=torch.float64) for n in "ab"}
        blocks = [K] if size is None else [size] * (K // size) + [K % size] * bool(K % size)
        starts = [sum(blocks[:i]) for i in range(len(blocks))]
        sizes = [one for one in blocks for _ in "ab"]
        drawn = iter([z[n][start:] for start in starts for n in "ab"])
        found.append(model.gradients(num_gradient_samples=num_gradient_samples, chunk_size=size))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("options", [{"num_gradient_samples": 3}, {"chunk_size": 4}, {}])
def test_weights_add_up_to_1_with_noise(options):
    """The derivative by a constant; of each draw, but with kept samples of their mean."""
    constant = torch.zeros(BATCH, dtype=torch.float64, requires_grad=True)
    model = Model(torch.nn.Dropout(0.4))
    inner = model.draw
    found = []
    torch.manual_seed(0)
    for _ in range(100 if "num_gradient_samples" in options else 1):
        model.draw = lambda place, a: inner(place, a)
        value = _with_constant(model, constant, **options)
        found.append(torch.autograd.grad(value.sum(), constant)[0])
    found = torch.stack(found)
    if len(found) == 1:
        torch.testing.assert_close(found, torch.ones_like(found))
    else:
        error = found.std(0) / len(found) ** 0.5
        assert ((found.mean(0) - 1).abs() < 4.5 * error + 1e-6).all()


def _with_constant(model, constant, **options):
    def likelihood(z):
        return constant - model.draw("likelihood", z).square().sum(-1)

    q = normal(model.parameters[0])
    return gt.bound(q, q, likelihood, num_samples=K, **options)


def test_generators_are_left_where_the_draws_ended():
    """Noise that is replayed draws nothing: the next bound has other numbers."""
    model = Model(torch.nn.Dropout(0.4))
    after = []
    for options in ({"num_gradient_samples": 2}, {"num_gradient_samples": 4}):
        model.gradients(**options)
        after.append(torch.get_rng_state())
    assert torch.equal(*after)
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    for options in ({}, {"num_gradient_samples": 2}, {"chunk_size": 4}):
        model.bound(generator=generator, **options)
    assert torch.equal(state, torch.get_rng_state())


def test_a_density_that_is_evaluated_once_more_has_the_same_noise():
    """Naive estimators differentiate the density by its parameters at constant latents."""
    naive = {"posterior_estimator": "naive", "prior_estimator": "naive"}
    masks = []

    def draw(a):
        masks.append(torch.rand_like(a))
        return a * masks[-1]

    Model(draw, places=("posterior",)).gradients(**naive)
    first, *others = masks
    assert others
    assert all(torch.equal(first, one) for one in others)


def test_unbiased_over_noise_too_and_other_noise_is_not(monkeypatch):
    """Against all samples, over draws of samples and noise; with the noise drawn anew it is not."""

    @contextlib.contextmanager
    def drawn_anew():
        with monkeypatch.context() as patch:
            patch.setattr(
                noise.Noise, "evaluate", lambda self, place, function, args: function(*args)
            )
            patch.setattr(pull, "check_same_weights", lambda *_: None)
            yield

    def gradients(copies, **options):
        w = torch.full((copies, 1, 2), 0.9, dtype=torch.float64, requires_grad=True)
        q = normal(torch.full((copies, 2), 0.3, dtype=torch.float64))

        def likelihood(z):
            mean = (functional.dropout(z[..., None, :], 0.5) * w).sum(-1)
            return dist.Normal(mean, 0.4).log_prob(torch.tensor(1.0)).sum(-1)

        value = gt.bound(q, q, likelihood, num_samples=8, **options)
        return torch.autograd.grad(value.sum(), [w])

    def draw(copies):
        found = {
            "M = 2": gradients(copies, num_gradient_samples=2),
            "blocks": gradients(copies, chunk_size=3),
            "M = 3 in blocks": gradients(copies, num_gradient_samples=3, chunk_size=2),
        }
        with drawn_anew():
            found["M = 2, other noise"] = gradients(copies, num_gradient_samples=2)
            found["blocks, other noise"] = gradients(copies, chunk_size=3)
        return found, gradients(copies)

    biased = ["M = 2, other noise", "blocks, other noise"]
    assert_unbiased(draw, biased=biased, block=4000)


class Broadcast(torch.nn.Module):
    """A number for each sample, the same for all datapoints: not to be taken for some of each."""

    def forward(self, a):
        return a * torch.rand(len(a), 1, 1, dtype=a.dtype)


class Rejection(torch.nn.Module):
    """It draws until all samples are above a bound."""

    def forward(self, a):
        z = torch.rand_like(a)
        while bool((z < 0.3).any()):
            z = torch.where(z < 0.3, torch.rand_like(a), z)
        return a * z


class Foreign(torch.nn.Module):
    """Random numbers that are not PyTorch's."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, a):
        return a * torch.rand(a.shape, generator=self.generator, dtype=a.dtype)


class Checkpointed(torch.nn.Module):
    """Dropout that runs once more on the way back."""

    def forward(self, a):
        return checkpoint(functional.dropout, a.tanh(), 0.4, use_reentrant=False)


torch.library.define(
    "gdregs_tests::attention",
    "(Tensor a, float dropout_p) -> Tensor",
    tags=(torch.Tag.nondeterministic_seeded,),
)


@torch.library.impl("gdregs_tests::attention", "CompositeExplicitAutograd")
def fused_attention(a, dropout_p):
    return functional.dropout(a, dropout_p)


class Attention(torch.nn.Module):
    """As the fused kernels of GPUs are, whose derivative knows a seed alone."""

    def forward(self, a):
        still = torch.ops.gdregs_tests.attention(a.detach(), 0.0)
        assert torch.equal(still, a)
        return a + torch.ops.gdregs_tests.attention(a.detach(), 0.4)


class Fewer(torch.nn.Module):
    """It draws for many samples alone."""

    def forward(self, a):
        return a * torch.rand_like(a) if len(a) > 3 else a


class Seed(torch.nn.Module):
    """It leaves the generator elsewhere, and nothing is drawn."""

    def forward(self, a):
        torch.manual_seed(9)
        return a


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (
            Checkpointed(),
            {"num_gradient_samples": 2},
            "likelihood: Checkpointed draws random numbers within torch.utils.checkpoint",
        ),
        (
            Attention(),
            {"num_gradient_samples": 2},
            "Attention draws random numbers within gdregs_tests.attention.default, whose",
        ),
        (
            Fewer(),
            {"num_gradient_samples": 2},
            "likelihood: a network draws other random numbers for the samples that",
        ),
        (Seed(), {"num_gradient_samples": 2}, "likelihood: it moves PyTorch's random numbers on"),
        (
            Broadcast(),
            {"num_gradient_samples": 2},
            r"likelihood: Broadcast draws random numbers of shape \(6, 1, 1\) by aten.rand.default,"
            r" of which .* their first axes are not \[6, 3\]",
        ),
        (
            torch.nn.Dropout(0.5),  # in blocks there is a mask of weights for each
            {"num_gradient_samples": 4, "chunk_size": 3},
            r"posterior, latent 'b': Dropout draws random numbers of shape \(4, 4\)",
        ),
        (
            Rejection(),
            {"num_gradient_samples": 2},
            "likelihood: (Rejection|a network) draws other random numbers for the samples that",
        ),
        (Foreign(), {"chunk_size": 3}, "random numbers that are not PyTorch's"),
    ],
    ids=[
        "checkpoint",
        "attention",
        "fewer",
        "seed",
        "broadcast",
        "weights in blocks",
        "rejection",
        "another generator",
    ],
)
def test_noise_that_cannot_be_replayed_is_refused(layer, options, message):
    is_of_weights = isinstance(layer, torch.nn.Dropout)
    eye = torch.eye(4, dtype=torch.float64)
    network = (lambda a: a @ layer(eye)) if is_of_weights else layer
    model = Model(network, places=("posterior",) if is_of_weights else ("likelihood",))
    model.gradients()
    with pytest.raises(ValueError, match=message):
        model.gradients(**options)


def test_what_has_drawn_need_not_draw_again():
    """In evaluation mode the same function draws nothing."""
    layer = torch.nn.Dropout(0.4)
    model = Model(layer, places=("likelihood",))
    model.gradients(num_gradient_samples=2)
    layer.eval()
    expected = Model(lambda a: a).gradients(num_gradient_samples=2)
    torch.testing.assert_close(model.gradients(num_gradient_samples=2), expected)


def test_a_bound_without_noise_records_nothing(monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(noise, "_KNOWN_TO_DRAW", set())
    monkeypatch.setattr(noise.Recorder, "__enter__", fail)
    monkeypatch.setattr(noise, "standing_at", fail)
    model = Model(torch.tanh)
    for options in ({}, {"num_gradient_samples": 2}, {"chunk_size": 4}):
        model.gradients(**options)
