r"""numpyro programs as the three parts of a bound.

A guide is a posterior and a model is a prior and a likelihood: `gdregs.bound` needs samples,
log-densities and re-expression of them, and gets each by running the program under effect handlers.
Latents are a dict by site; each leaf has the axes `[K, *batch, ...]`, where `*batch` are the plates
that enclose every site. Sites are re-expressed in the order in which their program runs them, so
that a site sees its parents move.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, PRNGKeyArray, PyTree
from numpyro import handlers
from numpyro.primitives import Messenger

from gdregs.evaluation.gates import gated
from gdregs.numpyro.sites import (
    AtSites,
    Sites,
    Values,
    as_is,
    is_delta,
    latents,
    observed,
    sample_sites,
    unwrapped,
)
from gdregs.reexpression.factors import (
    Found,
    find_factors,
    own_path,
    path_by_parents,
    path_with_factors,
    strip,
)
from gdregs.reexpression.paths import refuse_differentiation, with_path
from gdregs.reexpression.reexpress import NoReexpressionError, reexpress
from gdregs.reexpression.reparameterized import is_reparameterized
from gdregs.reexpression.support import move_into_support


class Layout(NamedTuple):
    """Where the enclosing plates are, and how sites add up over all others.

    Attributes:
        dims: The negative dimensions of the plates that enclose every site, in order.
        scale: The factor by which these plates stand for data that were not subsampled.
        event_dims: The number of event axes of each latent.
    """

    dims: tuple[int, ...]
    scale: float
    event_dims: tuple[tuple[str, int], ...]

    def to_front(self, values: Values) -> Values:
        """Move the enclosing plates of each value (of one particle) to its front."""
        return {name: self._move(name, value, forth=True) for name, value in values.items()}

    def to_place(self, values: Values) -> Values:
        """Undo `to_front`."""
        return {name: self._move(name, value, forth=False) for name, value in values.items()}

    def _move(self, name: str, value: Array, *, forth: bool) -> Array:
        axes = [jnp.ndim(value) - dict(self.event_dims)[name] + dim for dim in self.dims]
        front = list(range(len(axes)))
        return jnp.moveaxis(value, *((axes, front) if forth else (front, axes)))

    def add_up(self, sites: list[dict[str, Any]]) -> Array:
        """The log-densities of sites, summed over all but the enclosing plates."""
        total = jnp.zeros(())
        for site in sites:
            # Known of a value that was drawn just now: a flow is not inverted.
            is_folded = isinstance(unwrapped(site["fn"]), dist.FoldedDistribution)  # takes none
            known = [site["intermediates"]] if site.get("intermediates") and not is_folded else []
            try:
                log_prob = site["fn"].log_prob(site["value"], *known)
            except NotImplementedError as error:
                raise ValueError(
                    f"Site {site['name']!r}: the density of its {type(site['fn']).__name__} is"
                    f" known only along its own sampler ({error}) A bound evaluates it at given"
                    f" values; use a guide with an inverse, such as AutoIAFNormal, or numpyro's"
                    f" Trace_ELBO."
                ) from None
            if site["scale"] is not None:
                log_prob = log_prob * (site["scale"] / self.scale)
            log_prob = self.reduce(jnp.sum, log_prob)
            total = log_prob + jnp.broadcast_to(total, log_prob.shape)
        return total

    def reduce(self, operation: Callable[..., Array], values: Array) -> Array:
        """Apply a reduction over all batch axes but those of the enclosing plates."""
        others = [axis for axis in range(values.ndim) if axis - values.ndim not in self.dims]
        return operation(values, axis=tuple(others))


class Program(eqx.Module):
    """A numpyro program, its parameters and its arguments."""

    function: Callable = eqx.field(static=True)
    layout: Layout = eqx.field(static=True)
    params: dict[str, PyTree]
    plates: dict[str, Array]  # the indices that each plate has drawn
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    has_factors: bool = eqx.field(static=True, default=False, kw_only=True)
    stripped: tuple[type, ...] = eqx.field(static=True, default=(), kw_only=True)

    def run(self, handler: Messenger) -> Sites:
        """Run the program for one particle under a handler; returns its sample sites.

        The densities of latents lack the `stripped` kinds of factors.
        """
        args, kwargs = self.arguments
        handler.fn = handlers.substitute(self.function, data={**self.params, **self.plates})
        sites = sample_sites(handlers.trace(handler).get_trace(*args, **kwargs))
        if self.stripped:
            for name, site in latents(sites).items():
                sites[name] = {**site, "fn": strip(site["fn"], self.stripped), "scale": None}
        return sites

    def is_moved(self, name: str) -> bool:
        """Whether the program has a path for a latent."""
        del name
        return True

    def path_of(self, name: str) -> Callable[[Any, Array], Array]:
        """The rule by which a site's value follows its distribution."""
        return lambda fn, value: moved(fn, value, name)

    def follow(self, z: Values, path: Values) -> Values:
        """The path of all latents, from that of those which have one."""
        del z
        return path


class Guide(Program):
    """The posterior."""

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Values:
        """Draw particles."""
        return self._of_each(lambda key: self._draw(key)[0], key, sample_shape)

    def sample_and_log_prob(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Any:
        """The same particles with their log-density, from one run."""

        def draw(key):
            z, sites = self._draw(key)
            batch = next(iter(z.values())).shape[: len(self.layout.dims)]
            return z, jnp.broadcast_to(self.layout.add_up(list(sites.values())), batch)

        return self._of_each(draw, key, sample_shape)

    def _of_each(
        self, draw: Callable[[PRNGKeyArray], Any], key: PRNGKeyArray, sample_shape: tuple[int, ...]
    ) -> Any:
        """A particle with the key itself, or several with the keys that numpyro splits it into."""
        if sample_shape in ((), (1,)):
            found = draw(key)
            return jax.tree.map(lambda leaf: leaf[None], found) if sample_shape else found
        return jax.vmap(draw)(jax.random.split(key, sample_shape))

    def _draw(self, key: PRNGKeyArray) -> tuple[Values, Sites]:
        """One particle, and the sites that it was drawn at."""
        _, guide_key = jax.random.split(key)
        sites = self.run(handlers.seed(rng_seed=guide_key))
        values = {name: site["value"] for name, site in latents(sites).items()}
        return self.layout.to_front(values), sites

    def families(self, key: PRNGKeyArray) -> list[Any]:
        """The distributions of all latents, without what only changes their shape."""
        found: list[Any] = []

        def draw(key):
            sites = latents(self._draw(key)[1])
            found.extend(unwrapped(site["fn"]) for site in sites.values())

        jax.eval_shape(draw, key)
        return found

    def log_prob(self, z: Values) -> Array:
        """The guide's log-density; what it computes from other sites (`Delta`) it computes anew."""

        def at(fn, value, name):
            del name
            if not is_delta(fn):
                return value
            computed = jax.lax.stop_gradient(fn(rng_key=jax.random.key(0)))
            return computed + (value - jax.lax.stop_gradient(value))

        def one(z):
            batch = next(iter(z.values())).shape[: len(self.layout.dims)]
            sites = self.run(AtSites(self.layout.to_place(z), at))
            return jnp.broadcast_to(self.layout.add_up(list(sites.values())), batch)

        return jax.vmap(one)(z)

    def without_latents(self) -> Array:
        """The log-density of what a guide without latents observes, `[*batch]`."""
        return self.layout.add_up(list(self.run(AtSites({}, as_is)).values()))


class Model(Program):
    """The prior, and with it the likelihood."""

    inverses: Any = eqx.field(static=True)  # auxiliary sites of the guide as functions of latents
    drawn: tuple[str, ...] = eqx.field(static=True)  # what the guide draws
    is_subsampled: bool = eqx.field(static=True)  # whether a plate is
    points: tuple[str, ...] = eqx.field(static=True)  # latents of which the guide has one value

    def log_prob(self, z: Values) -> Array:
        """The log-density of the latents that are drawn."""
        return self._evaluate(z, lambda sites: self._split(sites)[0])

    def likelihood(self, z: Values) -> Array:
        """The log-density of the observed sites, and of points, given the latents."""
        return self._evaluate(z, lambda sites: self._split(sites)[1])

    def _split(self, sites: Sites) -> tuple[Sites, Sites]:
        points = {name: sites[name] for name in self.points if name in sites}
        drawn = {name: site for name, site in latents(sites).items() if name not in points}
        return drawn, {**observed(sites), **points}

    def without_latents(self) -> Array:
        """The log-density of a model that has no latents, `[*batch]`."""
        return self.layout.add_up(list(observed(self.run(AtSites({}, as_is))).values()))

    def is_moved(self, name: str) -> bool:
        """Whether the prior has a path for a latent."""
        return name not in self.points

    def path_of(self, name: str) -> Callable[[Any, Array], Array]:
        """The rule by which a site's value follows its distribution, if that is learned."""
        return lambda fn, value: _moved_lazily(fn, value, name)

    def follow(self, z: Values, path: Values) -> Values:
        """Move what the guide drew the latents from so that they follow their path."""
        auxiliary = sorted(set(z) - set(path))
        return {**path, **{n: _follow(n, z, path, self.inverses.get(n)) for n in auxiliary}}

    def _evaluate(self, z: Values, choose: Callable[[Sites], Sites]) -> Array:
        def one(z):
            batch = next(iter(z.values())).shape[: len(self.layout.dims)]
            sites = self.run(AtSites(self.layout.to_place(z), as_is))
            return jnp.broadcast_to(self.layout.add_up(list(choose(sites).values())), batch)

        return jax.vmap(one)(z)


@move_into_support.register(Model)
def _(model: Model, z: Values) -> tuple[Values, Array]:
    """Move each latent into its support given those before it."""

    def one(z):
        def move(fn, value, name):
            return move_into_support(fn, value)[0] if model.is_moved(name) else value

        moved = latents(model.run(AtSites(z, move)))
        moved = {name: site for name, site in moved.items() if model.is_moved(name)}
        inside = [move_into_support(site["fn"], z[name])[1] for name, site in moved.items()]
        z = model.layout.to_front({**z, **{name: s["value"] for name, s in moved.items()}})
        batch = next(iter(z.values())).shape[: len(model.layout.dims)]
        flags = [
            jnp.ones((), bool) if flag is None else model.layout.reduce(jnp.all, flag)
            for flag in inside
        ]
        together = jnp.ones(batch, bool)
        for flag in flags:
            together &= jnp.broadcast_to(flag, batch)
        return z, together

    return jax.vmap(lambda z: one(model.layout.to_place(z)))(z)


@is_reparameterized.register(Guide)
def _(guide: Guide, key: PRNGKeyArray, num_samples: int) -> bool:
    """Whether numpyro can differentiate the sampler of every site."""
    del num_samples
    return all(isinstance(fn, dist.Delta) or fn.has_rsample for fn in guide.families(key))


@reexpress.register(Program)
def _(program: Program, z: Values) -> Values:
    """The path of every latent, and of those that the guide drew it from."""

    def at(fn, value, name):
        return program.path_of(name)(fn, value) if program.is_moved(name) else value

    return jax.vmap(lambda z: _path(program, program.layout.to_place(z), at))(z)


@strip.register(Program)
def _(program: Program, kinds: tuple[type, ...]) -> Program:
    """Masks and scales of latents, by distributions and handlers alike."""
    return dataclasses.replace(program, stripped=kinds)


@find_factors.register(Program)
def _(program: Program, z: Any) -> Found:
    """As a first run has found. The likelihood has the points' densities."""
    del z
    return Found(program.has_factors, points=False)


@path_with_factors.register(Program)
def _(program: Program, z: Values, *, drops_masked: bool) -> Values:
    """Each site's own derivative has its factor; what it passes on to others has none."""

    def own(site, z):
        name, fn, scale = site["name"], site["fn"], site["scale"]
        if not program.is_moved(name):
            return z
        scale = 1.0 if scale is None else scale / program.layout.scale
        scale = jnp.reshape(scale, jnp.shape(scale) + (1,) * fn.event_dim)
        return own_path(fn, z, scale, program.path_of(name))

    def passed_on(fn, value, name):
        path = value
        if program.is_moved(name):
            find = program.path_of(name)
            path = path_by_parents(fn, value, drops_masked=drops_masked, path_of=find)
        return with_path(value, path + value)  # the second one's derivative is the site's own

    def one(z):
        z = program.layout.to_place(z)
        sites = latents(program.run(AtSites(z, as_is)))
        moved = {**z, **{name: own(site, z[name]) for name, site in sites.items()}}
        return _path(gated(program, 0), moved, passed_on)

    return jax.vmap(one)(z)


def _path(program: Program, z: Values, at: Callable[[Any, Array, str], Array]) -> Values:
    """The path of one particle whose latents are in place, by that of each site; at the front."""
    sites = program.run(AtSites(z, at))
    path = {name: site["value"] for name, site in latents(sites).items()}
    return program.layout.to_front(program.follow(z, path))


def _follow(name: str, z: Values, path: Values, inverse: Callable | None) -> Array:
    """An auxiliary site, moved so that the latents that are computed from it follow their path."""
    if inverse is not None:
        return with_path(z[name], inverse(path))
    error = TypeError(
        f"The guide draws the auxiliary site {name!r}, which gdregs cannot compute back from the"
        f" latents. Use prior_estimator='naive'."
    )
    total = sum(jnp.sum(refuse_differentiation(leaf, error)) for leaf in path.values())
    return with_path(z[name], z[name] + jnp.asarray(0 * total, z[name].dtype))


def moved(fn: Any, value: Array, name: str) -> Array:
    """The value of a site, along the path of its distribution."""
    try:
        return reexpress(fn, value)
    except NoReexpressionError as error:
        raise NoReexpressionError(f"site {name!r}: {error}") from None


def _moved_lazily(fn: Any, value: Array, name: str) -> Array:
    """A site without a rule is no obstacle as long as nothing that is learned would move it."""
    try:
        return reexpress(fn, value)
    except NoReexpressionError as error:
        refusal = TypeError(f"prior: site {name!r}: {error} Or use prior_estimator='naive'.")
        leaves = filter(eqx.is_inexact_array, jax.tree.leaves(fn))
        total = sum(jnp.sum(refuse_differentiation(leaf, refusal)) for leaf in leaves)
        return with_path(value, value + jnp.asarray(0 * total, jnp.result_type(value)))
