"""What the poster says of the simple Gaussian system, judged and drawn."""

import itertools
from typing import Any

import numpy as np

from gdregs.papers.measures import claims, figures
from gdregs.papers.measures.claims import Claim
from gdregs.papers.measures.curves import largest_z_score, variance_ratio
from gdregs.papers.measures.measure import Measured, Moments, jackknife, slope, squared_norm
from gdregs.shared.statistics import largest_by_chance

DIFFERENCES = (
    ("IWAE", "IWAE-DReGs"),
    ("STL", "IWAE-DReGs"),
    ("RWS", "RWS-DReGs"),
    ("JVI", "JVI-DReGs"),
)
"""Pairs of estimators whose means are compared, on the same samples."""


def judge(settings, gradients, bounds, curves, bias) -> list[Claim]:
    """The poster's statements about this system."""
    first, last = settings.first_fitted, settings.sizes[-1]
    sizes = f"K = {first} ... {last:,}"
    several = {size: moments for size, moments in gradients.items() if size > 1}
    decades = [size for size in (1, 10, 100, 1000) if size in bounds]
    steps = [
        jackknife(
            lambda g, a=a, b=b: float((bounds[b][g] - bounds[a][g]).mean()), settings.num_groups
        )
        for a, b in itertools.pairwise(decades if len(decades) > 1 else settings.sizes)
    ]
    least_step = min(steps, key=lambda step: step.value - 3 * step.error)
    comparisons = 3 * settings.dim * (settings.dim + 1) * len(several)
    threshold = largest_by_chance(comparisons)
    power = largest_z_score(several, "STL - IWAE-DReGs")
    source = "Poster"
    ratios = {
        name: max(
            (ratio for size, ratio in variance_ratio(gradients, ours, theirs).items() if size > 1),
            key=lambda ratio: ratio.value,
        )
        for name, ours, theirs in (
            ("IWAE", "IWAE-DReGs", "IWAE"), ("RWS", "RWS-DReGs", "RWS"), ("JVI", "JVI-DReGs", "JVI")
        )
    }  # fmt: skip
    return [
        claims.at_least(
            source,
            "The IWAE bound becomes tighter as K grows.",
            "smallest gain (nats) from a tenfold K, to K = 1,000:",
            least_step,
            0.0,
        ),
        claims.within(
            source,
            r"The SNR of the mean of K ELBOs rises as $K^{1/2}$.",
            f"slope of the SNR, {sizes}:",
            curves["K ELBOs"]["snr_slope"],
            0.5,
            0.1,
        ),
        claims.within(
            source,
            r"IWAE's gradient by $\phi$ becomes worse as K grows: its SNR falls as $K^{-1/2}$.",
            f"slope of the SNR, {sizes}:",
            curves["IWAE"]["snr_slope"],
            -0.5,
            0.1,
        ),
        claims.within(
            source,
            "The SNR of IWAE-DReGs rises with K, as theory has it: as $K^{1/2}$.",
            f"slope of the SNR, {sizes}:",
            curves["IWAE-DReGs"]["snr_slope"],
            0.5,
            0.1,
        ),
        claims.no_outlier(
            source,
            "At K = 1 the expectation of the score function that STL drops is 0.",
            "largest mean of IWAE - STL over all parameters:",
            largest_z_score({1: gradients[1]}, "IWAE - IWAE-DReGs"),
            largest_by_chance(settings.dim * (settings.dim + 1)),
            "At K = 1 a draw of STL is a draw of DReGs.",
        ),
        claims.at_least(
            source,
            "STL is biased for K > 1.",
            f"squared bias over squared gradient at K = {last:,}:",
            bias["STL"][last],
            0.1,
        ),
        claims.within(
            source,
            "The bias of STL stays as K grows, while the gradient of IWAE vanishes as 1/K.",
            f"slope of bias over gradient, {sizes}:",
            bias_slope(gradients, first),
            1.0,
            0.1,
        ),
        *(
            claims.no_outlier(
                source,
                f"{other} is unbiased.",
                f"largest mean of {one} - {other} over all parameters and K > 1:",
                largest_z_score(several, f"{one} - {other}"),
                threshold,
                f"The same comparison finds STL at {power:.0f} standard errors.",
            )
            for one, other in DIFFERENCES
            if one != "STL"
        ),
        *(
            claims.at_most(
                source,
                statement,
                f"largest variance of {name}-DReGs over that of {name}, K > 1:",
                ratios[name],
                1.0,
            )
            for name, statement in (
                ("IWAE", "IWAE-DReGs has low variance."),
                ("RWS", "The estimator applies to RWS, whose variance it lowers."),
                ("JVI", "The estimator applies to JVI, whose variance it lowers."),
            )
        ),
    ]


def bias_slope(gradients: dict[int, Moments], first: int) -> Measured:
    """The rate at which STL's bias grows in comparison with the gradient."""
    late = [size for size in gradients if size >= first]

    def of(groups: np.ndarray) -> float:
        means = [gradients[size].mean for size in late]
        ratios = [
            squared_norm(mean["STL - IWAE-DReGs"][groups])
            / squared_norm(mean["IWAE-DReGs"][groups])
            for mean in means
        ]
        return slope(late, np.sqrt(ratios))

    return jackknife(of, len(gradients[late[0]].mean["IWAE"]))


@figures.styled
def plot(settings, curves, bias) -> Any:
    """Bias, variance and SNR against K."""
    figure, axes = figures.new_figure(3, width=2.5, height=2.7)
    left, middle, right = axes[0]
    points = {k: b for k, b in bias["STL"].items() if b.value > 2 * b.error}
    figures.line(
        left, list(curves).index("STL"), list(points), [b.value**0.5 for b in points.values()],
        "STL", [b.error / b.value**0.5 / 2 for b in points.values()],
    )  # fmt: skip
    left.set(title="|bias| / |gradient| of STL")
    for number, (name, curve) in enumerate(curves.items()):
        for panel, quantity in ((middle, "variance"), (right, "snr")):
            figures.line(
                panel, number, curve["sizes"], [m.value for m in curve[quantity]],
                name, [m.error for m in curve[quantity]],
            )  # fmt: skip
    middle.set(title="gradient variance")
    right.set(title="signal-to-noise ratio")
    for panel in axes[0]:
        figures.log_axes(panel, "importance samples K")
    late = [size for size in settings.sizes if size >= settings.first_fitted]
    for name, power, text in (("IWAE", -0.5, "$K^{-1/2}$"), ("IWAE-DReGs", 0.5, "$K^{1/2}$")):
        curve = curves[name]
        start = curve["snr"][curve["sizes"].index(late[0])].value
        figures.rate(right, late, start, power, text)
    handles, labels = middle.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=8, handlelength=1.2, columnspacing=1.0
    )
    return figure
