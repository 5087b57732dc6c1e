"""The mix that is learned in PyTorch: worth its work, and naive where it is not."""

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

import gdregs.torch as gt  # noqa: E402

dist = torch.distributions


def problem():
    """Parameters, and a loss of a posterior for which DReGs has far less variance."""
    phi, theta = (
        torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.95, 0.1)
    )

    def loss(posterior_estimator, prior_estimator):
        return -gt.bound(
            dist.Normal(phi, 0.75),
            dist.Normal(theta, 1.0),
            lambda z: dist.Normal(z, 1.0).log_prob(torch.tensor(2.0)),
            num_samples=8,
            posterior_estimator=posterior_estimator,
            prior_estimator=prior_estimator,
        )

    return (phi, theta), loss


@pytest.mark.parametrize(
    ("work", "is_used"),
    [((1.0, 1.0), (True, True)), ((1.0, 1e6), (True, False)), ((1e6, 2e6), (False, False))],
    ids=["both", "posterior", "neither"],
)
def test_a_mix_is_used_where_variance_times_work_falls(work, is_used):
    """After many draws at the same parameters."""
    torch.manual_seed(0)
    auto, (parameters, loss) = gt.Auto(work=work), problem()
    for _ in range(80):
        auto.backward(loss, parameters)
    assert tuple(strength != 0 for strength in auto.strengths) == is_used


@pytest.mark.parametrize("step", [0, 101], ids=["teaches", "does not teach"])
def test_a_step_is_a_draw_of_the_mix(step):
    parameters, loss = problem()
    auto = gt.Auto()
    auto.strengths, auto.step = (0.3, 0.7), step
    estimators = auto.estimators
    torch.manual_seed(1)
    value = auto.backward(loss, parameters)
    assert bool(auto.mean) == (step == 0)
    torch.manual_seed(1)
    expected = loss(*estimators)
    torch.testing.assert_close(value, expected.detach())
    for parameter, gradient in zip(
        parameters, torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(parameter.grad, gradient)
        assert gradient != 0
