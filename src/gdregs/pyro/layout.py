"""Where the axes of a program's values are, and the sums of its sites' log-densities."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from gdregs.pyro.factors import Site, factors_of
from gdregs.torch.gates import Gates, Node

Values = dict[str, Tensor]
Sites = dict[str, Site]


class Layout(NamedTuple):
    """Where the axes of a value are.

    Attributes:
        dims: The negative dimensions of the plates that enclose every site, in order.
        scale: The factor by which these plates stand for data that were not subsampled.
        event_dims: The number of event axes of each latent.
        particles: The negative dimension of the plate of particles; None runs them one by one.
    """

    dims: tuple[int, ...]
    scale: float
    event_dims: dict[str, int]
    particles: int | None

    @property
    def kept(self) -> tuple[int, ...]:
        """The dimensions that a log-density keeps."""
        return self.dims if self.particles is None else (self.particles, *self.dims)

    def to_front(self, values: Values) -> Values:
        """Move the kept axes of the values of a run to their fronts."""
        return {name: self._move(name, value, forth=True) for name, value in values.items()}

    def to_place(self, values: Values) -> Values:
        """Undo `to_front`."""
        return {name: self._move(name, value, forth=False) for name, value in values.items()}

    def _move(self, name: str, value: Tensor, *, forth: bool) -> Tensor:
        places = [value.ndim - self.event_dims[name] + dim for dim in self.kept]
        front = list(range(len(places)))
        return value.movedim(*((places, front) if forth else (front, places)))

    def add_up(self, sites: Sites, size: int, values: Values) -> Tensor:
        """The log-densities of sites of a run, summed over all but the kept axes.

        Args:
            sites: The sites.
            size: How many particles the run is of.
            values: Latents in their places, which tell the sizes of the plates.
        """
        return self._sum((self._log_prob(site) for site in sites.values()), size, values)

    def add_up_latents(
        self, sites: Sites, size: int, values: Values, gates: Gates
    ) -> tuple[Tensor, Tensor]:
        """Those of latents with their factors, and without; see `add_up`."""
        found = [self._log_probs(site, gates) for site in sites.values()]
        with_factors, plain = ([pair[i] for pair in found] for i in (0, 1))
        total = self._sum(with_factors, size, values)
        is_same = all(one is other for one, other in found)
        return total, total if is_same else self._sum(plain, size, values)

    def place(self, values: Tensor) -> Tensor:
        """Numbers `[*batch]` of a run, with particles in front of them, as its sites have them."""
        rank = max((-dim for dim in self.kept), default=0)
        sizes = dict(zip(self.kept, values.shape, strict=True))
        return values.reshape([sizes.get(dim, 1) for dim in range(-rank, 0)])

    def _sum(self, terms: Iterable[Tensor], size: int, values: Values) -> Tensor:
        total = torch.zeros(())
        for name, value in list(values.items())[:1]:
            rank = value.ndim - self.event_dims[name]
            lead = [value.shape[rank + dim] for dim in self.dims]
            lead = lead if self.particles is None else [size, *lead]
            total = torch.zeros(lead, dtype=value.dtype, device=value.device)
        for term in terms:
            total = total + self.reduce(term)
        return total

    def _log_prob(self, site: Site) -> Tensor:
        with _naming_a_density(site):
            log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
        return scale_and_mask(log_prob, site["scale"] / self.scale, site["mask"])

    def _log_probs(self, site: Site, gates: Gates) -> tuple[Tensor, Tensor]:
        with _naming_a_density(site):
            return Node(site["fn"], factors_of(site, self.scale), gates).log_probs(site["value"])

    def reduce(self, log_prob: Any) -> Tensor:
        """Sum over all batch axes but those that are kept."""
        log_prob = torch.as_tensor(log_prob)
        rank = max((-dim for dim in self.kept), default=0)
        log_prob = log_prob.reshape((1,) * (rank - log_prob.ndim) + tuple(log_prob.shape))
        others = [axis for axis in range(log_prob.ndim) if axis - log_prob.ndim not in self.kept]
        return log_prob.sum(others) if others else log_prob


@contextlib.contextmanager
def _naming_a_density(site: Site) -> Iterator[None]:
    """Say of which site the density is not known."""
    try:
        yield
    except (NotImplementedError, KeyError) as error:
        raise ValueError(
            f"Site {site['name']!r}: the density of its {type(site['fn']).__name__} is known"
            f" only along its own sampler ({error!r}). A bound evaluates it at given values;"
            f" use a guide with an inverse, or pyro's Trace_ELBO."
        ) from None
