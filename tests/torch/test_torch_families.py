"""Paths of torch's families: bit for bit the sample, and unbiased against score functions."""

import math

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")

import gdregs.torch as gt  # noqa: E402
from torch_families import FAMILIES, make  # noqa: E402
from torch_means import assert_unbiased  # noqa: E402

dist = torch.distributions


@pytest.mark.filterwarnings("ignore:Singular sample")  # torch says so of every Wishart's draw
@pytest.mark.parametrize("name", FAMILIES)
def test_a_path_is_the_sample_bit_for_bit(name):
    _, distribution = make(name)
    z = distribution.sample((5,))
    assert torch.equal(gt.reexpress(distribution, z), z)


def bounded(z, name):
    if name == "VonMises":  # a function on the circle
        return torch.sin(2 * z) + torch.cos(z)
    if name in ("Cauchy", "HalfCauchy"):  # z times its derivative has a variance
        return torch.tanh(z - 0.5)
    return torch.sin(1.3 * z) + torch.cos(0.7 * z)


def path_and_score(name, baseline, copies=(), samples=()):
    """The two gradients of the mean of f, of each copy by its own parameters."""
    parameters, distribution = make(name, *copies)
    z = distribution.sample(samples)

    def value(z):
        return bounded(z, name).reshape(*samples, *copies, -1).sum(-1)

    path = value(gt.reexpress(distribution, z))
    score = (value(z) - baseline) * distribution.log_prob(z)
    return [
        torch.autograd.grad(one.sum() / math.prod(samples), parameters, retain_graph=True)
        for one in (path, score)
    ]


@pytest.mark.filterwarnings("ignore:Singular sample")  # torch says so of every Wishart's draw
@pytest.mark.parametrize("name", FAMILIES)
def test_a_path_has_the_mean_of_the_score_function(name):
    """E[f'(z) dz/dtheta] = E[f(z) d log p/dtheta], and four fifths of it are not."""
    torch.manual_seed(1)
    baseline = bounded(make(name)[1].sample((1000,)), name).reshape(1000, -1).sum(-1).mean()
    # PyTorch has no batches of its temperatures: there a draw is the mean over a call's samples.
    is_alone = name == "RelaxedOneHotCategorical"

    def draw(count):
        if is_alone:
            calls = [path_and_score(name, baseline, samples=(400,)) for _ in range(count)]
            path, score = (
                [torch.stack(of_parameter) for of_parameter in zip(*of_kind, strict=True)]
                for of_kind in zip(*calls, strict=True)
            )
        else:
            path, score = path_and_score(name, baseline, copies=(count,))
        return {"path": path, "four fifths": [0.8 * one for one in path]}, score

    block = 50 if is_alone else 16_000
    assert_unbiased(draw, biased=["four fifths"], block=block, most_draws=64 * block)


def test_every_family_that_pytorch_can_reparameterize_is_here():
    families = {
        name for name in dist.__all__ if getattr(getattr(dist, name), "has_rsample", False) is True
    }
    families -= {"Uniform"}  # refused: its support moves, below
    families -= {"GeneralizedPareto"}  # which PyTorch has in float32 alone, below
    families -= {"OneHotCategoricalStraightThrough"}  # discrete: its derivative is no path
    assert families <= set(FAMILIES)


def test_the_path_of_a_generalised_pareto_is_that_of_its_sampler():
    parameters = [torch.tensor(value, requires_grad=True) for value in (0.8, 0.3)]
    distribution = dist.GeneralizedPareto(0.0, *parameters)
    z = distribution.sample((50,))
    sampler = distribution.icdf(distribution.cdf(z).detach())
    found, expected = (
        torch.autograd.grad(torch.sin(path).sum(), parameters, retain_graph=True)
        for path in (gt.reexpress(distribution, z), sampler)
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    bounded_above = dist.GeneralizedPareto(0.0, parameters[0], -0.5)
    with pytest.raises(ValueError, match="depends on a parameter that is being differentiated"):
        gt.reexpress(bounded_above, bounded_above.sample((3,)))


def test_what_moves_a_support_is_refused():
    loc = torch.tensor(0.5, requires_grad=True)
    shifted = dist.TransformedDistribution(dist.Exponential(1.0), dist.AffineTransform(loc, 1.0))
    with pytest.raises(ValueError, match="depends on a parameter that is being differentiated"):
        gt.reexpress(shifted, shifted.sample((3,)))
    pareto = dist.Pareto(loc, 2.0)
    with pytest.raises(ValueError, match="depends on a parameter that is being differentiated"):
        gt.reexpress(pareto, pareto.sample((3,)))


def scaled(*steps):
    """Transforms of a uniform variable, between 0 and 1."""
    return dist.TransformedDistribution(dist.Uniform(0.0, 1.0), list(steps))


LOGIT = dist.SigmoidTransform().inv
MOVING = {
    "a scaled end": lambda loc: scaled(dist.AffineTransform(0.0, loc)),
    "a shifted end": lambda loc: scaled(dist.AffineTransform(loc, 1.0)),
    "a shift back": lambda loc: scaled(dist.AffineTransform(loc, 1.0).inv),
    "within": lambda loc: scaled(dist.AffineTransform(loc, 1.0), dist.SigmoidTransform()),
    "of shares": lambda loc: dist.TransformedDistribution(
        dist.Dirichlet(torch.ones(3)), dist.AffineTransform(0.0, loc)
    ),
}


@pytest.mark.parametrize("make", MOVING.values(), ids=MOVING)
def test_an_end_that_moves_is_refused(make):
    loc = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(ValueError, match="depends on a parameter that is being differentiated"):
        gt.reexpress(make(loc), make(loc).sample((3,)))


def exponential(loc, *steps):
    return dist.TransformedDistribution(dist.Exponential(loc.exp()), list(steps))


LYING = {
    "a logistic": lambda loc: scaled(LOGIT, dist.AffineTransform(loc, 0.5)),
    "a scaled logistic": lambda loc: scaled(LOGIT, dist.AffineTransform(loc, loc.exp())),
    "between 0 and 1 again": lambda loc: scaled(
        LOGIT, dist.AffineTransform(loc, 0.5), dist.SigmoidTransform()
    ),
    "a scaled 0": lambda loc: exponential(loc, dist.AffineTransform(0.0, (2 * loc).exp())),
    "a logarithm": lambda loc: exponential(
        loc, dist.ExpTransform().inv, dist.AffineTransform(loc, 0.5)
    ),
}


@pytest.mark.parametrize("make", LYING.values(), ids=LYING)
def test_an_end_that_is_infinite_stays(make):
    """The path has the mean of the score, and four fifths of it have not."""
    torch.manual_seed(0)

    def draw(count):
        loc = torch.full((count,), 0.3, dtype=torch.float64, requires_grad=True)
        one = make(loc)
        z = one.expand((count,)).sample()
        path = bounded(gt.reexpress(one, z), "").sum()
        path = torch.autograd.grad(path, loc, retain_graph=True)[0]
        score = torch.autograd.grad((bounded(z, "") * one.log_prob(z)).sum(), loc)[0]
        return {"path": [path], "four fifths": [0.8 * path]}, [score]

    assert_unbiased(draw, biased=["four fifths"], block=16_000, most_draws=1_024_000)


def test_a_logistic_is_a_posterior_and_a_prior():
    loc = torch.tensor(0.3, requires_grad=True)
    for posterior, prior in (
        (LYING["a logistic"](loc), dist.Normal(0.0, 1.0)),
        (dist.Normal(0.0, 1.0), LYING["a logistic"](loc)),
    ):
        value = gt.bound(posterior, prior, lambda z: -(z**2), num_samples=4)
        assert torch.autograd.grad(value, loc)[0] != 0


def test_a_rule_of_a_users_own():
    class Shifted(dist.Normal):
        pass

    @gt.reexpress.register(Shifted)
    def _(distribution, z):
        return gt.with_path(z, z.detach() + 3 * distribution.loc)

    loc = torch.tensor(0.5, requires_grad=True)
    gt.reexpress(Shifted(loc, 1.0), torch.zeros(2)).sum().backward()
    assert loc.grad == 6


def test_families_without_a_rule_are_named():
    with pytest.raises(TypeError, match="Poisson has no re-expression rule"):
        gt.reexpress(dist.Poisson(torch.tensor(1.0)), torch.zeros(2))
