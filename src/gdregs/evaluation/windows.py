"""Keys that look at one stretch of a stream of random numbers.

`posterior.sample(key, (K,))` draws K samples at once. To draw samples i, ..., i + k - 1 of the
*same* K alone, without the memory of the others, JAX's counter-based generator only has to count
from another number: the key `window(key, i)`, passed with the sample shape `(k,)`, does so.
Samplers that draw their noise with the sample axis first (all location-scale families, and
hierarchies of them) then return rows i, ..., i + k - 1 of the one big draw, bit for bit. Any
other sampler returns draws that are as random and independent, but other ones.
"""

import math
from typing import Any

import jax
import jax.extend.random as jer
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PRNGKeyArray

_THREEFRY = "threefry2x32"
_WHOLE = np.array([0, 0, 1], np.uint32)  # from row 0 on, part 0 of 1


def window(
    key: PRNGKeyArray,
    start: int | Int[Array, ""],
    part: int | Int[Array, ""] = 0,
    num_parts: int = 1,
) -> PRNGKeyArray:
    """The key whose numbers are those of `key` from row `start` on.

    With several parts they are, of each row, one of `num_parts` equal stretches: a shape `(k, b)`
    has rows from `start` and columns from `part * b` on of a whole with `num_parts * b` columns.

    A window on a window counts on from it. With a generator other than JAX's default one, a key of
    its own for each window instead.
    """
    key = whole(key)
    if not is_window(key):
        key = jax.random.fold_in(key, start)
        return key if num_parts == 1 else jax.random.fold_in(key, part)
    words = jax.random.key_data(key)
    parts = jnp.asarray(num_parts, jnp.uint32)
    row = words[2] + jnp.asarray(start, jnp.uint32)
    place = jnp.stack([row, words[3] * parts + jnp.asarray(part, jnp.uint32), words[4] * parts])
    return jax.random.wrap_key_data(jnp.concatenate([words[:2], place]), impl=_WINDOWED_THREEFRY)


def whole(key: PRNGKeyArray) -> PRNGKeyArray:
    """A key with the same numbers, which on a CPU take half the time to draw.

    It is the window on the whole stream, and the hash below is written out: the compiler fuses it
    into what uses the numbers. JAX's own is a loop there, which writes its state out five times.
    Keys of other generators, and windows, are returned as they are.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    # Only then is entry n of a draw a hash of n.
    counts_rows = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    if str(jax.random.key_impl(key)) != _THREEFRY or not counts_rows:
        return key
    words = jnp.concatenate([jax.random.key_data(key), _WHOLE])
    return jax.random.wrap_key_data(words, impl=_WINDOWED_THREEFRY)


def split_rows(key: PRNGKeyArray, count: int) -> Key[Array, "{count}"]:
    """A key for each of the next samples: those of `jax.random.split` from the window's row on.

    For samplers that draw each sample by itself: children of a window have its row in common, and
    would draw the numbers of the samples after them.
    """
    if not is_window(key):
        return jax.random.split(key, count)
    words = jax.random.key_data(key)
    base = jax.random.wrap_key_data(words[:2], impl=_THREEFRY)
    rows = words[2] + jnp.arange(count, dtype=jnp.uint32)
    children = jax.random.key_data(jax.vmap(lambda row: jax.random.fold_in(base, row))(rows))
    # Each starts at its first row; devices that share the columns still do.
    place = jnp.broadcast_to(words[2:].at[0].set(0), (count, 3))
    return jax.random.wrap_key_data(
        jnp.concatenate([children, place], axis=-1), impl=_WINDOWED_THREEFRY
    )


def is_window(key: PRNGKeyArray) -> bool:
    """Whether the key counts rows: `window` and `whole` make such keys of JAX's default ones."""
    return str(jax.random.key_impl(key)) == str(_WINDOWED_THREEFRY)


def _seed(seed: Array) -> Array:
    return jnp.concatenate([jer.threefry_prng_impl.seed(seed), _WHOLE])


def _split(key: Array, shape) -> Array:
    children = jer.threefry_prng_impl.split(key[:2], shape)
    place = jnp.broadcast_to(key[2:], (*children.shape[:-1], 3))
    return jnp.concatenate([children, place], axis=-1)


def _fold_in(key: Array, data: Any) -> Array:
    return jnp.concatenate([jer.threefry_prng_impl.fold_in(key[:2], data), key[2:]])


def _random_bits(key: Array, bit_width: int, shape) -> Array:
    """Entry n of the big draw is a hash of n; here n starts at the window's first entry."""
    start, part, num_parts = key[2], key[3], key[4]
    num_rows = shape[0] if len(shape) > 1 else math.prod(shape)
    row_size = math.prod(shape[1:])
    whole_row = jnp.uint32(row_size) * num_parts
    rows = jnp.arange(num_rows, dtype=jnp.uint32)[:, None] * whole_row
    columns = jnp.arange(row_size, dtype=jnp.uint32)[None, :] + part * jnp.uint32(row_size)
    count = (rows + columns).reshape(shape)
    base_high, base_low = _multiply(start, whole_row)
    low = base_low + count
    high = base_high + (low < base_low).astype(jnp.uint32)
    bits_high, bits_low = _threefry(key, high, low)
    if bit_width == 64:
        bits_high, bits_low = bits_high.astype(jnp.uint64), bits_low.astype(jnp.uint64)
        return (bits_high << jnp.uint64(32)) | bits_low
    return (bits_high ^ bits_low).astype(f"uint{bit_width}")


def _threefry(key: Array, high: Array, low: Array) -> tuple[Array, Array]:
    """The hash Threefry-2x32 of 20 rounds.

    Reference:
        Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011, Sec. 3.3.
    """
    schedule = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA)
    high, low = high + schedule[0], low + schedule[1]
    for group in range(5):
        for turn in (13, 15, 26, 6) if group % 2 == 0 else (17, 29, 16, 24):
            high = high + low
            low = (low << jnp.uint32(turn)) | (low >> jnp.uint32(32 - turn))
            low = low ^ high
        high = high + schedule[(group + 1) % 3]
        low = low + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return high, low


def _multiply(a: Array, b: Array) -> tuple[Array, Array]:
    """The high and low 32 bits of a product of two 32-bit numbers."""
    a_low, a_high = a & jnp.uint32(0xFFFF), a >> jnp.uint32(16)
    b_low, b_high = b & jnp.uint32(0xFFFF), b >> jnp.uint32(16)
    low = a_low * b_low
    middle = a_high * b_low + (low >> jnp.uint32(16))
    middle_low = (middle & jnp.uint32(0xFFFF)) + a_low * b_high
    high = a_high * b_high + (middle >> jnp.uint32(16)) + (middle_low >> jnp.uint32(16))
    return high, (middle_low << jnp.uint32(16)) | (low & jnp.uint32(0xFFFF))


_WINDOWED_THREEFRY = jer.define_prng_impl(
    key_shape=(5,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="gdregs_windowed_threefry",
    tag="gdregs",
)
