"""The rules of `reexpress` for `torch.distributions`."""

import math
from typing import Any

import torch
import torch.distributions as dist
from torch import Tensor

from gdregs.torch.ends import hold_ends
from gdregs.torch.reexpress import NoReexpressionError, hold, hold_support, reexpress, rule
from gdregs.torch.tails import log_tails


@rule(dist.Cauchy, dist.Gumbel, dist.Laplace, dist.Normal)
def _location_scale(distribution: Any, z: Tensor) -> Tensor:
    r"""$z = \mu + \sigma\epsilon$."""
    loc, scale = distribution.loc, distribution.scale
    return loc + scale * ((z - loc) / scale).detach()


@rule(dist.HalfCauchy, dist.HalfNormal)
def _scale(distribution: Any, z: Tensor) -> Tensor:
    r"""$z = \sigma\epsilon$."""
    return distribution.scale * (z / distribution.scale).detach()


@rule(dist.Exponential)
def _exponential(distribution: Any, z: Tensor) -> Tensor:
    r"""$z = \epsilon / \lambda$."""
    return (z * distribution.rate).detach() / distribution.rate


@rule(dist.Uniform)
def _uniform(distribution: Any, z: Tensor) -> Tensor:
    """Its only parameters are the ends of its support, which cannot move."""
    hold("Uniform", distribution.low, distribution.high)
    return z


@rule(dist.Gamma)
def _gamma(distribution: Any, z: Tensor) -> Tensor:
    r"""$z = g / \lambda$, where g moves with the concentration by the implicit derivative."""
    rate = distribution.rate
    return _standard_gamma(distribution.concentration, (z * rate).detach()) / rate


def _standard_gamma(concentration: Tensor, value: Tensor) -> Tensor:
    value = _positive(value)
    fixed = concentration.detach().expand(value.shape)
    slope = torch._standard_gamma_grad(fixed, value)  # pyright: ignore[reportPrivateImportUsage]
    return value + slope * (concentration - concentration.detach())


def _positive(value: Tensor) -> Tensor:
    return value.clamp(min=torch.finfo(value.dtype).tiny)


@rule(dist.Dirichlet)
def _dirichlet(distribution: Any, z: Tensor) -> Tensor:
    """All shares move with each concentration, so that they add up to 1."""
    return _shares(distribution.concentration, z)


@rule(dist.Beta)
def _beta(distribution: Any, z: Tensor) -> Tensor:
    """The first of two shares."""
    one, zero = distribution.concentration1, distribution.concentration0
    concentration = torch.stack([one, zero], -1)
    return _shares(concentration, torch.stack([z, 1 - z], -1))[..., 0]


def _shares(concentration: Tensor, z: Tensor) -> Tensor:
    fixed = concentration.detach().expand(z.shape)
    total = fixed.sum(-1, True).expand(z.shape)
    slope = torch._dirichlet_grad(z, fixed, total)  # pyright: ignore[reportPrivateImportUsage]
    moves = slope * (concentration - concentration.detach())
    return z + moves - z * moves.sum(-1, keepdim=True)


@rule(dist.FisherSnedecor)
def _fisher_snedecor(distribution: Any, z: Tensor) -> Tensor:
    r"""$z = (\nu_2 b)/(\nu_1 (1 - b))$ with $b \sim \mathrm{Beta}(\nu_1/2, \nu_2/2)$."""
    one, two = distribution.df1, distribution.df2
    odds = (one * z / two).detach()
    concentration = torch.stack([one, two], -1) / 2
    shares = _shares(
        concentration, torch.stack([odds, torch.ones_like(odds)], -1) / (1 + odds[..., None])
    )
    return two * shares[..., 0] / (one * shares[..., 1])


@rule(dist.Wishart)
def _wishart(distribution: Any, z: Tensor) -> Tensor:
    r"""$z = L A A^T L^T$ with Bartlett's $A$, whose diagonal moves with the degrees of freedom.

    $A_{ii}^2 \sim \chi^2(\nu - i)$, and what is below the diagonal is noise.
    """
    lower, df = distribution._unbroadcasted_scale_tril, distribution.df
    with torch.no_grad():
        noise = torch.linalg.solve_triangular(lower, torch.linalg.cholesky(z), upper=False)
        half = torch.diagonal(noise, dim1=-2, dim2=-1) ** 2 / 2
    counts = torch.arange(z.shape[-1], dtype=z.dtype, device=z.device)
    moved = (2 * _standard_gamma((df[..., None] - counts) / 2, half)).sqrt()
    factor = lower @ (noise.tril(-1) + torch.diag_embed(moved))
    return factor @ factor.mT


@rule(dist.VonMises)
def _von_mises(distribution: Any, z: Tensor) -> Tensor:
    r"""The location turns z; $dz = -\partial_\kappa F / p \, d\kappa$ by the series of F.

    $F(x) = \frac{1}{2\pi} (x + 2 \sum_j r_j \sin(jx)/j)$ with $r_j = I_j(\kappa)/I_0(\kappa)$ from
    the recurrence downward, and $r_j' = (r_{j-1} + r_{j+1})/2 - r_j r_1$.
    """
    loc, concentration = distribution.loc, distribution.concentration
    with torch.no_grad():
        kappa = concentration.double().expand(z.shape)
        x = torch.remainder(z - loc + torch.pi, 2 * torch.pi) - torch.pi
        count = int(12 + 9 * float(kappa.max()) ** 0.5)
        above, ratios = torch.zeros_like(kappa), []  # I_j / I_{j-1}, from the top down
        for j in range(count, 0, -1):
            above = 1 / (2 * j / kappa + above)
            ratios.append(above)
        series = torch.cat([torch.ones_like(kappa)[None], torch.stack(ratios[::-1]).cumprod(0)])
        after = torch.cat([series[2:], torch.zeros_like(kappa)[None]])
        slopes = (series[:-1] + after) / 2 - series[1:] * series[1]
        orders = torch.arange(1, count + 1, dtype=torch.float64, device=z.device)
        orders = orders.reshape(-1, *(1,) * kappa.ndim)
        change = (slopes * torch.sin(orders * x) / orders).sum(0) / torch.pi
        slope = -change.to(z.dtype) / distribution.log_prob(z).exp()
    moved = slope * (concentration - concentration.detach())
    return z.detach() + (loc - loc.detach()) + moved


@rule(dist.StudentT, draws=True)
def _student_t(distribution: Any, z: Tensor) -> Tensor:
    r"""$z = \mu + \sigma x \sqrt{\nu / s}$ with normal x and $s \sim \chi^2(\nu)$.

    Given the sample, $s \sim \mathrm{Gamma}((\nu+1)/2, (1+t^2/\nu)/2)$: both noises of the sampler
    are kept.
    """
    loc, scale, df = distribution.loc, distribution.scale, distribution.df
    t = ((z - loc) / scale).detach()
    fixed = df.detach().expand(t.shape)
    half_s = dist.Gamma((fixed + 1) / 2, 1 + t**2 / fixed).sample()
    x = t * (2 * half_s / fixed).sqrt()
    moved = _standard_gamma(df / 2, half_s)
    return loc + scale * (x * (df / (2 * moved)).sqrt())


@rule(dist.MultivariateNormal)
def _multivariate_normal(distribution: Any, z: Tensor) -> Tensor:
    r"""$z = \mu + L\epsilon$."""
    loc, lower = distribution.loc, distribution._unbroadcasted_scale_tril
    noise = torch.linalg.solve_triangular(lower, (z - loc)[..., None], upper=False).detach()
    return loc + (lower @ noise)[..., 0]


@rule(dist.LowRankMultivariateNormal, draws=True)
def _low_rank_multivariate_normal(distribution: Any, z: Tensor) -> Tensor:
    r"""$z = \mu + W\epsilon_W + D^{1/2}\epsilon_D$, with both noises of the sampler.

    Given z, $\epsilon_W \sim \mathcal N(C^{-1} W^T D^{-1} (z - \mu), C^{-1})$ with
    $C = I + W^T D^{-1} W$. The path of a single noise has the derivative 0 by W at W = 0.
    """
    loc, factor = distribution.loc, distribution._unbroadcasted_cov_factor
    scale = distribution._unbroadcasted_cov_diag.sqrt()
    with torch.no_grad():
        whitened = factor / scale[..., None]
        size = factor.shape[-1]
        eye = torch.eye(size, dtype=z.dtype, device=z.device)
        lower = torch.linalg.cholesky(whitened.mT @ whitened + eye)
        standard = ((z - loc) / scale)[..., None]
        centre = torch.linalg.solve_triangular(lower, whitened.mT @ standard, upper=False)
        centre = centre + torch.randn_like(centre)
        shared = torch.linalg.solve_triangular(lower.mT, centre, upper=True)
        own = (standard - whitened @ shared)[..., 0]
    return loc + (factor @ shared)[..., 0] + scale * own


@rule(dist.Independent)
def _independent(distribution: Any, z: Tensor) -> Tensor:
    """The base distribution's own path."""
    return reexpress(distribution.base_dist, z)


@rule(dist.TransformedDistribution)
def _transformed(distribution: Any, z: Tensor) -> Tensor:
    r"""$z = f_n(\dots f_1(T(\epsilon)))$, with every transform's own parameters on the path."""
    name = type(distribution).__name__
    steps = _flatten(distribution.transforms)
    base = z
    with torch.no_grad():
        for step in reversed(steps):
            if not step.bijective:
                raise NoReexpressionError(
                    f"{name} has no re-expression rule: its transform {type(step).__name__} is not"
                    f" invertible."
                )
            base = step.inv(base)
    hold_support(distribution)
    hold_ends(name, distribution.base_dist.support, steps)
    path: Any = reexpress(distribution.base_dist, base)
    for step in steps:
        path = step(path)
    return path


def _flatten(steps: Any) -> list[Any]:
    flat = []
    for step in steps:
        is_composition = isinstance(step, dist.ComposeTransform)
        flat.extend(_flatten(step.parts) if is_composition else [step])
    return flat


@rule(dist.RelaxedBernoulli, dist.relaxed_bernoulli.LogitRelaxedBernoulli)
def _relaxed_bernoulli(distribution: Any, z: Tensor) -> Tensor:
    r"""$z = (\mathrm{logits} + \epsilon)/T$ with logistic noise, and its sigmoid."""
    is_probability = isinstance(distribution, dist.RelaxedBernoulli)
    base = distribution.base_dist if is_probability else distribution
    value = torch.logit(z) if is_probability else z
    noise = (value * base.temperature - base.logits).detach()
    path = (base.logits + noise) / base.temperature
    return path.sigmoid() if is_probability else path


@rule(dist.relaxed_categorical.ExpRelaxedCategorical)
def _exp_relaxed_categorical(distribution: Any, z: Tensor) -> Tensor:
    r"""$z = \log\mathrm{softmax}((\mathrm{logits} + \epsilon)/T)$, whatever all noise adds."""
    logits, temperature = distribution.logits, distribution.temperature
    noise = (z * temperature - logits).detach()
    return torch.log_softmax((logits + noise) / temperature, -1)


@rule(dist.MixtureSameFamily)
def _mixture(distribution: Any, z: Tensor) -> Tensor:
    r"""$dz = \sum_k r_k v_k(z) - \sum_k \frac{\pi_k F_k(z)}{p(z)} \, d\log\pi_k$, in one dimension.

    A vector with independent coordinates moves by its sequential conditionals, which are mixtures
    of one dimension whose weights have moved with the coordinates before.
    """
    log_weights = torch.log_softmax(distribution.mixture_distribution.logits, -1)
    component = distribution.component_distribution
    if tuple(distribution.event_shape) == ():
        return _scalar_mixture(log_weights, component, z)
    is_vector = isinstance(component, dist.Independent) and len(distribution.event_shape) == 1
    base = component.base_dist if is_vector else None
    if base is None or tuple(base.event_shape) != ():
        raise NoReexpressionError(
            "MixtureSameFamily has no re-expression rule where its components are vectors whose"
            " coordinates are not independent."
        )
    path = []
    for index in range(z.shape[-1]):
        shape = base.batch_shape
        factor = type(base)(
            **{
                name: getattr(base, name).expand(shape)[..., index]
                for name in base.arg_constraints
                if name in base.__dict__
            },
            validate_args=False,
        )
        path.append(_scalar_mixture(log_weights, factor, z[..., index]))
        log_weights = log_weights + factor.log_prob(path[-1][..., None])
        log_weights = torch.log_softmax(log_weights, -1)
    return torch.stack(path, -1)


def _scalar_mixture(log_weights: Tensor, component: Any, z: Tensor) -> Tensor:
    everywhere = z.detach()[..., None].expand(*z.shape, component.batch_shape[-1])
    paths = reexpress(component, everywhere)
    with torch.no_grad():
        log_joint = log_weights + component.log_prob(everywhere)
        log_density = torch.logsumexp(log_joint, -1, keepdim=True)
        share = (log_joint - log_density).exp()
        try:
            log_below, log_above = log_tails(component, everywhere)
        except NotImplementedError:
            raise NoReexpressionError(
                f"MixtureSameFamily has no re-expression rule where its components have no cdf in"
                f" PyTorch, as those of {type(component).__name__}."
            ) from None
        is_low = torch.logsumexp(log_weights + log_below, -1, keepdim=True) < math.log(0.5)
        log_slope = log_weights + torch.where(is_low, log_below, log_above) - log_density
        largest = math.log(torch.finfo(log_slope.dtype).max) - 1
        slope = log_slope.clamp(max=largest).exp() * torch.where(is_low, -1.0, 1.0)
    moved = (share * (paths - paths.detach())).sum(-1)
    # (A component of weight 0 has the logarithm -inf, and no part in this.)
    changes = torch.where(slope == 0, torch.zeros_like(slope), log_weights - log_weights.detach())
    return z.detach() + moved + (slope * changes).sum(-1)
