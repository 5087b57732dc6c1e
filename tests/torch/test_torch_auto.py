"""The mix that is learned in PyTorch: worth its work, and naive where it is not."""

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

import gdregs.torch as gt  # noqa: E402

dist = torch.distributions


def teach(auto, num_steps=80):
    """Many draws at the same parameters, of a posterior for which DReGs has far less variance."""
    torch.manual_seed(0)
    phi, theta = (torch.tensor(value, requires_grad=True) for value in (0.95, 0.1))

    def loss(posterior_estimator, prior_estimator):
        return -gt.bound(
            dist.Normal(phi, 0.75),
            dist.Normal(theta, 1.0),
            lambda z: dist.Normal(z, 1.0).log_prob(torch.tensor(2.0)),
            num_samples=8,
            posterior_estimator=posterior_estimator,
            prior_estimator=prior_estimator,
        )

    for _ in range(num_steps):
        auto.backward(loss, (phi, theta))
    return auto.strengths


@pytest.mark.parametrize(
    ("work", "is_used"),
    [((1.0, 1.0), (True, True)), ((1.0, 1e6), (True, False)), ((1e6, 2e6), (False, False))],
    ids=["both", "posterior", "neither"],
)
def test_a_mix_is_used_where_variance_times_work_falls(work, is_used):
    strengths = teach(gt.Auto(work=work))
    assert tuple(strength != 0 for strength in strengths) == is_used
