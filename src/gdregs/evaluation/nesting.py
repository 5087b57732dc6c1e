r"""Likelihoods that are random, or bounds themselves: what is right of them, and what is refused.

The identities take $\log w(z)$ to be a function of z. A likelihood with noise $\eta$ of its own is
one of $(z, \eta)$. As long as the pull sees the noise that the look has seen, that is a bound all
the same. If it sees other noise, its weights belong to other values than its gradients: for an
objective that is not linear in the log-weights this is biased, and nothing shows it. So is a doubly
reparameterized gradient inside: it is the derivative of its bound on average over $\eta$ only, and
the weights outside depend on $\eta$.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

_OUTSIDE: contextvars.ContextVar[str | None] = contextvars.ContextVar("outside", default=None)
"""What the bound around this code needs of a bound inside of its likelihood; None: nothing."""

NAIVE = "naive"
NOTHING_RIGHT = "nothing is right"

_REMEDY = {
    "posterior": "Let its conditional take the samples' keys (gdregs.Hierarchy)",
    "prior": "Let its conditional take the samples' keys (gdregs.Hierarchy)",
    "likelihood": "Let it be a function of z and keys, one for each sample",
}

DRAWING = ("random_bits", "random_gamma", "threefry2x32", "rng_bit_generator", "rng_uniform")


@contextlib.contextmanager
def _around(need: str | None) -> Iterator[None]:
    token = _OUTSIDE.set(need)
    try:
        yield
    finally:
        _OUTSIDE.reset(token)


def watched(
    likelihood: Callable[..., Any], *, is_linear: bool, sees_same_noise: bool
) -> Callable[..., Any]:
    """`likelihood`, in which a bound that would make the one around it biased is refused.

    Args:
        likelihood: z -> log p(x|z), or a function of z and the samples' keys.
        is_linear: Whether the objective around it is linear in the log-weights.
        sees_same_noise: Whether its samples are evaluated in the same shape each time.
    """
    need = None if is_linear else NAIVE if sees_same_noise else NOTHING_RIGHT

    def evaluate(*z_and_keys: Any) -> Any:
        outside = _OUTSIDE.get()
        with _around(NOTHING_RIGHT if NOTHING_RIGHT in (outside, need) else outside or need):
            return likelihood(*z_and_keys)

    evaluate.__wrapped__ = likelihood  # whose signature says whether it takes keys
    return evaluate


def refuse_inside(*, is_naive: bool) -> None:
    """An error if this bound lies in the likelihood of another one that it would make biased."""
    need = _OUTSIDE.get()
    if need is None or (need == NAIVE and is_naive):
        return
    raise ValueError(
        "A bound inside of the likelihood of another one makes that one's gradient biased: its"
        " weights depend on the noise of the inner bound. Use objective=gdregs.ELBO() outside; or"
        " posterior_estimator='naive' and prior_estimator='naive' inside and all samples"
        " (no num_gradient_samples, no chunk_size) outside; or make the inner latents nodes of one"
        " gdregs.Hierarchy beside the outer ones."
    )


def refuse_new_noise(
    part: str,
    density: Callable[..., Any],
    z: PyTree,
    sizes: set[int],
    keys: Callable[[int], Any] | None = None,
) -> None:
    """An error if a log-density draws other random numbers for other numbers of samples.

    Args:
        part: What it is the density of.
        density: z -> `[K, *batch]`, or a function of z and the keys of the samples in it.
        z: The shapes of the samples, leaves `[K, ...]`.
        sizes: How many samples are evaluated at a time.
        keys: Of so many samples, where the density takes them. What is drawn from them may differ.
    """

    def drawn(size: int) -> list[tuple[int, ...]]:
        few = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), z
        )
        given = [] if keys is None else [jax.eval_shape(functools.partial(keys, size))]
        jaxpr = jax.make_jaxpr(lambda *arguments: density(*arguments))(few, *given).jaxpr
        return list(_drawn(jaxpr, jaxpr.invars[len(jaxpr.invars) - len(given) :]))

    shapes = [drawn(size) for size in sorted(sizes)]
    if any(found != shapes[0] for found in shapes):
        raise ValueError(
            f"The {part} draws random numbers of its own, one for each sample. Where samples are"
            " evaluated again, alone or in other blocks, it would draw others, so that the gradient"
            f" is silently biased. {_REMEDY[part]}, draw them once for all samples, or make them"
            " latents."
        )


def _drawn(
    jaxpr: Any, keys: Sequence[Any], rounds: tuple[int, ...] = ()
) -> Iterator[tuple[int, ...]]:
    """The shapes of all random numbers in a program, behind the lengths of the loops around.

    Those that may depend on `keys`, some inputs of the program, are left out.
    """
    reached = set(map(id, keys))
    for equation in jaxpr.eqns:
        is_reached = [id(one) in reached for one in equation.invars]
        if any(is_reached):
            reached.update(map(id, equation.outvars))
        elif equation.primitive.name in DRAWING:
            yield (*rounds, *equation.outvars[0].aval.shape)
        inside = rounds
        if equation.primitive.name == "scan":
            inside = (*rounds, equation.params["length"])
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if not hasattr(inner, "eqns"):
                continue
            passed = inner.invars if any(is_reached) else []
            if len(inner.invars) == len(is_reached):
                passed = [v for v, one in zip(inner.invars, is_reached, strict=True) if one]
            yield from _drawn(inner, passed, inside)
