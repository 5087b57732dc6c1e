r"""The two tables: which density is live, and what share of each cotangent takes which path.

Write $v_k = \partial F/\partial \ell_k$ for the derivative of the objective by a log-weight and
$r_k = 1 - (\partial^2 F/\partial \ell_k^2)/v_k$. Every estimator here is then a row of numbers.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class PosteriorEstimator(NamedTuple):
    r"""An estimator of the gradient by the posterior's parameters $\phi$.

    Attributes:
        density: Factor on the gradient of $\log q$ by its own parameters: 1 is live, 0 is
            stopped, -1 is live with its sign flipped.
        constant: $a_0$ in the share $a(r) = a_0 + a_1 r$ of the cotangent
            $v \nabla_z \log w$ that travels down the sampling path $T_q$.
        slope: $a_1$ in the same.
    """

    density: Any
    constant: Any
    slope: Any

    @property
    def has_path(self) -> bool:
        """Whether any cotangent reaches the sampling path."""
        return not (_is_zero(self.constant) and _is_zero(self.slope))

    @property
    def paths(self) -> tuple["SamplingPath", ...]:
        """The sampling paths that a cotangent takes."""
        return (SamplingPath(1, self.constant, self.slope),) if self.has_path else ()


class SamplingPath(NamedTuple):
    """One way from the latents down to the posterior's parameters.

    Attributes:
        strength: Factor on the gradient of the path by its own parameters.
        constant: $a_0$ in the share $a(r) = a_0 + a_1 r$ of the cotangent that takes it.
        slope: $a_1$ in the same.
    """

    strength: Any
    constant: Any
    slope: Any

    def share(self, r):
        """The share $a(r)$ of the cotangent that takes this path, `[K, *batch]`."""
        return self.constant + self.slope * r

    @property
    def varies(self) -> bool:
        """Whether the share depends on r."""
        return not _is_zero(self.slope)


class PosteriorMix(NamedTuple):
    r"""The mix $(1 - \beta) g^{\mathrm{naive}} + \beta g^{\mathrm{DReGs}}$.

    Unbiased for every $\beta$ that does not depend on the draw. As a row of the table it has the
    density $1 - \beta$, the constant $1 - \beta$ and the slope $\beta$; the two shares have a path
    each, so that $\beta$ is a factor on the leaves, and the derivative of the gradient by $\beta$
    is the difference of the two estimators.

    Attributes:
        mix: $\beta$. 0 is the naive estimator, 1 is DReGs (8), (C.8).
    """

    mix: Any

    has_path = True

    @property
    def density(self):
        r"""Factor on the gradient of $\log q$ by its own parameters: $1 - \beta$."""
        return 1 - self.mix

    @property
    def paths(self) -> tuple[SamplingPath, ...]:
        """The naive path, and that of DReGs."""
        return SamplingPath(1 - self.mix, 1, 0), SamplingPath(self.mix, 0, 1)


class PriorEstimator(NamedTuple):
    r"""An estimator of the gradient by the prior's parameters $\theta$.

    It is the mix $(1 - \alpha) g^{\mathrm{naive}} + \alpha g^{\mathrm{GDReGs}}$, unbiased for every
    $\alpha$ that does not depend on the draw (App. H.2). Each stochastic layer l may have its own
    $\alpha_l$: the identity (13) holds for the parameters of each conditional by themselves.

    Attributes:
        mix: $\alpha$, or a mapping from the latents of a `gdregs.Hierarchy` to their $\alpha_l$.
            0 is the naive estimator (B.11), 1 is GDReGs (19), (C.16).
    """

    mix: Any

    @property
    def density(self):
        r"""Factor on the gradient of $\log p$ by its own parameters: $1 - \alpha$."""
        if isinstance(self.mix, Mapping):
            return {name: 1 - alpha for name, alpha in self.mix.items()}
        return 1 - self.mix

    @property
    def path(self):
        r"""Factor on the gradient of the path $T_p$ by its own parameters: $\alpha$."""
        return self.mix

    @property
    def has_path(self) -> bool:
        """Whether any cotangent reaches the path $T_p$."""
        mixes = self.mix.values() if isinstance(self.mix, Mapping) else (self.mix,)
        return not all(map(_is_zero, mixes))

    def likelihood_share(self, r):
        r"""The share of $v \nabla_z \log p(x|z)$ that takes the path $T_p$, `[K, *batch]`."""
        return 1 - r

    def rest_share(self, r):
        r"""The share of $v \nabla_z (\log p(z) - \log q(z))$ that takes $T_p$, `[K, *batch]`."""
        return -r


POSTERIOR_ESTIMATORS = {
    #                                  density of q   share a(r) = constant + slope * r
    "naive": PosteriorEstimator(density=1, constant=1, slope=0),
    "stl": PosteriorEstimator(density=0, constant=1, slope=0),
    "dregs": PosteriorEstimator(density=0, constant=0, slope=1),
    "rws": PosteriorEstimator(density=-1, constant=0, slope=0),
    "rws-dregs": PosteriorEstimator(density=0, constant=1, slope=-1),
}

PRIOR_ESTIMATORS = {
    "naive": PriorEstimator(mix=0),
    "gdregs": PriorEstimator(mix=1),
    "gdregs-mix": PriorEstimator(mix=0.5),
}


AUTO = "auto"
"""Of either estimator: naive, from where `gdregs.Auto` and `gdregs.numpyro.SVI` learn."""


def is_auto(name: Any) -> bool:
    """Whether an estimator is to be learned."""
    return isinstance(name, str) and name == AUTO


def find_posterior_estimator(name: Any) -> PosteriorEstimator | PosteriorMix:
    """The row that `name` stands for; a row stands for itself."""
    if isinstance(name, PosteriorMix):
        return name
    return _find(name, "posterior_estimator", POSTERIOR_ESTIMATORS, PosteriorEstimator)


def find_prior_estimator(name: Any) -> PriorEstimator:
    """The row that `name` stands for; a row stands for itself."""
    return _find(name, "prior_estimator", PRIOR_ESTIMATORS, PriorEstimator)


def is_naive(posterior_estimator: Any, prior_estimator: Any) -> bool:
    """Whether two names, or rows, are known to stand for the naive gradient of everything."""
    rows = find_posterior_estimator(posterior_estimator), find_prior_estimator(prior_estimator)
    naive = POSTERIOR_ESTIMATORS["naive"], PRIOR_ESTIMATORS["naive"]
    return all(
        type(row) is type(other)
        and all(isinstance(a, (int, float)) and a == b for a, b in zip(row, other, strict=True))
        for row, other in zip(rows, naive, strict=True)
    )


def _find(name, argument, table, row_type):
    if isinstance(name, row_type):
        return name
    if is_auto(name):
        return table["naive"]
    accepted = f"{', '.join(map(repr, table))} or a gdregs.{row_type.__name__}"
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be one of {accepted}; got {type(name).__name__}.")
    if name not in table:
        raise ValueError(f"{argument} must be one of {accepted}; got {name!r}.")
    return table[name]


def _is_zero(number) -> bool:
    return isinstance(number, (int, float)) and number == 0
