r"""How the gain of the estimators grows with the length T of a sequence.

A nonlinear state-space model, $z_t \sim \mathcal N(a \tanh z_{t-1}, s^2)$ and
$x_t \sim \mathcal N(z_t, 1/4)$, with a `gdregs.Chain` as posterior that runs backward in time,
trained at the shortest length. Variance and SNR of the gradients by the posterior's parameters
$\phi$ and the prior's $\theta = (a, \log s)$, and the bound for each step, against T, at one K.
Neither paper has sequences: what is judged here are the general formulas, Eqs. (C.8) and (C.16).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import gdregs
from gdregs.papers.measures.claims import Claim, at_most, no_outlier
from gdregs.papers.measures.curves import largest_z_score, table, variance_ratio
from gdregs.papers.measures.figures import line, new_figure, styled
from gdregs.papers.measures.measure import Measured, Moments, compile_measurement, jackknife
from gdregs.papers.measures.results import Result
from gdregs.shared.statistics import largest_by_chance

TITLE = "Sequences"
FIGURES = ("sequences",)

PAIRS = {
    "naive": ("naive", "naive"),
    "STL": ("stl", "naive"),
    "DReGs + GDReGs": ("dregs", "gdregs"),
    "DReGs + mix": ("dregs", "gdregs-mix"),
}
"""Posterior and prior estimator by name; the mix is half of each."""

SOURCE = "App. C, on chains"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the experiment's numbers.

    Attributes:
        seed: Of the data, the training and the draws.
        lengths: The values of T.
        batch: Sequences.
        num_samples: K.
        training_steps: Of Adam, at the shortest length.
        num_groups: Independent groups of draws, from which standard errors come.
        budget: Draws in a group times T; but at least 20 draws and at most 500.
    """

    seed: int = 0
    lengths: tuple[int, ...] = (10, 30, 100, 300, 1000)
    batch: int = 4
    num_samples: int = 16
    training_steps: int = 1000
    num_groups: int = 10
    budget: int = 10_000

    def num_draws(self, length: int) -> int:
        """Draws in a group at this T."""
        return int(np.clip(self.budget // length, 20, 500))


def quick(settings: Settings) -> Settings:
    """Small enough for seconds; what it measures decides little."""
    return dataclasses.replace(
        settings, lengths=(3, 10), training_steps=50, num_groups=4, budget=100, batch=2
    )


class Model(NamedTuple):
    """Parameters of posterior and prior.

    Attributes:
        phi: `carry` of the latent after, `gain` of the observation, `log_scale`.
        theta: `slope` and `log_scale`.
    """

    phi: dict[str, Float[Array, ""]]
    theta: dict[str, Float[Array, ""]]


def initial_model() -> Model:
    """Before training."""
    phi = {"carry": jnp.array(0.3), "gain": jnp.array(0.5), "log_scale": jnp.array(-1.0)}
    return Model(phi, {"slope": jnp.array(0.9), "log_scale": jnp.array(-0.5)})


def make_data(settings: Settings, length: int) -> Float[Array, "T batch"]:
    """Sequences of the generating parameters, a = 1.5 and s = 0.6."""
    key = jax.random.fold_in(jax.random.key(settings.seed), length)
    noise = jax.random.normal(key, (2, length, settings.batch))

    def step(z, e):
        z = 1.5 * jnp.tanh(z) + 0.6 * e
        return z, z

    _, z = jax.lax.scan(step, jnp.zeros(settings.batch), noise[0])
    return z + 0.5 * noise[1]


def bounds(
    model: Model, x: Float[Array, "T batch"], key: PRNGKeyArray, num_samples: int, pair: Any
) -> Float[Array, " batch"]:
    """The bound of each sequence, in nats a step."""

    def last(phi, x):
        return dist.Normal(phi["gain"] * x, jnp.exp(phi["log_scale"]))

    def before(phi, later, x):
        loc = phi["carry"] * later + phi["gain"] * jnp.broadcast_to(x, later.shape)
        return dist.Normal(loc, jnp.exp(phi["log_scale"]))

    def move(theta, previous, _):
        return dist.Normal(theta["slope"] * jnp.tanh(previous), jnp.exp(theta["log_scale"]))

    partial = jax.tree_util.Partial
    posterior = gdregs.Chain(
        partial(last, model.phi), partial(before, model.phi), length=len(x), inputs=x, reverse=True
    )
    first = dist.Normal(jnp.zeros(x.shape[1]), 1.0)
    prior = gdregs.Chain(first, partial(move, model.theta), length=len(x))

    def likelihood(z):
        return jnp.sum(dist.Normal(z, 0.5).log_prob(x.T[None]), axis=-1)

    posterior_estimator, prior_estimator = pair
    values = gdregs.bound(
        posterior,
        prior,
        likelihood,
        key=key,
        num_samples=num_samples,
        posterior_estimator=posterior_estimator,
        prior_estimator=prior_estimator,
    )
    return values / len(x)


def train(settings: Settings) -> Model:
    """Adam on the bound at the shortest length, with DReGs and the naive prior gradient."""
    x = make_data(settings, settings.lengths[0])
    optimiser = optax.adam(0.02)

    def step(carry, key):
        model, state = carry
        gradient = jax.grad(
            lambda model: -jnp.mean(bounds(model, x, key, settings.num_samples, ("dregs", "naive")))
        )(model)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(model, updates), state), None

    model = initial_model()
    keys = jax.random.split(jax.random.key(settings.seed + 1), settings.training_steps)
    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys))
    (model, _), _ = run((model, optimiser.init(model)), keys)
    return model


def make_draw(settings: Settings):
    """One draw of every pair's gradient of the mean bound a step, and the bound itself."""

    def draw(key: PRNGKeyArray, argument: tuple[Model, Array]):
        model, x = argument

        def gradient(pair):
            value, found = jax.value_and_grad(
                lambda model: jnp.mean(bounds(model, x, key, settings.num_samples, pair))
            )(model)
            parts = (jnp.stack(list(part.values())) for part in found)
            return value, *parts

        found = {name: gradient(pair) for name, pair in PAIRS.items()}
        phi = {name: phi for name, (_, phi, _) in found.items()}
        theta = {name: theta for name, (_, _, theta) in found.items()}
        for part in (phi, theta):
            part["difference"] = part["DReGs + GDReGs"] - part["naive"]
            part["difference of STL"] = part["STL"] - part["naive"]
        return {"phi": phi, "theta": theta, "bound": found["naive"][0]}

    return draw


def measure(settings: Settings, model: Model, progress: Callable[[int], Any]) -> dict[int, Moments]:
    """The moments at every T; `progress` is called with the cost of what is done."""
    results = {}
    for length in settings.lengths:
        measurement = compile_measurement(make_draw(settings), num_draws=settings.num_draws(length))
        key = jax.random.fold_in(jax.random.key(settings.seed + 2), length)
        argument = (model, make_data(settings, length))
        results[length] = measurement.run(
            key, argument, settings.num_groups, progress, _cost(settings, length)
        )
    return results


def _cost(settings: Settings, length: int) -> int:
    """Of a group, in steps of draws; compilation weighs as much as some."""
    return settings.num_draws(length) * length + 1000


def total_cost(settings: Settings) -> int:
    """What `progress` adds up to."""
    return settings.num_groups * sum(_cost(settings, length) for length in settings.lengths)


def run(settings: Settings, progress: Callable[[int], Any] = lambda cost: None) -> Result:
    """Train, measure and judge."""
    model = train(settings)
    results = measure(settings, model, progress)
    ratios = {
        part: {
            name: variance_ratio(results, name, "naive", pick=lambda tree, part=part: tree[part])
            for name in PAIRS
            if name != "naive"
        }
        for part in ("phi", "theta")
    }
    snrs = {part: {name: _snr(results, part, name) for name in PAIRS} for part in ratios}
    bound = {
        length: jackknife(
            lambda groups, values=moments.mean["bound"]: float(values[groups].mean()),
            settings.num_groups,
        )
        for length, moments in results.items()
    }
    numbers = {
        "parameters": jax.tree.map(float, model._asdict()),
        "draws": {
            str(length): settings.num_groups * settings.num_draws(length)
            for length in settings.lengths
        },
        "variance_over_naive": table(ratios),
        "snr": table(snrs),
        "bound_a_step": table(bound),
    }
    claims = judge(settings, results, ratios)
    return Result(settings, numbers, claims, {"sequences": plot(settings, ratios, snrs)})


def _snr(results: dict[int, Moments], part: str, name: str) -> dict[int, Measured]:
    """The mean over parameters of |mean| / standard deviation, by T."""

    def at(moments: Moments) -> Measured:
        mean, variance = moments.mean[part][name], moments.variance[part][name]

        def of(groups: np.ndarray) -> float:
            deviation = np.sqrt(variance[groups].mean(0))
            return float(np.mean(np.abs(mean[groups].mean(0)) / deviation))

        return jackknife(of, len(mean))

    return {length: at(moments) for length, moments in results.items()}


def judge(settings: Settings, results: dict[int, Moments], ratios: Any) -> list[Claim]:
    """What the formulas promise of a graph of T latents."""
    claims = []
    symbols = {"phi": "φ", "theta": "θ"}
    for part, symbol in symbols.items():
        largest = largest_z_score(results, "difference", pick=lambda tree, part=part: tree[part])
        size = len(settings.lengths) * {"phi": 3, "theta": 2}[part]
        claims.append(
            no_outlier(
                SOURCE,
                f"DReGs + GDReGs has the mean of the naive gradient by {symbol} at every T",
                f"largest z-score of {size}",
                largest,
                largest_by_chance(size, 1e-3),
            )
        )
        for length in (settings.lengths[0], settings.lengths[-1]):
            claims.append(
                at_most(
                    SOURCE,
                    f"DReGs + GDReGs has less variance by {symbol} than naive, T = {length}",
                    f"ratio of the variances, K = {settings.num_samples}",
                    ratios[part]["DReGs + GDReGs"][length],
                    1.0,
                )
            )
    return claims


@styled
def plot(settings: Settings, ratios: Any, snrs: Any) -> Any:
    """Variance relative to naive, and SNR, against T."""
    figure, axes = new_figure(2, 2)
    for row, (part, symbol) in enumerate((("phi", r"$\phi$"), ("theta", r"$\theta$"))):
        for number, name in enumerate(PAIRS):
            if name in ratios[part]:
                _draw(axes[row][0], number, ratios[part][name], name)
            _draw(axes[row][1], number, snrs[part][name], name)
        axes[row][0].axhline(1, color="black", linewidth=0.8)
        axes[row][0].set(xscale="log", yscale="log", ylabel=f"variance of {symbol} / naive's")
        axes[row][1].set(xscale="log", yscale="log", ylabel=f"SNR of {symbol}")
        axes[row][1].legend()
    for column in axes[1]:
        column.set(xlabel="length T")
    figure.suptitle(f"State-space model, K = {settings.num_samples}")
    return figure


def _draw(axes: Any, number: int, values: dict[int, Measured], name: str) -> None:
    lengths = list(values)
    line(
        axes,
        number,
        lengths,
        [value.value for value in values.values()],
        name,
        [value.error for value in values.values()],
    )
