"""Families where their parameters reach an edge: right, or with a warning."""

import warnings

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

import gdregs.torch as gt  # noqa: E402
from gdregs.torch import digits  # noqa: E402

dist = torch.distributions
LOGITS = torch.tensor([0.2, -torch.inf, 0.9], dtype=torch.float64)
LOC = torch.tensor([[0.5, -1.0], [3.0, 3.0], [-0.7, 0.4]], dtype=torch.float64)


def mixture_gradients(kept, is_vector, validate):
    """By logits, locations and a scale, of the mixture of the components `kept`."""
    torch.manual_seed(0)
    logits, loc = LOGITS[kept].clone().requires_grad_(), LOC[kept].clone().requires_grad_()
    raw = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    rule = {"validate_args": validate}
    components = dist.Normal(loc if is_vector else loc[..., 0], raw.exp(), **rule)
    if is_vector:
        components = dist.Independent(components, 1, **rule)
    mixture = dist.MixtureSameFamily(dist.Categorical(logits=logits, **rule), components, **rule)
    z = torch.linspace(-2, 2, 8, dtype=torch.float64).reshape(4, 2)
    z = z if is_vector else z[:, 0]
    path = gt.reexpress(mixture, z)
    return torch.autograd.grad(
        (path * z.cos()).sum() + mixture.log_prob(z).sum(), (logits, loc, raw)
    )


@pytest.mark.parametrize("is_vector", [True, False])
@pytest.mark.parametrize("validate", [None, False])
def test_a_component_without_weight_is_none(is_vector, validate):
    logits, loc, raw = mixture_gradients([0, 1, 2], is_vector, validate)
    expected = mixture_gradients([0, 2], is_vector, validate)
    for found, other in zip((logits[[0, 2]], loc[[0, 2]], raw), expected, strict=True):
        torch.testing.assert_close(found, other)
    assert logits[1] == 0
    assert not loc[1].any()


def test_a_mixture_checks_no_values_where_its_user_does_not():
    rule = {"validate_args": False}
    components = dist.Independent(dist.Exponential(torch.ones(2, 2), **rule), 1, **rule)
    weights = dist.Categorical(logits=torch.zeros(2), **rule)
    mixture = dist.MixtureSameFamily(weights, components, **rule)
    z = torch.tensor([[-1.0, 0.5], [0.5, torch.nan]])
    torch.testing.assert_close(gt.reexpress(mixture, z), z, equal_nan=True)


def test_a_mixture_of_components_without_a_cdf_has_no_path():
    weights = dist.Categorical(logits=torch.zeros(2))
    mixture = dist.MixtureSameFamily(weights, dist.Beta(torch.ones(2), 2.0))
    with pytest.raises(TypeError, match=r"no cdf in PyTorch, as those of Beta\. Or use"):
        gt.bound(mixture, dist.Beta(1.0, 1.0), torch.zeros_like, num_samples=2)


def gamma(concentration):
    return dist.Gamma(concentration, 1.0)


def beta(concentration):
    return dist.Beta(concentration, 2.0)


def reversed_beta(concentration):
    return dist.Beta(2.0, concentration)


def dirichlet(concentration):
    return dist.Dirichlet(concentration.expand(3))


CASES = [
    (gamma, torch.float32, 0.01, 0.1), (gamma, torch.float64, 0.001, 0.01),
    (beta, torch.float32, 0.01, 0.1), (reversed_beta, torch.float32, 0.1, 0.3),
    (dirichlet, torch.float32, 0.01, 0.1), (dirichlet, torch.float64, 0.001, 0.01),
]  # fmt: skip


def bound(family, concentration, dtype):
    torch.manual_seed(0)
    leaf = torch.tensor(concentration, dtype=dtype, requires_grad=True)
    one = dist.Independent(family(leaf), 0)
    value = gt.bound(one, family(leaf.detach() + 1), lambda z: 0 * one.log_prob(z), num_samples=2)
    value.backward()


@pytest.mark.parametrize(("family", "dtype", "lost", "kept"), CASES)
def test_draws_without_digits_are_warned_of_once(family, dtype, lost, kept, monkeypatch):
    monkeypatch.setattr(digits, "_WARNED", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound(family, kept, dtype)
    with pytest.warns(UserWarning, match="round to an end of its support in float"):
        bound(family, lost, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound(family, lost, dtype)
