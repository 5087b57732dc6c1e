r"""Past the papers: the learned mix of prior estimators over whole training runs.

The paper finds that GDReGs has more variance than the naive estimator late in unconditional
training. Here a linear VAE and a digits VAE with three stochastic layers are trained with
`gdregs-mix`, the latter with DReGs and with the naive estimator for the posterior. On the way the
gradient variance of the naive estimator, of GDReGs and of the mix, as it has been learned, is
measured at the same parameters on the same samples.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from gdregs.mixing import LearnedMix
from gdregs.papers.experiments.linear_model import Trained, initial_model, make_data, make_training
from gdregs.papers.measures import claims, figures
from gdregs.papers.measures.claims import Claim
from gdregs.papers.measures.curves import table
from gdregs.papers.measures.measure import Measured, compile_measurement, jackknife
from gdregs.papers.measures.results import Result
from gdregs.vae.config import Config
from gdregs.vae.data.datasets import load_dataset
from gdregs.vae.training.epochs import loss_and_diagnostics, make_epoch, make_state
from gdregs.vae.training.task import make_task

TITLE = "Learned mix of prior estimators"
FIGURES = ("mixing",)

LINEAR, DIGITS, DIGITS_NAIVE = "linear VAE", "digits VAE", "digits VAE, naive q"

LIMIT = 1.05
"""The mix may have so many times the variance of the better estimator, and no more."""


EARLY = 4
"""So many of the linear VAE's first measurements are early in its training."""

EARLY_STATEMENT = "Early in training GDReGs always has lower variance than the naive estimator."

SMALL_IMAGES = (
    "The paper says this of larger images, which the image models measure. On digits GDReGs keeps"
    " the lower variance however the posterior is trained: the learned alphas stay near 1, as they"
    " do where posterior and prior are close (H.15)."
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the experiment's numbers.

    Attributes:
        seed: Of everything.
        steps: Steps of the linear VAE's training at which the variance is measured.
        learning_rate: Of the linear VAE.
        training_samples: K of the linear VAE.
        num_data: Data points of the linear VAE.
        epochs: Epochs of the digits VAE's training at which the variance is measured.
        num_layers: Stochastic layers of the digits VAE.
        hidden_size: Units of its hidden layers.
        num_groups: Independent groups of draws, from which standard errors come.
        linear_draws: Draws in a group, of the linear VAE.
        digits_draws: Draws in a group, of the digits VAE.
    """

    seed: int = 0
    steps: tuple[int, ...] = (0, 25, 50, 100, 200, 400, 700, 1000, 2000, 4000)
    learning_rate: float = 0.05
    training_samples: int = 10
    num_data: int = 512
    epochs: tuple[int, ...] = (0, 1, 2, 3, 5, 8, 12, 20, 40, 80, 120)
    num_layers: int = 3
    hidden_size: int = 300
    num_groups: int = 10
    linear_draws: int = 20
    digits_draws: int = 8


def quick(settings: Settings) -> Settings:
    """Small enough for seconds; what it measures decides little."""
    return dataclasses.replace(
        settings, steps=(0, 20, 40), num_data=64, epochs=(0, 1), num_layers=2, hidden_size=20,
        num_groups=4, linear_draws=4, digits_draws=2,
    )  # fmt: skip


class Point(NamedTuple):
    """What was measured at one moment of a training run.

    Attributes:
        time: Steps or epochs so far.
        alpha: The learned strength of each stochastic layer with parameters.
        variance: By estimator and layer, `[groups]` each.
    """

    time: int
    alpha: dict[str, float]
    variance: dict[str, dict[str, np.ndarray]]


def total_cost(settings: Settings) -> int:
    """What `progress` adds up to: seconds, about."""
    per_point = settings.num_groups
    return (
        per_point * (len(settings.steps) + 4 * len(settings.epochs))
        + settings.steps[-1] // 100
        + 4 * settings.epochs[-1]
    )


def mix(naive: Any, gdregs: Any, alpha: Any) -> Any:
    """(H.13), draw by draw."""
    return jax.tree.map(lambda n, g: (1 - alpha) * n + alpha * g, naive, gdregs)


def by_layer(variance: Any) -> dict[str, dict[str, Any]]:
    """The sum over each layer's parameters, by estimator."""
    return {
        name: {
            layer: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree))
            for layer, tree in layers.items()
        }
        for name, layers in variance.items()
    }


def follow_linear(settings: Settings, progress: Callable[[int], Any]) -> list[Point]:
    """Train the linear VAE with the learned mix, and measure on the way."""
    x = make_data(settings.seed, settings.num_data, 5)
    # The top prior has no learnt parameters: one layer is left to mix.
    learned = LearnedMix(("z1", "z2"), where=lambda gradient: gradient.theta)
    model = initial_model(settings.seed + 1, 5)
    state = Trained(model, learned.init(model))
    run = make_training(
        x,
        num_samples=settings.training_samples,
        learning_rate=settings.learning_rate,
        mix=learned,
    )

    def draw(key: PRNGKeyArray, argument):
        model, alpha = argument

        def gradient(x, key, estimator):
            def value(theta):
                changed = model._replace(theta=theta)
                return changed.bound(x, key, settings.training_samples, prior_estimator=estimator)

            return jax.grad(value)(model.theta)

        keys = jax.random.split(key, x.shape[0])
        naive, full = (
            jax.vmap(lambda x, key, name=name: gradient(x, key, name))(x, keys)
            for name in ("naive", "gdregs")
        )
        mixed = mix(naive, full, alpha["z1"])
        return {"naive": {"z1": naive}, "gdregs": {"z1": full}, "mix": {"z1": mixed}}

    def reduce(mean, variance):
        del mean  # data points are independent: variances of their mean add up
        return {}, jax.tree.map(lambda total: total / settings.num_data**2, by_layer(variance))

    measurement = compile_measurement(draw, num_draws=settings.linear_draws, reduce=reduce)
    points, done = [], 0
    for time in settings.steps:
        if time > done:
            key = jax.random.fold_in(jax.random.key(settings.seed + 2), time)
            state, _ = run(state, key, time - done)
            progress((time // 100) - (done // 100))
            done = time
        assert state.mix is not None
        alpha = {"z1": state.mix.alpha["z1"]}
        points.append(_measure(settings, measurement, (state.model, alpha), alpha, time, progress))
    return points


def follow_digits(
    settings: Settings, posterior_estimator: str, progress: Callable[[int], Any]
) -> list[Point]:
    """Train the digits VAE with the learned mix, and measure on the way."""
    config = Config(
        posterior_estimator=posterior_estimator,
        num_layers=settings.num_layers,
        hidden_size=settings.hidden_size,
        prior_estimator="gdregs-mix",
        epochs=settings.epochs[-1],
        seed=settings.seed,
    )
    task = make_task(config, load_dataset(config.dataset, None))
    images = task.observe(jax.random.key(settings.seed + 3), task.train[: config.batch_size])

    def draw(key: PRNGKeyArray, argument):
        model, alpha = argument

        def gradient(estimator):
            gradients, _ = eqx.filter_grad(loss_and_diagnostics, has_aux=True)(
                model, config, task, images, key, estimator
            )
            return dict(zip(alpha, gradients.prior_networks, strict=True))

        naive, full = gradient("naive"), gradient("gdregs")
        mixed = {name: mix(naive[name], full[name], alpha[name]) for name in alpha}
        return {"naive": naive, "gdregs": full, "mix": mixed}

    measurement = compile_measurement(
        draw,
        num_draws=settings.digits_draws,
        reduce=lambda mean, variance: ({}, by_layer(variance)),
    )
    state = make_state(config, task)
    run_epoch = make_epoch(config, task)
    points = []
    for time in settings.epochs:
        while int(state.epoch) < time:
            state, _ = run_epoch(state)
            progress(2)
        assert state.mix is not None
        layers = len(state.model.prior_networks)
        alpha = dict(list(state.mix.alpha.items())[:layers])
        points.append(
            _measure(settings, measurement, (state.model, alpha), alpha, time, progress, 2)
        )
    return points


def _measure(settings, measurement, argument, alpha, time, progress, cost=1) -> Point:
    key = jax.random.fold_in(jax.random.key(settings.seed + 4), time)
    moments = measurement.run(key, argument, settings.num_groups, progress, cost)
    strengths = {name: float(value) for name, value in alpha.items()}
    return Point(time, strengths, moments.variance)


def ratio_to_better(point: Point, layer: str) -> Measured:
    """Variance of the mix over that of the better of the two, in one layer."""

    def of(groups):
        total = {name: layers[layer][groups].mean() for name, layers in point.variance.items()}
        return total["mix"] / min(total["naive"], total["gdregs"])

    return jackknife(of, len(point.variance["mix"][layer]))


def run(settings: Settings, progress: Callable[[int], Any] = lambda cost: None) -> Result:
    """Train, measure and judge."""
    runs = {
        LINEAR: follow_linear(settings, progress),
        DIGITS: follow_digits(settings, "dregs", progress),
        DIGITS_NAIVE: follow_digits(settings, "naive", progress),
    }
    numbers = {
        "draws": {
            LINEAR: settings.num_groups * settings.linear_draws,
            DIGITS: settings.num_groups * settings.digits_draws,
            DIGITS_NAIVE: settings.num_groups * settings.digits_draws,
        },
        "runs": {
            name: [
                {
                    "time": point.time,
                    "alpha": point.alpha,
                    "variance": {
                        estimator: {layer: float(v.mean()) for layer, v in layers.items()}
                        for estimator, layers in point.variance.items()
                    },
                    "ratio_to_better": table(
                        {layer: ratio_to_better(point, layer) for layer in point.alpha}
                    ),
                }
                for point in points
            ]
            for name, points in runs.items()
        },
    }
    return Result(settings, numbers, judge(runs), {"mixing": plot(runs)})


def judge(runs: dict[str, list[Point]]) -> list[Claim]:
    """What the paper says of GDReGs late in training, and what is asked of the mix."""
    rows = []
    for name, points in runs.items():
        ratios = [ratio_to_better(point, layer) for point in points for layer in point.alpha]
        worst = max(ratios, key=lambda ratio: ratio.value + 3 * ratio.error)
        rows.append(
            claims.at_most(
                f"{name}, ours",
                f"The mix is never worse than the better of the two by more than 5% ({name}).",
                "largest ratio of variances over the run and all layers:",
                worst,
                LIMIT,
            )
        )
        rows.append(
            claims.at_most(
                f"{name}, ours",
                f"Where it helps most, the mix is clearly better than both ({name}).",
                "smallest ratio of variances over the run and all layers:",
                min(ratios, key=lambda ratio: ratio.value),
                1.0,
            )
        )
    rows.append(judge_early(runs[LINEAR][:EARLY]))
    early, late = runs[DIGITS][1], runs[DIGITS][-1]
    late_naive = runs[DIGITS_NAIVE][-1]
    for point, statement in (
        (early, EARLY_STATEMENT),
        (late, "Late in training it still has where the posterior is trained with DReGs."),
        (late_naive, "Late in training it need not where the posterior is trained naively."),
    ):
        ratios = [_gdregs_over_naive(point, layer) for layer in point.alpha]
        judge_ratio = claims.at_least if point is late_naive else claims.at_most
        rows.append(
            judge_ratio(
                "Sec. 5.2",
                f"{statement} (Digits VAE, unconditional.)",
                f"largest ratio over layers after epoch {point.time}:",
                max(ratios, key=lambda ratio: ratio.value),
                1.0,
                SMALL_IMAGES if point is late_naive else "",
            )
        )
    return rows


def judge_early(points: list[Point]) -> Claim:
    """The same statement of the linear VAE, at its first measurements."""
    ratios = {
        point.time: max(
            (_gdregs_over_naive(point, layer) for layer in point.alpha),
            key=lambda ratio: ratio.value,
        )
        for point in points
    }
    listed = ", ".join(f"{ratio} (step {time:,})" for time, ratio in ratios.items())
    return claims.at_most(
        "Sec. 5.2",
        f"{EARLY_STATEMENT} (Linear VAE.)",
        f"largest ratio over steps 0 to {points[-1].time:,}:",
        max(ratios.values(), key=lambda ratio: ratio.value),
        1.0,
        f"By step: {listed}. The paper says this of images. On this system posterior and prior lie"
        " several of the prior's standard deviations apart before training has moved them.",
    )


def _gdregs_over_naive(point: Point, layer: str) -> Measured:
    ours, theirs = point.variance["gdregs"][layer], point.variance["naive"][layer]
    return jackknife(lambda groups: ours[groups].mean() / theirs[groups].mean(), len(ours))


@figures.styled
def plot(runs: dict[str, list[Point]]) -> Any:
    """Variances relative to the naive estimator's, and the strengths, over the training runs."""
    figure, axes = figures.new_figure(3, len(runs), width=2.6)
    for row, (name, points) in zip(axes, runs.items(), strict=True):
        times = [point.time for point in points]
        unit = "steps" if name == LINEAR else "epochs"
        layers = list(points[0].alpha)
        for panel, estimator, title in (
            (row[0], "gdregs", "variance, GDReGs / naive"),
            (row[1], "mix", "variance, mix / better of the two"),
        ):
            for number, layer in enumerate(layers):
                ratios = [
                    ratio_to_better(point, layer)
                    if estimator == "mix"
                    else _gdregs_over_naive(point, layer)
                    for point in points
                ]
                figures.line(
                    panel, number, times, [r.value for r in ratios], f"prior of {layer}",
                    [r.error for r in ratios],
                )  # fmt: skip
            panel.axhline(1, color="0.4", lw=0.8)
            panel.set_title(f"{name}\n{title}" if estimator == "gdregs" else title)
        row[0].set_yscale("log")
        row[1].axhline(LIMIT, color="0.4", lw=0.8, ls=":")
        for number, layer in enumerate(layers):
            figures.line(row[2], number, times, [point.alpha[layer] for point in points], layer)
        row[2].set_title(r"learned $\alpha$ (1: GDReGs, 0: naive)")
        for panel in row:
            panel.set_xscale("symlog", linthresh=times[1])
            panel.set_xlim(left=0)
            panel.set_xlabel(unit)
        row[0].legend()
    return figure
