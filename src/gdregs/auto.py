r"""The default that nobody regrets: how much of which estimator, measured for each parameter.

Naive and doubly reparameterized gradients are both unbiased, entry by entry. So with the difference
$d = g^{\mathrm{DReGs}} - g^{\mathrm{naive}}$ (of the prior's parameters, that of GDReGs),

$$g_i = g^{\mathrm{naive}}_i + s_i d_i$$

is unbiased for a strength $s_i$ of each parameter i (each array of them) that was fixed before the
draw. Its variance is a quadratic function of $s_i$, whose minimum follows from running means over
the draws of earlier steps.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from gdregs.reexpression.reparameterized import depend
from gdregs.shared.learning import FIRST, LARGE, MARGINS, PERIOD, SETTLING, STRENGTHS
from gdregs.shared.tables import PosteriorEstimator, PosteriorMix, PriorEstimator

ValueAndGrad = Callable[[Any, PriorEstimator], tuple[Any, PyTree]]


class Learned(NamedTuple):
    r"""What is known of the variance of each of P parameters, and the strengths for the next draw.

    Attributes:
        strengths: $s_i$ of each parameter.
        common: $\beta$ of the posterior's parameters and $\alpha$ of the prior's, where those have
            no strengths of their own.
        moments: Running means of inner products: $d_i \cdot d_i$; $d_i$ with the noise
            $g^{\mathrm{naive}}_i - \bar g_i$; and that with itself.
        count: How many draws have taught.
    """

    strengths: Float[Array, " P"]
    common: Float[Array, "2"]
    moments: Float[Array, "P 3"]
    count: Float[Array, ""]


class AutoState(NamedTuple):
    r"""What `Auto` carries from step to step.

    Attributes:
        packed: `Learned` as one vector: a small model's step would take noticeably longer to hand
            on several arrays.
        mean: Running mean $\bar g$ of the gradient over all steps: of the parameters that are
            single numbers in one vector, and of each of the others.
        step: How many steps there have been.
    """

    packed: Float[Array, " N"]
    mean: tuple[Array, list[Array | None]]
    step: Int[Array, ""]

    @property
    def learned(self) -> Learned:
        """What is known of the variances."""
        return _nothing((self.packed.size - 3) // 4, self.packed.dtype)[1](self.packed)

    @property
    def strengths(self) -> Float[Array, " P"]:
        """$s_i$ of each parameter."""
        return self.learned.strengths


def _nothing(number: int, dtype: Any) -> tuple[Array, Callable[[Array], Learned]]:
    """`Learned` of so many parameters before the first draw, packed; and how to unpack it."""
    zeros = partial(jnp.zeros, dtype=dtype)
    return ravel_pytree(Learned(zeros((number,)), zeros((2,)), zeros((number, 3)), zeros(())))


class Auto(eqx.Module):
    r"""An estimator that descends its own variance from the naive end, parameter by parameter.

    Before anything is known it is the naive gradient. Every step takes its strengths from the draws
    of the steps before, so that every step is unbiased. The derivative of the gradient by a
    strength of all *is* d, so that one program gives the mixed gradient and what it teaches.

    A model of more than 10,000 numbers learns at the first hundred steps and at every sixteenth
    from then on, with one strength for all parameters of the posterior and one for those of the
    prior: steps in between take the mix as a row of the tables.

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
        >>> state.strengths.shape  # one for each parameter
        (2,)

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
        leaves = jax.tree.leaves(gradient)
        mean = [jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
        nothing, _ = _nothing(len(mean), jnp.result_type(float, *mean))
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
        is_large = sum(jnp.size(leaf) for leaf in jax.tree.leaves(state.mean)) > LARGE

        def learn() -> Any:
            return self._learn(function, state, common=is_large)

        def mix() -> Any:
            return self._with_rows(function, state), state.packed

        if is_large:
            learns = (state.step < FIRST) | (state.step % PERIOD == 0)
            result, packed = jax.lax.cond(learns, learn, mix)
        else:
            result, packed = learn()
        step = state.step + 1
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

    def _with_rows(self, function: ValueAndGrad, state: AutoState) -> tuple[Any, PyTree]:
        r"""One $\beta$ and one $\alpha$ for all parameters are rows of the tables: one gradient."""
        beta, alpha = state.learned.common
        posterior = PosteriorEstimator(density=1 - beta, constant=1 - beta, slope=beta)
        return function(posterior, PriorEstimator(alpha if self.prior else 0))

    def _learn(
        self, function: ValueAndGrad, state: AutoState, *, common: bool
    ) -> tuple[tuple[Any, PyTree], Array]:
        """The value and the mixed gradient, and what is known with this draw too."""

        def gradient_of(beta, alpha):
            mix = PriorEstimator(alpha if self.prior else 0)
            value, gradient = function(PosteriorMix(beta), mix)
            return gradient, value

        zero, one = jnp.zeros(()), jnp.ones(())
        naive, derivative, value = jax.linearize(gradient_of, zero, zero, has_aux=True)
        leaves, structure = jax.tree.flatten(naive)
        of_posterior, of_any = (
            jnp.array(depend(by, one))
            for by in (lambda beta: derivative(beta, zero), lambda both: derivative(both, both))
        )
        differences = jax.tree.leaves(derivative(one, one))
        old, dtype = state.learned, state.packed.dtype
        mixed = [
            leaf + strength.astype(leaf.dtype) * difference
            for leaf, strength, difference in zip(leaves, old.strengths, differences, strict=True)
        ]
        result = value, structure.unflatten(mixed)

        def inner_products(leaf, mean, difference):
            noise = leaf - mean
            products = (difference**2, difference * noise, noise**2)
            return jnp.stack([jnp.sum(one) for one in products]).astype(dtype)

        means = _joined(leaves)[1](state.mean)
        new = jnp.stack(list(map(inner_products, leaves, means, differences)))
        new = jax.lax.stop_gradient(new)
        count = old.count + 1
        known = jnp.maximum(count - SETTLING, 0)
        weight = self._weight(known).astype(dtype)
        moments = old.moments + weight * (new - old.moments)
        moments = jnp.where(jnp.all(jnp.isfinite(new)) & (known > 0), moments, old.moments)
        trust = 1 - jnp.exp(-known / self.patience)
        strengths, pair = _best(moments, of_posterior, common=common)
        strengths = jnp.where(of_any, trust * strengths, 0)
        return result, ravel_pytree(Learned(strengths, trust * pair, moments, count))[0]


def _joined(leaves: list[Array]) -> tuple[Any, Callable[[Any], list[Array]]]:
    """Single numbers in one vector, since each alone takes an operation; and the way back."""
    numbers, others = eqx.partition(leaves, lambda leaf: jnp.ndim(leaf) == 0)
    vector, apart = ravel_pytree(numbers)
    return (vector, others), lambda joined: eqx.combine(apart(joined[0]), joined[1])


def _best(
    moments: Float[Array, "P 3"], of_posterior: Bool[Array, " P"], *, common: bool
) -> tuple[Float[Array, " P"], Float[Array, "2"]]:
    r"""The strengths of least variance, of each parameter and as the pair $(\beta, \alpha)$.

    Each parameter's variance is a quadratic function of its strength, and what several have in
    common minimises the sum of theirs. Something richer takes the place of something simpler where
    it takes away a share of the variance that is not for having looked at more numbers.
    """
    curvature, slope, variance = moments.T

    def minimum(curvature, slope):
        found = -slope / jnp.where(curvature > 0, curvature, 1)
        return jnp.clip(jnp.where(jnp.isfinite(found) & (curvature > 0), found, 0), *STRENGTHS)

    groups = jnp.stack([of_posterior, ~of_posterior]).astype(slope.dtype)
    beta, alpha = minimum(groups @ curvature, groups @ slope)
    zero = jnp.zeros_like(beta)
    pairs = [(zero, zero), (beta, zero), (beta, alpha)]
    choices = [jnp.where(of_posterior, *pair) for pair in pairs]
    if not common:
        choices.append(minimum(curvature, slope))
        pairs.append((beta, alpha))
    choices = jnp.stack(choices)
    change = 2 * slope[None] * choices + curvature[None] * choices**2
    noise = jnp.sum(variance) + jnp.sum(change, axis=1)
    way = jnp.zeros((), jnp.int32)
    for other, margin in enumerate(MARGINS[: len(pairs) - 1], start=1):
        way = jnp.where(noise[other] < (1 - margin) * noise[way], other, way)
    return choices[way], jnp.stack([jnp.stack(pair) for pair in pairs])[way]
