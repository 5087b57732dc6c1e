"""The derivative of a bound by a constant added to the log-likelihood is 1 for each datapoint.

The weights of a bound add up to 1: whatever samples are lost, counted twice or weighed as others,
in blocks or in the choice of those that are kept, changes it.
"""

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

import gdregs.torch as gt  # noqa: E402
from gdregs.torch import weights  # noqa: E402
from torch_families import FAMILIES, make  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Singular sample")  # of every Wishart's draw
K = 12
CHUNKS = (5, 4, 6)
OBJECTIVES = {
    "ELBO": gt.ELBO(),
    "IWAE": gt.IWAE(),
    "VR-IWAE 0.4": gt.VRIWAE(0.4),
    "VR-IWAE 2": gt.VRIWAE(2.0),
    "JVI": gt.JVI(),
}
NAMES = list(FAMILIES)


def derivatives(name, batch, **options):
    """Of the bound of each datapoint by a constant of its own, `[*batch]`."""
    torch.manual_seed(0)
    # PyTorch has no batches of its temperatures.
    batch = () if name == "RelaxedOneHotCategorical" else batch
    posterior, prior = make(name, *batch)[1], make(name, *batch)[1]
    constant = torch.zeros(batch, dtype=torch.float64, requires_grad=True)

    def likelihood(z):
        density = prior.log_prob(z)  # of the right shape
        return constant + torch.sin(z.reshape(*density.shape, -1)).sum(-1)

    value = gt.bound(posterior, prior, likelihood, num_samples=K, **options)
    return torch.autograd.grad(value.sum(), constant)[0]


def assert_ones(found):
    torch.testing.assert_close(found, torch.ones_like(found), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_in_blocks(number):
    """Every family with every objective, and either with each size of blocks."""
    for place, objective in enumerate(OBJECTIVES.values()):
        chunk_size = CHUNKS[(number + place) % len(CHUNKS)]
        assert_ones(derivatives(NAMES[number], (3,), objective=objective, chunk_size=chunk_size))


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_of_kept_samples(number):
    """M = 5: of each draw where no v is negative, and of the mean over 300 datapoints with JVI."""
    for place, (name, objective) in enumerate(OBJECTIVES.items()):
        chunk_size = (*CHUNKS, None)[(number + place) % 4]
        found = derivatives(
            NAMES[number], (300,), objective=objective, chunk_size=chunk_size,
            num_gradient_samples=5,
        )  # fmt: skip
        if name != "JVI":
            assert_ones(found)
        elif found.numel() > 1:
            error = found.std() / len(found) ** 0.5
            assert (found.mean() - 1).abs() < 4.5 * error + 1e-9


@pytest.mark.parametrize("options", [{}, {"num_gradient_samples": 11}])
def test_a_lost_block_is_found(options, monkeypatch):
    in_blocks = weights.Weighed.in_blocks
    monkeypatch.setattr(weights.Weighed, "in_blocks", lambda self, size: in_blocks(self, size)[:-1])
    with pytest.raises(AssertionError, match="not close"):
        assert_ones(derivatives("Gamma", (3,), chunk_size=5, **options))


def test_samples_kept_without_their_probability_are_found(monkeypatch):
    def ones(scores, *arguments):
        kept = resample(scores, *arguments)
        return kept._replace(probabilities=torch.ones_like(kept.probabilities))

    resample = weights.resample
    monkeypatch.setattr(weights, "resample", ones)
    with pytest.raises(AssertionError, match="not close"):
        assert_ones(derivatives("Gamma", (3,), num_gradient_samples=5))
