"""Every continuous family of PyTorch's that can be a posterior, with parameters."""

import pytest

torch = pytest.importorskip("torch", reason="pip install 'gdregs[torch]'")


def families(dist):
    """From a name to a constructor and its parameters, of `torch.distributions` or of Pyro's."""
    return {
        "Normal": (dist.Normal, [0.3, 0.8]),
        "Laplace": (dist.Laplace, [0.3, 0.8]),
        "Cauchy": (dist.Cauchy, [0.3, 0.8]),
        "HalfCauchy": (dist.HalfCauchy, [0.8]),
        "Gumbel": (dist.Gumbel, [0.3, 0.8]),
        "LogNormal": (dist.LogNormal, [0.3, 0.4]),
        "HalfNormal": (dist.HalfNormal, [0.8]),
        "Exponential": (dist.Exponential, [1.5]),
        "Weibull": (dist.Weibull, [1.2, 1.7]),
        "Gamma": (dist.Gamma, [2.5, 1.3]),
        "Chi2": (dist.Chi2, [3.5]),
        "ContinuousBernoulli": (dist.ContinuousBernoulli, [0.3]),
        "LogisticNormal": (dist.LogisticNormal, [[0.3, -0.2], [0.8, 0.5]]),
        "InverseGamma": (dist.InverseGamma, [4.5, 1.3]),
        "Beta": (dist.Beta, [2.0, 1.4]),
        "FisherSnedecor": (dist.FisherSnedecor, [5.0, 7.0]),
        "VonMises": (dist.VonMises, [0.4, 1.7]),
        "RelaxedOneHotCategorical": (
            lambda t, logits: dist.RelaxedOneHotCategorical(t, logits=logits),
            [0.7, [0.3, -0.2, 0.6]],
        ),
        "Wishart": (
            lambda df, s: dist.Wishart(df, scale_tril=torch.tril(s)),
            [4.5, [[0.6, 0.0], [0.2, 0.5]]],
        ),
        "StudentT": (dist.StudentT, [6.0, 0.2, 0.7]),
        "Kumaraswamy": (dist.Kumaraswamy, [2.0, 1.4]),
        "RelaxedBernoulli": (lambda t, logits: dist.RelaxedBernoulli(t, logits=logits), [0.7, 0.3]),
        "Dirichlet": (dist.Dirichlet, [[2.0, 1.5, 0.8]]),
        "MultivariateNormal": (
            lambda m, s: dist.MultivariateNormal(m, scale_tril=torch.tril(s)),
            [[0.2, -0.4], [[1.0, 0.0], [0.5, 0.7]]],
        ),
        "LowRankMultivariateNormal": (
            dist.LowRankMultivariateNormal,
            [[0.2, -0.4], [[0.6], [0.3]], [0.5, 0.7]],
        ),
        "mixture": (
            lambda w, m, s: dist.MixtureSameFamily(dist.Categorical(logits=w), dist.Normal(m, s)),
            [[0.3, -0.2], [-1.0, 1.5], [0.7, 0.5]],
        ),
        "mixture of vectors": (
            lambda w, m: dist.MixtureSameFamily(
                dist.Categorical(logits=w), dist.Independent(dist.Normal(m, 0.7), 1)
            ),
            [[0.3, -0.2], [[-1.0, 0.5], [1.5, 0.2]]],
        ),
    }


FAMILIES = families(torch.distributions)


def make(name, *copies, of=FAMILIES):
    """Parameters, and the distribution; of so many copies, each with parameters of its own."""
    build, values = of[name]
    parameters = []
    for value in values:
        one = torch.tensor(value, dtype=torch.float64)
        parameters.append(one.expand((*copies, *one.shape)).clone().requires_grad_())
    return parameters, build(*parameters)
