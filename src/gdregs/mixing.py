r"""Learn how much of GDReGs and how much of the naive estimator to take, layer by layer.

Both are unbiased, so $g_\alpha = g_0 + \sum_l \alpha_l d_l$ with
$d_l = g_l^{\mathrm{GDReGs}} - g_l^{\mathrm{naive}}$ is unbiased for every $\alpha$ that is fixed
before the draw (H.13). Its variance is a quadratic function of $\alpha$ (H.14), whose minimum
$\alpha^* = -\mathrm{E}[d_l \cdot d_m]^{-1} \mathrm{E}[g_0 \cdot d_m]$ is estimated from the draws
of all steps before.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gdregs.estimators import mixed_gdregs
from gdregs.shared.tables import PriorEstimator

ALPHA_RANGE = (-1.0, 2.0)
"""Estimates outside are noise of a few draws, as a rule; the optimum of (H.15) can pass 1."""

ValueAndGrad = Callable[[PriorEstimator], tuple[Any, PyTree]]


class MixState(NamedTuple):
    r"""What is known of the gradient's variance as a function of $\alpha$.

    Attributes:
        alpha: The $\alpha_l$ for the next draw, by latent.
        curvature: Running mean of $d_l \cdot d_m$, `[L, L]`.
        slope: Running mean of $(g_0 - \bar g) \cdot d_l$, `[L]`, both in units of
            $\sum_l |d_l|^2$ of the draw.
        mean: Running mean $\bar g$ of the gradient, a pytree like it.
        count: How many draws have been seen.
    """

    alpha: dict[str, Float[Array, ""]]
    curvature: Float[Array, "L L"]
    slope: Float[Array, " L"]
    mean: PyTree
    count: Float[Array, ""]


class LearnedMix(eqx.Module):
    r"""A prior estimator that descends its own variance: `gdregs-mix` with learned $\alpha_l$.

    Every step takes $\alpha$ from the draws of the steps before it, so that $\alpha$ never depends
    on the draw that it weighs and every step is unbiased. The derivative of the gradient by
    $\alpha_l$ *is* $d_l$, so one backward pass gives both $g_\alpha$ and all $d_l$.

    Args:
        latents: The names of the prior's latents.
        decay: How slowly old draws are forgotten: about $1/(1 - \mathrm{decay})$ of them count.
        start: $\alpha$ before anything is known; 1 is GDReGs, 0 the naive estimator.
        patience: How many draws it takes until the estimate outweighs the start.
        where: Picks the prior's parameters from a gradient. The others do not depend on
            $\alpha$; leaving them out saves their share of the sums.

    Example:
        >>> import gdregs, jax, numpyro.distributions as dist
        >>> learned = gdregs.LearnedMix(("z",))
        >>> def objective(theta, key, prior_estimator):
        ...     prior = gdregs.Hierarchy({"z": (dist.Normal(theta, 2.0), ())})
        ...     posterior = gdregs.Hierarchy({"z": (dist.Normal(0.0, 1.0), ())})
        ...     return gdregs.bound(
        ...         posterior, prior, lambda z: 0 * z["z"], key=key, num_samples=1,
        ...         prior_estimator=prior_estimator,
        ...     )
        >>> def step(state, key):
        ...     gradient_fn = lambda estimator: jax.value_and_grad(objective)(0.0, key, estimator)
        ...     (value, gradient), state = learned.value_and_grad(gradient_fn, state)
        ...     return state, gradient
        >>> keys = jax.random.split(jax.random.key(0), 200)
        >>> state, gradients = jax.lax.scan(step, learned.init(0.0), keys)
        >>> float(state.alpha["z"].round(2))  # (H.15): sigma_q^2 / sigma_p^2
        0.25

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, App. H.2,
        for two Gaussians and a known optimum.
    """

    latents: tuple[str, ...] = eqx.field(static=True)
    decay: float = eqx.field(static=True)
    start: float = eqx.field(static=True)
    patience: float = eqx.field(static=True)
    where: Callable[[PyTree], PyTree] = eqx.field(static=True)

    def __init__(
        self,
        latents: Sequence[str],
        *,
        decay: float = 0.9,
        start: float = 0.5,
        patience: float = 10.0,
        where: Callable[[PyTree], PyTree] = lambda gradient: gradient,
    ):
        if isinstance(latents, str) or not latents or len(set(latents)) != len(latents):
            raise ValueError(f"latents must be different names of latents; got {latents!r}.")
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1; got {decay}.")
        if not patience > 0:
            raise ValueError(f"patience must be positive; got {patience}.")
        self.latents = tuple(latents)
        self.decay = decay
        self.start = start
        self.patience = patience
        self.where = where

    def init(self, gradient: PyTree) -> MixState:
        """The state before the first draw.

        Args:
            gradient: A pytree with the structure, shapes and dtypes of the gradient, such as the
                parameters themselves.
        """
        gradient = eqx.filter(self.where(gradient), eqx.is_inexact_array_like)
        mean = jax.tree.map(
            lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf)), gradient
        )
        dtype = jnp.result_type(float, *jax.tree.leaves(mean))
        size = len(self.latents)
        return MixState(
            {name: jnp.full((), self.start, dtype) for name in self.latents},
            jnp.zeros((size, size), dtype),
            jnp.zeros(size, dtype),
            mean,
            jnp.zeros((), dtype),
        )

    def value_and_grad(
        self, function: ValueAndGrad, state: MixState
    ) -> tuple[tuple[Any, PyTree], MixState]:
        r"""Differentiate with the present $\alpha$, and learn from the draw for the next one.

        Args:
            function: Maps a prior estimator to (value, gradient), as `jax.value_and_grad` of a
                loss that hands the estimator on to `gdregs.bound`.
            state: The state.

        Returns:
            What `function` returned, with the mixed gradient, and the next state.
        """

        def gradient_of(alpha: Float[Array, " L"]):
            mix = dict(zip(self.latents, alpha, strict=True))
            value, gradient = function(mixed_gdregs(mix))
            return self.where(gradient), (value, gradient)

        alpha = jnp.stack([state.alpha[name] for name in self.latents])
        mixed, derivative, result = jax.linearize(gradient_of, alpha, has_aux=True)
        differences = [derivative(direction) for direction in jnp.eye(len(self.latents))]
        return result, self._learn(state, alpha, mixed, differences)

    def _learn(self, state, alpha, gradient, differences) -> MixState:
        gradient, *differences = jax.lax.stop_gradient((gradient, *differences))
        # In units of the draw's own size: variances fall by orders of magnitude during training,
        # and old draws must not outweigh new ones.
        size = sum(_dot(difference, difference) for difference in differences) ** 0.5
        size = jnp.where(size > 0, size, 1)
        centred = jax.tree.map(lambda new, old: (new - old) / size, gradient, state.mean)
        differences = [jax.tree.map(lambda leaf: leaf / size, one) for one in differences]
        curvature = jnp.stack(
            [jnp.stack([_dot(one, other) for other in differences]) for one in differences]
        )
        slope = jnp.stack([_dot(centred, one) for one in differences]) - curvature @ alpha
        count = state.count + 1
        # A plain mean at first, an exponential one later.
        weight = jnp.maximum(1 / count, 1 - self.decay)
        curvature = state.curvature + weight * (curvature - state.curvature)
        slope = state.slope + weight * (slope - state.slope)
        mean = jax.tree.map(lambda old, new: old + weight * (new - old), state.mean, gradient)
        alpha = self._best_alpha(curvature, slope, count)
        return MixState(dict(zip(self.latents, alpha, strict=True)), curvature, slope, mean, count)

    def _best_alpha(self, curvature, slope, count) -> Float[Array, " L"]:
        """The minimum of the quadratic, shrunk towards the start while few draws are known."""
        start = jnp.full(len(self.latents), self.start)
        size = jnp.sqrt(jnp.diagonal(curvature))
        size = jnp.where(size > 0, size, 1)  # a latent without parameters keeps its start
        regular = curvature / jnp.outer(size, size) + 1e-5 * jnp.eye(len(self.latents))
        best = start - jnp.linalg.solve(regular, (slope + curvature @ start) / size) / size
        best = jnp.clip(best, *ALPHA_RANGE)
        trust = 1 - jnp.exp(-count / self.patience)
        return jnp.where(jnp.isfinite(best), start + trust * (best - start), start)


def _dot(one: PyTree, other: PyTree) -> Float[Array, ""]:
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), one, other)
    return sum(jax.tree.leaves(products), start=jnp.zeros(()))
