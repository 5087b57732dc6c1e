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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("make", "places"),
    [
        (lambda loc, scale: dist.Normal(loc, scale), (-60.0, -12.0, 1.0, 7.0, 12.0, 60.0)),
        (lambda loc, scale: dist.Laplace(loc, scale), (-300.0, -30.0, 0.1, 30.0, 300.0)),
        (lambda loc, scale: dist.Cauchy(loc, scale), (-1e9, -30.0, 0.1, 30.0, 1e9)),
        (lambda loc, scale: dist.HalfNormal(loc.abs() + scale), (1e-6, 1.0, 12.0, 18.0)),
        (lambda loc, scale: dist.HalfCauchy(loc.abs() + scale), (1e-6, 1.0, 1e9)),
        (lambda loc, scale: dist.Exponential(loc.abs() + scale), (1e-6, 1.0, 12.0, 900.0)),
        (lambda loc, scale: dist.Gamma(2.0 + loc, scale), (1e-6, 1.0, 12.0, 90.0)),
        (lambda loc, scale: dist.LogNormal(loc, scale), (1e-9, 1.0, 1e5)),
        (lambda loc, scale: dist.Gumbel(loc, scale), (-1.0, 0.5, 12.0)),
    ],
    ids=["Normal", "Laplace", "Cauchy", "HalfNormal", "HalfCauchy", "Exponential", "Gamma",
         "LogNormal", "Gumbel"],
)  # fmt: skip
def test_a_mixture_moves_with_its_weights_far_from_all_components(make, places, dtype):
    """The derivative by a logit is that of tails in double precision, of SciPy's families."""
    logits = torch.tensor([0.2, -0.3], dtype=dtype, requires_grad=True)
    loc, scale = torch.tensor([0.0, 0.3], dtype=dtype), torch.tensor([0.6, 0.5], dtype=dtype)
    mixture = dist.MixtureSameFamily(dist.Categorical(logits=logits), make(loc, scale))
    z = torch.tensor(places, dtype=dtype)
    for value, path in zip(z, gt.reexpress(mixture, z), strict=True):
        (found,) = torch.autograd.grad(path, logits, retain_graph=True)
        assert found.isfinite().all(), value
        # Logits are shares: adding to both changes nothing.
        assert abs(found.sum()) <= 1e-3 * found.abs().sum() + 1e-30
        wanted = slope_in_double(make, value)
        torch.testing.assert_close(found[0].double(), wanted, rtol=1e-2, atol=1e-30)


def slope_in_double(make, value):
    """The derivative of a path by the first logit."""
    stats = pytest.importorskip("scipy.stats", reason="pip install 'gdregs[cli]'")
    one = make(torch.tensor([0.0, 0.3]).double(), torch.tensor([0.6, 0.5]).double())
    named = {
        "Normal": lambda: stats.norm(one.loc, one.scale),
        "Laplace": lambda: stats.laplace(one.loc, one.scale),
        "Cauchy": lambda: stats.cauchy(one.loc, one.scale),
        "HalfNormal": lambda: stats.halfnorm(0, one.scale),
        "HalfCauchy": lambda: stats.halfcauchy(0, one.scale),
        "Exponential": lambda: stats.expon(0, 1 / one.rate),
        "Gamma": lambda: stats.gamma(one.concentration, 0, 1 / one.rate),
        "LogNormal": lambda: stats.lognorm(one.scale, 0, one.loc.exp()),
        "Gumbel": lambda: stats.gumbel_r(one.loc, one.scale),
    }[type(one).__name__]()
    w = torch.tensor([0.2, -0.3]).double().softmax(0)
    place = float(value)
    logs = [torch.as_tensor(of(place)) for of in (named.logcdf, named.logsf, named.logpdf)]
    below, above, density = logs
    total = torch.logsumexp(w.log() + density, 0)
    is_low = torch.logsumexp(w.log() + below, 0) < -0.69
    tail, sign = (below, -1) if is_low else (above, 1)
    # dz = sign * sum_k w_k tail_k / p dlog w_k, and dlog w_k / dlogit_0 = [k = 0] - w_0
    terms = (w.log() + tail - total).exp()
    return sign * (terms[0] - w[0] * terms.sum())
