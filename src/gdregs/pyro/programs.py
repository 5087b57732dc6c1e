r"""Pyro programs as the three parts of a bound.

Latents are a dict by site; each tensor has the axes `[K, *batch, ...]`, where `*batch` are the
plates that enclose every site. Sites are re-expressed in the order in which their program runs
them, so that a site sees its parents move. Particles run all at once, in an outermost plate, or one
after another.
"""

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from gdregs.pyro.factors import Site, factors_of
from gdregs.pyro.layout import Sites, Values
from gdregs.torch.autograd import Strength, Switch, gate, link, with_path
from gdregs.torch.gates import POSTERIOR, PRIOR, Gates, Node, not_constant
from gdregs.torch.hierarchy import Walked, walk
from gdregs.torch.random_state import generators, states
from gdregs.torch.reexpress import NoReexpressionError

At = Callable[[Site], Tensor | None]
"""From a site that is drawn, as Pyro's handlers have left it, to its value."""


PARTICLES = "num_particles_vectorized"
"""The name that Pyro gives to the plate of all particles."""


class Program:
    """A Pyro program, its arguments, and what all runs of one step have in common.

    A network's own randomness (dropout) is the same in all of them: the numbers that latents and
    plates are drawn from are kept apart from it.
    """

    gates: Gates  # how factors on its latents' densities are taken

    def __init__(self, function: Callable, arguments: Any, particles: int | None, plates: Values):
        self.function = function
        self.arguments = arguments
        self.particles = particles
        self.plates = plates  # the indices that each plate has drawn
        self.seed = zlib.crc32(torch.get_rng_state().numpy().tobytes())  # without drawing
        self.has_drawn: Any = None  # where the program's own random numbers ended
        self.layout: Any = None

    def run(self, size: int, at: At | None = None) -> Sites:
        """Run the program for some particles; returns its sample sites."""
        args, kwargs = self.arguments
        streams = Streams(self.seed)
        with contextlib.ExitStack() as stack:
            stack.enter_context(streams)
            recorder = stack.enter_context(poutine.trace())
            stack.enter_context(AtSites(at, self.plates, streams))
            if self.particles is not None:
                stack.enter_context(pyro.plate(PARTICLES, size, dim=self.particles))
            self.function(*args, **kwargs)
            self._check_noise(streams.state())
        nodes: Any = recorder.trace.nodes
        for name, site in nodes.items():
            is_plate = site["type"] == "sample" and site_is_subsample(site)
            if is_plate and name != PARTICLES:
                self.plates.setdefault(name, site["value"])
        return samples(recorder.trace)

    def _check_noise(self, state: Tensor) -> None:
        if self.has_drawn is None:
            self.has_drawn = state
        if not torch.equal(self.has_drawn, state):
            raise ValueError(
                "A network of model or guide draws random numbers of its own, such as dropout's,"
                " one for each particle. The backward pass runs on other blocks of particles than"
                " the look (num_gradient_samples, chunk_size), and would draw others, so that the"
                " gradient is silently biased. Leave both options out, or use"
                " vectorize_particles=False."
            )

    def runs(self, z: Values) -> Iterator[tuple[Values, int]]:
        """The particles z as the program sees them: all at once, or one after another."""
        size = len(next(iter(z.values())))
        if self.particles is not None:
            yield self.layout.to_place(z), size
            return
        for k in range(size):
            yield self.layout.to_place({name: value[k] for name, value in z.items()}), 1

    def of_run(self, numbers: Tensor, number: int) -> Tensor:
        """Of numbers `[K, *batch]` those of a run."""
        return numbers if self.particles is not None else numbers[number]

    def gather(self, blocks: list[Any]) -> Any:
        """What single runs gave, on one axis of particles."""
        join = torch.stack if self.particles is None else torch.cat
        if isinstance(blocks[0], dict):
            return {name: join([one[name] for one in blocks]) for name in blocks[0]}
        return join(blocks)

    def log_prob(self, z: Values) -> Tensor:
        """The log-density of the latents z, `[K, *batch]`."""

        def add_up(sites: Sites, size: int, values: Values) -> Tensor:
            return self.layout.add_up_latents(self.drawn(sites), size, values, self.gates)[0]

        return self._log_prob_of(z, add_up)

    def _log_prob_of(self, z: Values, add_up: Callable[[Sites, int, Values], Tensor]) -> Tensor:
        """The log-density of some sites at the latents z, `[K, *batch]`."""
        terms = []
        for values, size in self.runs(z):
            sites = self.run(size, lambda site, values=values: self.given(site, values))
            terms.append(add_up(sites, size, values))
        return self.gather(terms)

    def drawn(self, sites: Sites) -> Sites:
        """The sites whose densities are those of the posterior or prior."""
        return latents(sites)

    def given(self, site: Site, values: Values) -> Tensor | None:
        """The value of a latent site; None leaves it to the program."""
        return None if self.computes(site["fn"]) else values.get(site["name"])

    def computes(self, fn: Any) -> bool:
        """Whether the value of a site is computed from others, and not drawn."""
        del fn
        return False

    def moves(self, name: str) -> bool:
        """Whether a latent has a path."""
        del name
        return True

    def follow(self, path: Values, values: Values) -> Values:
        """The path of all latents, from that of those which the program draws."""
        del values
        return path


class Guide(Program):
    """The posterior."""

    gates = POSTERIOR
    flows: frozenset[str] = frozenset()  # computed sites whose density has parameters

    def drawn(self, sites: Sites) -> Sites:
        """The latents without those whose density is differentiated as the likelihood is."""
        return {name: site for name, site in latents(sites).items() if name not in self.flows}

    def log_prob_of_flows(self, z: Values) -> Tensor:
        """The log-density of those, `[K, *batch]`."""

        def add_up(sites: Sites, size: int, values: Values) -> Tensor:
            flows = {name: sites[name] for name in self.flows}
            return self.layout.add_up(flows, size, values)

        return self._log_prob_of(z, add_up)

    def computes(self, fn: Any) -> bool:
        """What a guide computes from other sites (`Delta`) it computes anew."""
        return is_delta(fn)


class Model(Program):
    """The prior, and with it the likelihood."""

    gates = PRIOR
    inverses: dict[str, Callable]  # auxiliary sites of the guide as functions of latents
    points: frozenset[str] = frozenset()  # latents of which the guide has one value

    def likelihood(self, z: Values) -> Tensor:
        """The log-density of the observed sites, and of points, given the latents."""

        def add_up(sites: Sites, size: int, values: Values) -> Tensor:
            points = {name: sites[name] for name in self.points if name in sites}
            return self.layout.add_up({**observed(sites), **points}, size, values)

        return self._log_prob_of(z, add_up)

    def drawn(self, sites: Sites) -> Sites:
        """The latents without points."""
        return {name: site for name, site in latents(sites).items() if self.moves(name)}

    def moves(self, name: str) -> bool:
        """Whether a latent has a path: a point has none in the prior."""
        return name not in self.points

    def follow(self, path: Values, values: Values) -> Values:
        """Move what the guide drew the latents from so that they follow their path."""
        path = dict(path)
        for name in set(values) - set(path):
            if name not in self.inverses:
                raise NoReexpressionError(
                    f"the guide draws the auxiliary site {name!r}, which gdregs cannot compute back"
                    f" from the latents."
                )
            path[name] = with_path(values[name], self.inverses[name](path, values[name]))
        return path


@walk.register(Program)
def _(part: Program, leaves: Values, needs_path: bool, switch: Switch, gates: Gates) -> Walked:
    """Each site sees its parents as leaves and as points on their path at the same time."""
    paths, terms, plain = [], [], []
    gates = gates._replace(has_samples=part.particles is not None)
    first: Sites = {}
    for number, (values, size) in enumerate(part.runs(leaves)):
        path: Values = {}
        strengths: dict[str, Strength] = {}

        def at(
            site: Site,
            values: Values = values,
            path: Values = path,
            strengths: dict[str, Strength] = strengths,
        ) -> Tensor | None:
            fn, name = site["fn"], site["name"]
            if name not in values:
                return None
            if part.computes(fn):
                path[name] = fn.rsample()
                return path[name]
            if needs_path and not part.moves(name):
                path[name] = values[name].detach()
                return values[name]
            if not needs_path:
                return values[name]
            path[name] = moved(site, values[name], gates)
            if gates.own is not None:
                strengths[name] = Strength(own=None)
                above = {one: values[one] for one in path if one != name}
                path[name] = gate(path[name], strengths[name], above, path, switch)
            return link(values[name], path[name], switch)

        sites = part.run(size, at)
        first = first or sites
        if gates.refuses and not gates.has_samples:
            check_factors(sites, first)
        for name, strength in strengths.items():
            r = None if gates.r is None else part.layout.place(part.of_run(gates.r, number))
            factors = factors_of(sites[name], part.layout.scale)
            strength.become(gates.strength(name, factors, values[name], r))
        found = part.layout.add_up_latents(part.drawn(sites), size, values, gates)
        terms.append(found[0])
        plain.append(found[1])
        if needs_path:
            paths.append(part.layout.to_front(part.follow(path, values)))
    has_factors = any(one is not other for one, other in zip(terms, plain, strict=True))
    return Walked(
        part.gather(terms),
        part.gather(paths) if needs_path else None,
        part.gather(plain) if has_factors else None,
    )


def check_factors(sites: Sites, others: Sites) -> None:
    """An error if the factors on latents' densities are not those of another particle."""
    for name, site in latents(sites).items():
        one, other = factors_of(site), factors_of(others[name])
        if (one is None) != (other is None) or (one and other and one.differs_from(other)):
            raise not_constant()


def moved(site: Site, value: Tensor, gates: Gates) -> Tensor:
    """The path of a site; an error names it."""
    try:
        return Node(site["fn"], factors_of(site), gates).path(value)
    except NoReexpressionError as error:
        raise NoReexpressionError(f"site {site['name']!r}: {error}") from None


class Streams:
    """Random numbers of a program's own, the same in each run, and those of its latents.

    As a context it lets the program draw from a stream of its own; `of_latents` lets what happens
    inside draw from PyTorch's generators as they were.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.other: Any = None

    def state(self) -> Tensor:
        """Where the present stream is, the GPUs' together with the CPU's."""
        return torch.cat([state.cpu() for state in states()])

    def __enter__(self) -> "Streams":
        self.other = states()
        for generator in generators():
            generator.manual_seed(self.seed)
        return self

    def __exit__(self, *error: Any) -> None:
        self._swap()

    @contextlib.contextmanager
    def of_latents(self) -> Iterator[None]:
        """PyTorch's own stream."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        here = states()
        for generator, state in zip(generators(), self.other, strict=True):
            generator.set_state(state)
        self.other = here


class AtSites(Messenger):
    """Give each site that is drawn its value: that of `at(site)`, or a draw of its own."""

    def __init__(self, at: At | None, plates: Values, streams: Streams):
        super().__init__()
        self.at, self.plates, self.streams = at, plates, streams

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or msg["value"] is not None:
            return
        name, fn = msg["name"], msg["fn"]
        value = None
        with self.streams.of_latents():
            if site_is_subsample(msg):
                value = self.plates.get(name)
            elif self.at is not None:
                value = self.at(msg)
            if value is None:
                value = fn(*msg["args"], **msg["kwargs"])
        msg["value"], msg["done"] = value, True


def samples(trace: Any) -> Sites:
    """The sample sites of a trace, without those that plates draw their indices by."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def latents(sites: Sites) -> Sites:
    """The sites that are drawn."""
    return {name: site for name, site in sites.items() if not site["is_observed"]}


def observed(sites: Sites) -> Sites:
    """The sites that are given, factors included."""
    return {name: site for name, site in sites.items() if site["is_observed"]}


def without_observed(guide: Any) -> Any:
    """The guide; one that is an effect on its model (`AutoMessenger`) runs what that observes."""
    if not isinstance(poutine.unwrap(guide), Messenger):
        return guide
    return poutine.block(guide, hide_fn=lambda site: bool(site.get("is_observed")))


def is_delta(fn: Any) -> bool:
    """Whether a site is a value that the program has computed."""
    while hasattr(fn, "base_dist") and not isinstance(fn, dist.TransformedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)
