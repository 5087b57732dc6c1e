"""Small models for the tests, built from gdregs and from the parameters of `reference`."""

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist

import gdregs
import reference


class Layer(eqx.Module):
    """A conditional of `reference` as gdregs expects it: a pytree callable."""

    parameters: dict
    names: tuple[str, ...] = eqx.field(static=True)
    x: jnp.ndarray | None = None

    def __call__(self, *values):
        parents = dict(zip(self.names, values, strict=True))
        loc, scale = reference.loc_and_scale(self.parameters, parents, self.x)
        return dist.Normal(loc, scale).to_event(1)


def hierarchy(layers, graph, x=None):
    return gdregs.Hierarchy(
        {name: (Layer(layers[name], parents, x), parents) for name, parents in graph.items()}
    )


def posterior(phi, x):
    return hierarchy(phi, reference.POSTERIOR, x)


def prior(theta):
    return hierarchy(theta, reference.PRIOR)


def likelihood(lam, x):
    return lambda z: reference.likelihood(lam, z, x)
