r"""The default that nobody regrets: how much of which estimator, measured for each parameter.

Naive and doubly reparameterized gradients are both unbiased, entry by entry. So with
$d^q = g^{\mathrm{DReGs}} - g^{\mathrm{naive}}$ for the posterior and $d^p$ alike for the prior,

$$g = g^{\mathrm{naive}} + \beta_i d^q_i + \alpha_i d^p_i$$

is unbiased for strengths $\beta_i$, $\alpha_i$ of each parameter i (each array of them) that were
fixed before the draw. Its variance is a sum over parameters, and for each of them a quadratic
function of two numbers, whose minimum follows from running means over the draws of earlier steps.
What is taken is what leaves the least noise in a given time: variance times work, which is counted.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array, Float, Int, PyTree

from gdregs.evaluation.work import work_of
from gdregs.reexpression.reparameterized import depend
from gdregs.shared.learning import FIRST, MARGINS, PERIOD, SETTLING, STRENGTHS
from gdregs.shared.tables import (
    POSTERIOR_ESTIMATORS,
    PRIOR_ESTIMATORS,
    PosteriorEstimator,
    PosteriorMix,
    PriorEstimator,
)

ValueAndGrad = Callable[[PosteriorMix, PriorEstimator], tuple[Any, PyTree]]


class AutoState(NamedTuple):
    r"""What is known of the variance of each of P parameters, and the strengths for the next draw.

    Attributes:
        strengths: $(\beta_i, \alpha_i)$ of each parameter.
        way: What is worth its time: 0 the naive gradient, 1 one $\beta$ for all, 2 all strengths.
        curvature: Running means of the inner products of $d^q_i$ and $d^p_i$: of each with itself,
            and of the two.
        slope: Running means of their inner products with $g^{\mathrm{naive}}_i - \bar g_i$.
        variance: Running means of $|g^{\mathrm{naive}}_i - \bar g_i|^2$.
        mean: Running mean $\bar g$ of the gradient, a pytree like it.
        count: How many draws have taught.
        step: How many steps there have been.
    """

    strengths: Float[Array, "P 2"]
    way: Int[Array, ""]
    curvature: Float[Array, "P 3"]
    slope: Float[Array, "P 2"]
    variance: Float[Array, " P"]
    mean: PyTree
    count: Float[Array, ""]
    step: Int[Array, ""]


class Auto(eqx.Module):
    r"""An estimator that descends its own variance from the naive end, parameter by parameter.

    Before anything is known it is the naive gradient. Every step takes its strengths from the draws
    of the steps before, so that every step is unbiased. The derivative of the gradient by the two
    strengths *is* $d^q$ and $d^p$, so that one backward pass through the likelihood gives both
    estimators.

    `gdregs.numpyro.SVI` does this by itself.

    Args:
        decay: How slowly old draws are forgotten: about $1/(1 - \mathrm{decay})$ of them count.
        patience: How many draws it takes until what was measured outweighs the naive start.
        prior: Whether the prior's estimator is mixed too; where its distributions have no
            re-expression rule it must stay naive.

    Example:
        >>> import gdregs, jax, numpyro.distributions as dist
        >>> auto = gdregs.Auto()
        >>> def loss(parameters, key, posterior_estimator, prior_estimator):
        ...     posterior = dist.Normal(parameters["q"], 0.5)
        ...     prior = dist.Normal(parameters["p"], 1.0)
        ...     return -gdregs.bound(
        ...         posterior, prior, lambda z: dist.Normal(z, 1.0).log_prob(1.0), key=key,
        ...         num_samples=8, posterior_estimator=posterior_estimator,
        ...         prior_estimator=prior_estimator)
        >>> @jax.jit
        ... def step(parameters, state, key):
        ...     (value, gradient), state = auto.value_and_grad(
        ...         lambda *pair: jax.value_and_grad(loss)(parameters, key, *pair), state)
        ...     return jax.tree.map(lambda p, g: p - 0.1 * g, parameters, gradient), state
        >>> parameters = {"q": 0.0, "p": 0.0}
        >>> state = auto.init(parameters)
        >>> for key in jax.random.split(jax.random.key(0), 100):
        ...     parameters, state = step(parameters, state, key)
        >>> state.strengths.shape  # (beta, alpha) of each parameter
        (2, 2)

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, App. H.2, for
        the prior of two Gaussians and a known optimum.
    """

    decay: float = eqx.field(static=True, default=0.95)
    patience: float = eqx.field(static=True, default=20.0)
    prior: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        if not 0 < self.decay < 1:
            raise ValueError(f"decay must lie between 0 and 1; got {self.decay}.")
        if not self.patience > 0:
            raise ValueError(f"patience must be positive; got {self.patience}.")

    def init(self, gradient: PyTree) -> AutoState:
        """The state before the first draw.

        Args:
            gradient: A pytree with the structure, shapes and dtypes of the gradient, such as the
                parameters themselves.
        """
        gradient = eqx.filter(gradient, eqx.is_inexact_array_like)
        mean = jax.tree.map(
            lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf)), gradient
        )
        dtype = jnp.result_type(float, *jax.tree.leaves(mean))
        count = len(jax.tree.leaves(mean))
        return AutoState(
            jnp.zeros((count, 2), dtype),
            jnp.zeros((), jnp.int32),
            jnp.zeros((count, 3), dtype),
            jnp.zeros((count, 2), dtype),
            jnp.zeros((count,), dtype),
            mean,
            jnp.zeros((), dtype),
            jnp.zeros((), jnp.int32),
        )

    def value_and_grad(
        self, function: ValueAndGrad, state: AutoState
    ) -> tuple[tuple[Any, PyTree], AutoState]:
        """Differentiate with the present strengths, and learn from the draw for the next one.

        Args:
            function: Maps a posterior and a prior estimator to (value, gradient), as
                `jax.value_and_grad` of a loss that hands both on to `gdregs.bound`.
            state: The state.

        Returns:
            What `function` returned, with the mixed gradient, and the next state.
        """
        teaches = (state.step < FIRST) | (state.step % PERIOD == 0)
        state = state._replace(step=state.step + 1)
        ways = (
            lambda state: self._naive(function, state),
            lambda state: self._with_common_strength(function, state),
            lambda state: self._mixed(function, state)[:2],
        )
        counted = [_counted(way, state) for way in ways]
        work = [work for _, work in counted]
        programs = [program for program, _ in counted]
        programs.append(lambda state: self._learn(*self._mixed(function, state), work=work))
        return jax.lax.switch(jnp.where(teaches, len(ways), state.way), programs, state)

    def _naive(self, function, state):
        return function(POSTERIOR_ESTIMATORS["naive"], PRIOR_ESTIMATORS["naive"]), state

    def _with_common_strength(self, function, state):
        r"""One $\beta$ for all parameters is one share of the cotangent, and so one path."""
        used = state.strengths[:, 0] != 0
        beta = jnp.sum(state.strengths[:, 0]) / jnp.maximum(jnp.sum(used), 1)
        posterior = PosteriorEstimator(density=1 - beta, constant=1 - beta, slope=beta)
        return function(posterior, PRIOR_ESTIMATORS["naive"]), state

    def _mixed(self, function: ValueAndGrad, state: AutoState) -> Any:
        """The value and the mixed gradient, the state, and the naive gradient and differences."""

        def gradient_of(beta, alpha):
            prior = PriorEstimator(alpha if self.prior else 0)
            value, gradient = function(PosteriorMix(beta), prior)
            return gradient, value

        zero, one = jnp.zeros(()), jnp.ones(())
        naive, derivative, value = jax.linearize(gradient_of, zero, zero, has_aux=True)
        leaves, structure = jax.tree.flatten(naive)
        differences = [
            _differences(lambda by: derivative(by, zero), one),
            _differences(lambda by: derivative(zero, by), one),
        ]
        pairs = list(zip(*differences, strict=True))
        mixed = [
            sum(
                (
                    strength.astype(leaf.dtype) * difference
                    for strength, difference in zip(strengths, pair, strict=True)
                    if difference is not None
                ),
                leaf,
            )
            for leaf, pair, strengths in zip(leaves, pairs, state.strengths, strict=True)
        ]
        return (value, structure.unflatten(mixed)), state, leaves, pairs

    def _learn(self, result, state, naive, pairs, work) -> Any:
        """What the draw of a step says about the strengths of the next one."""
        naive, pairs, mixed = jax.lax.stop_gradient((naive, pairs, jax.tree.leaves(result[1])))
        means, structure = jax.tree.flatten(state.mean)
        dtype = state.slope.dtype

        def inner_products(leaf, mean, pair):
            noise = leaf - mean
            by_q, by_p = pair
            products = ((by_q, by_q), (by_p, by_p), (by_q, by_p), (by_q, noise), (by_p, noise))
            return jnp.stack([_dot(*one) for one in (*products, (noise, noise))]).astype(dtype)

        new = jnp.stack(list(map(inner_products, naive, means, pairs)))
        finite = jnp.all(jnp.isfinite(new))
        count = state.count + 1
        known = jnp.maximum(count - SETTLING, 0)

        def follow(old, new, number):
            """A plain mean of the first draws, an exponential one later."""
            weight = jnp.maximum(1 / jnp.maximum(number, 1), 1 - self.decay)
            weight = jnp.where(finite & (number > 0), weight, 0).astype(old.dtype)
            return old + jnp.where(weight > 0, weight * (new - old), 0)

        mean = [
            follow(mean, leaf, count) if any(one is not None for one in pair) else mean
            for mean, leaf, pair in zip(means, mixed, pairs, strict=True)
        ]
        old = jnp.concatenate([state.curvature, state.slope, state.variance[:, None]], axis=1)
        moments = follow(old, new, known)
        curvature, slope, variance = moments[:, :3], moments[:, 3:5], moments[:, 5]
        trust = 1 - jnp.exp(-known / self.patience)
        strengths, way = _best(curvature, slope, variance, jnp.array(work, dtype))
        mean = structure.unflatten(mean)
        state = AutoState(
            trust * strengths, way, curvature, slope, variance, mean, count, state.step
        )
        return result, state


def _counted(way: Callable[[AutoState], Any], state: AutoState) -> tuple[Callable, float]:
    """A way as it was traced, once, and its work."""
    program, shapes = jax.make_jaxpr(way, return_shape=True)(state)
    structure = jax.tree.structure(shapes)

    def run(state: AutoState) -> Any:
        return structure.unflatten(jaxpr_as_fun(program)(*jax.tree.leaves(state)))

    return run, work_of(program)


def _differences(derivative: Callable[[Array], PyTree], one: Array) -> list[Array | None]:
    """The leaves of a derivative; None for those that are 0 whatever the draw."""
    return [
        leaf if depends else None
        for leaf, depends in zip(
            jax.tree.leaves(derivative(one)), depend(derivative, one), strict=True
        )
    ]


def _dot(one: Array | None, other: Array | None) -> Array:
    return jnp.zeros(()) if one is None or other is None else jnp.sum(one * other)


def _best(
    curvature: Float[Array, "P 3"],
    slope: Float[Array, "P 2"],
    variance: Float[Array, " P"],
    work: Float[Array, "3"],
) -> tuple[Float[Array, "P 2"], Int[Array, ""]]:
    """The strengths of the way with the least product of variance and work, and which that is.

    The noise of a given time is that product: with half of the work there are twice as many draws.
    Each parameter's variance is a quadratic function of its two strengths, written here in units
    of the sizes of the two differences.
    """
    size = jnp.sqrt(curvature[:, :2])
    exists = size > 0
    size = jnp.where(exists, size, 1)
    slopes = jnp.where(exists, slope / size, 0)
    cosine = jnp.where(jnp.all(exists, axis=1), curvature[:, 2] / (size[:, 0] * size[:, 1]), 0)
    cosine, ridge = cosine[:, None], 1 + 1e-3
    own = (cosine * jnp.flip(slopes, axis=1) - ridge * slopes) / (ridge**2 - cosine**2) / size
    whole = jnp.sum(curvature[:, 0])
    common = -jnp.sum(slope[:, 0]) / jnp.where(whole > 0, whole, 1)
    common = jnp.stack([jnp.full_like(cosine[:, 0], common), jnp.zeros_like(cosine[:, 0])], axis=1)

    def usable(strengths):
        strengths = jnp.where(exists & jnp.isfinite(strengths), strengths, 0)
        return jnp.clip(strengths, *STRENGTHS)

    choices = jnp.stack([jnp.zeros_like(own), usable(common), usable(own)])
    scaled = choices * size[None]
    changes = scaled**2 + 2 * slopes[None] * scaled
    changes = jnp.sum(changes, axis=2) + 2 * cosine[:, 0][None] * scaled[..., 0] * scaled[..., 1]
    noise = work * (jnp.sum(variance) + jnp.sum(changes, axis=1))
    way = jnp.where(noise[1] < (1 - MARGINS[0]) * noise[0], 1, 0)
    way = jnp.where(noise[2] < (1 - MARGINS[1]) * noise[way], 2, way)
    return choices[way], way.astype(jnp.int32)
