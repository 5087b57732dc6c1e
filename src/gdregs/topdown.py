r"""Deep hierarchies whose conditionals read one state that is carried from the top down.

$$p(z_1, \dots, z_L) = \prod_{l=L}^1 p(z_l \mid h_l), \qquad h_{l-1} = f_l(h_l, z_l)$$

with the state $h_L$ given. As a graph every latent has all those above it as its parents; here
what they have in common is computed once, and not anew in every conditional. A feature $h_l$ is a
function of the latents above it and of the parameters of what computes it, so that the identities
of App. C hold as they are. Where an estimator stops a density, it stops all of that distribution's
parameters, those inside of $f$ included, and not the dependence on the latents through $h$ (the
indirect score functions). The path moves through $h$ with the parameters of the distribution whose
path it is. A network that posterior and prior share is a leaf of both, and each occurrence has its
own gradient.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from gdregs.evaluation.gates import gate, gate_by_latent, log_density_without_indirect
from gdregs.reexpression.reexpress import reexpress
from gdregs.reexpression.reparameterized import is_reparameterized
from gdregs.reexpression.support import move_into_support
from gdregs.sequences.walk import checked
from gdregs.shared.graphs import check_names


class TopDown(eqx.Module):
    r"""A joint distribution over layers of latents, each given a state of all layers above it.

    Ladder VAEs, NVAE and VDVAE are of this form: posterior and prior are two such distributions
    with the same names of latents. The posterior's conditionals hold the bottom-up features of the
    data, which are computed once; `advance` holds the top-down network, which both may share. For
    many layers of the same shape a `gdregs.Chain` with a `state` is the same as one loop.

    Args:
        layers: For each latent, top first, a pair `(conditional, advance)`: `conditional(state)`
            returns the latent's distribution, `advance(state, z)` the state of the next layer.
            That of the last layer may be None. Both are pytrees whose array leaves are all their
            parameters.
        state: The state of the top layer, a pytree with leaves `[*batch, ...]`; each layer after
            the first is given `[K, *batch, ...]`.

    Raises:
        TypeError: If a layer is not such a pair.
        ValueError: If there is no layer, or one that is not the last has no `advance`.

    Example:
        >>> import equinox as eqx, gdregs, jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> class Read(eqx.Module):
        ...     weight: jax.Array
        ...     def __call__(self, h):
        ...         return dist.Normal(self.weight * h, 1.0).to_event(1)
        >>> class Merge(eqx.Module):
        ...     weight: jax.Array
        ...     def __call__(self, h, z):
        ...         return jnp.tanh(self.weight * h + z)
        >>> one = jnp.array(1.0)
        >>> prior = gdregs.TopDown(
        ...     {f"z{l}": (Read(one), Merge(one)) for l in range(30, 0, -1)}, jnp.zeros((8, 2)))
        >>> z = prior.sample(jax.random.key(0), (5,))
        >>> len(z), z["z1"].shape, prior.log_prob(z).shape
        (30, (5, 8, 2), (5, 8))

    Reference:
        Sønderby et al., Ladder Variational Autoencoders, 2016.
        Child, Very Deep VAEs Generalize Autoregressive Models, 2021.
    """

    conditionals: dict[str, Any]
    advances: dict[str, Any]
    state: PyTree
    names: tuple[str, ...] = eqx.field(static=True)

    def __init__(self, layers: Mapping[str, Any], state: PyTree):
        if not layers:
            raise ValueError("A TopDown needs at least one layer.")
        for name, layer in layers.items():
            if not (isinstance(layer, tuple) and len(layer) == 2 and callable(layer[0])):
                raise TypeError(
                    f"Layer {name!r} must be a pair (conditional, advance) of functions; got"
                    f" {layer!r}."
                )
        self.names = tuple(layers)
        for name in self.names[:-1]:
            if not callable(layers[name][1]):
                raise ValueError(
                    f"Layer {name!r} has no advance, which the layers below it need; only the last"
                    f" layer, {self.names[-1]!r}, can do without."
                )
        self.conditionals = {name: conditional for name, (conditional, _) in layers.items()}
        self.advances = {name: advance for name, (_, advance) in layers.items()}
        self.state = state

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> dict[str, Array]:
        """Draw every latent, top first.

        Args:
            key: A JAX random key.
            sample_shape: Leading axes of the sample, usually `(K,)`.

        Returns:
            A dict of arrays `[*sample_shape, *batch, *event]`, reparameterized where the
            conditionals are.
        """
        keys = dict(zip(self.names, jax.random.split(key, len(self.names)), strict=True))

        def draw(name: str, conditional: Any) -> Array:
            return conditional.sample(keys[name], sample_shape if name == self.names[0] else ())

        return {name: z for name, _, z in self.walk(draw)}

    def log_prob(self, z: Any, parent_values: Any = None) -> Float[Array, "*shape"]:
        r"""The joint log-density $\sum_l \log p(z_l \mid h_l)$, in nats.

        Args:
            z: A dict of arrays `[K, *batch, *event]`, with exactly the latents of the layers.
            parent_values: What the states are computed from; z itself unless given.

        Returns:
            `[K, *batch]`.
        """
        return sum(self.log_probs(z, parent_values).values())  # pyright: ignore[reportReturnType]

    def log_probs(self, z: Any, parent_values: Any = None) -> dict[str, Float[Array, "*shape"]]:
        r"""The log-density $\log p(z_l \mid h_l)$ of each latent, in nats.

        Args:
            z: A dict of arrays `[K, *batch, *event]`, with exactly the latents of the layers.
            parent_values: What the states are computed from; z itself unless given.

        Returns:
            By latent, `[K, *batch]`.
        """
        self.check_names(z)
        given = z if parent_values is None else parent_values
        walked = self.walk(lambda name, conditional: given[name])
        terms = {name: conditional.log_prob(z[name]) for name, conditional, _ in walked}
        shapes = {name: jnp.shape(term) for name, term in terms.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(
                f"The log-densities of the layers have different shapes, {shapes}; each must be"
                f" [K, *batch]. Event axes are declared with .to_event(...)."
            )
        return terms

    def walk(self, visit: Callable[[str, Any], Array]) -> Iterator[tuple[str, Any, Array]]:
        """Each latent's name, distribution, and the value that `visit` gives it, top first."""
        state = self.state
        for name in self.names:
            conditional = checked(self.conditionals[name](state))
            z = visit(name, conditional)
            yield name, conditional, z
            if name == self.names[0]:
                shape = jnp.shape(conditional.log_prob(z)) if name != self.names[-1] else ()
                lead = shape[: len(shape) - len(conditional.batch_shape)]
                state = jax.tree.map(
                    lambda leaf, lead=lead: jnp.broadcast_to(leaf, (*lead, *jnp.shape(leaf))), state
                )
            if name != self.names[-1]:
                state = self.advances[name](state, z)

    def check_names(self, z: Any) -> None:
        """An error if z does not have exactly the latents of the layers."""
        check_names(set(self.names), z, "TopDown")


@reexpress.register(TopDown)
def _(distribution: TopDown, z: Any) -> dict[str, Array]:
    """Every latent given the state of those above it, which has moved with them: (C.11)."""
    distribution.check_names(z)
    walked = distribution.walk(lambda name, conditional: reexpress(conditional, z[name]))
    return {name: path for name, _, path in walked}


@is_reparameterized.register(TopDown)
def _(posterior: TopDown, key: PRNGKeyArray, num_samples: int) -> bool:
    """Whether every conditional is."""
    answers = []

    def look(z):
        for _, conditional, _ in posterior.walk(lambda name, conditional: z[name]):
            answers.append(is_reparameterized(conditional, key, num_samples))

    jax.eval_shape(look, jax.eval_shape(lambda: posterior.sample(key, (num_samples,))))
    return all(answers)


@move_into_support.register(TopDown)
def _(part: TopDown, z: PyTree) -> tuple[PyTree, Array | None]:
    """Every latent given the state of the moved ones above it."""
    part.check_names(z)
    flags = []

    def move(name: str, conditional: Any) -> Array:
        moved, inside = move_into_support(conditional, z[name])
        flags.append(inside)
        return moved

    moved = {name: value for name, _, value in part.walk(move)}
    found = [flag for flag in flags if flag is not None]
    return (moved, jnp.all(jnp.stack(found), axis=0)) if found else (z, None)


@log_density_without_indirect.register(TopDown)
def _(part: TopDown, z: PyTree) -> Array:
    """No gradient passes to the latents above by way of the state."""
    return part.log_prob(z, parent_values=jax.lax.stop_gradient(z))


@gate_by_latent.register(TopDown)
def _(parameters: TopDown, strengths: Mapping[str, Any]) -> TopDown:
    """What follows a latent belongs to it too, and the state before the first one to that one."""

    def by_latent(parts: dict[str, Any]) -> dict[str, Any]:
        return {name: gate(part, strengths[name]) for name, part in parts.items()}

    state = gate(parameters.state, strengths[parameters.names[0]])
    return eqx.tree_at(
        lambda part: (part.conditionals, part.advances, part.state),
        parameters,
        (by_latent(parameters.conditionals), by_latent(parameters.advances), state),
        is_leaf=lambda leaf: leaf is None,
    )
