"""Guides none of whose latents depends on another: their networks run once for density and path."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from gdregs.evaluation.weights import draw_and_remember
from gdregs.numpyro.programs import Guide, Layout, moved
from gdregs.numpyro.sites import AtSites, Values, as_is, is_delta, latents
from gdregs.reexpression.reexpress import reexpress
from gdregs.reexpression.reparameterized import depend


class Independent(eqx.Module):
    """The distributions of a guide's sites, as one run of it has them, whatever the latents.

    Its density and its path share that run, so that its gradient goes back through the guide's
    networks once, and for one particle.
    """

    distributions: dict[str, Any]
    scales: dict[str, Any]
    layout: Layout = eqx.field(static=True)

    def log_prob(self, z: Values) -> Array:
        """The guide's log-density."""

        def one(z):
            batch = next(iter(z.values())).shape[: len(self.layout.dims)]
            sites = [
                {"name": name, "fn": fn, "value": value, "scale": self.scales[name]}
                for name, (fn, value) in self._pairs(z).items()
            ]
            return jnp.broadcast_to(self.layout.add_up(sites), batch)

        return jax.vmap(one)(z)

    def _pairs(self, z: Values) -> dict[str, tuple[Any, Array]]:
        values = self.layout.to_place(z)
        return {name: (fn, values[name]) for name, fn in self.distributions.items()}


@reexpress.register(Independent)
def _(posterior: Independent, z: Values) -> Values:
    """The path of every site."""

    def one(z):
        paths = {name: moved(*pair, name) for name, pair in posterior._pairs(z).items()}
        return posterior.layout.to_front(paths)

    return jax.vmap(one)(z)


@draw_and_remember.register(Guide)
def _(posterior: Guide, keys: Key[Array, " K"]) -> Any:
    """Draw from a guide; where its latents are independent, its distributions are remembered."""
    shapes = jax.eval_shape(lambda: posterior.sample(keys[0], ()))
    anywhere = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    try:
        if any(depend(lambda z: _distributions(posterior, z), anywhere)):
            return None
    except _OtherSitesError:
        return None
    z, log_posterior = jax.vmap(lambda key: posterior.sample_and_log_prob(key, ()))(keys)

    def recalled(posterior: Guide) -> Any:
        one = {name: jax.lax.stop_gradient(value[0]) for name, value in z.items()}
        return Independent(*_distributions(posterior, one), posterior.layout)

    return z, log_posterior, recalled


class _OtherSitesError(Exception):
    """A guide does not consist of distributions alone that it draws from."""


class _AtSites(AtSites):
    """Sites at given values, none of which is in a loop."""

    def process_message(self, msg: Any) -> None:
        """As for any run at given values."""
        if msg["type"] == "control_flow":
            raise _OtherSitesError
        super().process_message(msg)


def _distributions(posterior: Guide, z: Values) -> tuple[dict[str, Any], dict[str, Any]]:
    """By site, what a guide draws from and the scale of its density."""
    sites = posterior.run(_AtSites(posterior.layout.to_place(z), as_is))
    if sites.keys() != z.keys() or len(latents(sites)) < len(sites):
        raise _OtherSitesError
    if any(is_delta(site["fn"]) for site in sites.values()):
        raise _OtherSitesError
    return (
        {name: site["fn"] for name, site in sites.items()},
        {name: site["scale"] for name, site in sites.items()},
    )
