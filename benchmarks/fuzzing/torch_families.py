"""The families of docs/pytorch.md, which Pyro has too."""

from fuzzing.families import (
    ONE,
    REAL,
    SCALAR,
    UNIT,
    VECTOR,
    WIDE,
    Family,
    Support,
    end,
    positive,
    real,
    tril,
)

_MIXTURE = "dist.MixtureSameFamily(dist.Categorical(logits={0}), %s)"
_TRANSFORMED = "dist.TransformedDistribution(%s, [%s])"

SUPPORTS = {
    "real": Support(
        0,
        SCALAR,
        {
            "Normal": Family("dist.Normal({0}, {1})", (REAL, WIDE), "light"),
            "Laplace": Family("dist.Laplace({0}, {1})", (REAL, WIDE), "light"),
            "StudentT": Family(
                "dist.StudentT({0}, {1}, {2})", (positive(12.0), REAL, WIDE), "light"
            ),
            "Affine Normal": Family(
                _TRANSFORMED % ("dist.Normal({0}, 1.0)", "transforms.AffineTransform({1}, {2})"),
                (REAL, end(0.5), positive(0.7)),
                "light",
                True,
            ),
            "Logistic": Family(
                "dist.TransformedDistribution(dist.Uniform(torch.zeros_like({0}), 1.0),"
                " [transforms.SigmoidTransform().inv, transforms.AffineTransform({0}, {1})])",
                (REAL, positive(0.4)),
                "light",
                True,
            ),
            "Mixture of Normals": Family(
                _MIXTURE % "dist.Normal({1}, {2})",
                (real(2), real(2), positive(0.6, 2)),
                "light",
                True,
            ),
            "Cauchy": Family("dist.Cauchy({0}, {1})", (REAL, ONE), "heavy"),
            "StudentT of few": Family(
                "dist.StudentT({0}, {1}, {2})", (positive(3.0), REAL, ONE), "heavy"
            ),
            "Gumbel": Family("dist.Gumbel({0}, {1})", (REAL, WIDE)),
        },
    ),
    # Its path holds for functions on the circle alone.
    "circle": Support(
        0,
        "sin({z})",
        {
            "VonMises": Family("dist.VonMises({0}, {1})", (REAL, positive(2.0))),
        },
    ),
    "positive": Support(
        0,
        SCALAR,
        {
            "Gamma": Family("dist.Gamma({0}, {1})", (positive(3.0), positive(2.0)), "free"),
            "Exponential": Family("dist.Exponential({0})", (ONE,), "free"),
            "HalfNormal": Family("dist.HalfNormal({0})", (ONE,), "free"),
            "LogNormal": Family("dist.LogNormal({0}, {1})", (REAL, WIDE), "free"),
            "Weibull": Family("dist.Weibull({0}, {1})", (ONE, positive(2.0)), "free"),
            "Chi2": Family("dist.Chi2({0})", (positive(4.0),), "free"),
            "Mixture of Gammas": Family(
                _MIXTURE % "dist.Gamma({1}, {2})",
                (real(2), positive(3.0, 2), positive(2.0, 2)),
                "free",
                True,
            ),
            "Power of Gamma": Family(
                _TRANSFORMED % ("dist.Gamma({0}, 1.0)", "transforms.PowerTransform({1})"),
                (positive(3.0), positive(0.8)),
                "free",
                True,
            ),
            "InverseGamma": Family("dist.InverseGamma({0}, {1})", (positive(5.0), positive(4.0))),
            "FisherSnedecor": Family(
                "dist.FisherSnedecor({0}, {1})", (positive(6.0), positive(9.0))
            ),
            "HalfCauchy": Family("dist.HalfCauchy({0})", (ONE,)),
        },
    ),
    "unit": Support(
        0,
        "{z}",
        {
            "Beta": Family("dist.Beta({0}, {1})", (positive(2.5), positive(2.0)), "free"),
            "Kumaraswamy": Family(
                "dist.Kumaraswamy({0}, {1})", (positive(2.0), positive(2.0)), "free"
            ),
            "Uniform": Family("dist.Uniform({0}, {1})", (end(0.0), end(1.0)), "free"),
            "Sigmoid of Normal": Family(
                _TRANSFORMED % ("dist.Normal({0}, {1})", "transforms.SigmoidTransform()"),
                (REAL, WIDE),
                "free",
                True,
            ),
            "ContinuousBernoulli": Family("dist.ContinuousBernoulli({0})", (UNIT,), "free", True),
            "Mixture of Betas": Family(
                _MIXTURE % "dist.Beta({1}, {2})",
                (real(2), positive(3.0, 2), positive(2.0, 2)),
                "free",
                True,
            ),
            "RelaxedBernoulli": Family(
                "dist.RelaxedBernoulli({0}, logits={1})", (ONE, REAL), "", True
            ),
        },
    ),
    "above": Support(
        0,
        SCALAR,
        {
            "Pareto": Family("dist.Pareto({0}, {1})", (end(0.5), positive(4.0)), "", True),
        },
    ),
    "vector": Support(
        1,
        VECTOR,
        {
            "Normals": Family(
                "dist.Independent(dist.Normal({0}, {1}), 1)", (real(3), positive(0.7, 3)), "free"
            ),
            "MultivariateNormal": Family(
                "dist.MultivariateNormal({0}, scale_tril={1})", (real(3), tril(3)), "free"
            ),
            "MultivariateNormal by covariance": Family(
                "dist.MultivariateNormal({0}, covariance_matrix=square({1}))",
                (real(3), tril(3)),
                "free",
            ),
            "MultivariateNormal by precision": Family(
                "dist.MultivariateNormal({0}, precision_matrix=square({1}))",
                (real(3), tril(3)),
                "free",
            ),
            "LowRankMultivariateNormal": Family(
                "dist.LowRankMultivariateNormal({0}, {1}, {2})",
                (real(3), real(3, 1), positive(0.6, 3)),
                "free",
                True,
            ),
            "Mixture of vectors": Family(
                _MIXTURE % "dist.Independent(dist.Normal({1}, {2}), 1)",
                (real(2), real(2, 3), positive(0.7, 2, 3)),
                "free",
                True,
            ),
        },
    ),
    "positive vector": Support(
        1,
        VECTOR,
        {
            "Gammas": Family(
                "dist.Independent(dist.Gamma({0}, {1}), 1)",
                (positive(3.0, 2), positive(2.0, 2)),
                "free",
            ),
            "LogNormals": Family(
                "dist.Independent(dist.LogNormal({0}, {1}), 1)", (real(2), positive(0.6, 2)), "free"
            ),
            "Mixture of independent Gammas": Family(
                _MIXTURE % "dist.Independent(dist.Gamma({1}, {2}), 1)",
                (real(2), positive(3.0, 2, 2), positive(2.0, 2, 2)),
                "free",
                True,
            ),
        },
    ),
    "simplex": Support(
        1,
        "{z}[..., 0]",
        {
            "Dirichlet": Family("dist.Dirichlet({0})", (positive(2.0, 3),)),
            "LogisticNormal": Family(
                "dist.LogisticNormal({0}, {1})", (real(2), positive(0.7, 2)), "", True
            ),
            "RelaxedOneHotCategorical": Family(
                "dist.RelaxedOneHotCategorical(torch.tensor(0.7), logits={0})", (real(3),)
            ),
        },
    ),
    "matrices of their own": Support(
        2,
        "tanh({z}[..., 1, 0])",
        {
            "Wishart": Family(
                "dist.Wishart({0}, scale_tril={1})", (positive(6.0), tril(2)), "", True
            ),
        },
    ),
}
