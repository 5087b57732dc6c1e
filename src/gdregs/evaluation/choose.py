"""Choose the samples that matter, without bias."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gdregs.evaluation import resampling
from gdregs.evaluation.look import Look, Weighed
from gdregs.evaluation.meshes import Axis
from gdregs.evaluation.weights import Model

_RESAMPLING = 2**32 - 1
"""Number n of what a key is split into is `fold_in(key, n)`: nobody has so many nodes or steps."""


def choose(look: Look, num_kept: int) -> tuple[Weighed, Float[Array, "*batch"]]:
    r"""Keep M samples by Fearnhead-Clifford resampling on |v|, with $v \leftarrow v/\pi$.

    Devices that share the samples keep the same M as one device would, and return equal shares of
    them: they tell each other their M largest scores and how far their own sampling goes (two
    gathers), and then hand over the samples that they found (one sum).
    """
    model, (_, batch, dtype, devices) = look.model, look.shape

    def scores(block):
        return jnp.abs(look.coefficients(block)[0])

    own_largest = look.fold(
        lambda largest, block: resampling.merge_scores(largest, scores(block), num_kept),
        look.no_scores(num_kept),
    )
    largest = resampling.largest_of_all(own_largest, devices)
    offset = draw_offset(model, batch, dtype)
    sweep = resampling.start_sweep(resampling.find_threshold(largest), offset)
    sweep, share = resampling.share_of_slots(sweep, own_largest, devices)

    def fill(carry, block):
        sweep, slots = carry
        v, r = look.coefficients(block)
        sweep, kept, probabilities = resampling.sweep_block(sweep, jnp.abs(v))
        weighed = Weighed(block.z, v / jnp.where(probabilities > 0, probabilities, 1), r)
        return sweep, resampling.fill_slots(slots, kept, jnp.abs(v), weighed, num_kept)

    _, slots = look.fold(fill, (sweep, look.empty_slots(num_kept)))
    slots = resampling.put_together(slots, share, devices)
    v = jnp.where(slots.scores > 0, slots.contents.v, 0)
    total = jnp.sum(largest.scores, axis=0) + largest.rest
    kept = jnp.sum(slots.scores, axis=0) / jnp.where(total > 0, total, 1)
    return _own_share(slots.contents._replace(v=v), devices), kept


def draw_offset(model: Model, batch: tuple[int, ...], dtype: Any) -> Float[Array, "*batch"]:
    """Where systematic sampling begins, one uniform number for each datapoint."""
    key = jax.random.fold_in(model.key, _RESAMPLING)
    if batch:
        key = model.data.own_key(key, batch[0])
    return jax.random.uniform(key, batch, dtype)


def _own_share(chosen: Weighed, devices: Axis) -> Weighed:
    """This device's slots; where they do not come out even, the first one fills in, weightless."""
    missing = -chosen.v.shape[0] % devices.size

    def own(slots, padding):
        return devices.own_rows(jnp.concatenate([slots, jnp.repeat(padding, missing, axis=0)]))

    z = jax.tree.map(lambda leaf: own(leaf, leaf[:1]), chosen.z)
    return Weighed(z, *(own(values, jnp.zeros_like(values[:1])) for values in chosen[1:]))
