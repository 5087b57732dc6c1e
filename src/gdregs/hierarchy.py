"""Joint distributions over a directed acyclic graph of latents."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray

from gdregs.reexpress import reexpress


class Hierarchy(eqx.Module):
    r"""A joint distribution that factorises over a directed acyclic graph of latents.

    $p(z_1, \dots, z_L) = \prod_l p(z_l \mid \mathrm{pa}(l))$, Eqs. (C.2) and (C.3). Posterior and
    prior may factorise differently, with several parents and skip connections. A latent variable
    model's stochastic layers are its latents here.

    Args:
        nodes: For each latent, in any order, a pair `(conditional, parents)`:
            `conditional(*parents)` returns the latent's distribution given the values of its
            parents, which are names of other latents. The conditional should be a pytree whose
            array leaves are all its parameters (an `equinox.Module`). A latent without parents
            may be given as a distribution itself.

    Raises:
        ValueError: If a parent is unknown, or the parents form a cycle; both are named.
        TypeError: If a node is not such a pair.

    Example:
        A prior in which z1 depends on z2:

        >>> import equinox as eqx, gdregs, jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> class Linear(eqx.Module):
        ...     slope: jax.Array
        ...     def __call__(self, parent):
        ...         return dist.Normal(self.slope * parent, 1.0)
        >>> prior = gdregs.Hierarchy(
        ...     {"z1": (Linear(jnp.array(2.0)), ("z2",)), "z2": (dist.Normal(0.0, 1.0), ())}
        ... )
        >>> z = prior.sample(jax.random.key(0), (10,))
        >>> z["z1"].shape, prior.log_prob(z).shape
        ((10,), (10,))

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, App. C.
    """

    conditionals: dict[str, Any]
    parents: tuple[tuple[str, tuple[str, ...]], ...] = eqx.field(static=True)

    def __init__(self, nodes: Mapping[str, Any]):
        parents = {}
        self.conditionals = {}
        for name, node in nodes.items():
            self.conditionals[name], parents[name] = _read_node(name, node)
        self.parents = tuple((name, parents[name]) for name in _topological_order(parents))

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> dict[str, Array]:
        """Draw every latent, parents first.

        Args:
            key: A JAX random key.
            sample_shape: Leading axes of the sample, usually `(K,)`.

        Returns:
            A dict of arrays `[*sample_shape, *batch, *event]`, reparameterized where the
            conditionals are.
        """
        z: dict[str, Array] = {}
        keys = jax.random.split(key, len(self.parents))
        for key, (name, parents) in zip(keys, self.parents, strict=True):
            conditional = self._conditional(name, parents, z)
            z[name] = conditional.sample(key, () if parents else sample_shape)
            shape = jnp.shape(z[name])
            if shape[: len(sample_shape)] != tuple(sample_shape):
                raise ValueError(
                    f"Latent {name!r} was drawn with shape {shape}, without the leading axes"
                    f" {tuple(sample_shape)} of its parents {parents}: its conditional must return"
                    f" a distribution whose batch shape follows theirs."
                )
        return z

    def log_prob(self, z: Any, parent_values: Any = None) -> Float[Array, "*shape"]:
        r"""The joint log-density $\sum_l \log p(z_l \mid \mathrm{pa}(l))$, in nats.

        Args:
            z: A dict of arrays `[K, *batch, *event]`, with exactly the latents of the graph.
            parent_values: What the conditionals see of their parents; z itself unless given.

        Returns:
            `[K, *batch]`.
        """
        terms = self.log_probs(z, parent_values)
        return sum(terms.values())  # pyright: ignore[reportReturnType]

    def log_probs(self, z: Any, parent_values: Any = None) -> dict[str, Float[Array, "*shape"]]:
        r"""The log-density $\log p(z_l \mid \mathrm{pa}(l))$ of each latent, in nats.

        Args:
            z: A dict of arrays `[K, *batch, *event]`, with exactly the latents of the graph.
            parent_values: What the conditionals see of their parents; z itself unless given.

        Returns:
            By latent, `[K, *batch]`.
        """
        self._check_names(z)
        given = z if parent_values is None else parent_values
        terms = {
            name: self._conditional(name, parents, given).log_prob(z[name])
            for name, parents in self.parents
        }
        shapes = {name: jnp.shape(term) for name, term in terms.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(
                f"The log-densities of the latents have different shapes, {shapes}; each must be"
                f" [K, *batch]. Event axes are declared with .to_event(...)."
            )
        return terms

    def _conditional(self, name: str, parents: tuple[str, ...], z: Mapping[str, Array]) -> Any:
        conditional = self.conditionals[name]
        if isinstance(conditional, dist.Distribution):
            return conditional
        return conditional(*(z[parent] for parent in parents))

    def _check_names(self, z: Any):
        names = {name for name, _ in self.parents}
        if not isinstance(z, Mapping) or set(z) != names:
            given = sorted(z) if isinstance(z, Mapping) else type(z).__name__
            raise ValueError(
                f"A Hierarchy over the latents {sorted(names)} was given {given}; posterior and"
                f" prior must name the same latents."
            )


def _read_node(name: str, node: Any) -> tuple[Any, tuple[str, ...]]:
    is_pair = isinstance(node, tuple) and len(node) == 2
    if not is_pair or isinstance(node[1], str) or not callable(node[0]):
        raise TypeError(
            f"Latent {name!r} must be a pair (conditional, parents), such as (encoder, ('z1',));"
            f" got {node!r}."
        )
    conditional, parents = node
    if isinstance(conditional, dist.Distribution) and parents:
        raise TypeError(
            f"Latent {name!r} has parents {tuple(parents)}, so its conditional must be a function"
            f" of them; got the distribution {type(conditional).__name__} itself."
        )
    return conditional, tuple(parents)


def _topological_order(parents: dict[str, tuple[str, ...]]) -> list[str]:
    for name, names in parents.items():
        unknown = [parent for parent in names if parent not in parents]
        if unknown:
            raise ValueError(
                f"Latent {name!r} has unknown parents {unknown}; the latents are {sorted(parents)}."
            )
    order: list[str] = []
    left = dict(parents)
    while left:
        ready = [name for name, names in left.items() if all(n in order for n in names)]
        if not ready:
            raise ValueError(f"The parents of the latents {_cycle(left)} form a cycle.")
        order.extend(ready)
        left = {name: names for name, names in left.items() if name not in ready}
    return order


def _cycle(parents: dict[str, tuple[str, ...]]) -> list[str]:
    """Follow parents from any latent that waits for one until a latent comes up again."""
    trail = [next(iter(parents))]
    while True:
        parent = next(name for name in parents[trail[-1]] if name in parents)
        if parent in trail:
            return trail[trail.index(parent) :]
        trail.append(parent)


@reexpress.register(Hierarchy)
def _(distribution: Hierarchy, z: Any) -> dict[str, Array]:
    """Every latent given its re-expressed parents: (C.11), for the entire graph jointly."""
    distribution._check_names(z)
    path: dict[str, Array] = {}
    for name, parents in distribution.parents:
        path[name] = reexpress(distribution._conditional(name, parents, path), z[name])
    return path


def log_density_without_indirect(part: Any, z: Any) -> Array:
    r"""The log-density of `part` at z, whose gradient lacks the indirect score functions.

    In a `Hierarchy` no gradient passes from $\log p(z_l \mid \mathrm{pa}(l))$ to the parents by way
    of the distribution's parameters (the underlined term of Eq. (11)). That is biased; Sec. 3
    names it as an option, and it is here to be studied. Elsewhere there are none to drop.
    """
    if isinstance(part, Hierarchy):
        return part.log_prob(z, parent_values=jax.lax.stop_gradient(z))
    return part.log_prob(z)
