"""The families of docs/families.md, for the core and for NumPyro."""

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

_LOC_SCALE = (REAL, ONE)
_MIXTURE = "dist.MixtureSameFamily(dist.Categorical(logits={0}), %s)"
_TRANSFORMED = "dist.TransformedDistribution(%s, [%s])"


def _truncated(base: str, bounds: str, *ends: float) -> Family:
    text = f"dist.TruncatedDistribution(dist.{base}({{0}}, {{1}}), {bounds})"
    return Family(text, (*_LOC_SCALE, *map(end, ends)), "free", joint=True)


_INTERVAL, _LEFT, _RIGHT = "low={2}, high={3}", "low={2}", "high={2}"

SUPPORTS = {
    "real": Support(
        0,
        SCALAR,
        {
            "Normal": Family("dist.Normal({0}, {1})", (REAL, WIDE), "light"),
            "Laplace": Family("dist.Laplace({0}, {1})", (REAL, WIDE), "light"),
            "Logistic": Family("dist.Logistic({0}, {1})", (REAL, WIDE), "light"),
            "SoftLaplace": Family("dist.SoftLaplace({0}, {1})", (REAL, WIDE), "light", True),
            "AsymmetricLaplace": Family(
                "dist.AsymmetricLaplace({0}, {1}, {2})", (REAL, WIDE, ONE), "light"
            ),
            "AsymmetricLaplaceQuantile": Family(
                "dist.AsymmetricLaplaceQuantile({0}, {1}, {2})",
                (REAL, positive(0.3), UNIT),
                "light",
            ),
            "StudentT": Family(
                "dist.StudentT({0}, {1}, {2})", (positive(12.0), REAL, WIDE), "light"
            ),
            "Affine Normal": Family(
                _TRANSFORMED % ("dist.Normal({0}, 1.0)", "transforms.AffineTransform({1}, {2})"),
                (REAL, end(0.5), positive(0.7)),
                "light",
                True,
            ),
            "Mixture of Normals": Family(
                _MIXTURE % "dist.Normal({1}, {2})",
                (real(2), real(2), positive(0.6, 2)),
                "light",
                True,
            ),
            "Mixture of families": Family(
                "dist.MixtureGeneral(dist.Categorical(logits={0}),"
                " [dist.Normal({1}, {2}), dist.StudentT(12.0, {1}, {2})])",
                (real(2), REAL, WIDE),
                "light",
                True,
            ),
            "Cauchy": Family("dist.Cauchy({0}, {1})", _LOC_SCALE, "heavy"),
            "StudentT of few": Family(
                "dist.StudentT({0}, {1}, {2})", (positive(3.0), REAL, ONE), "heavy"
            ),
            "Gumbel": Family("dist.Gumbel({0}, {1})", (REAL, WIDE)),
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
            "Exp of Normal": Family(
                _TRANSFORMED % ("dist.Normal({0}, {1})", "transforms.ExpTransform()"),
                (REAL, WIDE),
                "free",
                True,
            ),
            "Folded Normal": Family(
                "dist.FoldedDistribution(dist.Normal({0}, {1}))", _LOC_SCALE, "", True
            ),
            "InverseGamma": Family("dist.InverseGamma({0}, {1})", (positive(5.0), positive(4.0))),
            "Gompertz": Family("dist.Gompertz({0}, {1})", (ONE, ONE)),
            "Dagum": Family("dist.Dagum({0}, {1}, {2})", (positive(2.0), positive(4.0), ONE)),
            "HalfCauchy": Family("dist.HalfCauchy({0})", (ONE,)),
        },
    ),
    "unit": Support(
        0,
        "{z}",
        {
            "Beta": Family("dist.Beta({0}, {1})", (positive(2.5), positive(2.0)), "free"),
            "BetaProportion": Family(
                "dist.BetaProportion({0}, {1})", (UNIT, positive(6.0)), "free"
            ),
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
            "Mixture of Betas": Family(
                _MIXTURE % "dist.Beta({1}, {2})",
                (real(2), positive(3.0, 2), positive(2.0, 2)),
                "free",
                True,
            ),
            "RelaxedBernoulli": Family(
                "dist.RelaxedBernoulliLogits({0}, {1})", (ONE, REAL), "", True
            ),
        },
    ),
    "interval": Support(
        0,
        SCALAR,
        {
            "Normal truncated": _truncated("Normal", _INTERVAL, -1.0, 2.0),
            "Cauchy truncated": _truncated("Cauchy", _INTERVAL, -1.0, 2.0),
            "Laplace truncated": _truncated("Laplace", _INTERVAL, -1.0, 2.0),
            "Logistic truncated": _truncated("Logistic", _INTERVAL, -1.0, 2.0),
            "SoftLaplace truncated": _truncated("SoftLaplace", _INTERVAL, -1.0, 2.0),
            "TruncatedNormal": Family(
                "dist.TruncatedNormal({0}, {1}, low={2}, high={3})",
                (*_LOC_SCALE, end(-1.0), end(2.0)),
                "free",
                True,
            ),
            "Uniform on interval": Family("dist.Uniform({0}, {1})", (end(-1.0), end(2.0)), "free"),
        },
    ),
    "positive interval": Support(
        0,
        SCALAR,
        {
            "Gamma truncated": Family(
                "dist.TwoSidedTruncatedGamma(dist.Gamma({0}, {1}), low={2}, high={3})",
                (positive(3.0), positive(2.0), end(0.5), end(3.0)),
                "free",
                True,
            ),
            "DoublyTruncatedPowerLaw": Family(
                "dist.DoublyTruncatedPowerLaw({0}, {1}, {2})", (REAL, end(0.5), end(3.0)), "free"
            ),
            "LogUniform": Family("dist.LogUniform({0}, {1})", (end(0.5), end(3.0)), "free"),
        },
    ),
    "above": Support(
        0,
        SCALAR,
        {
            "Normal truncated left": _truncated("Normal", _LEFT, 0.5),
            "Laplace truncated left": _truncated("Laplace", _LEFT, 0.5),
            "SoftLaplace truncated left": _truncated("SoftLaplace", _LEFT, 0.5),
            "Pareto": Family("dist.Pareto({0}, {1})", (end(0.5), positive(4.0))),
            "LowerTruncatedPowerLaw": Family(
                "dist.LowerTruncatedPowerLaw(-{0}, {1})", (positive(5.0), end(0.5))
            ),
            "Levy": Family("dist.Levy({0}, {1})", (end(0.5), ONE)),
        },
    ),
    "below": Support(
        0,
        SCALAR,
        {
            "Normal truncated right": _truncated("Normal", _RIGHT, 0.5),
            "Logistic truncated right": _truncated("Logistic", _RIGHT, 0.5),
        },
    ),
    "vector": Support(
        1,
        VECTOR,
        {
            "Normals": Family(
                "dist.Normal({0}, {1}).to_event(1)", (real(3), positive(0.7, 3)), "free"
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
            ),
            "MultivariateStudentT": Family(
                "dist.MultivariateStudentT({0}, {1}, {2})",
                (positive(12.0), real(3), tril(3)),
                "free",
            ),
            "Mixture of MultivariateNormals": Family(
                _MIXTURE % "dist.MultivariateNormal({1}, scale_tril={2}[..., None, :, :])",
                (real(2), real(2, 3), tril(3)),
                "free",
                True,
            ),
            "GaussianRandomWalk": Family(
                "dist.GaussianRandomWalk({0}, 3)", (positive(0.7),), "free"
            ),
            "CAR": Family(
                "dist.CAR({0}, {1}, {2}, np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]))",
                (real(3), UNIT, ONE),
                "free",
            ),
            "GaussianCopula": Family(
                "dist.GaussianCopula(dist.Laplace({0}, {1}),"
                " np.eye(3) + {2}[..., None, None] * (1 - np.eye(3)))",
                (real(3), positive(0.5, 3), UNIT),
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
                "dist.Gamma({0}, {1}).to_event(1)", (positive(3.0, 2), positive(2.0, 2)), "free"
            ),
            "LogNormals": Family(
                "dist.LogNormal({0}, {1}).to_event(1)", (real(2), positive(0.6, 2)), "free"
            ),
            "Mixture of independent Gammas": Family(
                _MIXTURE % "dist.Gamma({1}, {2}).to_event(1)",
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
            "Logistic-normal": Family(
                _TRANSFORMED
                % (
                    "dist.MultivariateNormal({0}, scale_tril={1})",
                    "transforms.StickBreakingTransform()",
                ),
                (real(2), tril(2)),
                "",
                True,
            ),
        },
    ),
    "matrix": Support(
        2,
        "tanh({z}).mean((-2, -1))",
        {
            "MatrixNormal": Family(
                "dist.MatrixNormal({0}, {1}, {2})", (real(2, 3), tril(2), tril(3)), "free", True
            ),
            "Normal matrix": Family(
                "dist.Normal({0}, {1}).to_event(2)", (real(2, 3), positive(0.7, 2, 3)), "free"
            ),
        },
    ),
    "matrices of their own": Support(
        2,
        "tanh({z}[..., 1, 0])",
        {
            "LKJCholesky": Family("dist.LKJCholesky(3, {0})", (positive(2.0),)),
            "LKJ": Family("dist.LKJ(3, {0})", (positive(2.0),)),
            "Wishart": Family(
                "dist.Wishart({0}, scale_tril={1})", (positive(6.0), tril(2)), "", True
            ),
            "WishartCholesky": Family(
                "dist.WishartCholesky({0}, scale_tril={1})", (positive(6.0), tril(2)), "", True
            ),
            "InverseWishart": Family(
                "dist.InverseWishart({0}, scale_tril={1})", (positive(9.0), tril(2)), "", True
            ),
            "InverseWishartCholesky": Family(
                "dist.InverseWishartCholesky({0}, scale_tril={1})",
                (positive(9.0), tril(2)),
                "",
                True,
            ),
        },
    ),
}
