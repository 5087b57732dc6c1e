r"""The cross-entropy of two Gaussians (Sec. 4, App. F, App. H).

Over a grid of $(\mu_q, \sigma_q, \mu_p, \sigma_p)$: samples of the naive estimator (F.2), of GDReGs
(18) and of the optimal mix (H.13), against the closed forms (H.1)-(H.18); and the identity (13)
for other integrands, against quadrature.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import PRNGKeyArray

from gdregs.identities import GaussianCrossEntropy, negative_cross_entropy, score_integral
from gdregs.papers.measures import claims, figures
from gdregs.papers.measures.claims import Claim
from gdregs.papers.measures.curves import table
from gdregs.papers.measures.measure import Measured, Moments, compile_measurement
from gdregs.papers.measures.results import Result
from gdregs.shared.statistics import largest_by_chance

TITLE = "Cross-entropy of two Gaussians"
FIGURES = ("cross-entropy",)

INTEGRANDS = {
    "z^2": jnp.square,
    "sin(2z)": lambda z: jnp.sin(2 * z),
    "exp(-z^2)": lambda z: jnp.exp(-z * z),
}
"""Integrands g of the identity (13)."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the experiment's numbers.

    Attributes:
        seed: Of the draws.
        mu_q: Values on the grid.
        sigma_q: Values on the grid.
        mu_p: Values on the grid.
        ratios: Values of sigma_p / sigma_q on the grid.
        num_groups: Groups of draws; the progress bar moves after each.
        num_draws: Draws in each.
    """

    seed: int = 0
    mu_q: tuple[float, ...] = (0.0, 0.5)
    sigma_q: tuple[float, ...] = (0.5, 1.0)
    mu_p: tuple[float, ...] = (0.0, 1.0)
    ratios: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 3.0)
    num_groups: int = 20
    num_draws: int = 50_000

    def grid(self) -> GaussianCrossEntropy:
        """Every combination, as arrays `[points]`."""
        points = itertools.product(self.mu_q, self.sigma_q, self.mu_p, self.ratios)
        rows = np.array(
            [(mu_q, sigma_q, mu_p, ratio * sigma_q) for mu_q, sigma_q, mu_p, ratio in points]
        )
        return GaussianCrossEntropy(*rows.T)


def quick(settings: Settings) -> Settings:
    """Small enough for seconds; what it measures decides little."""
    return dataclasses.replace(settings, num_groups=4, num_draws=2000)


def total_cost(settings: Settings) -> int:
    """What `progress` adds up to."""
    return settings.num_groups


def draw_estimators(key: PRNGKeyArray, grid: GaussianCrossEntropy) -> dict[str, Any]:
    """One draw of every estimator at every point, and what the moments are made of."""
    q = dist.Normal(jnp.asarray(grid.mu_q), jnp.asarray(grid.sigma_q))
    at = jnp.asarray(grid.mu_p), jnp.asarray(grid.sigma_p)

    def gradient(function: Callable[..., Any], **options: Any):
        def total(mu_p, sigma_p):
            value = function(q, dist.Normal(mu_p, sigma_p), key=key, num_samples=1, **options)
            return jnp.sum(value), value

        (mu, sigma), value = jax.grad(total, argnums=(0, 1), has_aux=True)(*at)
        return {"mu": mu, "sigma": sigma}, value

    naive, value = gradient(negative_cross_entropy, prior_estimator="naive")
    gdregs, _ = gradient(negative_cross_entropy)
    strength = {"mu": grid.best_mix_mu(), "sigma": grid.best_mix_sigma()}
    best = {name: naive[name] + strength[name] * (gdregs[name] - naive[name]) for name in naive}
    means = {"mu": grid.gradient_mu(), "sigma": grid.gradient_sigma()}
    estimators = {"naive": naive, "gdregs": gdregs, "best": best}
    centred = {
        name: {part: draws[part] - means[part] for part in draws}
        for name, draws in estimators.items()
    }
    squares = jax.tree.map(jnp.square, centred)
    return {
        "value": value,
        "mean": centred,
        "variance": squares,
        "gain": {part: squares["gdregs"][part] - squares["naive"][part] for part in naive},
        # The derivative of the mix's variance by its strength, at the optimum.
        "slope": {part: centred["best"][part] * (gdregs[part] - naive[part]) for part in naive},
        "integrands": {
            name: gradient(functools.partial(score_integral, function))[0]
            for name, function in INTEGRANDS.items()
        },
    }


def integrals(grid: GaussianCrossEntropy) -> dict[str, Any]:
    r"""$\mathrm{E}_q[g \nabla_\theta \log p_\theta]$ by quadrature, at every point."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    z = np.asarray(grid.mu_q)[:, None] + np.asarray(grid.sigma_q)[:, None] * nodes
    deviation = (z - np.asarray(grid.mu_p)[:, None]) / np.asarray(grid.sigma_p)[:, None]
    scores = {"mu": deviation, "sigma": deviation**2 - 1}
    scores = {name: score / np.asarray(grid.sigma_p)[:, None] for name, score in scores.items()}
    return {
        name: {part: (np.asarray(function(z)) * score) @ weights for part, score in scores.items()}
        for name, function in INTEGRANDS.items()
    }


def run(settings: Settings, progress: Callable[[int], Any] = lambda cost: None) -> Result:
    """Measure and judge."""
    grid = settings.grid()
    measurement = compile_measurement(draw_estimators, num_draws=settings.num_draws, chunk_size=500)
    moments = measurement.run(jax.random.key(settings.seed), grid, settings.num_groups, progress)
    measured = pool(moments)
    numbers = {
        "draws": settings.num_groups * settings.num_draws,
        "grid": {name: np.asarray(values).tolist() for name, values in grid._asdict().items()},
        "variance": {
            name: {
                part: [table({"variance": m})["variance"] for m in points]
                for part, points in parts.items()
            }
            for name, parts in measured_list(measured["variance"]).items()
        },
    }
    return Result(
        settings, numbers, judge(grid, measured), {"cross-entropy": plot(settings, grid, measured)}
    )


def pool(moments: Moments) -> dict[str, Any]:
    """Means of all draws and their standard errors: leaves are `Measured` arrays `[points]`."""
    count = moments.num_draws * len(jax.tree.leaves(moments.mean)[0])

    def pair(mean, variance):
        # Between groups, too, so that the pooled variance is that of all draws.
        return Measured(mean.mean(0), np.sqrt((variance.mean(0) + mean.var(0)) / count))

    return jax.tree.map(pair, moments.mean, moments.variance)


def measured_list(tree: Any) -> Any:
    """Arrays of numbers with errors, as lists of numbers with errors."""
    return jax.tree.map(
        lambda m: [Measured(float(v), float(e)) for v, e in zip(m.value, m.error, strict=True)],
        tree,
        is_leaf=lambda node: isinstance(node, Measured),
    )


def z_scores(measured: Measured, expected: Any, size: Any = 0.0) -> np.ndarray:
    """Distances in standard errors, which rounding of numbers of a size does not exceed."""
    expected = np.asarray(expected)
    distance = np.abs(np.asarray(measured.value) - expected)
    rounding = 1e-5 * np.maximum(np.abs(expected), np.asarray(size)) + 1e-8
    return distance / np.maximum(np.asarray(measured.error), rounding)


def judge(grid: GaussianCrossEntropy, measured: dict[str, Any]) -> list[Claim]:
    """App. H, equation by equation."""
    points = len(np.asarray(grid.mu_q))

    def agree(source, statement, *pairs, note=""):
        largest = max(float(np.max(z_scores(*pair))) for pair in pairs)
        return claims.no_outlier(
            source, statement, "largest distance on the grid:", largest,
            largest_by_chance(points * len(pairs)), note,
        )  # fmt: skip

    mean, variance = measured["mean"], measured["variance"]
    zero = np.zeros(points)
    printed = {
        "(H.1)": (measured["value"], -np.asarray(grid.value())),
        "(H.10)": (variance["gdregs"]["sigma"], printed_h10(grid)),
    }
    notes = {
        "(H.1)": "Printed with its sign flipped: it is the positive cross-entropy.",
        "(H.10)": "In print the second term lacks a division by the sixth power of sigma_p.",
    }
    exact = integrals(grid)
    return [
        agree("(H.1)", "The value of the cross-entropy, with the sign as derived.",
              (measured["value"], grid.value())),
        _misprint("(H.1)", printed["(H.1)"], notes["(H.1)"]),
        agree("(H.3), (H.5)", "The naive estimator has the closed forms' means.",
              (mean["naive"]["mu"], zero), (mean["naive"]["sigma"], zero)),
        agree("(H.7), (H.9)", "GDReGs has the same means: it is unbiased.",
              (mean["gdregs"]["mu"], zero), (mean["gdregs"]["sigma"], zero)),
        agree("(H.4)", r"Variance of the naive gradient by $\mu_p$.",
              (variance["naive"]["mu"], grid.naive_variance_mu())),
        agree("(H.6)", r"Variance of the naive gradient by $\sigma_p$.",
              (variance["naive"]["sigma"], grid.naive_variance_sigma())),
        agree("(H.8)", r"Variance of the GDReGs gradient by $\mu_p$.",
              (variance["gdregs"]["mu"], grid.gdregs_variance_mu())),
        agree("(H.10)", r"Variance of the GDReGs gradient by $\sigma_p$, as derived.",
              (variance["gdregs"]["sigma"], grid.gdregs_variance_sigma())),
        _misprint("(H.10)", printed["(H.10)"], notes["(H.10)"]),
        *_regions(grid, measured),
        claims.at_most(
            "Sec. 4", "Where p and q are identical, GDReGs has no variance at all.",
            "largest variance over that of the naive estimator, where p = q:",
            _identical(grid, variance),
            1e-9,
        ),
        agree("(H.15), (H.16)", "The optimal strengths: there the variance's derivative is 0.",
              (measured["slope"]["mu"], zero, grid.naive_variance_mu()),
              (measured["slope"]["sigma"], zero, grid.naive_variance_sigma())),
        claims.at_most(
            "(H.17)", r"With the optimal strength the variance for $\mu_p$ is 0.",
            "largest variance over that of the naive estimator (rounding of float32):",
            Measured(float(np.max(variance["best"]["mu"].value / grid.naive_variance_mu())), 0.0),
            1e-9,
        ),
        agree("(H.18)", r"With the optimal strength the variance for $\sigma_p$.",
              (variance["best"]["sigma"], grid.best_variance_sigma())),
        _superior(grid, variance),
        agree("(13)", "The GDReGs identity holds for any integrand.",
              *((measured["integrands"][name][part], exact[name][part])
                for name in INTEGRANDS for part in ("mu", "sigma")),
              note=f"Integrands {', '.join(INTEGRANDS)}, against quadrature."),
    ]  # fmt: skip


def printed_h10(grid: GaussianCrossEntropy) -> Any:
    """(H.10) as it stands in the paper."""
    distance = (grid.mu_q - grid.mu_p) ** 2
    first = 2 * (grid.sigma_q**2 - grid.sigma_p**2) ** 2 / grid.sigma_p**6
    return first + (grid.sigma_p**2 - 2 * grid.sigma_q**2) ** 2 * distance / grid.sigma_q**2


def _misprint(source: str, pair: tuple[Measured, Any], note: str) -> Claim:
    largest = float(np.max(z_scores(*pair)))
    return claims.no_outlier(
        source, "The same, as printed.", "largest distance on the grid:", largest, 5.0, note
    )


def _regions(grid: GaussianCrossEntropy, measured: dict[str, Any]) -> list[Claim]:
    """(H.11) and (H.12): where GDReGs has the lower variance."""
    rows = []
    for part, source, limit in (
        ("mu", "(H.11)", grid.largest_sigma_p_mu()),
        ("sigma", "(H.12)", grid.largest_sigma_p_sigma()),
    ):
        wins = np.asarray(grid.sigma_p) < np.asarray(limit)
        gain = measured["gain"][part]
        # Positive where the samples contradict the prediction.
        against = np.where(wins, gain.value, -gain.value) / gain.error
        clear = np.mean(np.abs(gain.value) > 3 * gain.error)
        rows.append(
            claims.no_outlier(
                source,
                rf"Where GDReGs has the lower variance for $\{part}_p$.",
                "strongest contradiction on the grid:",
                float(max(np.max(against), 0.0)),
                3.0,
                f"At {100 * clear:.0f}% of the grid the two variances differ by more than 3"
                " standard errors.",
            )
        )
    return rows


def _identical(grid: GaussianCrossEntropy, variance: dict[str, Any]) -> Measured:
    """The largest relative variance of GDReGs where both distributions are one."""
    same = (np.asarray(grid.mu_q) == grid.mu_p) & (np.asarray(grid.sigma_q) == grid.sigma_p)
    ratios = [
        np.max(variance["gdregs"][part].value[same] / variance["naive"][part].value[same])
        for part in ("mu", "sigma")
    ]
    return Measured(float(max(ratios)), 0.0)


def _superior(grid: GaussianCrossEntropy, variance: dict[str, Any]) -> Claim:
    """The mix against the better of the two, where the better one is not already exact."""
    naive, gdregs, best = (variance[name]["sigma"] for name in ("naive", "gdregs", "best"))
    better = np.minimum(naive.value, gdregs.value)
    known = better > 1e-9
    ratios = best.value[known] / better[known]
    relative = np.where(best.value > 1e-9, best.error / np.maximum(best.value, 1e-9), 0.0)
    errors = ratios * np.hypot(relative, naive.error / naive.value)[known]
    worst = int(np.argmax(ratios + 3 * errors))
    return claims.at_most(
        "Sec. 4",
        r"The optimal mix is strictly better than both estimators, for $\sigma_p$ too.",
        "largest variance over the better one's, where that is not 0:",
        Measured(float(ratios[worst]), float(errors[worst])),
        1.0,
    )


@figures.styled
def plot(settings: Settings, grid: GaussianCrossEntropy, measured: dict[str, Any]) -> Any:
    """Variances against the ratio of scales, closed forms as lines and samples as points."""
    figure, axes = figures.new_figure(3, width=2.9, height=2.6)
    fine = np.geomspace(settings.ratios[0], settings.ratios[-1], 200)
    row = (np.asarray(grid.mu_q) == 0) & (np.asarray(grid.sigma_q) == settings.sigma_q[-1])
    row &= np.asarray(grid.mu_p) == settings.mu_p[-1]
    sigma_q, mu_p = settings.sigma_q[-1], settings.mu_p[-1]
    curve = GaussianCrossEntropy(0.0, sigma_q, mu_p, fine * sigma_q)
    for panel, part in zip(axes[0], ("mu", "sigma"), strict=False):
        for number, (name, label) in enumerate(
            (("naive", "naive"), ("gdregs", "GDReGs"), ("best", "optimal mix"))
        ):
            colour, marker = figures.COLOURS[number], figures.MARKERS[number]
            exact = np.asarray(getattr(curve, f"{name}_variance_{part}")())
            if name != "best" or part != "mu":
                panel.plot(fine, exact, color=colour)
            points = measured["variance"][name][part]
            values = np.where(points.value[row] > 1e-9, points.value[row], np.nan)
            panel.errorbar(
                np.asarray(settings.ratios), values, points.error[row],
                fmt=marker, color=colour, label=label,
            )  # fmt: skip
        limit = getattr(curve._replace(sigma_p=1.0), f"largest_sigma_p_{part}")() / sigma_q
        panel.axvline(limit, color="0.5", ls=":", lw=1)
        panel.set(xscale="log", yscale="log", xlabel=r"$\sigma_p / \sigma_q$")
        panel.set_title(rf"variance, gradient by $\{part}_p$")
        panel.set_xticks(settings.ratios[::2], [f"{r:g}" for r in settings.ratios[::2]])
        panel.minorticks_off()
    axes[0, 0].set_ylim(1e-4, None)
    axes[0, 0].annotate("optimal mix: 0", (0.97, 0.05), xycoords="axes fraction", ha="right",
                        fontsize=7)  # fmt: skip
    axes[0, 1].legend()
    plot_region(axes[0, 2], grid, measured)
    return figure


def plot_region(panel: Any, grid: GaussianCrossEntropy, measured: dict[str, Any]) -> None:
    r"""Where GDReGs wins for $\sigma_p$: (H.12) as a map, samples as points."""
    distances, ratios = np.meshgrid(np.linspace(0, 2.1, 120), np.linspace(0.4, 3.1, 120))
    at = GaussianCrossEntropy(0.0, 1.0, distances, ratios)
    value = np.log10(np.asarray(at.gdregs_variance_sigma()) / np.asarray(at.naive_variance_sigma()))
    image = panel.pcolormesh(distances, ratios, value, cmap="RdBu_r", vmin=-1.5, vmax=1.5,
                             rasterized=True)  # fmt: skip
    panel.figure.colorbar(image, ax=panel, label=r"$\log_{10}$ variance, GDReGs / naive")
    line = np.linspace(0, 2.1, 100)
    panel.plot(line, GaussianCrossEntropy(0.0, 1.0, line, 1.0).largest_sigma_p_sigma(), "k-", lw=1)
    gain = measured["gain"]["sigma"].value
    x = np.abs(np.asarray(grid.mu_q) - np.asarray(grid.mu_p)) / np.asarray(grid.sigma_q)
    y = np.asarray(grid.sigma_p) / np.asarray(grid.sigma_q)
    for wins, marker, label in ((gain < 0, "o", "GDReGs wins"), (gain >= 0, "x", "naive wins")):
        panel.scatter(x[wins], y[wins], marker=marker, color="k", s=12, lw=0.8, label=label)
    panel.set(xlabel=r"$|\mu_q - \mu_p| / \sigma_q$", ylabel=r"$\sigma_p / \sigma_q$")
    panel.set_title(r"(H.12) and samples, $\sigma_p$")
    panel.legend(loc="upper left")
