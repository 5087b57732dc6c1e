"""A bound has a first derivative: a second one is refused, however the first was taken."""

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

import gdregs.torch as gt  # noqa: E402

dist = torch.distributions
NAIVE = {"posterior_estimator": "naive", "prior_estimator": "naive"}
OPTIONS = {
    "all": {},
    "naive": NAIVE,
    "M = 2": {"num_gradient_samples": 2},
    "blocks": {"chunk_size": 2},
    "M = 3, blocks": {"chunk_size": 2, "num_gradient_samples": 3},
}
REFUSAL = "A bound of gdregs has a first derivative only"


def bound(phi, theta, options):
    torch.manual_seed(0)
    posterior = gt.Hierarchy(
        {
            "a": (dist.Normal(phi.expand(2), 0.8), ()),
            "b": (lambda a: dist.Normal(phi * a, 0.5), ("a",)),
        }
    )
    prior = gt.Hierarchy(
        {
            "b": (dist.Normal(theta.expand(2), 1.0), ()),
            "a": (lambda b: dist.Normal(theta * b, 1.0), ("b",)),
        }
    )
    return gt.bound(
        posterior, prior, lambda z: -(z["a"] ** 2) * (phi + theta).exp(), num_samples=4, **options
    )


def make_parameters():
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.5, -0.3)]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.5)], ids=["alike", "weighted"])
def test_a_second_derivative_is_refused_and_a_first_one_is_as_ever(name, weights):
    parameters, weights = make_parameters(), torch.tensor(weights, dtype=torch.float64)
    value = (weights * bound(*parameters, OPTIONS[name])).sum()
    expected = torch.autograd.grad(value, parameters)
    value = (weights * bound(*parameters, OPTIONS[name])).sum()
    found = torch.autograd.grad(value, parameters, create_graph=True)
    torch.testing.assert_close(found, expected)
    for gradient in found:
        for parameter in parameters:
            with pytest.raises(RuntimeError, match=REFUSAL):
                torch.autograd.grad(gradient, parameter, retain_graph=True)
    with pytest.raises(RuntimeError, match=REFUSAL):
        (value + sum(one**2 for one in found)).backward()


def test_a_step_along_the_gradient_may_be_differentiated_by_its_size():
    parameters, size = make_parameters(), torch.tensor(0.1, requires_grad=True)
    value = bound(*parameters, {}).sum()
    found = torch.autograd.grad(value, parameters, create_graph=True)
    moved = [p + size * g for p, g in zip(parameters, found, strict=True)]
    (by_size,) = torch.autograd.grad(sum(one**2 for one in moved), size)
    expected = sum(2 * m * g for m, g in zip(moved, found, strict=True))
    torch.testing.assert_close(
        by_size.double(), expected.detach(), check_dtype=False, rtol=1e-6, atol=0
    )


def test_a_jacobian_and_a_graph_that_is_kept_are_as_ever():
    phi, theta = make_parameters()
    rows = torch.autograd.functional.jacobian(lambda p: bound(p, theta, {}), phi)
    value = bound(phi, theta, {}).sum()
    for _ in range(2):
        (found,) = torch.autograd.grad(value, phi, retain_graph=True)
        torch.testing.assert_close(found, rows.sum())
