"""Chains for the tests, and the same distributions as hierarchies of T latents."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.stats

import gdregs
from gdregs.shared.tables import find_posterior_estimator, find_prior_estimator
from models import POSTERIOR_ESTIMATORS, PRIOR_ESTIMATORS

BATCH, LENGTH, SIZE = 2, 3, 2


def product(z, weight):
    with jax.numpy_rank_promotion("allow"):
        return z @ weight


class First(eqx.Module):
    """The first latent, a function of its input."""

    bias: jax.Array
    by_input: jax.Array

    def parameters(self, u):
        loc = product(u, self.by_input) + self.bias[None]
        return loc, jnp.full_like(loc, 0.8) + 0.1 * jnp.tanh(loc)

    def __call__(self, u):
        return dist.Normal(*self.parameters(u)).to_event(1)


class Cell(eqx.Module):
    """A nonlinear step, with an input."""

    weight: jax.Array
    by_input: jax.Array
    raw: jax.Array

    def parameters(self, previous, u):
        with jax.numpy_rank_promotion("allow"):
            hidden = jnp.tanh(previous @ self.weight + u @ self.by_input)
            return hidden + 0.3 * previous, 0.3 + jax.nn.softplus(self.raw + hidden)

    def __call__(self, previous, u):
        return dist.Normal(*self.parameters(previous, u)).to_event(1)


class Memory(eqx.Module):
    """A recurrent state: what the cell reads in the place of the latent before."""

    weight: jax.Array
    by_latent: jax.Array

    def __call__(self, state, z, u):
        with jax.numpy_rank_promotion("allow"):
            return jnp.tanh(state @ self.weight + z @ self.by_latent + 0.2 * u)


class Parts(eqx.Module):
    """The parameters of a chain."""

    first: First
    cell: Cell
    memory: Memory
    inputs: jax.Array
    state: jax.Array


def init(seed, length=LENGTH):
    """Parameters in numpy, of the type that the program gives them."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return 0.6 * rng.normal(size=shape)

    square = (SIZE, SIZE)
    return Parts(
        First(normal(SIZE), normal(*square)),
        Cell(normal(*square), normal(*square), normal(SIZE)),
        Memory(normal(*square), normal(*square)),
        normal(length, BATCH, SIZE),
        normal(BATCH, SIZE),
    )


def chain(parts, *, has_state=False, **options):
    extra = {"state": parts.state, "advance": parts.memory} if has_state else {}
    return gdregs.Chain(
        None if has_state else parts.first,
        parts.cell,
        length=parts.inputs.shape[0],
        inputs=parts.inputs,
        **extra,
        **options,
    )


class Node(eqx.Module):
    """One step of the chain as a node of a hierarchy; it is given all latents before it."""

    parts: Parts
    order: tuple[int, ...] = eqx.field(static=True)  # the steps up to this one, as the chain runs
    has_state: bool = eqx.field(static=True)
    mask: jax.Array | None

    def __call__(self, *before):
        u = self.parts.inputs
        now = self.order[-1]
        if self.has_state:
            state = self.parts.state
            for t, z in zip(self.order, before, strict=False):
                state = self.where_present(t, self.parts.memory(state, z, u[t]), state)
            return self.parts.cell(state, u[now])
        if not before:
            return self.parts.first(u[now])
        last = before[0]
        for t, z in zip(self.order[1:], before[1:], strict=False):
            last = self.where_present(t, z, last)
        if self.mask is None:
            return self.parts.cell(last, u[now])
        started = self.mask[np.array(self.order[:-1])].any(0)[:, None]
        with jax.numpy_rank_promotion("allow"):
            parameters = [
                jnp.where(started, later, first)
                for later, first in zip(
                    self.parts.cell.parameters(last, u[now]),
                    self.parts.first.parameters(u[now]),
                    strict=True,
                )
            ]
        return dist.Normal(*parameters).to_event(1)

    def where_present(self, t, new, old):
        if self.mask is None:
            return new
        with jax.numpy_rank_promotion("allow"):
            return jnp.where(self.mask[t][:, None], new, old)


class Unrolled(eqx.Module):
    """A chain as a `gdregs.Hierarchy`, with values that are stacked over time."""

    hierarchy: gdregs.Hierarchy
    mask: jax.Array | None
    length: int = eqx.field(static=True)

    def sample(self, key, sample_shape):
        return self.hierarchy.sample(key, sample_shape)

    def log_prob(self, z):
        terms = self.hierarchy.log_probs(z)
        if self.mask is None:
            return sum(terms.values())
        with jax.numpy_rank_promotion("allow"):
            return sum(jnp.where(self.mask[int(t)], term, 0) for t, term in terms.items())


@gdregs.reexpress.register(Unrolled)
def _(unrolled, z):
    return gdregs.reexpress(unrolled.hierarchy, z)


def unrolled(parts, *, has_state=False, reverse=False, mask=None):
    length = parts.inputs.shape[0]
    order = tuple(reversed(range(length))) if reverse else tuple(range(length))
    nodes = {
        str(t): (
            Node(parts, order[: i + 1], has_state, mask),
            tuple(str(s) for s in order[:i]),
        )
        for i, t in enumerate(order)
    }
    return Unrolled(gdregs.Hierarchy(nodes), mask, length)


def stacked(z):
    """The value of an unrolled chain as a chain has it."""
    return jnp.stack([z[str(t)] for t in range(len(z))], axis=-2)


def likelihood(weight, x, mask=None):
    """x_t given z_t, `[K, *batch, T, *event]`."""

    def evaluate(z):
        with jax.numpy_rank_promotion("allow"):
            terms = dist.Normal(jnp.sin(z @ weight), 0.7).log_prob(x).sum(-1)
            return jnp.sum(terms if mask is None else jnp.where(mask.T, terms, 0), axis=-1)

    return evaluate


class Decay(eqx.Module):
    """A linear step."""

    factor: jax.Array
    scale: float = eqx.field(static=True, default=0.5)

    def __call__(self, previous, u):
        return dist.Normal(self.factor * previous, self.scale)


def rows_of(pairs):
    """The rows of the tables of pairs of estimators, stacked: one program has all, by `vmap`."""
    rows = [
        (
            find_posterior_estimator(POSTERIOR_ESTIMATORS[posterior]),
            find_prior_estimator(PRIOR_ESTIMATORS[prior]),
        )
        for posterior, prior in pairs
    ]
    return jax.tree.map(lambda *numbers: np.array(numbers, float), *rows)


def kalman(x, factor, spread, noise):
    """The log-likelihood of a scalar linear-Gaussian state-space model, and its smoother.

    z_1 ~ N(0, 1), z_t ~ N(factor z_{t-1}, spread^2), x_t ~ N(z_t, noise^2). The smoother runs
    backward: z_t given z_{t+1} is N(gain_t z_{t+1} + shift_t, width_t^2).
    """
    total, mean, variance = 0.0, 0.0, 1.0
    smoother = []
    for t, value in enumerate(x):
        if t:
            ahead_mean, ahead = factor * mean, factor**2 * variance + spread**2
            gain = factor * variance / ahead
            smoother.append((gain, mean - gain * ahead_mean, np.sqrt(variance - gain**2 * ahead)))
            mean, variance = ahead_mean, ahead
        total += scipy.stats.norm(mean, np.sqrt(variance + noise**2)).logpdf(value)
        update = variance / (variance + noise**2)
        mean, variance = mean + update * (value - mean), (1 - update) * variance
    smoother.append((0.0, mean, np.sqrt(variance)))
    return total, np.array(smoother).T
