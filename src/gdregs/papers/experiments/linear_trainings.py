r"""The linear VAE of Sec. 5.1 once more, trained with several K from several seeds.

The paper does not say with how many importance samples it was trained, and what it says of STL and
of GDReGs depends on that, and on the training's seed. Here data, start, training and draws all have
the seed of a training, so that what is measured has two errors: that of the draws of one training,
and that between trainings.

It also shows why the SNR by $\theta$ in Fig. 4's system dips at a small K: where training has
converged, the expected gradient of the bound with the K of the training is 0.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from gdregs.papers.experiments import linear_vae
from gdregs.papers.experiments.linear_claims import (
    PHI,
    THETA,
    only,
    pick_phi,
    pick_theta,
    snr_ratio,
)
from gdregs.papers.experiments.linear_model import make_data
from gdregs.papers.measures import claims, figures
from gdregs.papers.measures.claims import Claim, Statement
from gdregs.papers.measures.curves import summarise, table, variance_ratio
from gdregs.papers.measures.measure import Measured
from gdregs.papers.measures.results import Result

TITLE = "2-layer linear VAE, by training"
FIGURES = ("linear-vae-trainings",)

SNR_OF_STL = "SNR of STL over that of DReGs"
SNR_OF_GDREGS = "SNR of GDReGs over naive"
VARIANCE_OF_GDREGS = "variance of GDReGs over naive"
RATIOS = (SNR_OF_STL, SNR_OF_GDREGS, VARIANCE_OF_GDREGS)
SNR_OF_NAIVE = "SNR of naive by theta"

Training = dict[str, dict[int, Measured]]
"""What was measured after one training: ratios and an SNR, by K."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the experiment's numbers.

    Attributes:
        seed: Of the first training; the others have the next ones.
        trained_with: The values of K during training.
        seeds: How many trainings there are with each.
        sizes: The values of K at which estimators are compared.
        base: All else; see `linear_vae.Settings`.
    """

    seed: int = 0
    trained_with: tuple[int, ...] = (2, 10, 64)
    seeds: int = 5
    sizes: tuple[int, ...] = (3, 10, 100, 1000)
    base: linear_vae.Settings = dataclasses.field(default_factory=linear_vae.Settings)

    @property
    def every_size(self) -> tuple[int, ...]:
        """The values of K at which gradients are measured: those of the trainings as well."""
        return tuple(sorted({1, *self.sizes, *self.trained_with}))

    def of_training(self, num_samples: int, number: int) -> linear_vae.Settings:
        """The settings of one training."""
        return dataclasses.replace(
            self.base, training_samples=num_samples, seed=self.seed + number, sizes=self.every_size
        )


def quick(settings: Settings) -> Settings:
    """Small enough for seconds; what it measures decides little."""
    return dataclasses.replace(
        settings, trained_with=(4,), seeds=2, sizes=(16,),
        base=linear_vae.quick(settings.base),
    )  # fmt: skip


def total_cost(settings: Settings) -> int:
    """What `progress` adds up to."""
    costs = [
        linear_vae.total_cost(settings.of_training(size, 0), num_models=1)
        for size in settings.trained_with
    ]
    return settings.seeds * sum(costs)


def run(settings: Settings, progress: Callable[[int], Any] = lambda cost: None) -> Result:
    """Train, measure and judge."""
    found: dict[int, list[Training]] = {}
    bounds: dict[int, list[Measured]] = {}
    for size in settings.trained_with:
        for number in range(settings.seeds):
            one = settings.of_training(size, number)
            x = make_data(one.seed, one.num_data, one.dim)
            model, rounds = linear_vae.train(one, x, progress)
            every = linear_vae.measure(one, {"trained": model}, x, progress)["trained"]
            results = {size: every[size] for size in settings.sizes}
            naive = summarise(every, THETA, first_fitted=1, pick=pick_theta)["IWAE"]
            found.setdefault(size, []).append(
                {
                    SNR_OF_STL: snr_ratio(results, "STL", "DReGs", PHI, pick_phi),
                    SNR_OF_GDREGS: snr_ratio(results, "GDReGs", "IWAE", THETA, pick_theta),
                    VARIANCE_OF_GDREGS: variance_ratio(results, "GDReGs", "IWAE", pick=only("all")),
                    SNR_OF_NAIVE: dict(zip(naive["sizes"], naive["snr"], strict=True)),
                }
            )
            bounds.setdefault(size, []).append(rounds[-1])
    numbers = {
        "training_bound": table(bounds),
        "trainings": {str(size): [table(one) for one in found[size]] for size in found},
    }
    return Result(settings, numbers, judge(found), {"linear-vae-trainings": plot(found)})


def judge(found: dict[int, list[Training]]) -> list[Claim]:
    """All statements together, from the trainings by their K."""
    statements = [one for size in found for one in compare_estimators(size, found[size])]
    return claims.judge(statements + [find_dip(size, found[size]) for size in found])


def find_dip(trained_with: int, trainings: list[Training]) -> Statement:
    """Where the SNR by theta is least."""
    snrs = [{size: found.value for size, found in one[SNR_OF_NAIVE].items()} for one in trainings]
    ratios = [
        one[trained_with] / min(one[size] for size in one if size != trained_with) for one in snrs
    ]
    listed = ", ".join(
        f"{np.mean([one[size] for one in snrs]):.3g} (K = {size:,})" for size in snrs[0]
    )
    return Statement(
        "linear VAE, ours",
        r"The naive estimator's SNR by $\theta$ is least at the K of the training, where the"
        f" expected gradient has come to 0. (Trained with K = {trained_with}.)",
        "SNR there over the least at other K:",
        np.array(ratios),
        high=1.0,
        note=f"Means over {len(trainings)} trainings: {listed}.",
    )


def compare_estimators(trained_with: int, trainings: list[Training]) -> list[Statement]:
    """The paper's statements, at every K after trainings with one K."""
    sizes = [size for size in trainings[0][SNR_OF_STL] if size > 1]

    def statement(text: str, what: str, ratio: str, **limit: float) -> Statement:
        listed = "; ".join(
            f"K = {size:,}: " + ", ".join(str(one[ratio][size]) for one in trainings)
            for size in sizes
        )
        return Statement(
            "Sec. 5.1, Fig. 4",
            f"{text} (Trained with K = {trained_with}.)",
            what,
            np.array([[one[ratio][size].value for one in trainings] for size in sizes]),
            note=f"Mean over {len(trainings)} trainings, with half the width of its 95% t interval"
            f" as two errors. By training, with the errors of the draws: {listed}.",
            **limit,
        )

    return [
        statement(
            "STL has an even better SNR than DReGs.",
            "smallest SNR of STL over that of DReGs:",
            SNR_OF_STL,
            low=1.0,
        ),
        statement(
            r"For $\theta$ GDReGs has lower variance than the naive estimator.",
            "largest ratio of average variances:",
            VARIANCE_OF_GDREGS,
            high=1.0,
        ),
        statement(
            r"For $\theta$ GDReGs has a higher SNR than the naive estimator.",
            "smallest ratio of average SNRs:",
            SNR_OF_GDREGS,
            low=1.0,
        ),
    ]


@figures.styled
def plot(found: dict[int, list[Training]]) -> Any:
    """Each training's ratio or SNR against K, and the mean of those with one K."""
    figure, axes = figures.new_figure(2, 2, width=3.2)
    for panel, quantity in zip(axes.flat, (*RATIOS, SNR_OF_NAIVE), strict=True):
        for number, (trained_with, trainings) in enumerate(found.items()):
            sizes = list(trainings[0][quantity])
            for one in trainings:
                panel.plot(
                    sizes, [one[quantity][size].value for size in sizes],
                    color=figures.COLOURS[number], alpha=0.35, lw=0.7,
                )  # fmt: skip
            means = [np.mean([one[quantity][size].value for one in trainings]) for size in sizes]
            figures.line(panel, number, sizes, means, f"trained with K = {trained_with}")
            if quantity == SNR_OF_NAIVE:
                panel.axvline(trained_with, color=figures.COLOURS[number], ls=":", lw=0.8)
        if quantity in RATIOS:
            panel.axhline(1, color="0.4", lw=0.8)
        panel.set(title=quantity, xscale="log", xlabel="importance samples K")
    axes[1, 1].set(yscale="log", title=r"SNR of naive by $\theta$")
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylim(top=600)  # room for the legend
    axes[0, 0].legend(loc="upper left")
    return figure
