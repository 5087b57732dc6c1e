"""Where a cotangent leaves a density for the sampling paths."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from gdregs.reexpression.paths import align, with_path


def fork(
    z: PyTree,
    alive: Bool[Array, "K *batch"],
    *paths: tuple[PyTree, Float[Array, "K *batch"]],
) -> PyTree:
    r"""Return `z`, bit for bit; send `share * cotangent` down each `(path, share)`.

    Each crossing from a density to a sampling path is scaled here, once. The sampling graphs
    themselves stay unscaled; factors put on z's own cotangent would compound along
    $z_1 \to z_2$ in a hierarchy.

    Args:
        z: Latents, each leaf `[K, *batch, *event]`.
        alive: Where a sample has weight. Elsewhere the cotangent is 0, whatever it was (NaN too).
        paths: Pairs of a re-expression of `z` and the share of the cotangent that it receives.
    """
    if not paths:
        return jax.lax.stop_gradient(z)

    def blend(value: Array, *path_values: Array) -> Array:
        mixed = sum(
            align(share, value) * path_value
            for path_value, (_, share) in zip(path_values, paths, strict=True)
        )
        return jnp.where(align(alive, value), mixed, jnp.zeros_like(value))

    blended = jax.tree.map(blend, z, *(path for path, _ in paths))
    return with_path(jax.lax.stop_gradient(z), blended)
