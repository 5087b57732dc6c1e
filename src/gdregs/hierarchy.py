"""Joint distributions over a directed acyclic graph of latents."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree

from gdregs.evaluation.gates import (
    gate,
    gate_by_latent,
    gated,
    log_density_without_indirect,
)
from gdregs.evaluation.keys import keys_of_noise
from gdregs.reexpression.factors import (
    Found,
    factor_of,
    find_factors,
    own_path,
    path_by_parents,
    path_with_factors,
    strip,
)
from gdregs.reexpression.paths import with_path
from gdregs.reexpression.reexpress import reexpress
from gdregs.reexpression.reparameterized import depend, is_reparameterized
from gdregs.reexpression.support import move_into_support
from gdregs.shared.checks import num_arguments
from gdregs.shared.graphs import check_names, is_distribution, read_node, topological_order


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
            may be given as a distribution itself. A conditional with noise of its own (dropout)
            takes one argument more, the keys of the samples, `[K]`.

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
    keys: Any

    def __init__(self, nodes: Mapping[str, Any]):
        parents = {}
        self.conditionals = {}
        self.keys = None  # of samples, for conditionals that take them
        for name, node in nodes.items():
            self.conditionals[name], parents[name] = read_node(name, node)
        self.parents = tuple((name, parents[name]) for name in topological_order(parents))

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
        at_samples = self._at_samples(key, sample_shape)
        keys = jax.random.split(key, len(self.parents))
        for key, (name, parents) in zip(keys, self.parents, strict=True):
            conditional = at_samples.conditional(name, parents, z)
            is_spread = parents or name in at_samples.noisy
            z[name] = conditional.sample(key, () if is_spread else sample_shape)
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
        self.check_names(z)
        given = z if parent_values is None else parent_values
        terms = {
            name: self.conditional(name, parents, given).log_prob(z[name])
            for name, parents in self.parents
        }
        shapes = {name: jnp.shape(term) for name, term in terms.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(
                f"The log-densities of the latents have different shapes, {shapes}; each must be"
                f" [K, *batch]. Event axes are declared with .to_event(...)."
            )
        return terms

    def conditional(self, name: str, parents: tuple[str, ...], z: Mapping[str, Array]) -> Any:
        """The distribution of a latent given the values of its parents."""
        conditional = self.conditionals[name]
        if is_distribution(conditional):
            return conditional
        given = [z[parent] for parent in parents]
        if name in self.noisy:
            place = [one for one, _ in self.parents].index(name)
            given.append(jax.vmap(lambda key: jax.random.fold_in(key, place))(self.keys))
        return conditional(*given)

    @property
    def noisy(self) -> list[str]:
        """The latents whose conditional takes keys."""
        return [
            name
            for name, parents in self.parents
            if not is_distribution(self.conditionals[name])
            and num_arguments(self.conditionals[name]) == len(parents) + 1
        ]

    @property
    def takes_keys(self) -> bool:
        """Whether a conditional has noise of its own."""
        return bool(self.noisy)

    def with_keys(self, keys: Key[Array, " K"]) -> "Hierarchy":
        """The same at samples of which these are the keys, for conditionals that take them."""
        return eqx.tree_at(lambda one: one.keys, self, keys, is_leaf=lambda leaf: leaf is None)

    def _at_samples(self, key: PRNGKeyArray, sample_shape: tuple[int, ...]) -> "Hierarchy":
        """The same, with the keys of samples that are drawn with this key."""
        if not self.takes_keys:
            return self
        if len(sample_shape) != 1:
            raise ValueError(
                f"The conditionals of {self.noisy} take the keys of samples: sample_shape must be"
                f" (K,); got {tuple(sample_shape)}."
            )
        of_samples = key[None] if sample_shape == (1,) else jax.random.split(key, sample_shape)
        return self.with_keys(keys_of_noise(of_samples, "posterior"))

    def check_names(self, z: Any) -> None:
        """An error if z does not have exactly the latents of the graph."""
        check_names({name for name, _ in self.parents}, z)


@reexpress.register(Hierarchy)
def _(distribution: Hierarchy, z: Any) -> dict[str, Array]:
    """Every latent given its re-expressed parents: (C.11), for the entire graph jointly."""
    distribution.check_names(z)
    path: dict[str, Array] = {}
    for name, parents in distribution.parents:
        path[name] = reexpress(distribution.conditional(name, parents, path), z[name])
    return path


@is_reparameterized.register(Hierarchy)
def _(posterior: Hierarchy, key: PRNGKeyArray, num_samples: int) -> bool:
    """Whether every conditional is."""
    answers = []

    def walk(z):
        for name, parents in posterior.parents:
            conditional = posterior.conditional(name, parents, z)
            answers.append(is_reparameterized(conditional, key, num_samples))

    jax.eval_shape(walk, jax.eval_shape(lambda: posterior.sample(key, (num_samples,))))
    return all(answers)


@move_into_support.register(Hierarchy)
def _(hierarchy: Hierarchy, z: PyTree) -> tuple[PyTree, Array | None]:
    """Every latent given its moved parents."""
    hierarchy.check_names(z)
    moved, all_inside = {}, None
    for name, parents in hierarchy.parents:
        conditional = hierarchy.conditional(name, parents, moved)
        moved[name], inside = move_into_support(conditional, z[name])
        if inside is not None:
            all_inside = inside if all_inside is None else all_inside & inside
    return moved, all_inside


@log_density_without_indirect.register(Hierarchy)
def _(part: Hierarchy, z: PyTree) -> Array:
    """No gradient passes to the parents by way of the distribution's parameters."""
    return part.log_prob(z, parent_values=jax.lax.stop_gradient(z))


@gate_by_latent.register(Hierarchy)
def _(parameters: Hierarchy, strengths: Mapping[str, Any]) -> Hierarchy:
    """The parameters of each conditional belong to its latent."""
    gated = {name: gate(part, strengths[name]) for name, part in parameters.conditionals.items()}
    return eqx.tree_at(lambda part: part.conditionals, parameters, gated)


class _Stripped(eqx.Module):
    """A conditional that returns its distribution without the factors of these kinds."""

    conditional: Any
    kinds: tuple[type, ...] = eqx.field(static=True)

    def __call__(self, *arguments: Any) -> Any:
        return strip(self.conditional(*arguments), self.kinds)

    @property
    def __wrapped__(self) -> Any:
        """Says how many arguments it takes."""
        return self.conditional


@strip.register(Hierarchy)
def _(part: Hierarchy, kinds: tuple[type, ...]) -> Hierarchy:
    """Every conditional without them."""
    stripped = {
        name: strip(one, kinds) if is_distribution(one) else _Stripped(one, kinds)
        for name, one in part.conditionals.items()
    }
    return eqx.tree_at(lambda part: part.conditionals, part, stripped)


@find_factors.register(Hierarchy)
def _(part: Hierarchy, z: PyTree) -> Found:
    """Whether any latent's density has one; an error if it depends on another latent."""
    part.check_names(z)
    found = []

    def factors(z):
        conditionals = {name: part.conditional(name, above, z) for name, above in part.parents}
        found.extend(find_factors(one, z[name]) for name, one in conditionals.items())
        return {name: factor_of(one, z[name]) for name, one in conditionals.items()}

    if any(depend(factors, z)):
        raise ValueError(
            "The factor of a density in a gdregs.Hierarchy depends on a latent, which no estimator"
            " here accounts for. Make it a constant, or put the density into the likelihood."
        )
    return Found(any(one.factors for one in found), any(one.points for one in found))


@path_with_factors.register(Hierarchy)
def _(part: Hierarchy, z: PyTree, *, drops_masked: bool) -> dict[str, Array]:
    """Each latent's own derivative has its factor; what it passes on to its children has none."""
    stopped = gated(part, 0)
    path: dict[str, Array] = {}
    for name, parents in part.parents:
        own = own_path(part.conditional(name, parents, z), z[name])
        conditional = stopped.conditional(name, parents, path)
        by_parents = path_by_parents(conditional, z[name], drops_masked=drops_masked)
        path[name] = with_path(z[name], own + by_parents)
    return path
