r"""What the paper says of the linear VAE (Sec. 3 and 5.1, Fig. 4), judged and drawn."""

import dataclasses
from typing import Any

import numpy as np

from gdregs.papers.measures import claims, figures
from gdregs.papers.measures.claims import Claim
from gdregs.papers.measures.curves import largest_z_score, relative_bias, summarise, variance_ratio
from gdregs.papers.measures.measure import Measured, Moments, bootstrap, typical
from gdregs.shared.statistics import largest_by_chance

PHI = {"IWAE": "DReGs", "STL": "STL", "DReGs": "DReGs"}
THETA = {"IWAE": "both", "GDReGs": "both"}
"""Estimators by what is taken as their mean; `both` is the average of the two."""


def only(kind: str):
    """Picks the prior's location parameters (W, b), its scale parameters (V, c), or all."""

    def pick(tree):
        half = {name: leaf.shape[-1] // 2 for name, leaf in tree["theta"].items()}
        return {
            name: leaf
            if kind == "all"
            else leaf[..., : half[name]]
            if kind == "location"
            else leaf[..., half[name] :]
            for name, leaf in tree["theta"].items()
        }

    return pick


def pick_phi(tree):
    """The part of the moments that is about the posterior's parameters."""
    return tree["phi"]


def pick_theta(tree):
    """The part of the moments that is about the prior's parameters."""
    return tree["theta"]


GENERATING = " (At the generating parameters.)"


@dataclasses.dataclass(frozen=True)
class Findings:
    """What was measured at one set of parameters."""

    results: dict[int, Moments]
    phi: dict[str, Any]
    theta: dict[str, Any]
    bias: dict[str, dict[int, Measured]]


def find(first: int, results: dict[int, Moments]) -> Findings:
    """Curves and biases from moments."""
    bias = {
        "STL": relative_bias(results, "STL - DReGs", "DReGs", pick=pick_phi),
        "drop, phi": relative_bias(results, "drop - DReGs", "DReGs", pick=pick_phi),
        "drop, theta": relative_bias(results, "drop - GDReGs", "both", pick=pick_theta),
    }
    return Findings(
        results,
        summarise(results, PHI, first_fitted=first, pick=pick_phi),
        summarise(results, THETA, first_fitted=first, pick=pick_theta),
        bias,
    )


def judge(
    first: int, rounds: list[Measured], trained: Findings, generating: Findings
) -> list[Claim]:
    """The paper's statements about this model."""
    sizes = f"K = {first} ... {max(trained.results):,}"
    gain = difference(rounds[-1], rounds[-2])
    return [
        claims.within(
            "App. G.1",
            "The parameters are trained until the bound has converged.",
            "gain of the last round of training (nats):",
            gain,
            0.0,
            0.01,
        ),
        *judge_phi(first, trained, sizes),
        judge_stl(trained, ""),
        judge_stl(generating, GENERATING),
        *judge_theta(trained, sizes, "Sec. 5.1, Fig. 4", ""),
        *judge_theta(generating, sizes, "Sec. 5.1, Fig. 4", GENERATING),
        *judge_bias(trained),
    ]


def judge_phi(first: int, at: Findings, sizes: str) -> list[Claim]:
    """Fig. 4, top."""
    source = "Sec. 5.1, Fig. 4"
    phi, results, last = at.phi, at.results, max(at.results)
    faster = {
        other: difference(phi["DReGs"]["variance_slope"], phi[other]["variance_slope"])
        for other in ("IWAE", "STL")
    }
    slower = max(faster.values(), key=lambda slope: slope.value)
    return [
        claims.within(
            source,
            r"For $\phi$ the SNR of the naive estimator vanishes as K grows, as $K^{-1/2}$.",
            f"slope of the SNR, {sizes}:",
            phi["IWAE"]["snr_slope"],
            -0.5,
            0.1,
        ),
        claims.within(
            source,
            r"For $\phi$ the SNR of DReGs grows with K, as $K^{1/2}$.",
            f"slope of the SNR, {sizes}:",
            phi["DReGs"]["snr_slope"],
            0.5,
            0.1,
        ),
        claims.at_most(
            source,
            r"For $\phi$ the variance of DReGs falls faster than those of IWAE and STL.",
            f"slope of DReGs minus the nearer of the others', {sizes}:",
            slower,
            0.0,
        ),
        claims.at_least(
            source,
            "The gradients of STL are biased.",
            f"squared bias over squared gradient at K = {last:,}:",
            at.bias["STL"][last],
            0.1,
        ),
        claims.at_least(
            "App. G.1",
            "Single parameters behave as their average does.",
            r"share of $\phi$ whose variance falls faster with DReGs than with IWAE:",
            share_of_faster(first, results),
            0.95,
        ),
    ]


def judge_stl(at: Findings, where: str) -> Claim:
    """Fig. 4, top right."""
    ratios = {
        size: stl.value / dregs.value
        for size, stl, dregs in zip(
            at.phi["STL"]["sizes"], at.phi["STL"]["snr"], at.phi["DReGs"]["snr"], strict=True
        )
    }
    listed = ", ".join(f"{ratio:.2f} (K = {size:,})" for size, ratio in ratios.items())
    return claims.at_least(
        "Sec. 5.1, Fig. 4",
        f"STL has an even better SNR than DReGs.{where}",
        "smallest SNR of STL over that of DReGs, K > 1:",
        smallest_snr_ratio(at.results, "STL", "DReGs", PHI, pick_phi, above=1),
        1.0,
        f"The ratio by K: {listed}.",
    )


def judge_theta(at: Findings, sizes: str, source: str, where: str) -> list[Claim]:
    """Fig. 4, bottom."""
    theta, results = at.theta, at.results
    kinds = {
        kind: max(
            variance_ratio(results, "GDReGs", "IWAE", pick=only(kind)).values(),
            key=lambda ratio: ratio.value,
        )
        for kind in ("location", "scale", "all")
    }
    note = (
        f"By kind of parameter the largest ratio is {kinds['location']} for the location's W, b and"
        f" {kinds['scale']} for the scale's V, c. Given x and z2, the exact posterior of z1 at the"
        " generating parameters has half the prior's variance, which is just where (H.11) breaks"
        " even for a location; a scale gains there. Of W and the prior's variance the data identify"
        " only $WW^T + \\sigma^2$, so that training ends on either side, as its start decides."
    )
    smallest = smallest_snr_ratio(results, "GDReGs", "IWAE", THETA, pick_theta)
    return [
        claims.at_most(
            source,
            rf"For $\theta$ GDReGs has lower variance than the naive estimator.{where}",
            "largest ratio of average variances over all K:",
            kinds["all"],
            1.0,
            note,
        ),
        claims.at_least(
            source,
            rf"For $\theta$ GDReGs has a higher SNR than the naive estimator.{where}",
            "smallest ratio of average SNRs over all K:",
            smallest,
            1.0,
        ),
        claims.within(
            source,
            rf"For $\theta$ both variances shrink at the same rate.{where}",
            f"difference of the slopes, {sizes}:",
            difference(theta["GDReGs"]["variance_slope"], theta["IWAE"]["variance_slope"]),
            0.0,
            0.1,
        ),
        claims.within(
            source,
            rf"For $\theta$ both SNRs grow at the same rate.{where}",
            f"difference of the slopes, {sizes}:",
            difference(theta["GDReGs"]["snr_slope"], theta["IWAE"]["snr_slope"]),
            0.0,
            0.1,
        ),
    ]


def judge_bias(at: Findings) -> list[Claim]:
    """Sec. 3: what becomes of the indirect score functions."""
    several = {size: moments for size, moments in at.results.items() if size > 1}
    count = sum(
        pick(m.mean)[name].shape[-1]
        for m in several.values()
        for pick, name in ((pick_phi, "IWAE"), (pick_theta, "IWAE"))
    )
    threshold = largest_by_chance(count)
    largest = max(
        largest_z_score(several, "IWAE - DReGs", pick=pick_phi),
        largest_z_score(several, "IWAE - GDReGs", pick=pick_theta),
    )
    power = largest_z_score(several, "drop - DReGs", pick=pick_phi)
    last = max(at.results)
    return [
        claims.no_outlier(
            "Sec. 3, 4",
            "DReGs and GDReGs, which keep the indirect score functions, are unbiased.",
            "largest mean of IWAE - DReGs and IWAE - GDReGs over all parameters and K > 1:",
            largest,
            threshold,
            f"The same comparison finds the dropped ones at {power:.0f} standard errors.",
        ),
        *(
            claims.at_least(
                "Sec. 3",
                rf"To drop the indirect score functions biases the gradient by ${symbol}$.",
                f"squared bias over squared gradient at K = {last:,}:",
                at.bias[f"drop, {group}"][last],
                0.0,
            )
            for group, symbol in (("phi", r"\phi"), ("theta", r"\theta"))
        ),
    ]


def difference(one: Measured, other: Measured) -> Measured:
    """The difference of two numbers, as if they were independent."""
    return Measured(one.value - other.value, float(np.hypot(one.error, other.error)))


def snr_ratio(results, one, other, signals, pick) -> dict[int, Measured]:
    """The ratio of average SNRs, by K."""

    def at(moments: Moments) -> Measured:
        means, variances = pick(moments.mean), pick(moments.variance)

        def snr(name, groups):
            mean, variance = means[signals[name]][groups], variances[name][groups]
            return np.mean(np.abs(typical(mean)) / np.sqrt(typical(variance)))

        return bootstrap(lambda groups: snr(one, groups) / snr(other, groups), len(means[one]))

    return {size: at(moments) for size, moments in results.items()}


def smallest_snr_ratio(results, one, other, signals, pick, above=0) -> Measured:
    """The smallest ratio of average SNRs over all K above a limit."""
    considered = {size: moments for size, moments in results.items() if size > above}
    ratios = snr_ratio(considered, one, other, signals, pick)
    return min(ratios.values(), key=lambda ratio: ratio.value)


def share_of_faster(first: int, results: dict[int, Moments]) -> Measured:
    """The share of phi's parameters whose variance falls faster with DReGs than with IWAE."""
    late = [size for size in results if size >= first]

    def of(groups: np.ndarray) -> float:
        slopes = {}
        for name in ("DReGs", "IWAE"):
            logs = [np.log(typical(results[k].variance["phi"][name][groups])) for k in late]
            slopes[name] = np.polyfit(np.log(late), np.stack(logs), 1)[0]
        return float(np.mean(slopes["DReGs"] < slopes["IWAE"]))

    return bootstrap(of, len(results[late[0]].mean["phi"]["IWAE"]))


@figures.styled
def plot(first: int, at: Findings) -> Any:
    """Fig. 4: variance and SNR for phi and theta against K."""
    figure, axes = figures.new_figure(2, 2, width=2.9)
    for row, (curves, symbol) in enumerate(((at.phi, r"\phi"), (at.theta, r"\theta"))):
        for column, (quantity, title) in enumerate(
            (("variance", "gradient variance"), ("snr", "signal-to-noise ratio"))
        ):
            panel = axes[row, column]
            for number, (name, curve) in enumerate(curves.items()):
                # GDReGs has a colour of its own.
                figures.line(
                    panel, 3 if name == "GDReGs" else number, curve["sizes"],
                    [m.value for m in curve[quantity]], name, [m.error for m in curve[quantity]],
                )  # fmt: skip
            panel.set(title=f"{title}, ${symbol}$")
            figures.log_axes(panel, "importance samples K" if row else "")
            panel.legend()
    late = [size for size in at.results if size >= first]
    for name, power, text in (("IWAE", -0.5, "$K^{-1/2}$"), ("DReGs", 0.5, "$K^{1/2}$")):
        curve = at.phi[name]
        start = curve["snr"][curve["sizes"].index(late[0])].value
        figures.rate(axes[0, 1], late, start, power, text)
    return figure


@figures.styled
def plot_bias(trained: Findings, generating: Findings) -> Any:
    """The bias that comes of dropping the indirect score functions, beside that of STL."""
    figure, axes = figures.new_figure(2, width=2.9)
    labels = {
        "drop, phi": r"dropped, $\phi$",
        "drop, theta": r"dropped, $\theta$",
        "STL": r"STL, $\phi$",
    }
    for panel, at, title in (
        (axes[0, 0], trained, "trained parameters"),
        (axes[0, 1], generating, "generating parameters"),
    ):
        for number, (name, label) in enumerate(labels.items()):
            points = {k: b for k, b in at.bias[name].items() if b.value > 2 * b.error}
            figures.line(
                panel, number, list(points), [b.value**0.5 for b in points.values()],
                label, [b.error / b.value**0.5 / 2 for b in points.values()],
            )  # fmt: skip
        panel.axhline(1, color="0.5", lw=0.8, ls=":")
        panel.set(title=title, ylabel="|bias| / |gradient|")
        figures.log_axes(panel, "importance samples K")
        panel.legend()
    return figure
