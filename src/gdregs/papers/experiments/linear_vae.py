r"""The 2-layer linear VAE of Sec. 5.1, App. G.1 and Fig. 4.

Trained to convergence by stochastic gradients of the IWAE bound; then variance and SNR of the
gradients by $\phi$ (IWAE, STL, DReGs) and $\theta$ (IWAE, GDReGs) of the bound averaged over all
data, against K, and the bias that comes of dropping the indirect score functions (Sec. 3). The same
once more at the parameters that generated the data, with their exact posterior and a little noise.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from gdregs.papers.experiments.linear_claims import find, judge, only, plot, plot_bias
from gdregs.papers.experiments.linear_model import (
    LinearGaussian,
    LinearVAE,
    Trained,
    initial_model,
    make_data,
    make_training,
)
from gdregs.papers.measures.curves import table, variance_ratio
from gdregs.papers.measures.measure import Measured, Moments, compile_measurement
from gdregs.papers.measures.results import Result

TITLE = "2-layer linear VAE"
FIGURES = ("linear-vae", "linear-vae-generating", "indirect-scores")

PAIRS = {
    "IWAE": ("naive", "naive", "keep"),
    "STL": ("stl", "naive", "keep"),
    "DReGs": ("dregs", "gdregs", "keep"),
    "drop": ("dregs", "gdregs", "drop"),
}
"""Posterior estimator, prior estimator, and what becomes of indirect score functions."""

BLOCK = 16


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the experiment's numbers.

    Attributes:
        seed: Of the data, the initial parameters, the training and the draws.
        dim: D.
        num_data: Data points.
        training_samples: K during training, which the paper does not give. It is small because
            with a larger one the importance weights of the trained model have heavy tails (the
            largest of 100,000 for any data point: 7, 30, 104, 172 and 521 times their mean after
            training with K = 1, 2, 5, 10 and 32), and then single draws decide the variance.
        learning_rate: Of stochastic gradient ascent.
        rounds: Rounds of training.
        steps: Steps in each; the bound is compared between rounds.
        perturbation: Standard deviation of the noise on the generating parameters.
        sizes: The values of K.
        first_fitted: Slopes are fitted from this K on.
        num_groups: Independent groups of draws, from which standard errors come.
        budget: Draws in a group times K; but at least 2 draws and at most 100.
    """

    seed: int = 0
    dim: int = 5
    num_data: int = 512
    training_samples: int = 2
    learning_rate: float = 0.05
    rounds: int = 4
    steps: int = 1000
    perturbation: float = 0.01
    sizes: tuple[int, ...] = (1, 3, 10, 32, 100, 316, 1000)
    first_fitted: int = 32
    num_groups: int = 10
    budget: int = 1000

    def num_draws(self, num_samples: int) -> int:
        """Draws in a group at this K."""
        return int(np.clip(self.budget // num_samples, 2, 100))


def quick(settings: Settings) -> Settings:
    """Small enough for seconds; what it measures decides little."""
    return dataclasses.replace(
        settings, num_data=64, rounds=2, steps=100, sizes=(1, 4, 16), first_fitted=4,
        num_groups=4, budget=32,
    )  # fmt: skip


def generating_model(settings: Settings) -> LinearVAE:
    """The parameters that made the data and their exact posterior, with a little noise.

    $q(z_1|x) = N(2x/3, 2/3)$ and $q(z_2|z_1) = N(z_1/2, 1/2)$.
    """
    key = jax.random.key(settings.seed + 3)

    def layer(slope: float, variance: float) -> LinearGaussian:
        zeros = jnp.zeros(settings.dim)
        raw = jnp.log(jnp.expm1(variance**0.5))
        eye = jnp.eye(settings.dim)
        return LinearGaussian(slope * eye, zeros, 0 * eye, zeros + raw)

    model = LinearVAE(layer(2 / 3, 2 / 3), layer(1 / 2, 1 / 2), layer(1.0, 1.0))
    leaves, structure = jax.tree.flatten(model)
    keys = jax.random.split(key, len(leaves))
    noise = settings.perturbation
    return structure.unflatten(
        [
            leaf + noise * jax.random.normal(key, leaf.shape)
            for leaf, key in zip(leaves, keys, strict=True)
        ]
    )


def train(
    settings: Settings, x: Float[Array, "N D"], progress: Callable[[int], Any]
) -> tuple[LinearVAE, list[Measured]]:
    """Train to convergence; returns the model and the mean bound of each round."""
    run = make_training(
        x, num_samples=settings.training_samples, learning_rate=settings.learning_rate
    )
    state = Trained(initial_model(settings.seed + 1, settings.dim), None)
    rounds = []
    for number in range(settings.rounds):
        key = jax.random.fold_in(jax.random.key(settings.seed + 2), number)
        state, bounds = run(state, key, settings.steps)
        bounds = np.asarray(bounds, float)
        rounds.append(Measured(float(bounds.mean()), float(bounds.std() / len(bounds) ** 0.5)))
        progress(_training_cost(settings))
    return state.model, rounds


def make_draw(x: Float[Array, "N D"], num_samples: int):
    """One draw of every pair's gradient for every data point, as vectors for phi and theta."""

    def flatten(tree) -> Float[Array, " parameters"]:
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    def one(model, inputs):
        x, key = inputs

        def gradient(pair):
            posterior_estimator, prior_estimator, indirect_scores = pair
            gradients = jax.grad(
                lambda model: model.bound(
                    x,
                    key,
                    num_samples,
                    posterior_estimator=posterior_estimator,
                    prior_estimator=prior_estimator,
                    indirect_scores=indirect_scores,
                )
            )(model)
            return flatten((gradients.phi1, gradients.phi2)), flatten(gradients.theta)

        by_pair = {name: gradient(pair) for name, pair in PAIRS.items()}
        phi = {name: phi for name, (phi, _) in by_pair.items()}
        theta = {
            "IWAE": by_pair["IWAE"][1],
            "GDReGs": by_pair["DReGs"][1],
            "drop": by_pair["drop"][1],
        }
        phi |= {f"{name} - DReGs": phi[name] - phi["DReGs"] for name in ("IWAE", "STL", "drop")}
        theta |= {f"{name} - GDReGs": theta[name] - theta["GDReGs"] for name in ("IWAE", "drop")}
        theta["both"] = (theta["IWAE"] + theta["GDReGs"]) / 2
        return {"phi": phi, "theta": theta}

    def draw(key: PRNGKeyArray, model: LinearVAE):
        # Blocks of data points: what they need at a time stays in the processor's cache.
        keys = jax.random.split(key, x.shape[0]).reshape(-1, BLOCK)
        of_block = jax.vmap(functools.partial(one, model))
        blocks = jax.lax.map(of_block, (x.reshape(-1, BLOCK, x.shape[1]), keys))
        return jax.tree.map(lambda leaf: leaf.reshape(x.shape[0], -1), blocks)

    return draw


def over_data(mean, variance):
    """Moments of the gradient of the mean bound: data points are independent."""
    return (
        jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), mean),
        jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0) / leaf.shape[0], variance),
    )


def measure(
    settings: Settings,
    models: dict[str, LinearVAE],
    x: Array,
    progress: Callable[[int], Any],
) -> dict[str, dict[int, Moments]]:
    """The moments of each model at every K; `progress` is called with the cost of what is done."""
    results: dict[str, dict[int, Moments]] = {name: {} for name in models}
    for num_samples in settings.sizes:
        measurement = compile_measurement(
            make_draw(x, num_samples), num_draws=settings.num_draws(num_samples), reduce=over_data
        )
        key = jax.random.fold_in(jax.random.key(settings.seed + 4), num_samples)
        cost = _cost(settings, num_samples)
        for name, model in models.items():
            results[name][num_samples] = measurement.run(
                key, model, settings.num_groups, progress, cost
            )
    return results


def _cost(settings: Settings, num_samples: int) -> int:
    """Of a group, in draws times K; compilation weighs as much as some."""
    return settings.num_draws(num_samples) * num_samples + 500


def _training_cost(settings: Settings) -> int:
    return settings.steps * settings.training_samples // 2


def total_cost(settings: Settings, num_models: int = 2) -> int:
    """What `progress` adds up to."""
    groups = settings.num_groups * sum(_cost(settings, size) for size in settings.sizes)
    return num_models * groups + settings.rounds * _training_cost(settings)


def run(settings: Settings, progress: Callable[[int], Any] = lambda cost: None) -> Result:
    """Train, measure and judge."""
    x = make_data(settings.seed, settings.num_data, settings.dim)
    model, rounds = train(settings, x, progress)
    first = settings.first_fitted
    models = {"trained": model, "generating": generating_model(settings)}
    results = measure(settings, models, x, progress)
    trained, generating = (find(first, results[name]) for name in models)
    places = {"trained": trained, "generating": generating}
    numbers = {
        "training_bound": table({str(i): bound for i, bound in enumerate(rounds, 1)}),
        "trained_prior": {
            "loc_weight_singular_values": np.linalg.svd(model.theta.loc_weight)[1].tolist(),
            "scale_at_0": jax.nn.softplus(model.theta.scale_bias).tolist(),
        },
        "draws": {
            str(size): settings.num_groups * settings.num_draws(size) for size in settings.sizes
        },
        "curves": {
            name: {"phi": table(place.phi), "theta": table(place.theta)}
            for name, place in places.items()
        },
        "squared_relative_bias": {name: table(place.bias) for name, place in places.items()},
        "variance_ratio_of_gdregs": {
            name: {
                kind: table(variance_ratio(place.results, "GDReGs", "IWAE", pick=only(kind)))
                for kind in ("location", "scale", "all")
            }
            for name, place in places.items()
        },
    }
    drawn = {
        "linear-vae": plot(first, trained),
        "linear-vae-generating": plot(first, generating),
        "indirect-scores": plot_bias(trained, generating),
    }
    return Result(settings, numbers, judge(first, rounds, trained, generating), drawn)
