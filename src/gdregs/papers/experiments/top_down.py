r"""A linear VAE with a posterior that is top-down too: App. C.4 and the end of App. H.2.

$z_2 \to z_1 \to x$ for the prior and $x, z_2 \to z_1$ for the posterior: no latent is the parent of
another one in one of them and its child in the other, so that what App. C.4 calls possible in
principle can be done. **Indirect scores, reparameterized.** By $\phi_2$, the parameters of
$q(z_2)$, DReGs (C.11) is

$$
\sum_k \tilde w_k^2 \left[ \partial_{z_2} \log w_k
+ \partial_{z_1} \log w_k \, \frac{\partial z_1}{\partial z_2} \right] \nabla_{\phi_2} z_2 ,
$$

and the first term has the indirect scores $\partial_{z_2} \log p(z_1|z_2) - \partial_{z_2} \log
q(z_1|z_2)$. Both are score functions with the factor $g = \tilde w_k^2$, whose derivative is
(C.17): $\partial_{z_1} \tilde w_k^2 = 2 (\tilde w_k^2 - \tilde w_k^3) \partial_{z_1} \log w_k$. By
the identity of DReGs the score of q becomes $\partial_{z_1} g$ along the path of q, and by that of
GDReGs (13) the score of p becomes $\partial_{z_1} g + g \, \partial_{z_1} \log (q / p)$ along the
path of p at the same value. $z_1$ has no children, so that no further scores come of it:

$$
\sum_k \left[ \tilde w_k^2 \, \partial_{z_2} \log \frac{p(z_2)}{q(z_2)}
+ (2 \tilde w_k^3 - \tilde w_k^2) \, u_k \frac{\partial z_1^q}{\partial z_2}
+ \Big( 2 (\tilde w_k^2 - \tilde w_k^3) u_k
+ \tilde w_k^2 \, \partial_{z_1} \log \frac{q(z_1|z_2)}{p(z_1|z_2)} \Big)
\frac{\partial z_1^p}{\partial z_2} \right] \nabla_{\phi_2} z_2 , \qquad
u_k = \partial_{z_1} \log w_k .
$$

**The optimal mix, layer by layer.** Given $z_2$ the lowest layer is a pair of Gaussians, so that
with $\alpha = \sigma_q^2 / \sigma_p^2$ (H.15) the gradient of the cross-entropy by the mean of
$p(z_1|z_2)$ is a function of $z_2$ alone; in the layer above the same formula leaves noise.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.tree_util import Partial
from jaxtyping import Array, PRNGKeyArray

import gdregs
from gdregs.identities import negative_cross_entropy
from gdregs.papers.measures import claims, figures
from gdregs.papers.measures.claims import Claim
from gdregs.papers.measures.curves import largest_z_score, table, variance_ratio
from gdregs.papers.measures.measure import Measured, Moments, compile_measurement
from gdregs.papers.measures.results import Result
from gdregs.shared.statistics import largest_by_chance

TITLE = "Linear VAE with a top-down posterior"
FIGURES = ("top-down",)

Parameters = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the experiment's numbers.

    Attributes:
        seed: Of the parameters, the data and the draws.
        dim: Numbers of each latent.
        sizes: The values of K.
        num_groups: Groups of draws.
        num_draws: Draws in each.
    """

    seed: int = 0
    dim: int = 5
    sizes: tuple[int, ...] = (1, 3, 10, 30, 100)
    num_groups: int = 20
    num_draws: int = 5_000


def quick(settings: Settings) -> Settings:
    """Small enough for seconds; what it measures decides little."""
    return dataclasses.replace(settings, sizes=(1, 3), num_groups=4, num_draws=500)


def total_cost(settings: Settings) -> int:
    """What `progress` adds up to."""
    return settings.num_groups * (sum(settings.sizes) + 1)


def make_parameters(key: PRNGKeyArray, dim: int) -> tuple[Parameters, Parameters, Array]:
    """Of posterior and prior, not far from each other, and one datapoint."""
    keys = jax.random.split(key, 5)
    near = [0.3 * jax.random.normal(one, (dim,)) for one in keys]
    phi = {
        "loc2": near[0], "log_scale2": jnp.full(dim, -0.2),
        "slope1": 0.6 + 0.3 * near[1], "loc1": near[2], "log_scale1": jnp.full(dim, -0.5),
    }  # fmt: skip
    theta = {"loc2": jnp.zeros(dim), "slope1": jnp.ones(dim), "loc1": near[3]}
    return phi, theta, near[4]


def make_parts(phi: Parameters, theta: Parameters, x: Array) -> tuple[Any, Any, Any]:
    """Posterior, prior and likelihood."""

    def normal(loc, scale):
        return dist.Normal(loc, scale).to_event(1)

    def lower(parameters, scale, z2):
        return normal(parameters["loc1"] + parameters["slope1"] * z2, scale)

    scale1 = jnp.exp(phi["log_scale1"])
    posterior = gdregs.Hierarchy(
        {
            "z2": (normal(phi["loc2"], jnp.exp(phi["log_scale2"])), ()),
            "z1": (Partial(lower, phi, scale1), ("z2",)),
        }
    )
    prior = gdregs.Hierarchy(
        {
            "z2": (normal(theta["loc2"], 1.0), ()),
            "z1": (Partial(lower, theta, 1.0), ("z2",)),
        }
    )
    return posterior, prior, lambda z: normal(z["z1"], 1.0).log_prob(x)


def _log_normal(z: Array, loc: Array, scale: Any) -> Array:
    return dist.Normal(loc, scale).to_event(1).log_prob(z)


def reparameterized_scores(
    phi: Parameters, theta: Parameters, x: Array, noise: Parameters
) -> Parameters:
    """The gradient by q(z2) in which every score has become a path, indirect ones too (C.4).

    Args:
        phi: Of the posterior.
        theta: Of the prior.
        x: The datapoint.
        noise: Standard normal numbers of both latents, `[K, dim]`.
    """
    stop = jax.lax.stop_gradient
    scale1 = jnp.exp(phi["log_scale1"])

    def log_p1(z1, z2):
        return _log_normal(z1, theta["loc1"] + theta["slope1"] * z2, 1.0)

    def log_q1(z1, z2):
        return _log_normal(z1, phi["loc1"] + phi["slope1"] * z2, scale1)

    def log_upper(z2):
        q = _log_normal(z2, phi["loc2"], jnp.exp(phi["log_scale2"]))
        return _log_normal(z2, theta["loc2"], 1.0) - q

    def path1(z2):
        return phi["loc1"] + phi["slope1"] * z2 + scale1 * noise["z1"]

    z2 = phi["loc2"] + jnp.exp(phi["log_scale2"]) * noise["z2"]
    z1 = path1(z2)

    def log_weight(z1, z2):
        return _log_normal(x, z1, 1.0) + log_p1(z1, z2) - log_q1(z1, z2) + log_upper(z2)

    w = jax.nn.softmax(log_weight(z1, z2))[:, None]
    u = jax.grad(lambda z: jnp.sum(log_weight(z, z2)))(z1)
    log_ratio = jax.grad(lambda z: jnp.sum(log_q1(z, z2) - log_p1(z, z2)))(z1)
    along_q = (2 * w**3 - w**2) * u
    along_p = 2 * (w**2 - w**3) * u + w**2 * log_ratio
    fixed = z1 - theta["loc1"] - theta["slope1"] * z2  # p's noise, of scale 1

    def surrogate(upper):
        moved = upper["loc2"] + jnp.exp(upper["log_scale2"]) * noise["z2"]
        prior_path = theta["loc1"] + theta["slope1"] * moved + stop(fixed)
        terms = jnp.sum(w[:, 0] ** 2 * log_upper(moved))
        return terms + jnp.sum(along_q * path1(moved)) + jnp.sum(along_p * prior_path)

    return jax.grad(surrogate)({name: phi[name] for name in ("loc2", "log_scale2")})


def draw_by(size: int) -> Callable[[PRNGKeyArray, Any], Any]:
    """One draw of each estimator of the gradient by q(z2), from the same noise."""

    def draw(key, parameters):
        phi, theta, x = parameters

        def gradient(estimator):
            def value(phi):
                posterior, prior, likelihood = make_parts(phi, theta, x)
                return gdregs.bound(
                    posterior, prior, likelihood, key=key, num_samples=size,
                    posterior_estimator=estimator, prior_estimator="naive",
                )  # fmt: skip

            return _flat(jax.grad(value)(phi))

        z = make_parts(phi, theta, x)[0].sample(key, (size,))
        noise = {
            "z2": (z["z2"] - phi["loc2"]) / jnp.exp(phi["log_scale2"]),
            "z1": (z["z1"] - phi["loc1"] - phi["slope1"] * z["z2"]) / jnp.exp(phi["log_scale1"]),
        }
        draws = {
            "naive": gradient("naive"),
            "DReGs": gradient("dregs"),
            "reparameterized": _flat(reparameterized_scores(phi, theta, x, noise)),
        }
        return {**draws, "difference": draws["reparameterized"] - draws["DReGs"]}

    return draw


def _flat(gradient: Parameters) -> Array:
    """The part by the parameters of q(z2)."""
    return jnp.concatenate([gradient["loc2"], gradient["log_scale2"]])


def draw_mix(key: PRNGKeyArray, parameters: Any) -> Any:
    """By layer, gradients of the cross-entropy by the means of the prior.

    `apart` is what the mix of the lowest layer has beyond a function of z2.
    """
    phi, theta, x = parameters
    best = {
        "z1": jnp.mean(jnp.exp(2 * phi["log_scale1"])),  # (H.15); the prior's scales are 1
        "z2": jnp.mean(jnp.exp(2 * phi["log_scale2"])),
    }
    z2 = make_parts(phi, theta, x)[0].sample(key, (1,))["z2"][0]

    def gradient(strengths):
        def value(theta):
            posterior, prior, _ = make_parts(phi, theta, x)
            return negative_cross_entropy(
                posterior, prior, key=key, num_samples=1,
                prior_estimator=gdregs.mixed_gdregs(strengths),
            )  # fmt: skip

        found = jax.grad(value)(theta)
        return {"z1": found["loc1"], "z2": found["loc2"]}

    of_z2 = phi["loc1"] + phi["slope1"] * z2 - theta["loc1"] - theta["slope1"] * z2
    estimators = {
        "naive": gradient({"z1": jnp.zeros(()), "z2": jnp.zeros(())}),
        "GDReGs": gradient({"z1": jnp.ones(()), "z2": jnp.ones(())}),
        "mix": gradient(best),
    }
    layers = {
        layer: {name: found[layer] for name, found in estimators.items()} for layer in ("z1", "z2")
    }
    layers["z1"]["apart"] = layers["z1"]["mix"] - of_z2
    return layers


def run(settings: Settings, progress: Callable[[int], Any] = lambda cost: None) -> Result:
    """Measure and judge."""
    key = jax.random.key(settings.seed)
    parameters = make_parameters(jax.random.fold_in(key, 1), settings.dim)
    found = {}
    for size in settings.sizes:
        measurement = compile_measurement(
            draw_by(size), num_draws=settings.num_draws, chunk_size=max(1, 2000 // size)
        )
        found[size] = measurement.run(key, parameters, settings.num_groups, progress, size)
    mixing = compile_measurement(draw_mix, num_draws=settings.num_draws, chunk_size=1000)
    mixed = mixing.run(jax.random.fold_in(key, 2), parameters, settings.num_groups, progress)
    ratios = {name: variance_ratio(found, name, "naive") for name in ("DReGs", "reparameterized")}
    against = variance_ratio(found, "reparameterized", "DReGs")
    mixes = {layer: mix_ratio(mixed, layer) for layer in ("z1", "z2")}
    numbers = {
        "draws": settings.num_groups * settings.num_draws,
        "variance_over_naive": table(ratios),
        "reparameterized_over_dregs": table(against),
        "mix_over_better": table(mixes),
    }
    judged = judge(found, mixed, against, mixes)
    return Result(settings, numbers, judged, {"top-down": plot(ratios)})


def mix_ratio(moments: Moments, layer: str) -> Measured:
    """The variance of the mix over that of the better of the two."""

    def over(other):
        return variance_ratio({1: moments}, "mix", other, pick=lambda tree: tree[layer])[1]

    return max(over("naive"), over("GDReGs"))


def judge(
    found: dict[int, Moments],
    mixed: Moments,
    against: dict[int, Measured],
    mixes: dict[str, Measured],
) -> list[Claim]:
    """App. C.4 and H.2."""
    several = {size: moments for size, moments in found.items() if size > 1}
    count = sum(moments.mean["difference"].shape[-1] for moments in several.values())
    most = max(against, key=lambda size: against[size].value)
    lowest = mixed.variance["z1"]
    ranges = ", ".join(f"K = {size}: {value}" for size, value in against.items())
    return [
        claims.no_outlier(
            "App. C.4",
            "Where posterior and prior are both top-down, the indirect scores can be doubly"
            " reparameterized: the gradient by q(z2) stays unbiased.",
            "largest mean difference from DReGs:",
            largest_z_score(several, "difference"),
            largest_by_chance(count),
        ),
        claims.at_most(
            "App. C.4",
            "(Not the paper's: that would lower the variance, too.)",
            f"largest ratio to the variance of DReGs, at K = {most}:",
            against[most],
            1.0,
            f"{ranges}. The paper leaves the indirect scores because the estimator depends on the"
            " structure of the model.",
        ),
        claims.at_most(
            "App. H.2",
            "In the lowest layer the optimal mix of two Gaussians holds: given the layer above, the"
            " gradient by the mean has no variance left.",
            "variance of its distance from a function of z2, over the naive variance:",
            Measured(float(np.max(lowest["apart"]) / np.mean(lowest["naive"])), 0.0),
            1e-9,
            f"With its strength the mix has {mixes['z1']} of the better variance there (what is"
            f" left is that of z2), and {mixes['z2']} in the layer above, where the formula does"
            " not hold.",
        ),
    ]


@figures.styled
def plot(ratios: dict[str, dict[int, Measured]]) -> Any:
    """Variances against K."""
    figure, axes = figures.new_figure(1, width=4.2, height=2.8)
    labels = {"DReGs": "DReGs", "reparameterized": "indirect scores reparameterized too"}
    for number, (name, values) in enumerate(ratios.items()):
        sizes = list(values)
        figures.line(
            axes[0, 0], number, sizes, [values[size].value for size in sizes], labels[name],
            [values[size].error for size in sizes],
        )  # fmt: skip
    axes[0, 0].axhline(1, color="0.4", lw=0.8)
    axes[0, 0].set(title="variance by q(z2), over naive")
    figures.log_axes(axes[0, 0], "importance samples K")
    axes[0, 0].legend()
    return figure
