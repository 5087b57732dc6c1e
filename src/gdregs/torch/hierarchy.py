"""Joint distributions over a directed acyclic graph of latents, and walks along them."""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gdregs.shared.graphs import check_names, is_distribution, read_node, topological_order
from gdregs.torch.autograd import Switch, gate, link
from gdregs.torch.digits import warn_of_lost_digits
from gdregs.torch.gates import POSTERIOR, Gates, log_prob_of, read_factors
from gdregs.torch.reexpress import ByClass, reexpress

Latents = Any
"""A tensor, or a dict of tensors by the names of a hierarchy's latents."""


class Hierarchy(nn.Module):
    r"""A joint distribution that factorises over a directed acyclic graph of latents.

    $p(z_1, \dots, z_L) = \prod_l p(z_l \mid \mathrm{pa}(l))$, Eqs. (C.2) and (C.3).

    Args:
        nodes: For each latent, in any order, a pair `(conditional, parents)`:
            `conditional(*parents)` returns the latent's distribution; a latent without parents may
            be given as a distribution itself. Conditionals that are modules are this one's.

    Raises:
        ValueError: If a parent is unknown, or the parents form a cycle; both are named.
        TypeError: If a node is not such a pair.

    Example:
        >>> import gdregs.torch, torch
        >>> class Linear(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.slope = torch.nn.Parameter(torch.tensor(2.0))
        ...     def forward(self, parent):
        ...         return torch.distributions.Normal(self.slope * parent, 1.0)
        >>> top = torch.distributions.Normal(torch.zeros(3), 1.0)
        >>> prior = gdregs.torch.Hierarchy({"z1": (Linear(), ("z2",)), "z2": (top, ())})
        >>> z = prior.sample((10,))
        >>> z["z1"].shape, prior.log_prob(z).shape
        (torch.Size([10, 3]), torch.Size([10, 3]))

    Reference:
        Bauer and Mnih, Generalized Doubly Reparameterized Gradient Estimators, 2021, App. C.
    """

    def __init__(self, nodes: Mapping[str, Any]):
        super().__init__()
        parents: dict[str, tuple[str, ...]] = {}
        self.conditionals: dict[str, Any] = {}
        for name, node in nodes.items():
            self.conditionals[name], parents[name] = read_node(name, node)
        self.modules_of_nodes = nn.ModuleDict(
            {
                name: conditional
                for name, conditional in self.conditionals.items()
                if isinstance(conditional, nn.Module)
            }
        )
        self.parents = {name: parents[name] for name in topological_order(parents)}

    def conditional(self, name: str, values: Mapping[str, Tensor]) -> Any:
        """The distribution of a latent given the values of its parents."""
        # A copy of the module holds copies of the conditionals.
        known = self.modules_of_nodes
        conditional = known[name] if name in known else self.conditionals[name]
        if is_distribution(conditional):
            return conditional
        return conditional(*(values[parent] for parent in self.parents[name]))

    def with_conditionals(
        self,
        of_function: Callable[[str, Any], Any],
        of_distribution: Callable[[Any], Any] = lambda distribution: distribution,
    ) -> "Hierarchy":
        """A copy with other conditionals, each made from its name and the old one."""
        conditionals = {**self.conditionals, **dict(self.modules_of_nodes.items())}
        other = copy.copy(self)
        other.conditionals = {
            name: of_distribution(old) if is_distribution(old) else of_function(name, old)
            for name, old in conditionals.items()
        }
        other.__dict__["modules_of_nodes"] = {}
        return other

    def with_nodes(
        self, of_function: Callable[[Any], Any], of_distribution: Callable[[Any], Any]
    ) -> "Hierarchy":
        """A hierarchy of other nodes, each made from an old one; it holds their modules."""
        conditionals = {**self.conditionals, **dict(self.modules_of_nodes.items())}
        return Hierarchy(
            {
                name: (of_distribution(old) if is_distribution(old) else of_function(old), parents)
                for (name, parents), old in zip(
                    self.parents.items(), map(conditionals.get, self.parents), strict=True
                )
            }
        )

    def sample(self, sample_shape: Any = ()) -> dict[str, Tensor]:
        """Draw every latent, parents first; `[*sample_shape, *batch, *event]`, without gradient."""
        z: dict[str, Tensor] = {}
        with torch.no_grad():
            for name in self.parents:
                z[name] = self.draw(name, self.conditional(name, z), torch.Size(sample_shape))
        return z

    def draw(self, name: str, conditional: Any, sample_shape: torch.Size) -> Tensor:
        """Draw a latent from its conditional, which has the leading axes of its parents."""
        parents = self.parents[name]
        warn_of_lost_digits(conditional)
        z = conditional.sample(torch.Size() if parents else sample_shape)
        if z.shape[: len(sample_shape)] != sample_shape:
            raise ValueError(
                f"Latent {name!r} was drawn with shape {tuple(z.shape)}, without the leading axes"
                f" {tuple(sample_shape)} of its parents {parents}: its conditional must return a"
                f" distribution whose batch shape follows theirs."
            )
        return z

    def log_prob(self, z: Latents) -> Tensor:
        r"""$\sum_l \log p(z_l \mid \mathrm{pa}(l))$, `[K, *batch]`, in nats."""
        return self.weighted_log_prob(z, {})

    def weighted_log_prob(self, z: Latents, factors: Mapping[str, Any]) -> Tensor:
        r"""$\sum_l f_l \log p(z_l \mid \mathrm{pa}(l))$; 1 where a latent has no factor."""
        check_names(set(self.parents), z)
        terms = {name: log_prob_of(self.conditional(name, z), z[name]) for name in self.parents}
        return _add_up({name: factors.get(name, 1) * term for name, term in terms.items()})


def _add_up(terms: dict[str, Tensor]) -> Tensor:
    shapes = {name: tuple(term.shape) for name, term in terms.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"The log-densities of the latents have different shapes, {shapes}; each must be"
            f" [K, *batch]. Event axes are declared with Independent."
        )
    return functools.reduce(torch.add, terms.values())


class Walked(NamedTuple):
    """One evaluation of a distribution's networks.

    Attributes:
        log_prob: The log-density at the leaves, `[M, *batch]`.
        path: The re-expressed latents; None if none were asked for.
        plain: The log-density without the factors on it; None where there are none.
    """

    log_prob: Any
    path: Latents
    plain: Any = None


@ByClass
def walk(part: Any, leaves: Latents, needs_path: bool, switch: Switch, gates: Gates) -> Walked:
    """The density of latents, and their path, from one evaluation of the networks.

    Args:
        part: The posterior or prior.
        leaves: Latents that are leaves of autograd's graph.
        needs_path: Whether the path is asked for.
        switch: Where derivatives go that reach a latent which has a path.
        gates: How factors on densities are taken.
    """
    node = read_factors(part, gates)
    path = node.path(leaves) if needs_path else None
    if path is not None and gates.own is not None:
        strength = gates.strength(None, node.factors, leaves, gates.r)
        path = gate(path, strength, {}, {}, switch)
    log_prob, plain = node.log_probs(leaves)
    return Walked(log_prob, path, None if node.factors is None else plain)


@walk.register(Hierarchy)
def _(part: Hierarchy, leaves: Latents, needs_path: bool, switch: Switch, gates: Gates) -> Walked:
    check_names(set(part.parents), leaves)
    return walk_graph(part, lambda name, _: leaves[name], needs_path, switch, gates)


def walk_graph(
    part: Hierarchy,
    leaf_of: Callable[[str, Any], Tensor],
    needs_path: bool,
    switch: Switch,
    gates: Gates,
) -> Walked:
    """Each conditional sees its parents as leaves and as points on their path at the same time.

    Args:
        part: The hierarchy.
        leaf_of: A latent, given its name and its conditional.
        needs_path: Whether the path is asked for.
        switch: Where derivatives go that reach a latent which has a path.
        gates: How factors on densities are taken.
    """
    leaves: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    path: dict[str, Tensor] = {}
    terms: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    has_factors = False
    for name, parents in part.parents.items():
        conditional = part.conditional(name, seen)
        seen[name] = leaves[name] = leaf = leaf_of(name, conditional)
        node = read_factors(conditional, gates)
        has_factors = has_factors or node.factors is not None
        terms[name], plain[name] = node.log_probs(leaf)
        if needs_path:
            path[name] = node.path(leaf)
            if gates.own is not None:
                strength = gates.strength(name, node.factors, leaf, gates.r)
                above = {parent: leaves[parent] for parent in parents}
                path[name] = gate(path[name], strength, above, path, switch)
            seen[name] = link(leaf, path[name], switch)
    log_prob = _add_up(terms)
    return Walked(log_prob, path if needs_path else None, _add_up(plain) if has_factors else None)


def draw_and_walk(
    part: Any, sample_shape: torch.Size, needs_path: bool, switch: Switch
) -> tuple[Latents, Walked]:
    """Draw latents, which are leaves, and walk: a hierarchy's networks run once for both."""
    draws_itself = isinstance(part, Hierarchy) and (
        type(part).sample is Hierarchy.sample and type(part).log_prob is Hierarchy.log_prob
    )
    if not draws_itself:
        warn_of_lost_digits(part)
        z = part.sample(sample_shape)
        leaves: Any = (
            {n: as_leaf(v) for n, v in z.items()} if isinstance(z, Mapping) else as_leaf(z)
        )
        return leaves, walk(part, leaves, needs_path, switch, POSTERIOR)
    leaves = {}

    def leaf_of(name: str, conditional: Any) -> Tensor:
        leaves[name] = as_leaf(part.draw(name, conditional, sample_shape))
        return leaves[name]

    walked = walk_graph(part, leaf_of, needs_path, switch, POSTERIOR)
    return leaves, walked


def as_leaf(value: Tensor) -> Tensor:
    """A value that can be differentiated by, if anything is differentiated at all."""
    leaf = value.detach().requires_grad_(torch.is_grad_enabled())
    if torch.is_grad_enabled():
        leaf.is_latent = True  # pyright: ignore[reportAttributeAccessIssue]
    return leaf


@reexpress.register(Hierarchy)
def _(part: Hierarchy, z: Latents) -> dict[str, Tensor]:
    """Every latent given its re-expressed parents: (C.11), for the entire graph jointly."""
    check_names(set(part.parents), z)
    path: dict[str, Tensor] = {}
    for name in part.parents:
        path[name] = reexpress(part.conditional(name, path), z[name])
    return path
