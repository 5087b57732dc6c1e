"""Directed acyclic graphs of latents."""

from collections.abc import Mapping
from typing import Any


def topological_order(parents: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The latents, each behind its parents.

    Raises:
        ValueError: If a parent is unknown, or the parents form a cycle; both are named.
    """
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


def _cycle(parents: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Follow parents from any latent that waits for one until a latent comes up again."""
    trail = [next(iter(parents))]
    while True:
        parent = next(name for name in parents[trail[-1]] if name in parents)
        if parent in trail:
            return trail[trail.index(parent) :]
        trail.append(parent)


def check_names(names: set[str], z: object, graph: str = "Hierarchy") -> None:
    """An error if z does not have exactly these latents."""
    if not isinstance(z, Mapping) or set(z) != names:
        given = sorted(z) if isinstance(z, Mapping) else type(z).__name__
        raise ValueError(
            f"A {graph} over the latents {sorted(names)} was given {given}; posterior and"
            f" prior must name the same latents."
        )


def check_mix(mix: Any, prior: Any, *, is_graph: bool, graphs: str) -> None:
    """An alpha for each latent needs a prior of exactly these latents.

    Args:
        mix: The prior estimator's alpha, or a mapping from latents to theirs.
        prior: The prior.
        is_graph: Whether it is one whose latents have names.
        graphs: The kinds that are.
    """
    if not isinstance(mix, Mapping):
        return
    if not is_graph:
        raise TypeError(
            f"prior_estimator: an alpha for each stochastic layer needs a prior that is a {graphs};"
            f" got {type(prior).__name__}. Give one number instead."
        )
    if set(mix) != set(prior.conditionals):
        raise ValueError(
            f"prior_estimator: the alphas are for {sorted(mix)}, but the prior's latents are"
            f" {sorted(prior.conditionals)}."
        )


def is_distribution(conditional: Any) -> bool:
    """Whether a node is a distribution itself, and not a function that returns one."""
    return all(callable(getattr(conditional, name, None)) for name in ("sample", "log_prob"))


def read_node(name: str, node: Any) -> tuple[Any, tuple[str, ...]]:
    """The conditional of a latent and its parents; an error that names it otherwise."""
    is_pair = isinstance(node, tuple) and len(node) == 2
    is_given = is_pair and (callable(node[0]) or is_distribution(node[0]))
    if not is_given or isinstance(node[1], str):
        raise TypeError(
            f"Latent {name!r} must be a pair (conditional, parents), such as (encoder, ('z1',));"
            f" got {node!r}."
        )
    conditional, parents = node
    if is_distribution(conditional) and parents:
        raise TypeError(
            f"Latent {name!r} has parents {tuple(parents)}, so its conditional must be a function"
            f" of them; got the distribution {type(conditional).__name__} itself."
        )
    return conditional, tuple(parents)
