"""Models without their initial weights, which take longer to compile than what is tested."""

import equinox as eqx
import jax
import numpy as np


def filled(make, seed=0, scale=0.4):
    """The model that `make` returns, with numpy's random numbers in all of its arrays."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jax.device_put(np.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype))

    return jax.tree.map(fill, eqx.filter_eval_shape(make))
