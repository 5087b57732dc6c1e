"""Sites of numpyro programs: which there are, and programs that are run at given values."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.primitives import Messenger

Values = dict[str, Array]
Sites = dict[str, dict[str, Any]]


def as_is(fn: Any, value: Array, name: str) -> Array:
    """The value of a site."""
    del fn, name
    return value


class AtSites(Messenger):
    """Give each latent site the value `at(fn, value, name)`."""

    def __init__(self, z: Values, at: Callable[[Any, Array, str], Array]):
        self.z = z
        self.at = at
        super().__init__(None)

    def process_message(self, msg: Any) -> None:
        """Set the value of a site, or hand the rule on to the sites of a scan."""
        if msg["type"] == "control_flow":
            _, _, xs, length, reverse = msg["args"]
            length = len(jax.tree.leaves(xs)[0]) if length is None else length
            msg["kwargs"]["substitute_stack"].append(("substitute", self._in_scan(length, reverse)))
        elif not msg.get("_control_flow_done"):  # those of a scan come again, stacked
            value = self._value(msg, lambda value: value)
            if value is not None:
                msg["value"] = value

    def _in_scan(self, length: int, reverse: bool) -> Callable[[Any], Array | None]:
        """The same for the sites of one step of a `scan`, whose values are stacked over steps."""

        def substitute(msg):
            step = msg["infer"]["_scan_current_index"]
            step = length - 1 - step if reverse else step
            value = self._value(msg, lambda value: value[step])
            if value is None:
                return None
            missing = len(msg["fn"].shape()) - jnp.ndim(value)  # dimensions of summed latents
            return jnp.reshape(value, (1,) * missing + jnp.shape(value))

        return substitute

    def _value(self, msg: Any, choose: Callable[[Array], Array]) -> Array | None:
        if msg["type"] != "sample" or msg["is_observed"] or msg["name"] not in self.z:
            return None
        return self.at(msg["fn"], choose(self.z[msg["name"]]), msg["name"])


def sample_sites(trace: Any) -> Sites:
    """All sites of a trace that are drawn or observed."""
    return {name: site for name, site in trace.items() if site["type"] == "sample"}


def latents(sites: Sites) -> Sites:
    """The sites that are drawn: neither observed nor summed out."""
    return {
        name: site
        for name, site in sites.items()
        if not (site["is_observed"] or is_enumerated(site))
    }


def is_enumerated(site: dict[str, Any]) -> bool:
    """Whether a site is a discrete latent that is to be summed out."""
    return (
        not site["is_observed"]
        and site["infer"].get("enumerate") == "parallel"
        and site["fn"].has_enumerate_support
    )


def observed(sites: Sites) -> Sites:
    """The sites that are given, factors included."""
    return {name: site for name, site in sites.items() if site["is_observed"]}


def is_delta(fn: Any) -> bool:
    """Whether a site is a value that the program has computed."""
    return isinstance(unwrapped(fn), dist.Delta)


def unwrapped(fn: Any) -> Any:
    """A distribution without what only changes its shape."""
    while isinstance(fn, (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        fn = fn.base_dist
    return fn
