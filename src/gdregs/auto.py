r"""The default that nobody regrets: how much of which estimator, measured for each parameter.

Naive and doubly reparameterized gradients are both unbiased, entry by entry. So with
$d^q = g^{\mathrm{DReGs}} - g^{\mathrm{naive}}$ for the posterior and $d^p$ alike for the prior,

$$g = g^{\mathrm{naive}} + \beta_i d^q_i + \alpha_i d^p_i$$

is unbiased for strengths $\beta_i$, $\alpha_i$ of each parameter i (each array of them) that were
fixed before the draw. Its variance is a sum over parameters, and for each of them a quadratic
function of two numbers, whose minimum follows from running means over the draws of earlier steps.
What is taken is what leaves the least noise in a given time: variance times work, which is counted;
of what makes no step much longer than it was.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from gdregs.evaluation.ahead import compute_ahead
from gdregs.evaluation.work import work_of
from gdregs.reexpression.reparameterized import depend
from gdregs.shared.learning import (
    FIRST,
    LATE,
    MARGINS,
    MOST_WORK,
    PERIODS,
    SETTLING,
    STRENGTHS,
)
from gdregs.shared.tables import (
    POSTERIOR_ESTIMATORS,
    PRIOR_ESTIMATORS,
    PosteriorEstimator,
    PosteriorMix,
    PriorEstimator,
)

ValueAndGrad = Callable[[PosteriorMix, PriorEstimator], tuple[Any, PyTree]]


class Learned(NamedTuple):
    r"""What is known of the variance of each of P parameters, and the strengths for the next draw.

    Attributes:
        strengths: $(\beta_i, \alpha_i)$ of each parameter.
        common: $(\beta, \alpha)$ of all parameters, where those have no strengths of their own.
        way: What is worth its time: 0 the naive gradient, 1 one $\beta$ for all parameters, 2 one
            $\beta$ and one $\alpha$, 3 strengths of each parameter's own.
        moments: Running means of inner products: of $d^q_i$ and of $d^p_i$ with itself, and of the
            two; of each with the noise $g^{\mathrm{naive}}_i - \bar g_i$; and of that with itself.
        count: How many draws have taught.
    """

    strengths: Float[Array, "P 2"]
    common: Float[Array, "2"]
    way: Int[Array, ""]
    moments: Float[Array, "P 6"]
    count: Float[Array, ""]

    @classmethod
    def nothing(cls, number: int, dtype: Any) -> "Learned":
        """Of so many parameters, before the first draw."""
        zeros = partial(jnp.zeros, dtype=dtype)
        way = jnp.zeros((), jnp.int32)
        return cls(zeros((number, 2)), zeros((2,)), way, zeros((number, 6)), zeros(()))

    def packed(self) -> Float[Array, "N"]:
        """All in one vector of N = 8 P + 4 numbers."""
        return ravel_pytree(self)[0]

    @classmethod
    def unpacked(cls, vector: Float[Array, "N"]) -> "Learned":
        """What lies in such a vector."""
        return ravel_pytree(cls.nothing((vector.size - 4) // 8, vector.dtype))[1](vector)


class AutoState(NamedTuple):
    r"""What `Auto` carries from step to step.

    Attributes:
        packed: `Learned` as one vector. Most steps only hand it on, and five arrays would take
            noticeably longer to hand on in a small model's step than one.
        mean: Running mean $\bar g$ of the gradient over all steps: of the parameters that are
            single numbers in one vector, and of each of the others.
        step: How many steps there have been.
    """

    packed: Float[Array, "N"]
    mean: tuple[Array, list[Array | None]]
    step: Int[Array, ""]

    @property
    def learned(self) -> Learned:
        """What is known of the variances."""
        return Learned.unpacked(self.packed)

    @property
    def strengths(self) -> Float[Array, "P 2"]:
        r"""$(\beta_i, \alpha_i)$ of each parameter."""
        return self.learned.strengths

    def relearned(self, **parts: Any) -> "AutoState":
        """The state with other parts of `Learned`."""
        return self._replace(packed=self.learned._replace(**parts).packed())


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
        most_work: What a step may take at most, in units of the naive gradient's counted work. A
            flow whose density needs its inverse, or a prior whose path is as much work as the
            rest, can be above it and worth it all the same: `float("inf")` judges by variance times
            work alone.

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
    most_work: float = eqx.field(static=True, default=MOST_WORK)

    def __check_init__(self):
        if not 0 < self.decay < 1:
            raise ValueError(f"decay must lie between 0 and 1; got {self.decay}.")
        if not self.patience > 0:
            raise ValueError(f"patience must be positive; got {self.patience}.")
        if not self.most_work >= 1:
            raise ValueError(f"most_work must be 1 or more; got {self.most_work}.")

    def init(self, gradient: PyTree) -> AutoState:
        """The state before the first draw.

        Args:
            gradient: A pytree with the structure, shapes and dtypes of the gradient, such as the
                parameters themselves.
        """
        gradient = eqx.filter(gradient, eqx.is_inexact_array_like)
        leaves = jax.tree.leaves(gradient)
        mean = [jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
        dtype = jnp.result_type(float, *mean)
        nothing = Learned.nothing(len(mean), dtype).packed()
        return AutoState(nothing, _joined(mean)[0], jnp.zeros((), jnp.int32))

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
        period = jnp.where(state.step < LATE, *PERIODS).astype(state.step.dtype)
        teaches = (state.step < FIRST) | (jax.lax.rem(state.step, period) == 0)
        step, state = state.step + 1, state._replace(step=())
        ways = (
            lambda _: self._naive(function),
            lambda state: self._with_common_strengths(function, state, prior=False),
            lambda state: self._with_common_strengths(function, state, prior=self.prior),
            lambda state: self._mixed(function, state, prior=self.prior)[0],
        )
        traced = [jax.make_jaxpr(way, return_shape=True)(state) for way in ways]
        work = [work_of(program) for program, _ in traced]
        work = [one if one <= self.most_work * work[0] else math.inf for one in work]
        if min(work[1:]) == math.inf:
            [naive] = _sharing(traced[:1])
            return naive(state), state._replace(step=step)
        prior = self.prior and min(work[2:]) < math.inf

        def learn(state):
            result, naive, pairs = self._mixed(function, state, prior=prior)
            return result, self._learn(state, naive, pairs, work)

        # A way that is too much work is never taken: the naive one stands in its place.
        taken = (one if cost < math.inf else 0 for one, cost in enumerate(work))
        traced = [traced[one] for one in taken]
        traced.append(jax.make_jaxpr(learn, return_shape=True)(state))
        *present, teach = _sharing(traced)
        # The mean is as large as the parameters: a branch that only hands it on would copy it.
        present = [lambda state, way=way: (way(state), state.packed) for way in present]
        turn = jnp.where(teaches, len(ways), state.learned.way)
        result, packed = jax.lax.switch(turn, [*present, teach], state)
        weight = self._weight(step)
        gradient, _ = _joined(jax.lax.stop_gradient(jax.tree.leaves(result[1])))
        mean = jax.tree.map(
            lambda mean, g: jnp.where(
                jnp.isfinite(g), mean + weight.astype(mean.dtype) * (g - mean), mean
            ),
            state.mean,
            gradient,
        )
        return result, AutoState(packed, mean, step)

    def _weight(self, number: Array) -> Array:
        """Of the newest of so many: a plain mean of the first ones, an exponential one later."""
        return jnp.maximum(1 / jnp.maximum(number, 1), 1 - self.decay)

    def _naive(self, function):
        return function(POSTERIOR_ESTIMATORS["naive"], PRIOR_ESTIMATORS["naive"])

    def _with_common_strengths(self, function, state, prior):
        r"""One $\beta$ and one $\alpha$ for all parameters are rows of the tables: one gradient."""
        beta, alpha = state.learned.common
        posterior = PosteriorEstimator(density=1 - beta, constant=1 - beta, slope=beta)
        return function(posterior, PriorEstimator(alpha if prior else 0))

    def _mixed(self, function: ValueAndGrad, state: AutoState, *, prior: bool) -> Any:
        """The value and the mixed gradient, and the naive gradient and the differences from it."""

        def gradient_of(beta, alpha):
            value, gradient = function(PosteriorMix(beta), PriorEstimator(alpha if prior else 0))
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
        return (value, structure.unflatten(mixed)), leaves, pairs

    def _learn(self, state, naive, pairs, work) -> Any:
        """What the draw of a step says about the strengths of the next one."""
        naive, pairs = jax.lax.stop_gradient((naive, pairs))
        old, dtype = state.learned, state.packed.dtype

        def inner_products(leaf, mean, pair):
            noise = leaf - mean
            by_q, by_p = pair
            products = ((by_q, by_q), (by_p, by_p), (by_q, by_p), (by_q, noise), (by_p, noise))
            return jnp.stack([_dot(*one) for one in (*products, (noise, noise))]).astype(dtype)

        means = _joined(naive)[1](state.mean)
        new = jnp.stack(list(map(inner_products, naive, means, pairs)))
        finite = jnp.all(jnp.isfinite(new))
        count = old.count + 1
        known = jnp.maximum(count - SETTLING, 0)

        weight = self._weight(known).astype(dtype)
        moments = old.moments + weight * (new - old.moments)
        moments = jnp.where(finite & (known > 0), moments, old.moments)
        trust = 1 - jnp.exp(-known / self.patience)
        strengths, way = _best(moments, jnp.array(work, dtype))
        strengths = trust * strengths
        is_used = jnp.sum(strengths != 0, axis=0)
        common = jnp.sum(strengths, axis=0) / jnp.maximum(is_used, 1)
        return Learned(strengths, common, way, moments, count).packed()


def _joined(leaves: list[Array]) -> tuple[Any, Callable[[Any], list[Array]]]:
    """Single numbers in one vector, since each alone takes an operation; and the way back."""
    numbers, others = eqx.partition(leaves, lambda leaf: jnp.ndim(leaf) == 0)
    vector, apart = ravel_pytree(numbers)
    return (vector, others), lambda joined: eqx.combine(apart(joined[0]), joined[1])


def _sharing(traced: list[tuple[ClosedJaxpr, Any]]) -> list[Callable[[AutoState], Any]]:
    """Functions of the state, from their programs and outputs; what they share is computed now."""

    def as_function(rest, shapes):
        structure = jax.tree.structure(shapes)
        return lambda state: structure.unflatten(rest(*jax.tree.leaves(state)))

    programs, shapes = zip(*traced, strict=True)
    return list(map(as_function, compute_ahead(programs), shapes))


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
    moments: Float[Array, "P 6"], work: Float[Array, "4"]
) -> tuple[Float[Array, "P 2"], Int[Array, ""]]:
    """The strengths of the way with the least product of variance and work, and which that is.

    The noise of a given time is that product: with half of the work there are twice as many draws.
    Each parameter's variance is a quadratic function of its two strengths, and what several have in
    common minimises the sum of theirs.
    """
    curvature, slope, variance = moments[:, :3], moments[:, 3:5], moments[:, 5]
    curvatures, slopes = (jnp.sum(one, axis=0, keepdims=True) for one in (curvature, slope))
    by_posterior = jnp.array([[1.0, 0.0]])
    choices = [
        jnp.zeros_like(slope),
        _minimum(curvatures * jnp.array([[1.0, 0.0, 0.0]]), slopes * by_posterior),
        _minimum(curvatures, slopes),
        _minimum(curvature, slope),
    ]
    choices = jnp.stack([jnp.where(curvature[:, :2] > 0, one, 0) for one in choices])
    beta, alpha = choices[..., 0], choices[..., 1]
    products = jnp.stack([beta**2, alpha**2, 2 * beta * alpha, 2 * beta, 2 * alpha], axis=2)
    changes = products * moments[None, :, :5]
    noise = jnp.sum(variance) + jnp.sum(changes, axis=(1, 2))
    noise = jnp.where(jnp.isfinite(work), work * noise, jnp.inf)
    way = jnp.zeros((), jnp.int32)
    for other, margin in enumerate(MARGINS, start=1):
        way = jnp.where(noise[other] < (1 - margin) * noise[way], other, way)
    return choices[way], way


def _minimum(curvature: Float[Array, "P 3"], slope: Float[Array, "P 2"]) -> Float[Array, "P 2"]:
    """Where quadratic functions of two numbers are least, in units of the sizes of both."""
    size = jnp.sqrt(curvature[:, :2])
    exists = size > 0
    size = jnp.where(exists, size, 1)
    slope = jnp.where(exists, slope / size, 0)
    cosine = jnp.where(jnp.all(exists, axis=1), curvature[:, 2] / (size[:, 0] * size[:, 1]), 0)
    cosine, ridge = cosine[:, None], 1 + 1e-3
    found = (cosine * jnp.flip(slope, axis=1) - ridge * slope) / (ridge**2 - cosine**2) / size
    return jnp.clip(jnp.where(exists & jnp.isfinite(found), found, 0), *STRENGTHS)
