r"""The poster's simple Gaussian system (Rainforth et al., 2018; Tucker et al., 2019).

$z \sim \mathcal N(\theta, I)$, $x|z \sim \mathcal N(z, I)$,
$q(z|x) = \mathcal N(Ax + b, \tfrac23 I)$, D = 20, 1,024 data points, parameters near their
optimum. Bias, variance and SNR of the gradient by $\phi = \{A, b\}$ of the bound, averaged over all
data points, against the number of importance samples K.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray

import gdregs
from gdregs.papers.experiments.drawn import DrawnNormal
from gdregs.papers.experiments.toy_claims import DIFFERENCES, judge, plot
from gdregs.papers.measures.curves import relative_bias, summarise, table
from gdregs.papers.measures.measure import Measured, Moments, compile_measurement, jackknife
from gdregs.papers.measures.results import Result

TITLE = "Simple Gaussian system"
FIGURES = ("toy",)

ESTIMATORS = {
    "IWAE": (gdregs.IWAE(), "naive"),
    "STL": (gdregs.IWAE(), "stl"),
    "IWAE-DReGs": (gdregs.IWAE(), "dregs"),
    "RWS": (gdregs.IWAE(), "rws"),
    "RWS-DReGs": (gdregs.IWAE(), "rws-dregs"),
    "JVI": (gdregs.JVI(), "naive"),
    "JVI-DReGs": (gdregs.JVI(), "dregs"),
    "K ELBOs": (gdregs.ELBO(), "naive"),
}
"""Objective and posterior estimator by name."""

SIGNALS = {name: name for name in ESTIMATORS} | {
    "IWAE": "IWAE-DReGs",
    "RWS": "RWS-DReGs",
    "JVI": "JVI-DReGs",
}
"""For each estimator, the one of the same expectation whose mean is known best."""

FROM_TWO = ("RWS", "RWS-DReGs", "JVI", "JVI-DReGs")
"""These start at K = 2: at K = 1 JVI is IWAE, and the expectation of RWS is 0."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the experiment's numbers.

    Attributes:
        seed: Of the data, the perturbation and the draws.
        dim: D.
        num_data: Data points.
        perturbation: Standard deviation of the noise on the optimal parameters.
        sizes: The values of K.
        first_fitted: Slopes are fitted from this K on.
        num_groups: Independent groups of draws, from which standard errors come.
        budget: Draws in a group times K; but at least 2 draws and at most 200.
    """

    seed: int = 0
    dim: int = 20
    num_data: int = 1024
    perturbation: float = 0.01
    sizes: tuple[int, ...] = (1, 2, 4, 10, 32, 100, 316, 1000, 3162)
    first_fitted: int = 32
    num_groups: int = 12
    budget: int = 3000

    def num_draws(self, num_samples: int) -> int:
        """Draws in a group at this K."""
        return int(np.clip(self.budget // num_samples, 2, 200))


def quick(settings: Settings) -> Settings:
    """Small enough for seconds; what it measures decides little."""
    return dataclasses.replace(
        settings, num_data=64, sizes=(1, 4, 16), first_fitted=4, num_groups=4, budget=64
    )


class Problem(NamedTuple):
    """Data and parameters.

    Attributes:
        x: `[N, D]`.
        theta: The prior's mean, at its optimum, `[D]`.
        weight: A, `[D, D]`.
        bias: b, `[D]`.
    """

    x: Float[Array, "N D"]
    theta: Float[Array, " D"]
    weight: Float[Array, "D D"]
    bias: Float[Array, " D"]


def make_problem(settings: Settings) -> Problem:
    """Data of a random prior mean, and the optimal parameters with a little noise."""
    keys = jax.random.split(jax.random.key(settings.seed), 4)
    shape = (settings.num_data, settings.dim)
    truth = jax.random.normal(keys[0], shape[1:])
    x = truth[None] + 2**0.5 * jax.random.normal(keys[1], shape)  # x ~ N(theta, 2I)
    theta = jnp.mean(x, axis=0)
    # The exact posterior is N((x + theta) / 2, I / 2).
    noise = settings.perturbation
    weight = 0.5 * jnp.eye(settings.dim) + noise * jax.random.normal(keys[2], (shape[1],) * 2)
    bias = 0.5 * theta + noise * jax.random.normal(keys[3], shape[1:])
    return Problem(x, theta, weight, bias)


def make_draw(num_samples: int, block_size: int = 16):
    r"""One draw of every estimator's gradient by the means $\mu_n = Ax_n + b$, `[N, D]` each.

    All of $\phi$ acts through these means, and data points have independent samples: the moments
    of the gradient by A and b follow from those of every data point (`to_parameters`), so that
    each draw of all data counts as N draws. All estimators see the same samples. The bound itself
    is there too, averaged over data.
    """

    def block(problem, inputs):
        loc, x, key = inputs
        noise = jax.random.normal(key, (num_samples, *x.shape))
        scale = jnp.full(x.shape, (2 / 3) ** 0.5)
        prior = dist.Normal(problem.theta[None, None], 1.0).to_event(1)

        def total(loc, objective, estimator):
            bound = gdregs.bound(
                DrawnNormal(loc, scale, noise),
                prior,
                lambda z: dist.Normal(z, 1.0).to_event(1).log_prob(x[None]),
                key=key,
                num_samples=num_samples,
                objective=objective,
                posterior_estimator=estimator,
                prior_estimator="naive",
            )
            return jnp.sum(bound)

        gradients = {
            name: jax.grad(total)(loc, objective, estimator)
            for name, (objective, estimator) in ESTIMATORS.items()
        }
        return gradients, total(loc, gdregs.IWAE(), "dregs")

    def draw(key: PRNGKeyArray, problem: Problem):
        num_data, dim = problem.x.shape
        loc = problem.x @ problem.weight.T + problem.bias[None]
        split = (-1, min(block_size, num_data), dim)
        inputs = loc.reshape(split), problem.x.reshape(split)
        keys = jax.random.split(key, inputs[0].shape[0])
        gradients, bounds = jax.lax.map(functools.partial(block, problem), (*inputs, keys))
        gradients = jax.tree.map(lambda leaf: leaf.reshape(num_data, dim), gradients)
        differences = {
            f"{one} - {other}": gradients[one] - gradients[other] for one, other in DIFFERENCES
        }
        return {**gradients, **differences}, jnp.sum(bounds) / num_data

    return draw


def to_parameters(problem: Problem, mean, variance):
    r"""Moments of the gradient by (A, b) from those of the gradients by the means $\mu_n$.

    $\nabla_A = \frac1N \sum_n \nabla_{\mu_n} x_n^\top$, and data points are independent.
    """
    num_data = problem.x.shape[0]
    inputs = jnp.concatenate([problem.x, jnp.ones((num_data, 1))], axis=1)
    means, bound = mean
    variances, bound_variance = variance
    means = {name: leaf.T @ inputs / num_data for name, leaf in means.items()}
    variances = {name: leaf.T @ inputs**2 / num_data**2 for name, leaf in variances.items()}
    return (means, bound), (variances, bound_variance)


def measure(settings: Settings, progress: Callable[[int], Any]) -> dict[int, Moments]:
    """The moments at every K; `progress` is called with the cost of what is done."""
    problem = make_problem(settings)

    def reduce(mean, variance):
        return to_parameters(problem, mean, variance)

    results = {}
    for num_samples in settings.sizes:
        measurement = compile_measurement(
            make_draw(num_samples), num_draws=settings.num_draws(num_samples), reduce=reduce
        )
        key = jax.random.fold_in(jax.random.key(settings.seed + 1), num_samples)
        results[num_samples] = measurement.run(
            key, problem, settings.num_groups, progress, _cost(settings, num_samples)
        )
    return results


def _cost(settings: Settings, num_samples: int) -> int:
    """Of a group, in importance samples of a data point; compilation weighs as much as some."""
    return settings.num_draws(num_samples) * num_samples + 300


def total_cost(settings: Settings) -> int:
    """What `progress` adds up to."""
    return settings.num_groups * sum(_cost(settings, size) for size in settings.sizes)


def run(settings: Settings, progress: Callable[[int], Any] = lambda cost: None) -> Result:
    """Measure and judge."""
    results = measure(settings, progress)
    gradients = {
        size: moments._replace(mean=moments.mean[0], variance=moments.variance[0])
        for size, moments in results.items()
    }
    bounds = {size: moments.mean[1] for size, moments in results.items()}
    curves = summarise(
        gradients, SIGNALS, first_fitted=settings.first_fitted, least=dict.fromkeys(FROM_TWO, 2)
    )
    several = {size: moments for size, moments in gradients.items() if size > 1}
    bias = {one: relative_bias(several, f"{one} - {other}", other) for one, other in DIFFERENCES}
    return Result(
        settings,
        {
            "draws": {
                str(size): settings.num_groups * settings.num_draws(size) for size in settings.sizes
            },
            "curves": table(curves),
            "squared_relative_bias": table(bias),
            "bound": table({size: _mean(values) for size, values in bounds.items()}),
        },
        judge(settings, gradients, bounds, curves, bias),
        {"toy": plot(settings, curves, bias)},
    )


def _mean(values: np.ndarray) -> Measured:
    return jackknife(lambda groups: float(values[groups].mean()), len(values))
