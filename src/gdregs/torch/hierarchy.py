"""Joint distributions over a directed acyclic graph of latents, and walks along them."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gdregs.shared.graphs import check_names, is_distribution, read_node, topological_order
from gdregs.torch.autograd import Switch, link
from gdregs.torch.reexpress import reexpress

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

    def sample(self, sample_shape: Any = ()) -> dict[str, Tensor]:
        """Draw every latent, parents first; `[*sample_shape, *batch, *event]`, without gradient."""
        z: dict[str, Tensor] = {}
        with torch.no_grad():
            for name, parents in self.parents.items():
                conditional = self.conditional(name, z)
                shape = torch.Size() if parents else torch.Size(sample_shape)
                z[name] = conditional.sample(shape)
                if z[name].shape[: len(sample_shape)] != torch.Size(sample_shape):
                    raise ValueError(
                        f"Latent {name!r} was drawn with shape {tuple(z[name].shape)}, without the"
                        f" leading axes {tuple(sample_shape)} of its parents {parents}: its"
                        f" conditional must return a distribution whose batch shape follows theirs."
                    )
        return z

    def log_prob(self, z: Latents) -> Tensor:
        r"""$\sum_l \log p(z_l \mid \mathrm{pa}(l))$, `[K, *batch]`, in nats."""
        check_names(set(self.parents), z)
        return _add_up({name: self.conditional(name, z).log_prob(z[name]) for name in self.parents})


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
    """

    log_prob: Tensor
    path: Latents


@functools.singledispatch
def walk(part: Any, leaves: Latents, needs_path: bool, switch: Switch) -> Walked:
    """The density of latents, and their path, from one evaluation of the networks.

    Args:
        part: The posterior or prior.
        leaves: Latents that are leaves of autograd's graph.
        needs_path: Whether the path is asked for.
        switch: Where derivatives go that reach a latent which has a path.
    """
    del switch
    path = reexpress(part, leaves) if needs_path else None
    return Walked(part.log_prob(leaves), path)


@walk.register(Hierarchy)
def _(part: Hierarchy, leaves: Latents, needs_path: bool, switch: Switch) -> Walked:
    """Each conditional sees its parents as leaves and as points on their path at the same time."""
    check_names(set(part.parents), leaves)
    seen, path, terms = dict(leaves), {}, {}
    for name in part.parents:
        conditional = part.conditional(name, seen)
        terms[name] = conditional.log_prob(leaves[name])
        if needs_path:
            path[name] = reexpress(conditional, leaves[name])
            seen[name] = link(leaves[name], path[name], switch)
    return Walked(_add_up(terms), path if needs_path else None)


@reexpress.register(Hierarchy)
def _(part: Hierarchy, z: Latents) -> dict[str, Tensor]:
    """Every latent given its re-expressed parents: (C.11), for the entire graph jointly."""
    check_names(set(part.parents), z)
    path: dict[str, Tensor] = {}
    for name in part.parents:
        path[name] = reexpress(part.conditional(name, path), z[name])
    return path
