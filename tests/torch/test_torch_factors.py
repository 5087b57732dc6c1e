"""Masks, scales and annealing: a density that enters the log-weight with a factor."""

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

import gdregs.torch as gt  # noqa: E402
from gdregs.shared.tables import (  # noqa: E402
    PosteriorMix,
    PriorEstimator,
    find_posterior_estimator,
    find_prior_estimator,
)
from torch_means import assert_unbiased  # noqa: E402

dist = torch.distributions
K, B, D = 5, 3, 2
X = torch.tensor([[0.5, -1.0], [1.5, 0.3], [-0.4, 0.8]], dtype=torch.float64)
ELEMENTS = torch.tensor([[1.0, 0.3], [0.0, 2.0], [0.7, 0.0]], dtype=torch.float64)
DATAPOINTS = torch.tensor([0.4, 1.0, 0.0], dtype=torch.float64)
FACTORS = {  # of the nodes of posterior and prior: those of elements, and of the whole
    "arrays": ({"a": (ELEMENTS, 1), "b": (1, 0.3)}, {"b": (1 - ELEMENTS, 1), "a": (1, DATAPOINTS)}),
    "prior": ({"a": (1, 1), "b": (1, 1)}, {"b": (ELEMENTS > 0, 1), "a": (1, 1)}),
    "posterior": ({"a": (1, 0.5), "b": (ELEMENTS, 2.0)}, {"b": (1, 1), "a": (1, 1)}),
    "alike": ({"a": (1, DATAPOINTS), "b": (1, 1)}, {"b": (1, 1), "a": (1, DATAPOINTS)}),
}
VALUES = {"loc": 0.9, "spread": -0.4, "slope": 0.6, "top": 0.3, "gain": 0.7, "shift": 0.1}
OBJECTIVES = {"IWAE": gt.IWAE(), "ELBO": gt.ELBO(), "VR-IWAE": gt.VRIWAE(0.3)}


def with_factor(one, factor):
    return gt.with_factor(one, factor) if isinstance(factor, torch.Tensor) or factor != 1 else one


def normal(loc, scale, factors=(1, 1)):
    """A vector of normals with a factor of each element, and one of the whole."""
    one = dist.Normal(loc.expand(*loc.shape[:-2], B, D), scale)
    one = dist.Independent(with_factor(one, factors[0]), 1)
    return with_factor(one, factors[1])


def make_parameters():
    return {
        name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
        for name, value in VALUES.items()
    }


def make_parts(p, factors):
    of_q, of_p = factors
    ones = torch.ones(B, D, dtype=torch.float64)
    posterior = gt.Hierarchy(
        {
            "a": (normal(p["loc"] * X, p["spread"].exp(), of_q["a"]), ()),
            "b": (lambda a: normal(p["slope"] * a**2, p["spread"].exp(), of_q["b"]), ("a",)),
        }
    )
    prior = gt.Hierarchy(
        {
            "b": (normal(p["top"] * ones, 1.2, of_p["b"]), ()),
            "a": (lambda b: normal(p["gain"] * b.sin(), p["top"].exp(), of_p["a"]), ("b",)),
        }
    )

    def likelihood(z):
        loc = z["a"] * z["b"].cos() + p["shift"]
        return dist.Normal(loc, 0.8).log_prob(X).sum(-1)

    return posterior, prior, likelihood


def by_hand(p, z, factors, objective, posterior_row, prior_row):
    """The estimator from its formula, with normals alone: a value, and the gradient."""
    stopped = {name: value.detach() for name, value in p.items()}

    def q_of(p, name, a):
        loc = p["loc"] * X if name == "a" else p["slope"] * a**2
        return loc, p["spread"].exp()

    def p_of(p, name, b):
        if name == "b":
            return p["top"] * torch.ones_like(X), torch.tensor(1.2, dtype=torch.float64)
        return p["gain"] * b.sin(), p["top"].exp()

    def elements(of, p, z, name):
        parent = {"a": z["b"], "b": z["a"]}[name]
        return dist.Normal(*of(p, name, parent)).log_prob(z[name])

    def factor(of, name):
        of_elements, whole = of[name]
        whole = torch.as_tensor(whole, dtype=torch.float64)
        return torch.as_tensor(of_elements, dtype=torch.float64) * whole[..., None]

    def weighted(of, p, z, side):
        return sum((factor(side, n) * elements(of, p, z, n)).sum(-1) for n in "ab")

    def likelihood(p, z):
        return dist.Normal(z["a"] * z["b"].cos() + p["shift"], 0.8).log_prob(X).sum(-1)

    def path(of, order, own):
        """Derivatives by own parameters multiplied by `own`, those by parents whole."""
        found = {}
        for n in order:
            parent = {"a": "b", "b": "a"}[n]
            loc, scale = of(stopped, n, z[parent])
            noise = (z[n] - loc) / scale
            loc, scale = of(p, n, z[parent])
            local = own(n) * (loc + scale * noise)
            at = found[parent] if parent in found else z[parent]
            loc, scale = of(stopped, n, at)
            found[n] = loc + scale * noise + local - local.detach()
        return found

    of_q, of_p = factors
    ell = likelihood(p, z) + weighted(p_of, p, z, of_p) - weighted(q_of, p, z, of_q)
    value, v, c = objective.coefficients(ell.detach())
    r = (c / v)[..., None]
    leaves = {n: one.clone().requires_grad_() for n, one in z.items()}
    log_ratio = weighted(p_of, stopped, leaves, of_p) - weighted(q_of, stopped, leaves, of_q)
    ell = likelihood(stopped, leaves) + log_ratio
    counts = {n: factor(of_p, n) != 0 for n in "ab"}
    score = sum(
        elements(q_of, stopped, leaves, n) - counts[n] * elements(p_of, stopped, leaves, n)
        for n in "ab"
    )
    g = dict(zip("ab", torch.autograd.grad((v * ell).sum(), list(leaves.values())), strict=True))
    h = torch.autograd.grad((v * score.sum(-1)).sum(), list(leaves.values()))
    h = dict(zip("ab", h, strict=True))
    constant = sum(one.strength * one.constant for one in posterior_row.paths)
    slope = sum(one.strength * one.slope for one in posterior_row.paths)
    of_posterior = path(q_of, "ab", lambda n: constant + slope * (1 - factor(of_q, n) * (1 - r)))
    mix = prior_row.mix if isinstance(prior_row.mix, dict) else dict.fromkeys("ab", prior_row.mix)
    of_prior = path(p_of, "ba", lambda n: mix[n] * factor(of_p, n))
    # (An element that is masked does not move, nor does it move with its parents.)
    of_prior["a"] = torch.where(counts["a"], of_prior["a"], z["a"])
    total = (v * likelihood(p, z)).sum()
    for n in "ab":
        total = total + (g[n] * of_posterior[n]).sum()
        total = total + ((h[n] + (1 - r) * g[n]) * of_prior[n]).sum()
        own = (factor(of_p, n) * elements(p_of, p, z, n)).sum(-1)
        total = total + ((1 - mix[n]) * v * own).sum()
    total = total - posterior_row.density * (v * weighted(q_of, p, z, of_q)).sum()
    return value, torch.autograd.grad(total, list(p.values()), allow_unused=True)


@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "estimators",
    [
        ("naive", "naive"), ("dregs", "gdregs"), ("rws-dregs", "gdregs-mix"), ("rws", "gdregs"),
        ("stl", "gdregs"), (PosteriorMix(0.3), PriorEstimator({"a": 0.3, "b": 0.8})),
    ],
)  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}], ids=["whole", "chunks"])
def test_the_gradient_is_the_formulas(factors, objective, estimators, options):
    factors, objective, p = FACTORS[factors], OBJECTIVES[objective], make_parameters()
    posterior, prior, likelihood = make_parts(p, factors)
    rows = find_posterior_estimator(estimators[0]), find_prior_estimator(estimators[1])
    # (A generator draws the same samples in the same blocks.)
    generator = torch.Generator().manual_seed(1)
    seen = []

    def watched(z):
        seen.append({name: value.detach() for name, value in z.items()})
        return likelihood(z)

    value = gt.bound(
        posterior, prior, watched, num_samples=K, objective=objective, generator=generator,
        posterior_estimator=rows[0], prior_estimator=rows[1], **options,
    )  # fmt: skip
    blocks = seen[:3] if options else seen[:1]
    z = {name: torch.cat([block[name] for block in blocks]) for name in "ab"}
    found = torch.autograd.grad(value.sum(), list(p.values()))
    expected_value, expected = by_hand(p, z, factors, objective, *rows)
    torch.testing.assert_close(value.detach(), expected_value, rtol=1e-12, atol=1e-12)
    for name, one, other in zip(p, found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("objective", ["IWAE", "ELBO"])
@pytest.mark.parametrize("factors", ["arrays", "prior", "posterior"])
def test_unbiased_over_draws(objective, factors):
    """Resampling, blocks and networks that run again, of copies with parameters of their own."""
    objective, factors = OBJECTIVES[objective], FACTORS[factors]
    suspects = {
        "dregs": (("dregs", "gdregs"), {}),
        "M = 2": (("dregs", "gdregs"), {"num_gradient_samples": 2}),
        "M = 3, blocks": (("dregs", "gdregs"), {"num_gradient_samples": 3, "chunk_size": 2}),
        "mixes": ((PosteriorMix(0.3), PriorEstimator({"a": 0.3, "b": 0.8})), {}),
        "rws": (("rws", "gdregs"), {}),
    }
    generator = torch.Generator().manual_seed(0)

    def gradients(estimators, options, copies):
        p = {
            name: torch.full((copies, 1, 1), value, dtype=torch.float64, requires_grad=True)
            for name, value in VALUES.items()
        }
        value = gt.bound(
            *make_parts(p, factors), num_samples=4, objective=objective, generator=generator,
            posterior_estimator=estimators[0], prior_estimator=estimators[1], **options,
        )  # fmt: skip
        return torch.autograd.grad(value.sum(), list(p.values()))

    def draw(copies):
        found = {name: gradients(*of, copies) for name, of in suspects.items()}
        return found, gradients(("naive", "naive"), {}, copies)

    assert_unbiased(draw, biased=["rws"], block=4000)


@pytest.mark.parametrize("estimators", [("naive", "naive"), ("dregs", "gdregs")])
@pytest.mark.parametrize("options", [{}, {"num_gradient_samples": 4}, {"chunk_size": 3}])
@pytest.mark.parametrize("family", [dist.Gamma, dist.LogNormal])
def test_a_masked_value_may_lie_outside_of_the_support(family, estimators, options):
    """Elements that are masked are no part of the prior: nothing is NaN, and nothing is checked."""
    seen = torch.tensor([True, False])
    p = [torch.tensor(value, requires_grad=True) for value in (-1.0, 1.5, 2.0)]
    loc = torch.stack([p[0] * 0 + 3.0, p[0]])
    posterior = dist.Independent(dist.Normal(loc, torch.tensor([0.1, 1.0])), 1)
    prior = gt.with_factor(family(p[2].expand(2), p[1]), seen)
    generator = torch.Generator().manual_seed(0)
    value = gt.bound(
        posterior, dist.Independent(prior, 1), lambda z: dist.Normal(z, 1.0).log_prob(X[1]).sum(-1),
        num_samples=8, posterior_estimator=estimators[0], prior_estimator=estimators[1],
        generator=generator, **options,
    )  # fmt: skip
    assert value.isfinite()
    found = torch.autograd.grad(value, p)
    assert all(one.isfinite() and one != 0 for one in found)


@pytest.mark.parametrize("factor", [0, False, 0.0, torch.tensor(False), torch.tensor([0, 0])])
def test_a_density_that_is_switched_off(factor):
    """The samples stay, and nothing of the density: as if the prior were that of other parts."""
    theta = torch.tensor(0.3, requires_grad=True)
    prior = gt.with_factor(dist.Normal(theta.expand(2), 1.0), factor)
    assert not prior.log_prob(torch.full((2,), torch.inf)).any()
    value = gt.bound(
        dist.Normal(torch.zeros(2), 1.0), prior, lambda z: -(z**2), num_samples=4
    ).sum()
    assert torch.autograd.grad(value, theta, allow_unused=True)[0] in (0, None)


def test_a_whole_hierarchy_may_have_a_factor():
    """It is that of every node, and the modules stay where optimisers find them."""
    layer = torch.nn.Linear(1, 1)

    def below(a):
        return dist.Normal(layer(a[..., None])[..., 0], 1.0)

    class Below(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, a):
            return below(a)

    top = dist.Normal(torch.zeros(3), 1.0)
    whole = gt.with_factor(gt.Hierarchy({"b": (Below(), ("a",)), "a": (top, ())}), 0.3)
    assert set(whole.parameters()) == set(layer.parameters())
    alone = gt.Hierarchy(
        {
            "a": (gt.with_factor(top, 0.3), ()),
            "b": (lambda a: gt.with_factor(below(a), 0.3), ("a",)),
        }
    )
    z = whole.sample((4,))
    assert torch.equal(whole.log_prob(z), alone.log_prob(z))


@pytest.mark.parametrize(
    "factor",
    [lambda a: 1 + a.detach() ** 2, lambda a: a > 0, lambda a: torch.ones(3, requires_grad=True)],
    ids=["a latent", "a mask by a latent", "a parameter"],
)
def test_factors_that_are_not_constant_need_naive_estimators(factor):
    top = dist.Normal(torch.zeros(3, requires_grad=True), 1.0)
    below = gt.Hierarchy(
        {
            "a": (top, ()),
            "b": (lambda a: gt.with_factor(dist.Normal(a, 1.0), factor(a)), ("a",)),
        }
    )
    other = gt.Hierarchy({"a": (top, ()), "b": (lambda a: dist.Normal(a, 2.0), ("a",))})

    def run(**options):
        gt.bound(below, other, lambda z: z["b"], num_samples=16, **options)

    torch.manual_seed(0)
    for options in ({}, {"num_gradient_samples": 8}, {"prior_estimator": "naive"}):
        with pytest.raises(ValueError, match="A factor on a density"):
            run(**options)
    run(posterior_estimator="naive", prior_estimator="naive")


def test_what_cannot_have_a_factor():
    with pytest.raises(TypeError, match=r"distribution must have the method\(s\) sample"):
        gt.with_factor(torch.zeros(3), 1.0)
    inner = gt.with_factor(dist.Normal(0.0, 1.0), 0.5)
    outer = dist.TransformedDistribution(inner, dist.transforms.ExpTransform())
    with pytest.raises(ValueError, match="Give the factor or mask to the TransformedDistribution"):
        gt.bound(outer, dist.LogNormal(0.0, 1.0), lambda z: z, num_samples=2)
